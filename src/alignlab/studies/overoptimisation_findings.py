"""From the worlds of `reward_overoptimisation` to its findings: verdicts, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignlab.stats.interval import Interval
from alignlab.stats.paired import bootstrap_mean, compare
from alignlab.studies.findings import Cell, Evidence, Expectation, Figure, Findings, Table, judge
from alignlab.studies.overoptimisation_plan import Plan

GAO = "Gao et al. 2022"
UNIT = "deviations of the policy's answers"
EXPECTATIONS = {
    "bon-turn": Expectation(
        "Best-of-n against the proxy of fewest comparisons: gold falls after its peak", "below 0",
        f"{GAO}, Figure 1", f"gold at the largest n less at its best, {UNIT}",
    ),
    "rl-turn": Expectation(
        "PPO against the proxy of fewest comparisons: gold falls after its peak", "below 0",
        f"{GAO}, Figure 1", f"gold at the end less at its best, {UNIT}",
    ),
    "rl-turn-most": Expectation(
        "PPO against the proxy of most comparisons: gold falls after its peak", "below 0",
        f"{GAO}, Figure 1", f"gold at the end less at its best, {UNIT}",
    ),
    "proxy-rises": Expectation(
        "From gold's peak on, PPO still raises the proxy of most comparisons", "above 0",
        f"{GAO}, Figure 1", "proxy at the end less at gold's peak, deviations of the policy's answers",
    ),
    "higher": Expectation(
        "With the most comparisons for the proxy, gold's peak under PPO is higher than with the fewest", "above 0",
        f"{GAO}, section 3.3", f"gold gained at the peak, most less fewest comparisons, {UNIT}",
    ),
    "later": Expectation(
        "With the most comparisons for the proxy, gold's peak under PPO comes later than with the fewest", "above 0",
        f"{GAO}, section 3.3", "sqrt(KL) at the peak, most less fewest comparisons",
    ),
    "cost": Expectation(
        "For the same gold, PPO spends more KL than best-of-n", "above 0", f"{GAO}, section 3.5",
        "nats of KL for four fifths of the lower of the two peaks, PPO less best-of-n, proxy of most comparisons",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """One curve of one world in a few numbers."""

    fall: float
    """Gold at the end less at its best, each prompt at the point that is best on others."""
    distance: float
    """sqrt(KL) at gold's peak."""
    gold: float
    """Gold gained there."""
    proxy_after: float
    """Proxy at the end less there."""


def summaries(record: Mapping[str, Any]) -> dict[str, Summary]:
    """Of every curve of a world, by name."""
    from alignlab.studies.overoptimisation_experiment import curve_of
    from alignlab.studies.overoptimisation_world import best_place

    found = {}
    for name, one in record["curves"].items():
        curve = curve_of(one)
        distance, gold, proxy = best_place(curve)
        end = float(curve.gain("proxy").mean(axis=0)[-1])
        found[name] = Summary(float(record["falls"][name]["estimate"]), distance, gold, end - proxy)
    return found


def costs(record: Mapping[str, Any], proxy: str) -> tuple[float, float]:
    """KL of best-of-n and of PPO for four fifths of the lower of their two peaks of gold."""
    from alignlab.studies.overoptimisation_experiment import curve_of
    from alignlab.studies.overoptimisation_world import kl_for

    both = [curve_of(record["curves"][f"{route}, {proxy}"]) for route in ("best of n", "rl")]
    level = 0.8 * min(float(curve.gain("gold").mean(axis=0).max()) for curve in both)
    return kl_for(both[0], level), kl_for(both[1], level)


def evidence(records: Sequence[Mapping[str, Any]], plan: Plan) -> dict[str, Evidence]:
    """What bears on the claims, one number a world."""
    few, most = str(plan.proxies[0]), str(plan.proxies[-1])
    told = [summaries(record) for record in records]
    kl = [costs(record, most) for record in records]
    none = [0.0] * len(records)

    def each(name: str, field: str) -> list[float]:
        return [float(getattr(one[name], field)) for one in told]

    pairs: dict[str, tuple[list[float], list[float], bool]] = {
        "bon-turn": (none, each(f"best of n, {few}", "fall"), False),
        "rl-turn": (none, each(f"rl, {few}", "fall"), False),
        "rl-turn-most": (none, each(f"rl, {most}", "fall"), False),
        "proxy-rises": (none, each(f"rl, {most}", "proxy_after"), True),
        "higher": (each(f"rl, {few}", "gold"), each(f"rl, {most}", "gold"), True),
        "later": (each(f"rl, {few}", "distance"), each(f"rl, {most}", "distance"), True),
        "cost": ([one[0] for one in kl], [one[1] for one in kl], True),
    }
    return {name: Evidence(compare(a, b, higher_is_better=up)) for name, (a, b, up) in pairs.items()}


def findings(records: Sequence[Mapping[str, Any]], plan: Plan) -> Findings:
    """The findings of one run of the study."""
    claims = judge(EXPECTATIONS, evidence(records, plan))
    told = [summaries(record) for record in records]
    names = dict(zip(EXPECTATIONS, claims, strict=True))
    falls = [names[key] for key in ("bon-turn", "rl-turn", "rl-turn-most")]
    words = "; ".join(f"{claim.statement}: {claim.observed} ({claim.verdict})" for claim in falls)
    return Findings(
        summary=f"{plan.seeds} worlds. {words}.",
        claims=tuple(claims),
        tables=(_table(records, told), _by_world(told)),
        figures=tuple(_figure(records[0], size) for size in dict.fromkeys((plan.proxies[0], plan.proxies[-1]))),
        method=_method(plan),
        limitations=_LIMITS,
        numbers={"worlds": list(records)},
    )


def _table(records: Sequence[Mapping[str, Any]], told: Sequence[Mapping[str, Summary]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name in told[0]:
        cells = [
            _mean([float(getattr(one[name], field)) for one in told])
            for field in ("distance", "gold", "fall", "proxy_after")
        ]
        proxy = name.rpartition(", ")[2]
        rows.append((name, _mean([record["agreement"][proxy] for record in records]), *cells, _turned(records, name)))
    columns = (
        "optimised",
        "proxy agrees with gold",
        "peak at sqrt(KL)",
        "gold there",
        "gold after",
        "proxy after",
        "fit turned in",
    )
    caption = (
        "Means over worlds with 95 % intervals over worlds; rewards in deviations of the policy's answers. "
        "The number is the proxy's comparisons. Last: worlds in which Gao et al.'s fitted form turns within what was "
        "measured, whole interval."
    )
    return Table("Peak and fall", columns, tuple(rows), caption)


def _turned(records: Sequence[Mapping[str, Any]], name: str) -> str:
    turned = sum((record["fits"][name] or {}).get("verdict") == "turned" for record in records)
    return f"{turned} of {len(records)}"


def _by_world(told: Sequence[Mapping[str, Summary]]) -> Table:
    names = list(told[0])
    rows: list[tuple[Cell, ...]] = [(i, *(round(one[name].fall, 3) for name in names)) for i, one in enumerate(told)]
    return Table("Gold at the end less at its best, by world", ("world", *names), tuple(rows))


def _mean(values: Sequence[float]) -> Interval:
    return bootstrap_mean(np.asarray(values, dtype=np.float64))


def _figure(record: Mapping[str, Any], size: int) -> Figure:
    from alignlab.align.reward_validation.curves import fit_curve
    from alignlab.align.reward_validation.figures import overoptimisation_figure
    from alignlab.studies.overoptimisation_experiment import curve_of

    names = [f"best of n, {size}", f"rl, {size}"]
    curves = [curve_of(record["curves"][name]) for name in names]
    fits = [fit_curve(curve, n_resamples=200) for curve in curves]
    drawn = overoptimisation_figure(curves, fits, names=names)
    for curve, colour in zip(curves, ("black", "grey"), strict=True):
        peak = int(curve.gold.mean(axis=0).argmax())
        drawn.add_scatter(
            name=f"gold's peak, {curve.kind}", mode="markers", x=[float(curve.distance[peak])],
            y=[float(curve.gain("gold").mean(axis=0)[peak])],
            marker={"symbol": "star", "size": 14, "color": colour},
        )  # fmt: skip
    text = "First world, intervals over prompts. Blue the proxy, orange gold; stars are gold's highest points."
    return Figure(f"Proxy of {size} comparisons", drawn, text)


def _method(plan: Plan) -> tuple[str, ...]:
    world = plan.world
    return (
        f"Each of {plan.seeds} worlds has its own gold reward, policy and proxies. An answer has up to {world.answer} "
        "of 31 letters. Gold is the sum of the letters' worths (normal), of pairs beside each other "
        f"(deviation {world.pairs:g}), less {world.repetition:g} for every two equal letters: what recurs adds ever "
        "less. The policy is a random transformer, which repeats itself little, so that comparisons of its answers "
        "say little about repetition.",
        f"A proxy is a reward model on the policy's trunk with adapters of rank 8, trained on "
        f"{', '.join(map(str, plan.proxies))} comparisons of the policy's answers without errors in the labels.",
        f"Best-of-n: {plan.samples} answers to each of {plan.prompts} prompts, every n by the unbiased estimator. PPO: "
        f"{plan.steps} batches of {plan.batch}, KL coefficient {plan.kl:g}, every weight free, measured on the same "
        "prompts, from which it does not learn.",
        "Peak and fall by prompt, each at the point that is best on other prompts. Claims: one number a world, paired "
        "within it; sign-flip tests and bootstrap intervals over worlds; Holm over all claims.",
    )


_LIMITS = (
    "The world was made so that the mechanism is there: gold dislikes what the policy seldom does at first. It shows "
    "that the measurement finds a turn where there is one, not how strong the effect is in language models.",
    "Gold is a formula without noise, and proxies see perfect labels.",
    "Proxies and policy are tiny, and share their trunk; PPO's curves are one run each.",
)
