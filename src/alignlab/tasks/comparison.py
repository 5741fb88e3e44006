"""Two evaluations of one task, paired sample by sample."""

from __future__ import annotations

from dataclasses import dataclass

from alignlab.core.errors import DataError
from alignlab.stats.interval import Interval
from alignlab.stats.paired import Comparison, compare, paired_bootstrap
from alignlab.tasks.evaluation import Evaluation, cluster_labels


@dataclass(frozen=True)
class EvaluationComparison(Comparison):
    """A paired comparison that also says what the unscorable samples could change."""

    n_unscorable: int = 0
    """Pairs left out because either side is unscorable."""
    worst: Interval | None = None
    """Difference over all pairs if every missing score had gone against b; None for an unbounded score."""
    best: Interval | None = None
    """The same with every missing score in favour of b."""

    @property
    def robust(self) -> bool:
        """True when no value of the missing scores could move the interval to the other side of, or onto, zero."""
        if self.n_unscorable == 0:
            return True
        if self.worst is None or self.best is None:
            return False
        sides = {(i.low > 0) - (i.high < 0) for i in (self.difference, self.worst, self.best)}
        return len(sides) == 1


def compare_evaluations(
    a: Evaluation, b: Evaluation, *, n_resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> EvaluationComparison:
    """Is b better than a? Pairs on sample ids, resamples named clusters whole, follows the task's direction.

    Only pairs scored on both sides enter the difference; `worst` and `best` bound what the others could do. DataError
    when the two are not of the same task and samples, or no pair is scored.
    """
    _check_pairing(a, b)
    in_b = b.values
    pairs = [(result, result.score.value, in_b[result.id]) for result in a.results]
    scored = [(result, x, y) for result, x, y in pairs if x is not None and y is not None]
    if not scored:
        raise DataError(f"no sample of task {a.task!r} is scored for both {a.model!r} and {b.model!r}")
    result = compare(
        [x for _, x, _ in scored],
        [y for _, _, y in scored],
        clusters=cluster_labels([row for row, _, _ in scored]),
        n_resamples=n_resamples,
        confidence=confidence,
        seed=seed,
        higher_is_better=a.higher_is_better,
    )
    n_unscorable = len(pairs) - len(scored)
    worst = best = result.difference if n_unscorable == 0 else None
    if n_unscorable and a.score_range is not None:
        bad, good = a.score_range if a.higher_is_better else a.score_range[::-1]
        clusters = cluster_labels(a.results)

        def filled(fill_a: float, fill_b: float) -> Interval:
            first = [fill_a if x is None else x for _, x, _ in pairs]
            second = [fill_b if y is None else y for _, _, y in pairs]
            return paired_bootstrap(
                first, second, clusters=clusters, n_resamples=n_resamples, confidence=confidence, seed=seed
            )

        worst, best = filled(good, bad), filled(bad, good)
    return EvaluationComparison(
        result.difference, result.p_value, result.verdict, n_unscorable=n_unscorable, worst=worst, best=best
    )


def _check_pairing(a: Evaluation, b: Evaluation) -> None:
    if a.task != b.task:
        raise DataError(f"cannot pair task {a.task!r} with task {b.task!r}; evaluate both models on one task")
    only = sorted(a.values.keys() ^ b.values.keys())
    if only:
        raise DataError(
            f"the two evaluations of {a.task!r} hold different samples: "
            f"{len(only)} are in only one of them, such as {only[0]!r}"
        )
    for part in ("dataset", "scorer", "score_range", "higher_is_better"):
        if a.header.get(part) != b.header.get(part):
            raise DataError(f"the two evaluations of {a.task!r} differ in their {part} and cannot be paired")
