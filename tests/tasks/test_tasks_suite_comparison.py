"""Runs against each other: planted differences are found, equal models are tied, and missing scores decide nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from alignlab.__main__ import main
from alignlab.core.errors import ConfigError, DataError
from alignlab.lm.types import Completion
from alignlab.stats.power import minimum_detectable_effect
from alignlab.tasks import Sample, Score, Task, evaluate
from alignlab.tasks.evaluation import Evaluation, SampleResult
from alignlab.tasks.suite_comparison import compare_suites, detectable_difference
from alignlab.tasks.suite_report import results, text_table

Values = Sequence[float | None]
Captured = pytest.CaptureFixture[str]


def evaluation(
    values: Values, task: str = "quiz", model: str = "m", clusters: Sequence[str] | None = None, higher: bool = True
) -> Evaluation:
    results = [
        SampleResult(
            f"i{k}",
            "?",
            Completion("", (), (), "stop"),
            Score.unscorable("crash") if v is None else Score(float(v)),
            cluster=None if clusters is None else clusters[k],
            metadata={},
        )
        for k, v in enumerate(values)
    ]
    header = {"task": task, "model": model, "dataset": "d", "scorer": "s", "score_range": [0.0, 1.0], "seed": 0}
    return Evaluation.build({**header, "higher_is_better": higher}, results, Path("logs"))


def holding(template: Evaluation, values: Sequence[float]) -> Evaluation:
    """Other unbounded scores in the same evaluation; its aggregate, which would take a bootstrap, stays."""
    rows = [SampleResult(r.id, "?", None, Score(float(v))) for r, v in zip(template.results, values, strict=True)]
    return dataclasses.replace(template, header={**template.header, "score_range": None}, results=tuple(rows))


def pair(a: Values, b: Values, **kwargs: object) -> dict[str, dict[str, Evaluation]]:
    return {"a": {"quiz": evaluation(a, **kwargs)}, "b": {"quiz": evaluation(b, **kwargs)}}  # type: ignore[arg-type]


def test_a_planted_difference_is_found_in_the_tasks_own_direction() -> None:
    a, b = [0.0, 1.0] * 50, [1.0, 1.0] * 40 + [0.0, 1.0] * 10
    for higher, verdict in ((True, "better"), (False, "worse")):
        (row,) = compare_suites(pair(a, b, higher=higher)).rows
        assert row.verdict == verdict
        assert row.comparison.difference.estimate == pytest.approx(0.4)
        assert row.comparison.adjusted_p == row.comparison.p_value < 1e-9


def test_holm_runs_over_all_tasks_and_models() -> None:
    rng = np.random.default_rng(0)
    base = {t: evaluation(rng.integers(0, 2, 60).tolist(), t) for t in ("one", "two", "three")}
    other = {t: evaluation(rng.integers(0, 2, 60).tolist(), t) for t in ("one", "two", "three")}
    third = {t: evaluation(rng.integers(0, 2, 60).tolist(), t) for t in ("one", "two")}
    found = compare_suites({"a": base, "b": other, "c": third}, n_resamples=1000)
    assert [(r.task, r.a, r.b) for r in found.rows] == [
        ("one", "a", "b"), ("one", "a", "c"), ("two", "a", "b"), ("two", "a", "c")
    ]  # fmt: skip
    assert found.left_out == {"three": ("a", "b")}
    smallest = min(found.rows, key=lambda r: r.comparison.p_value).comparison
    assert smallest.adjusted_p == pytest.approx(min(1.0, 4 * smallest.p_value))
    every = compare_suites({"a": base, "b": other, "c": third}, against="all", n_resamples=1000)
    assert len(every.rows) == 6


@pytest.mark.no_cover
@pytest.mark.slow
def test_equal_models_are_tied_at_the_nominal_rate() -> None:
    """120 times five tasks on which both models have the same chance: any false verdict in at most 5 % (+ 3 sd)."""
    rng = np.random.default_rng(1)
    wrong, template = 0, evaluation([0.0] * 80)
    for _ in range(120):
        suites: dict[str, dict[str, Evaluation]] = {"a": {}, "b": {}}
        for task in "vwxyz":
            ability = rng.beta(2, 2, 80)
            for name in suites:
                suites[name][task] = holding(template, (rng.random(80) < ability).astype(float).tolist())
        wrong += any(row.verdict != "tied" for row in compare_suites(suites, n_resamples=200).rows)
    assert wrong <= 0.05 * 120 + 3 * (0.05 * 0.95 * 120) ** 0.5


@pytest.mark.no_cover
def test_the_detectable_difference_is_detected_as_often_as_it_says() -> None:
    """A true effect of the detectable size is found in about 80 of 100 comparisons (250 draws: +- 8 %)."""
    rng = np.random.default_rng(2)
    sd, n = 0.3, 120
    size = minimum_detectable_effect(sd, n)
    assert detectable_difference(np.resize([-1.0, 1.0], n) * sd * np.sqrt((n - 1) / n), None, 0.05, 0.8) == (
        pytest.approx(size, rel=1e-9)
    )
    hits, template = 0, evaluation([0.0] * n)
    for _ in range(250):
        a = rng.uniform(0.4, 0.6, n)
        b = a + rng.normal(size, sd, n)
        suites = {name: {"quiz": holding(template, values)} for name, values in (("a", a), ("b", b))}
        hits += compare_suites(suites, n_resamples=300).rows[0].verdict == "better"
    assert 0.72 <= hits / 250 <= 0.88


def test_clusters_make_less_detectable() -> None:
    rng = np.random.default_rng(3)
    clusters = [f"p{k // 5}" for k in range(100)]
    shared = np.repeat(rng.normal(0, 1, 20), 5)
    alone = detectable_difference(shared, None, 0.05, 0.8)
    whole = detectable_difference(shared, clusters, 0.05, 0.8)
    assert alone is not None
    assert whole is not None
    assert 1.8 < whole / alone < 2.7  # sqrt of the design effect 5, and t with 19 degrees of freedom
    assert detectable_difference([0.0] * 10, None, 0.05, 0.8) is None
    assert detectable_difference([0.5], None, 0.05, 0.8) is None


def test_missing_scores_that_could_change_the_answer_are_the_verdict() -> None:
    a, b = [0.0] * 20 + [1.0] * 20, [1.0] * 10 + [0.0] * 10 + [1.0] * 20
    assert compare_suites(pair(a, b)).rows[0].verdict == "better"
    few: Values = [*b[:39], None]
    assert compare_suites(pair(a, few)).rows[0].verdict == "better"  # one cannot
    many: Values = [*b[:26], *[None] * 14]
    row = compare_suites(pair(a, many)).rows[0]
    assert row.comparison.verdict == "better"
    assert row.verdict == "not robust: unscorable"
    assert row.comparison.n_unscorable == 14


def test_what_cannot_be_compared() -> None:
    one = {"quiz": evaluation([0, 1, 1])}
    with pytest.raises(DataError, match="at least two runs, got 1"):
        compare_suites({"a": one})
    with pytest.raises(DataError, match="no task in common: a has quiz; b has other"):
        compare_suites({"a": one, "b": {"other": evaluation([0, 1, 1], "other")}})
    with pytest.raises(DataError, match="hold different samples"):
        compare_suites({"a": one, "b": {"quiz": evaluation([0, 1])}})
    with pytest.raises(ConfigError, match="allowed: 0 < alpha < power < 1"):
        compare_suites({"a": one, "b": one}, alpha=0.9)


def logged(folder: Path, model: str, values: Values) -> Path:
    """A real log of one task."""
    dataset = [Sample(f"i{k}", "?", metadata={"v": v}) for k, v in enumerate(values)]
    by_id = dict(zip([s.id for s in dataset], values, strict=True))
    plain = [Sample(s.id, "?") for s in dataset]

    def solver(sampler: object, samples: Sequence[Sample]) -> list[Completion]:
        return [Completion("", (), (), "stop") for _ in samples]

    def scorer(sample: Sample, completion: Completion) -> Score:
        value = by_id[sample.id]
        return Score.unscorable("the judge crashed") if value is None else Score(value)

    scorer.fingerprint = "planted"  # type: ignore[attr-defined]
    evaluate(Task("quiz", plain, solver, scorer), None, log_dir=folder / "quiz", model=model)  # type: ignore[arg-type]
    return folder


def test_the_command_compares_tables_and_pages(tmp_path: Path, capsys: Captured) -> None:
    a = logged(tmp_path / "a", "base", [0.0, 1.0] * 30)
    b = logged(tmp_path / "b", "better", [1.0, 1.0] * 25 + [0.0, 1.0] * 5)
    c = logged(tmp_path / "c", "broken", [1.0] * 20 + [None] * 40)
    page = tmp_path / "page.html"
    assert main(["eval", "compare", str(a), str(b), str(c), "--html", str(page)]) == 0
    table = capsys.readouterr().out
    assert [line.split()[1:3] for line in table.splitlines()[1:3]] == [["better", "base"], ["broken", "base"]]
    assert table.splitlines()[1].endswith("better")
    assert table.splitlines()[2].endswith("not robust: unscorable")
    assert "broken against base: 40 items are unscorable on one side or both" in table
    assert "not robust: unscorable" in page.read_text()
    assert main(["eval", "compare", f"old={a}", f"new={b}", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert (row["a"], row["b"], row["verdict"]) == ("old", "new", "better")
    assert row["difference"]["n"] == 60
    assert row["detectable"] < 0.5
    assert main(["eval", "compare", str(a), str(a)]) == 2
    assert "two runs are called 'a'; give them names, such as before=" in capsys.readouterr().err


def test_reasons_stand_below_the_table(tmp_path: Path) -> None:
    table = text_table({"quiz": Evaluation.load(logged(tmp_path, "m", [1.0, None, None]) / "quiz")})
    assert "quiz: 2 unscorable: the judge crashed" in table


def test_code_with_several_answers_reports_pass_at_k() -> None:
    values = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    rows = tuple(
        SampleResult(
            f"p{k // 3}#{k % 3}", "?", None, Score(v), cluster=f"p{k // 3}", metadata={"problem": f"p{k // 3}"}
        )
        for k, v in enumerate(values)
    )
    found = results({"code": dataclasses.replace(evaluation(values), results=rows)})["code"]["details"]
    # One of three answers is right to the first problem, none to the second: (1/3 + 0) / 2 and (1 + 0) / 2.
    assert {key: cell["estimate"] for key, cell in found.items()} == pytest.approx({"pass@1": 1 / 6, "pass@3": 0.5})
    assert results({"quiz": evaluation(values)})["quiz"]["details"] == {}
