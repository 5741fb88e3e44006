"""Agreement of several raters: published examples, naive versions, other packages, coverage, and what is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from alignlab.core.errors import ConfigError, DataError
from alignlab.stats.agreement import kappa_interval
from alignlab.stats.interval import Interval, wilson
from alignlab.stats.raters import Level, fleiss_kappa, krippendorff_alpha, pairwise_kappas, summarise_agreement
from alignlab.stats.rating_table import RatingTable, rating_rows, rating_table

LEVELS: tuple[Level, ...] = ("nominal", "ordinal", "interval")


def drawn_rows(
    rng: np.random.Generator, n: int, m: int, k: int, share: float, gaps: float = 0.0
) -> NDArray[np.float64]:
    """Ratings 1..k of `m` raters, each right (the item's own label) with probability `share` and else at random."""
    truth = rng.integers(1, k + 1, size=(n, 1))
    rows = np.where(rng.random((n, m)) < share, truth, rng.integers(1, k + 1, size=(n, m))).astype(float)
    rows[rng.random((n, m)) < gaps] = np.nan
    return rows


def naive_alpha(rows: NDArray[np.float64], level: Level) -> float:
    """The definition: loops over all pairs of ratings of an item, and over all pairs of ratings."""
    units = [row[~np.isnan(row)] for row in rows]
    units = [unit for unit in units if len(unit) >= 2]
    pooled = np.concatenate(units)

    def distance(a: float, b: float) -> float:
        if level == "nominal":
            return float(a != b)
        if level == "interval":
            return (a - b) ** 2
        low, high = min(a, b), max(a, b)
        between = float(np.sum((pooled >= low) & (pooled <= high)))
        return (between - (np.sum(pooled == low) + np.sum(pooled == high)) / 2) ** 2 if a != b else 0.0

    observed = sum(
        distance(a, b) / (len(unit) - 1) for unit in units for a, b in itertools.permutations(unit, 2)
    ) / len(pooled)
    expected = sum(distance(a, b) for a, b in itertools.permutations(pooled, 2))
    return float(1 - observed / (expected / (len(pooled) * (len(pooled) - 1))))


def naive_fleiss(rows: NDArray[np.float64]) -> float:
    units = [row[~np.isnan(row)] for row in rows]
    units = [unit for unit in units if len(unit) >= 2]
    same = [np.mean([a == b for a, b in itertools.combinations(unit, 2)]) for unit in units]
    labels = np.unique(np.concatenate(units))
    chance = sum(np.mean([np.mean(unit == label) for unit in units]) ** 2 for label in labels)
    return float((np.mean(same) - chance) / (1 - chance))


def test_fleiss_own_example_of_ten_items() -> None:
    """14 raters, 10 items, 5 labels: the widely printed worked example, kappa 0.210."""
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    rows = [[label for label, count in enumerate(row) for _ in range(count)] for row in counts]
    assert fleiss_kappa(rating_rows(rows)).estimate == pytest.approx(0.210, abs=5e-4)


def test_krippendorffs_own_example() -> None:
    """Four observers, twelve units, missing data (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability")."""
    nan = math.nan
    data = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
        [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
    ]
    table = rating_rows(np.array(data).T.tolist())
    found = {level: krippendorff_alpha(table, level) for level in LEVELS}
    assert found["nominal"].estimate == pytest.approx(0.743, abs=5e-4)
    assert found["ordinal"].estimate == pytest.approx(0.815, abs=5e-4)
    assert found["interval"].estimate == pytest.approx(0.849, abs=5e-4)
    assert found["nominal"].n == 11  # the last unit has one value


@pytest.mark.parametrize("seed", range(4))
def test_estimates_and_jackknife_equal_the_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = drawn_rows(rng, n=9, m=4, k=4, share=0.6, gaps=0.25)
    table = rating_rows(rows.tolist())
    kept = [i for i in range(len(rows)) if np.sum(~np.isnan(rows[i])) >= 2]
    for level in LEVELS:
        check_against(krippendorff_alpha(table, level), lambda part, own=level: naive_alpha(part, own), rows[kept])
    check_against(fleiss_kappa(table), naive_fleiss, rows[kept])


def check_against(found: Interval, statistic, rows: NDArray[np.float64]) -> None:  # type: ignore[no-untyped-def]
    from scipy.stats import t

    n = len(rows)
    assert found.n == n
    assert found.estimate == pytest.approx(statistic(rows), abs=1e-12)
    left_out = np.array([statistic(np.delete(rows, i, axis=0)) for i in range(n)])
    error = math.sqrt((n - 1) / n * float(np.sum((left_out - left_out.mean()) ** 2)))
    half = t.ppf(0.975, n - 1) * error / (1 - found.estimate**2)
    assert math.atanh(found.high) - math.atanh(found.estimate) == pytest.approx(half, rel=1e-9)
    assert math.atanh(found.estimate) - math.atanh(found.low) == pytest.approx(half, rel=1e-9)


def test_other_packages_find_the_same() -> None:
    krippendorff = pytest.importorskip("krippendorff", reason="the package krippendorff is not installed")
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater", reason="statsmodels is not installed")
    rng = np.random.default_rng(5)
    rows = drawn_rows(rng, n=80, m=5, k=5, share=0.5, gaps=0.3)
    table = rating_rows(rows.tolist())
    for level in LEVELS:
        theirs = krippendorff.alpha(reliability_data=rows.T, level_of_measurement=level)
        assert krippendorff_alpha(table, level).estimate == pytest.approx(theirs, abs=1e-12)
    full = drawn_rows(rng, n=80, m=5, k=5, share=0.5)
    theirs = inter_rater.fleiss_kappa(inter_rater.aggregate_raters(full.astype(int))[0], method="fleiss")
    assert fleiss_kappa(rating_rows(full.tolist())).estimate == pytest.approx(theirs, abs=1e-12)


def planted_alpha(share: float) -> float:
    """Two raters agree beyond chance only where both are right: the share squared, whatever the level."""
    return share**2


@pytest.mark.parametrize("level", LEVELS)
def test_planted_agreement_is_recovered(level: Level) -> None:
    rows = drawn_rows(np.random.default_rng(0), n=4000, m=4, k=4, share=0.7, gaps=0.2)
    table = rating_rows(rows.tolist())
    found = krippendorff_alpha(table, level, confidence=0.9999)
    assert found.low < planted_alpha(0.7) < found.high
    assert found.high - found.low < 0.1
    assert fleiss_kappa(table).estimate == pytest.approx(planted_alpha(0.7), abs=0.03)


def coverage(n_sets: int, n: int, statistic: str, seed: int = 1) -> float:
    """Share of 95 % intervals that hold the planted value."""
    hits = 0
    for i in range(n_sets):
        rows = drawn_rows(np.random.default_rng([seed, i]), n=n, m=3, k=3, share=0.8, gaps=0.1)
        table = rating_rows(rows.tolist())
        found = fleiss_kappa(table) if statistic == "fleiss" else krippendorff_alpha(table, statistic)  # type: ignore[arg-type]
        hits += found.low <= planted_alpha(0.8) <= found.high
    return hits / n_sets


def test_intervals_hold_the_truth_nineteen_times_in_twenty_small() -> None:
    """200 sets: below 90 % has probability 0.0027 at a true 95 %, and the seed is fixed."""
    assert coverage(200, n=60, statistic="nominal") >= 0.90


@pytest.mark.slow
@pytest.mark.parametrize("statistic", ["fleiss", *LEVELS])
@pytest.mark.parametrize("n", [30, 150])
def test_intervals_hold_the_truth_nineteen_times_in_twenty(statistic: str, n: int) -> None:
    """2,000 sets: between 93 and 97 %, four standard errors either side of 95 %."""
    assert 0.93 <= coverage(2000, n=n, statistic=statistic) <= 0.97


def test_full_agreement_is_not_certainty() -> None:
    few, many = (rating_rows([[1, 1, 1], [2, 2, 2]] * times) for times in (5, 50))
    for measure in (fleiss_kappa, krippendorff_alpha):
        found = measure(few)
        assert (found.estimate, found.high) == (1.0, 1.0)
        assert 0.2 < found.low < measure(many).low < 0.99
    against = fleiss_kappa(rating_rows([[1, 2], [2, 1]] * 10))
    assert against.estimate == against.low == -1.0
    assert -0.9 < against.high < -0.3


def test_copies_of_items_in_clusters_are_no_news() -> None:
    rows = drawn_rows(np.random.default_rng(2), n=40, m=3, k=3, share=0.7, gaps=0.1).tolist()
    copies = rating_table(
        ((i, c), rater, label) for i, row in enumerate(rows) for c in range(4) for rater, label in enumerate(row)
    )
    clusters = {item: item[0] for item in copies.items}  # type: ignore[index]
    for level in LEVELS:
        once, again = krippendorff_alpha(rating_rows(rows), level), krippendorff_alpha(copies, level, clusters=clusters)
        assert again.high - again.low == pytest.approx(once.high - once.low, rel=0.03)
    once, again = fleiss_kappa(rating_rows(rows)), fleiss_kappa(copies, clusters=clusters)
    assert (again.low, again.high) == pytest.approx((once.low, once.high), rel=1e-9)
    with pytest.raises(DataError, match="no entry for item"):
        fleiss_kappa(copies, clusters={})


def test_names_and_order_of_raters_and_items_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    rows = drawn_rows(rng, n=30, m=4, k=3, share=0.6, gaps=0.2)
    mixed = rows[rng.permutation(30)][:, rng.permutation(4)]
    for level in LEVELS:
        a, b = (krippendorff_alpha(rating_rows(part.tolist()), level) for part in (rows, mixed))
        assert (a.estimate, a.low, a.high) == pytest.approx((b.estimate, b.low, b.high), abs=1e-12)
    # An ordinal scale knows the order of its labels only; an interval scale their distances up to a unit.
    stretched = krippendorff_alpha(rating_rows((rows**3).tolist()), "ordinal")
    assert stretched.estimate == pytest.approx(krippendorff_alpha(rating_rows(rows.tolist()), "ordinal").estimate)
    moved = krippendorff_alpha(rating_rows((rows * 1e-3 + 1e6).tolist()), "interval")
    assert moved.low == pytest.approx(krippendorff_alpha(rating_rows(rows.tolist()), "interval").low, abs=1e-6)


def test_pairs_of_raters_and_the_summary() -> None:
    rows: list[list[str | None]] = [
        ["a", "a", None],
        ["b", "b", "a"],
        ["a", "b", "b"],
        ["b", "b", None],
        ["a", "a", None],
        [None, None, "a"],
    ]
    table = rating_rows(rows, raters=["ann", "ben", "cy"])
    pairs = pairwise_kappas(table)
    assert pairs["ann", "ben"] == kappa_interval(list("ababa"), list("abbba"))
    assert set(pairs) == {("ann", "ben"), ("ann", "cy"), ("ben", "cy")}
    summary = summarise_agreement(table)
    assert (summary.n_items, summary.n_single) == (5, 1)
    assert summary.agreement.estimate == pytest.approx((1 + 1 / 3 + 1 / 3 + 1 + 1) / 5)
    assert summary.alpha == krippendorff_alpha(table)
    assert summary.fleiss == fleiss_kappa(table)
    same = summarise_agreement(rating_rows([[1, 1]] * 10))
    assert (same.fleiss, same.alpha, same.pairs) == (None, None, {(0, 1): None})
    assert same.agreement.low < 0.95
    few = summarise_agreement(rating_rows([[1, 1], [1, 1], [1, 1], [1, 2]]))  # all or nothing: Wilson's interval
    share = wilson(3, 4)
    assert (few.agreement.low, few.agreement.high) == pytest.approx((share.low, share.high))
    grouped = summarise_agreement(rating_rows([[1, 1], [1, 1], [1, 1], [1, 2]]), clusters=dict(enumerate("aabb")))
    assert 0 <= grouped.agreement.low < share.low


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(DataError, match=r"no item has ratings of two raters \(1 rated 3 items\)"):
        fleiss_kappa(rating_rows([[1], [2], [1]]))
    with pytest.raises(DataError, match="one and the same label"):
        krippendorff_alpha(rating_rows([[1, 1], [1, 1]]))
    with pytest.raises(DataError, match="at least 2 items"):
        krippendorff_alpha(rating_rows([[1, 2], [1, None]]))
    words = rating_rows([["bad", "good"], ["good", "good"]])
    with pytest.raises(DataError, match="order of the labels is unknown"):
        krippendorff_alpha(words, "ordinal")
    with pytest.raises(DataError, match="'bad' is not a number"):
        krippendorff_alpha(words, "interval")
    with pytest.raises(ConfigError, match="allowed: nominal, ordinal, interval"):
        krippendorff_alpha(words, "ratio")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="confidence"):
        fleiss_kappa(words, confidence=95)
    ordered = rating_rows([["bad", "good"], ["good", "good"]], labels=["bad", "fair", "good"])
    assert isinstance(krippendorff_alpha(ordered, "ordinal"), Interval)


def test_broken_tables_are_refused() -> None:
    with pytest.raises(DataError, match="there are no ratings"):
        rating_table([("x", "ann", None), ("y", "ann", math.nan)])
    with pytest.raises(DataError, match="there are no ratings"):
        rating_rows([])
    with pytest.raises(DataError, match=r"'ann' rated item 'x' twice \('a' and 'b'\)"):
        rating_table([("x", "ann", "a"), ("x", "ann", "b")])
    with pytest.raises(DataError, match=r"'ann' gave item 'x' the label 'c', allowed: \['a', 'b'\]"):
        rating_table([("x", "ann", "c")], labels=["a", "b"])
    with pytest.raises(DataError, match="names 'a' twice"):
        rating_table([("x", "ann", "a")], labels=["a", "a"])
    with pytest.raises(DataError, match="row 1 has 1 ratings for 2 raters"):
        rating_rows([[1, 2], [1]])


def test_table_keeps_names_and_orders_labels() -> None:
    table = rating_table([("q2", "ben", 10), ("q1", "ann", 9), ("q2", "ann", 2)])
    assert (table.items, table.raters, table.labels, table.ordered) == (("q2", "q1"), ("ben", "ann"), (2, 9, 10), True)
    assert table.counts().tolist() == [[1, 0, 1], [0, 1, 0]]
    words = rating_table([("x", "ann", "z"), ("x", "ben", "a")])
    assert (words.labels, words.ordered) == (("z", "a"), False)
    assert isinstance(words, RatingTable)
