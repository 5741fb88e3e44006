"""Pairing two evaluations: by id, by cluster, in the task's direction, and with unscorable samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignlab.core.errors import DataError
from alignlab.stats.paired import compare
from alignlab.tasks.comparison import compare_evaluations
from alignlab.tasks.evaluation import Evaluation, SampleResult
from alignlab.tasks.task import Sample, Score


def evaluation(values: dict[str, float | None], *, higher: bool = True, cluster_size: int = 0, **header) -> Evaluation:
    results = [
        SampleResult.of(
            Sample(name, "p", cluster=f"c{i // cluster_size}" if cluster_size else None),
            None,
            Score(value) if value is not None else Score.unscorable("refused"),
        )
        for i, (name, value) in enumerate(values.items())
    ]
    head = {
        "task": "t", "model": "m", "dataset": "d", "scorer": "s", "score_range": [0.0, 1.0], "higher_is_better": higher,
        **header,
    }  # fmt: skip
    return Evaluation.build(head, results, Path("unused"))


def scores(pattern: str) -> dict[str, float | None]:
    return {f"s{i}": None if c == "?" else float(c) for i, c in enumerate(pattern)}


def test_pairs_on_ids_whatever_the_order() -> None:
    a, b = scores("0110" * 15), scores("1111" * 15)
    shuffled = dict(sorted(b.items(), key=lambda item: item[0][::-1]))
    result = compare_evaluations(evaluation(a), evaluation(shuffled))
    assert result.verdict == "better"
    assert result.difference == compare(list(a.values()), list(b.values())).difference
    assert result.worst == result.best == result.difference
    assert result.robust


def test_direction() -> None:
    a, b = scores("0" * 40), scores("01" * 20)
    assert compare_evaluations(evaluation(a), evaluation(b)).verdict == "better"
    assert compare_evaluations(evaluation(a, higher=False), evaluation(b, higher=False)).verdict == "worse"


def test_clusters_are_used() -> None:
    a, b = scores("0" * 30), scores("1" * 10 + "0" * 20)
    assert compare_evaluations(evaluation(a), evaluation(b)).verdict == "better"
    # The same ten gains from one cluster of ten are one observation.
    grouped = compare_evaluations(evaluation(a, cluster_size=10), evaluation(b, cluster_size=10))
    assert grouped.verdict == "tied"
    assert grouped.difference.method == "cluster bca"


def test_unscorable_pairs_are_left_out_and_bounded() -> None:
    a, b = scores("0" * 20 + "0?1"), scores("1" * 20 + "?1?")
    result = compare_evaluations(evaluation(a), evaluation(b))
    assert result.n_unscorable == 3
    assert result.difference.n == 20
    assert result.difference.estimate == 1.0
    # Against b: 0->0, 1->1, 1->0; in favour of b: 0->1, 0->1, 1->1.
    assert result.worst is not None
    assert result.best is not None
    assert result.worst.estimate == pytest.approx((20 + 0 + 0 - 1) / 23)
    assert result.best.estimate == pytest.approx((20 + 1 + 1 + 0) / 23)
    assert result.robust


def test_a_verdict_that_hangs_on_the_unscorable_says_so() -> None:
    result = compare_evaluations(evaluation(scores("0" * 30)), evaluation(scores("1" * 10 + "?" * 20)))
    assert result.verdict == "better"
    assert result.robust  # even as failures the missing ones leave b ahead: a scored 0 everywhere
    result = compare_evaluations(evaluation(scores("0" * 10 + "1" * 20)), evaluation(scores("1" * 10 + "?" * 20)))
    assert result.verdict == "better"
    assert not result.robust


def test_unbounded_scores_have_no_bounds() -> None:
    a = evaluation(scores("00?0"), score_range=None)
    result = compare_evaluations(a, evaluation(scores("1111"), score_range=None))
    assert result.worst is None
    assert not result.robust


@pytest.mark.parametrize(
    ("b", "message"),
    [
        (evaluation(scores("000")), "1 are in only one of them, such as 's2'"),
        (evaluation(scores("00"), task="u"), "cannot pair task 't' with task 'u'"),
        (evaluation(scores("00"), dataset="e"), "differ in their dataset"),
        (evaluation(scores("00"), scorer="z"), "differ in their scorer"),
        (evaluation(scores("??")), "no sample"),
    ],
)
def test_bad_pairs(b: Evaluation, message: str) -> None:
    with pytest.raises(DataError, match=message):
        compare_evaluations(evaluation(scores("00")), b)
