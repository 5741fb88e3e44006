"""From the trainings of `autoregressive_families` to its findings: verdicts, tables, figures and texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignlab.core.rng import derive_seed
from alignlab.stats.interval import Interval
from alignlab.stats.paired import bootstrap_mean, compare
from alignlab.studies.family_figures import curve, quality_table, side_by_side
from alignlab.studies.family_plan import Corpus, Plan
from alignlab.studies.findings import Evidence, Expectation, Figure, Findings, Table, judge

Records = dict[str, dict[str, Any]]
KAPLAN = "Kaplan et al. 2020, Figure 7"
EXPECTATIONS = {
    "transformer-ngram": Expectation(
        "At equal data, with the most text, the transformer predicts better than the n-gram model",
        "lower bits per byte",
        "Bengio et al. 2003 for neural models against n-grams; Al-Rfou et al. 2019 for transformers over characters",
        "bits per byte, transformer minus n-gram",
    ),
    "lstm-ngram": Expectation(
        "At equal data, with the most text, the LSTM predicts better than the n-gram model",
        "lower bits per byte; in words 30.0 against 67.6 perplexity on the One Billion Word benchmark",
        "Jozefowicz et al. 2016, Table 1",
        "bits per byte, LSTM minus n-gram",
    ),
    "little-data": Expectation(
        "With the least text, the n-gram model predicts better than the transformer",
        "lower bits per byte: smoothing is a strong prior, and a transformer has to learn everything",
        "our own expectation",
        "bits per byte, n-gram minus transformer",
    ),
    "little-compute": Expectation(
        "With the least compute, the LSTM predicts better than the transformer",
        "lower bits per byte: LSTMs do as well on tokens early in the context, where small models are",
        KAPLAN,
        "bits per byte, LSTM minus transformer",
    ),
    "much-compute": Expectation(
        "With the most compute, the transformer predicts better than the LSTM",
        "lower bits per byte, because it uses long contexts better",
        KAPLAN,
        "bits per byte, transformer minus LSTM",
    ),
}


@dataclass(frozen=True)
class Results:
    """Everything that was trained and scored."""

    corpus: Corpus
    plan: Plan
    seeds: list[int]
    ngram: dict[int, dict[str, Any]]
    by_data: Records
    by_compute: Records
    rates: dict[str, float]

    def at_data(self, family: str, n: int) -> list[dict[str, Any]]:
        """For each seed the record with `n` bytes of text, of the size that read the tuning text best."""
        if family == "ngram":
            return [self.ngram[n]]
        suffix = f"-data-{n}-seed-"
        return self._best({k: v for k, v in self.by_data.items() if suffix in k}, family)

    def at_compute(self, family: str, budget: float) -> list[dict[str, Any]]:
        """For each seed the record of that budget, of the size that read the tuning text best."""
        part = f"-flops-{budget:.0e}-seed-".replace("+", "")
        return self._best({k: v for k, v in self.by_compute.items() if part in k}, family)

    def _best(self, records: Records, family: str) -> list[dict[str, Any]]:
        own = [record for record in records.values() if record["family"] == family]
        by_seed = [[record for record in own if record["seed"] == seed] for seed in self.seeds]
        return [min(rows, key=lambda record: record["tuning"]) for rows in by_seed]


def findings(results: Results, seed: int) -> Findings:
    """The findings of one run of the study."""
    plan = results.plan
    claims = tuple(judge(EXPECTATIONS, evidence(results, seed)))
    most, largest = plan.train_bytes[-1], plan.budgets[-1]
    quality = quality_table(
        results.corpus, plan, {f: results.at_data(f, most) for f in ("ngram", "lstm", "transformer")}, seed
    )
    return Findings(
        summary=_summary(results, seed),
        claims=claims,
        figures=(
            Figure("At equal data", _figure(results, seed, "data"), _data_caption(results)),
            Figure("At equal compute", _figure(results, seed, "compute"), _compute_caption(results)),
        ),
        tables=(_data_table(results, seed), _compute_table(results, seed), quality),
        examples=side_by_side(
            results.corpus, plan, {f: results.at_data(f, most)[0] for f in ("ngram", "lstm", "transformer")}
        ),
        method=_method(results),
        numbers={
            "bits_per_byte": {
                "data": {f: {str(n): _mean(results.at_data(f, n)) for n in plan.train_bytes} for f in _FAMILIES},
                "compute": {f: {f"{b:.3g}": _mean(results.at_compute(f, b)) for b in plan.budgets} for f in _NEURAL},
            },
            "learning_rates": results.rates,
            "largest": {"bytes": most, "flops": largest},
            "trainings": {
                name: {key: value for key, value in record.items() if key != "samples"}
                for name, record in (results.by_data | results.by_compute).items()
            },
            "ngram": {str(n): {k: v for k, v in r.items() if k != "samples"} for n, r in results.ngram.items()},
        },
    )


_NEURAL = ("lstm", "transformer")
_FAMILIES = ("ngram", *_NEURAL)
_NAMES = {"ngram": "n-gram", "lstm": "LSTM", "transformer": "transformer"}


def evidence(results: Results, seed: int) -> dict[str, Evidence]:
    """Paired over the same validation blocks, the mean over seeds; each seed's own difference beside it."""
    plan = results.plan
    least, most = plan.train_bytes[0], plan.train_bytes[-1]
    small, large = plan.budgets[0], plan.budgets[-1]
    pairs = {
        "transformer-ngram": (results.at_data("ngram", most), results.at_data("transformer", most)),
        "lstm-ngram": (results.at_data("ngram", most), results.at_data("lstm", most)),
        "little-data": (results.at_data("transformer", least), results.at_data("ngram", least)),
        "little-compute": (results.at_compute("transformer", small), results.at_compute("lstm", small)),
        "much-compute": (results.at_compute("lstm", large), results.at_compute("transformer", large)),
    }
    found = {}
    for name, (other, expected_lower) in pairs.items():
        comparison = compare(
            _blocks(other), _blocks(expected_lower), higher_is_better=False, seed=derive_seed(seed, "compare", name)
        )
        a, b = _by_seed(other, len(results.seeds)), _by_seed(expected_lower, len(results.seeds))
        found[name] = Evidence(comparison, tuple(float(y - x) for x, y in zip(a, b, strict=True)))
    return found


def _by_seed(records: list[dict[str, Any]], seeds: int) -> list[float]:
    """Bits per byte in each seed; the n-gram model has one record, which is the same in all."""
    values = [float(np.mean(record["blocks"])) for record in records]
    return values * seeds if len(values) == 1 else values


def _blocks(records: list[dict[str, Any]]) -> NDArray[np.float64]:
    """Bits per byte of each validation block, the mean over seeds, (blocks,)."""
    return np.mean([record["blocks"] for record in records], axis=0)  # type: ignore[no-any-return]


def _interval(records: list[dict[str, Any]], seed: int) -> Interval:
    return bootstrap_mean(_blocks(records), seed=derive_seed(seed, "interval"))


def _mean(records: list[dict[str, Any]]) -> float:
    return float(_blocks(records).mean())


def _average(records: list[dict[str, Any]], key: str) -> float:
    return float(np.mean([record[key] for record in records]))


def _spread(records: list[dict[str, Any]]) -> str:
    values = [float(np.mean(record["blocks"])) for record in records]
    return f"{min(values):.3f} to {max(values):.3f}" if len(values) > 1 else "–"


def _sizes(records: list[dict[str, Any]]) -> str:
    if "order" in records[0]:
        return f"order {records[0]['order']}"
    return ", ".join(dict.fromkeys(record["size"] for record in records))


def _data_table(results: Results, seed: int) -> Table:
    rows = []
    for n in results.plan.train_bytes:
        for family in _FAMILIES:
            records = results.at_data(family, n)
            bits = _interval(records, seed)
            flops = _average(records, "flops") if family != "ngram" else None
            rows.append(
                (
                    _NAMES[family], n, bits, 2**bits.estimate, _spread(records), _sizes(records),
                    round(_average(records, "parameters")), f"{flops:.1e}" if flops else "–",
                    round(_average(records, "seconds"), 2), _best_at(records),
                )
            )  # fmt: skip
    columns = (
        "family", "text (bytes)", "bits per byte", "perplexity per byte", "range over seeds", "size", "parameters",
        "FLOPs", "seconds", "best weights after",
    )  # fmt: skip
    caption = (
        "Parameters of an n-gram model: the n-grams it stores. Best weights after: the share of its training when the "
        "model read the tuning text best; where that is 100 %, more passes might help it further."
    )
    return Table("Equal data", columns, tuple(rows), caption)


def _best_at(records: list[dict[str, Any]]) -> str:
    return f"{_average(records, 'best_at'):.0%}" if "best_at" in records[0] else "–"


def _compute_table(results: Results, seed: int) -> Table:
    rows = []
    for budget in results.plan.budgets:
        for family in _NEURAL:
            records = results.at_compute(family, budget)
            bits = _interval(records, seed)
            rows.append(
                (
                    _NAMES[family], f"{_average(records, 'flops'):.2e}", bits, _spread(records), _sizes(records),
                    round(_average(records, "tokens")), round(_average(records, "seconds"), 2),
                )
            )  # fmt: skip
    counted = results.at_data("ngram", results.plan.compute_bytes)
    rows.append(
        (
            _NAMES["ngram"], "–", _interval(counted, seed), "–", _sizes(counted), counted[0]["tokens"],
            round(counted[0]["seconds"], 2),
        )
    )  # fmt: skip
    columns = ("family", "FLOPs", "bits per byte", "range over seeds", "size", "bytes read", "seconds")
    return Table("Equal compute", columns, tuple(rows))


def _figure(results: Results, seed: int, kind: str) -> Any:
    plan = results.plan
    if kind == "data":
        series = {
            _NAMES[f]: [(float(n), _interval(results.at_data(f, n), seed)) for n in plan.train_bytes] for f in _FAMILIES
        }
        return curve(series, "training text (bytes)")
    series = {_NAMES[f]: [(b, _interval(results.at_compute(f, b), seed)) for b in plan.budgets] for f in _NEURAL}
    counted = _mean(results.at_data("ngram", plan.compute_bytes))
    return curve(series, "training compute (estimated FLOPs)", level=("n-gram", counted))


def _data_caption(results: Results) -> str:
    return (
        f"Bits per byte of {len(results.corpus.validation):,} validation bytes; bars are 95 % bootstrap intervals over "
        f"blocks of {results.plan.block} bytes, of the mean over {len(results.seeds)} seed(s)."
    )


def _compute_caption(results: Results) -> str:
    return (
        f"The same at equal estimated training FLOPs on {results.plan.compute_bytes:,} bytes of training text; the "
        "dotted line is the n-gram model of that text."
    )


def _summary(results: Results, seed: int) -> str:
    most, largest = results.plan.train_bytes[-1], results.plan.budgets[-1]
    data = ", ".join(f"{_NAMES[f]} {_mean(results.at_data(f, most)):.3f}" for f in _FAMILIES)
    compute = ", ".join(f"{_NAMES[f]} {_mean(results.at_compute(f, largest)):.3f}" for f in _NEURAL)
    return (
        f"Bits per byte on {results.corpus.name}. At equal data ({most:,} bytes): {data}. "
        f"At equal compute ({largest:.1e} FLOPs): {compute}."
    )


def _method(results: Results) -> tuple[str, ...]:
    plan = results.plan
    return (
        f"The text is {results.corpus.name}: its first {plan.compute_bytes:,} bytes to learn from, the next "
        f"{plan.tuning_bytes:,} to choose by, the next {plan.validation_bytes:,} to score. All families predict bytes, "
        "so no tokenizer stands between them. Smaller amounts of training text are the last part of the larger ones.",
        f"N-gram: interpolated modified Kneser-Ney smoothing, the order from {plan.orders} that reads the tuning text "
        "best. Neural: the size and the weights that read the tuning text best, chosen in each seed; learning rates "
        + (
            f"from {plan.learning_rates}, chosen in short trainings: "
            + ", ".join(f"{name} {rate:g}" for name, rate in results.rates.items())
            if len(plan.learning_rates) > 1
            else f"{plan.learning_rates[0]:g}"
        )
        + f". Both read windows of {plan.length} bytes, {plan.batch} an update, with AdamW and a cosine schedule.",
        f"At equal data the neural families pass over the text {plan.passes} times, and the best weights on the way "
        "count, so more compute is spent on them than on counting. At equal compute it is the estimated training FLOPs "
        "that are equal (6 for each weight of a product and byte, and the transformer's attention), not the seconds: a "
        "recurrent network uses the machine less well, which the measured seconds show. Choosing among sizes and "
        "learning rates is not counted. An n-gram model has no comparable FLOPs; its seconds are in the table.",
        "Every validation byte is scored once, with at least half a window of true text before it. Intervals are about "
        "the text: blocks are drawn again, seeds are not; a verdict also needs every seed to agree in sign.",
    )
