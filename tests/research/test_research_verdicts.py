"""Verdicts at their nominal rates by simulation, the paired test against other implementations, and ablation grids."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from alignlab.core.errors import ConfigError, DataError
from alignlab.core.runs import Run
from alignlab.research.ablation import Factor, Grid, run_ablation
from alignlab.research.analysis import analyse
from alignlab.research.measurements import PairedTable
from alignlab.research.paired_test import PairedTest
from alignlab.research.plan import Hypothesis, Methodology
from alignlab.stats.crossed import crossed_interval


def table(differences: np.ndarray, clusters: tuple[str, ...] | None = None) -> PairedTable:
    wide = differences if differences.ndim == 2 else differences[:, None]
    return PairedTable(np.zeros_like(wide), wide, tuple(map(str, range(len(wide)))), clusters)


def rates(shifts: tuple[float, ...], *, margin: float, n: int, runs: int, seeds: int = 1, binary: bool = False) -> dict:
    """Shares of verdicts; one hypothesis a shift, all on data of their own, so that any error counts once."""
    one = [
        Hypothesis("t > c", name=str(i), outcome=str(i), effect=margin, score_range=(0.0, 1.0) if binary else None)
        for i in range(len(shifts))
    ]
    method = Methodology(items=n, seeds=tuple(range(seeds)))
    rng = np.random.default_rng([n, seeds, int(1e6 * sum(map(abs, shifts))), int(binary)])
    count: dict[str, int] = dict.fromkeys(("supported", "refuted", "tied", "inconclusive"), 0)
    for _ in range(runs):
        tables = {}
        for i, shift in enumerate(shifts):
            if binary:
                drawn = rng.choice([1.0, -1.0, 0.0], size=n, p=[0.15 + shift / 2, 0.15 - shift / 2, 0.7])
                control = np.where(drawn == 1, 0.0, np.where(drawn == -1, 1.0, 0.0))[:, None]
                tables[str(i)] = PairedTable(control, control + drawn[:, None], tuple(map(str, range(n))), None)
            else:
                noise = rng.normal(size=(n, 1)) * 0.3 + rng.normal(size=(n, seeds)) * 0.3
                common = rng.normal(size=(1, seeds)) * 0.05 if seeds > 1 else 0.0
                tables[str(i)] = table(shift + noise + common)
        found = [f.verdict for f in analyse(tables, one, method).values()]
        for verdict in count:
            count[verdict] += verdict in found
    return {verdict: hits / runs for verdict, hits in count.items()}


RUNS = pytest.mark.parametrize("runs", [60, pytest.param(1500, marks=pytest.mark.slow)])


def at_most(level: float, runs: int) -> float:
    """Four standard errors above the level: false alarm 3e-5, more at 60 runs because counts are whole (3e-3)."""
    return level + 4 * math.sqrt(level * (1 - level) / runs)


@RUNS
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.no_cover
def test_a_null_is_called_a_difference_at_most_at_alpha(runs: int, binary: bool) -> None:
    found = rates((0.0,), margin=0.15, n=200, runs=runs, binary=binary)
    assert found["supported"] + found["refuted"] <= at_most(0.05, runs)
    assert found["tied"] >= 0.85  # its power: all but the few that drew an extreme mean


@RUNS
def test_a_difference_of_the_margin_is_hardly_ever_tied(runs: int) -> None:
    assert rates((0.1,), margin=0.1, n=60, runs=runs)["tied"] <= at_most(0.05, runs)
    assert rates((0.1,), margin=0.1, n=120, runs=runs, binary=True)["tied"] <= at_most(0.05, runs)


@RUNS
@pytest.mark.no_cover
def test_a_planted_difference_is_found(runs: int) -> None:
    found = rates((0.2,), margin=0.05, n=150, runs=runs)
    assert found["supported"] >= 0.97
    assert found["refuted"] == 0.0
    assert rates((-0.2,), margin=0.05, n=150, runs=runs)["refuted"] >= 0.97


@RUNS
@pytest.mark.no_cover
def test_four_hypotheses_are_corrected_together(runs: int) -> None:
    """Any false difference among four nulls, and any false `tied` among four differences of the margin."""
    found = rates((0.0, 0.0, 0.0, 0.0), margin=0.5, n=40, runs=runs)
    assert found["supported"] + found["refuted"] <= at_most(0.05, runs)
    assert rates((0.1, 0.1, 0.1, 0.1), margin=0.1, n=60, runs=runs)["tied"] <= at_most(0.05, runs)


@pytest.mark.slow
def test_nulls_under_seeds_that_differ() -> None:
    """Seeds spread as much as the mean over items does."""
    found = rates((0.0,), margin=0.2, n=80, runs=1500, seeds=3)
    assert found["supported"] + found["refuted"] <= at_most(0.05, 1500)


@pytest.mark.slow
@pytest.mark.parametrize("n", [12, 30, 200])
def test_the_interval_covers(n: int) -> None:
    """4000 normal, and 4000 clustered data sets: 93 to 97 %."""
    rng = np.random.default_rng(n)
    held = {"items": 0, "clusters": 0}
    names = tuple(np.repeat(np.arange(n), 3).tolist())
    for _ in range(4000):
        plain = PairedTest.of(rng.normal(0.2, 1, n)).interval()
        shared = 0.2 + np.repeat(rng.normal(size=n), 3) + rng.normal(size=3 * n)
        held["items"] += plain.low <= 0.2 <= plain.high
        clustered = PairedTest.of(shared, names).interval()
        held["clusters"] += clustered.low <= 0.2 <= clustered.high
    assert all(0.93 <= hits / 4000 <= 0.97 for hits in held.values()), held


def test_p_values_are_those_of_scipy() -> None:
    x = np.random.default_rng(0).normal(0.2, 1, 30)
    test = PairedTest.of(x)
    for against in (0.0, 0.3, -1.0):
        assert test.p_value(against) == pytest.approx(ttest_1samp(x, against).pvalue)
    lower = ttest_1samp(x, -0.5, alternative="greater").pvalue
    upper = ttest_1samp(x, 0.5, alternative="less").pvalue
    assert test.equivalence_p(0.5) == pytest.approx(max(lower, upper))


def test_the_crossed_p_is_where_the_interval_ends() -> None:
    x = np.random.default_rng(1).normal(0.1, 1, (20, 4)) + np.random.default_rng(2).normal(0, 0.3, (1, 4))
    test = PairedTest.of(x)
    at = crossed_interval(x, None, 1 - test.p_value(0.7))
    assert min(abs(at.low - 0.7), abs(at.high - 0.7)) < 1e-4
    assert test.interval() == crossed_interval(x)


def test_few_items_that_differ_are_no_proof() -> None:
    """Five of 100 items gained: the t test says 0.024, flipping signs 0.0625."""
    x = np.r_[np.ones(5), np.zeros(95)]
    test = PairedTest.of(x, reach=1.0)
    assert test.p_value() < 0.05
    assert test.guarded_p() == pytest.approx(0.0625)


def test_equal_answers_are_no_proof_of_equality() -> None:
    """None of 24 differs, which happens in 29 % of all samples when one in twenty does."""
    few, many = PairedTest.of(np.zeros(24), reach=1.0), PairedTest.of(np.zeros(400), reach=1.0)
    assert few.equivalence_p(0.05) > 0.05 > many.equivalence_p(0.05)
    assert few.interval().low < -0.05 < 0 < few.interval().high
    assert PairedTest.of(np.zeros(24)).equivalence_p(0.05) == 1.0
    assert PairedTest.of(np.zeros(24)).interval().high == np.inf


# Ablations

GRID = Grid((Factor("shots", (0, 4)), Factor("chat", (False, True)), Factor("size", ("s", "m", "l"))), seeds=(0, 1, 2))


def planted(settings: Mapping[str, Any], seed: int) -> list[float]:
    """Shots add 0.3, chat nothing, chat with shots 0.2 more, size l 0.1."""
    rng = np.random.default_rng([seed, settings["shots"], settings["chat"], ord(settings["size"])])
    item = np.random.default_rng(9).normal(size=60)
    shift = 0.3 * (settings["shots"] == 4) + 0.1 * (settings["size"] == "l")
    return (item + shift + 0.2 * (settings["shots"] == 4 and settings["chat"]) + rng.normal(0, 0.1, 60)).tolist()


def test_a_factorial_grid_finds_effects_and_interactions() -> None:
    done = run_ablation(GRID, planted)
    assert len(done.grid.cells()) == 12
    assert done.scores.shape == (12, 60, 3)
    assert done.effect("shots: 0 -> 4").difference.estimate == pytest.approx(
        0.4, abs=0.03
    )  # half of the cells have chat
    assert done.effect("shots: 0 -> 4").verdict == "higher"
    assert done.effect("shots: 0 -> 4 x chat: False -> True").difference.estimate == pytest.approx(0.2, abs=0.05)
    assert done.effect("size: s -> m").verdict == "undecided"
    assert done.effect("size: s -> l").difference.estimate == pytest.approx(0.1, abs=0.03)
    assert len(done.effects) == 4 + 1 + 2 + 2  # main effects, pairs of shots-chat, shots-size, chat-size


def test_one_at_a_time_runs_fewer_cells() -> None:
    grid = Grid(GRID.factors, GRID.seeds, "one-at-a-time")
    done = run_ablation(grid, planted)
    assert [list(cell.values()) for cell in grid.cells()] == [
        [0, False, "s"], [4, False, "s"], [0, True, "s"], [0, False, "m"], [0, False, "l"],
    ]  # fmt: skip
    assert done.effect("shots: 0 -> 4").difference.estimate == pytest.approx(0.3, abs=0.03)
    with pytest.raises(ConfigError, match="there is no effect"):
        done.effect("shots: 0 -> 4 x chat: False -> True")


def test_main_effects_are_means_of_all_contrasts() -> None:
    done = run_ablation(GRID, planted, interactions=False)
    cells = GRID.cells()
    by_hand = []
    for chat, size in itertools.product((False, True), "sml"):
        means = [done.scores[cells.index({"shots": s, "chat": chat, "size": size})].mean() for s in (0, 4)]
        by_hand.append(means[1] - means[0])
    assert done.effect("shots: 0 -> 4").difference.estimate == pytest.approx(np.mean(by_hand))


def test_an_interrupted_grid_goes_on(tmp_path: Path) -> None:
    calls: list[int] = []
    grid = Grid(GRID.factors[1:], seeds=(0,))

    def counted(settings: Mapping[str, Any], seed: int) -> list[float]:
        calls.append(seed)
        if len(calls) == 5:
            raise RuntimeError("stopped")
        return planted({"shots": 0, **settings}, seed)

    with pytest.raises(RuntimeError), Run.create({}, name="grid", path=tmp_path / "run") as run:
        run_ablation(grid, counted, stage=run.stage)
    with Run.open(tmp_path / "run") as run:
        done = run_ablation(grid, counted, stage=run.stage)
    assert len(calls) == 6 + 1
    assert done.effects == run_ablation(grid, lambda settings, seed: planted({"shots": 0, **settings}, seed)).effects


def test_bad_grids() -> None:
    with pytest.raises(ConfigError, match="levels of 'a'"):
        Factor("a", (1,))
    with pytest.raises(ConfigError, match="factors"):
        Grid((Factor("a", (1, 2)), Factor("a", (1, 2))))
    with pytest.raises(ConfigError, match="kind is 'half'"):
        Grid((Factor("a", (1, 2)),), kind="half")  # type: ignore[arg-type]
    grid = Grid((Factor("a", (1, 2)),))
    with pytest.raises(DataError, match="every cell and seed needs the same items"):
        run_ablation(grid, lambda settings, seed: [0.0] * settings["a"])
    with pytest.raises(DataError, match="not finite"):
        run_ablation(grid, lambda settings, seed: [0.0, float("nan")])
