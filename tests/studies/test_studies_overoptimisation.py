"""The study of over-optimisation: its gold reward by hand, planted worlds that turn and that do not, the smoke run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignlab.align.reward_validation.best_of_n import FloatArray
from alignlab.align.reward_validation.curves import Curve
from alignlab.core.errors import ConfigError
from alignlab.core.run_record import RunRecord
from alignlab.core.runs import Run
from alignlab.studies.overoptimisation_experiment import curve_of, record_of
from alignlab.studies.overoptimisation_findings import EXPECTATIONS, evidence, findings
from alignlab.studies.overoptimisation_plan import PLANS, World
from alignlab.studies.overoptimisation_world import (
    LETTERS,
    Gold,
    best_place,
    kl_for,
    labelled_pairs,
    make_gold,
    make_policy,
)
from alignlab.studies.registration import study_deviations
from alignlab.studies.reward_overoptimisation import RewardOveroptimisation
from alignlab.studies.runner import read_findings, run_study

PLAN = dataclasses.replace(PLANS["smoke"], seeds=9)
D = np.array([0.0, 0.8, 1.6, 2.4, 3.2, 4.0])


def rl(gold: FloatArray, noise: np.random.Generator) -> Curve:
    """A curve of RL with the mean gold reward given, the proxy rising all the way."""
    rows = gold + 0.05 * noise.normal(size=(4, len(D)))
    return Curve("rl", np.arange(float(len(D))), D**2, np.tile(D, (4, 1)), rows)


def planted(seed: int, turn: bool) -> dict[str, Any]:
    """A world whose gold reward turns (earlier and lower with fewer comparisons), or rises with the proxy."""
    rng = np.random.default_rng(seed)
    proxy = {name: rng.normal(size=(4, 256)) for name in ("16", "64")}
    bend = 0.45 if turn else 0.0
    gold = 0.7 * proxy["16"] - bend * np.maximum(proxy["16"], 0) ** 2 + 0.5 * proxy["64"]
    b = (0.2, 0.15) if turn else (0.0, 0.0)
    curves = {f"rl, {n}": (n, rl(D * (0.8 - one * D), rng)) for n, one in zip(("16", "64"), b, strict=True)}
    return record_of(proxy, gold, curves)


def test_gold_by_hand() -> None:
    beside = np.zeros((len(LETTERS), len(LETTERS)))
    beside[0, 1] = 10.0
    gold = Gold(np.arange(len(LETTERS), dtype=np.float64), beside, 0.5)
    assert gold(["x"] * 4, ["ab", "ba", "", "bbb"]) == [11.0, 1.0, 0.0, 3.0 - 1.5]


def test_a_world_is_its_seed() -> None:
    world = World(answer=6, width=16)
    one, same, other = (make_gold(world, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.worth, same.worth)
    assert not np.array_equal(one.worth, other.worth)


@pytest.mark.slow  # the sampler's program is compiled first
def test_comparisons_are_what_gold_says() -> None:
    world = World(answer=6, width=16)
    one = make_gold(world, 1)
    pairs = labelled_pairs(make_policy(world, 1), one, 12, world, 1)
    assert len(pairs) == 12
    for pair in pairs:
        chosen, rejected = one(["", ""], [pair.chosen, pair.rejected])
        assert chosen > rejected
    assert pairs == labelled_pairs(make_policy(world, 1), one, 12, world, 1)


def test_peak_and_cost_by_hand() -> None:
    gold = np.array([[0.0, 1.0, 3.0, 2.0], [0.0, 1.0, 5.0, 2.0]])
    curve = Curve("rl", np.arange(4.0), np.array([0.0, 1.0, 4.0, 9.0]), np.tile(np.arange(4.0), (2, 1)), gold)
    assert best_place(curve) == (2.0, 4.0, 2.0)
    assert kl_for(curve, 2.5) == pytest.approx(2.5)  # half of the way from 1 to 4 nats
    assert kl_for(curve, 0.0) == 0.0
    assert kl_for(curve, 9.0) == 9.0
    falling = Curve("rl", np.arange(4.0), np.arange(4.0), gold, gold[::-1, [2, 0, 1, 3]])
    assert kl_for(falling, 0.0) == 0.0


def test_a_planted_turn_is_found_and_a_rise_is_not_called_one() -> None:
    turned = [planted(seed, True) for seed in range(9)]
    found = findings(turned, PLAN)
    verdicts = dict(zip(EXPECTATIONS, (claim.verdict for claim in found.claims), strict=True))
    assert verdicts["bon-turn"] == verdicts["rl-turn"] == "confirmed"
    assert verdicts["rl-turn-most"] == verdicts["proxy-rises"] == "confirmed"
    assert verdicts["higher"] == verdicts["later"] == verdicts["cost"] == "confirmed"
    assert len(found.figures) == 2
    assert curve_of(turned[0]["curves"]["rl, 16"]).kind == "rl"
    rising = evidence([planted(seed, False) for seed in range(9)], PLAN)
    assert rising["rl-turn"].comparison.verdict != "better"
    assert rising["bon-turn"].comparison.verdict != "better"


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match="seeds is 1"):
        RewardOveroptimisation(seeds=1).check("smoke")


@pytest.mark.slow
def test_the_smoke_scale(tmp_path: Path) -> None:
    path = run_study(RewardOveroptimisation(), "smoke", seed=1, path=tmp_path / "run")
    found = read_findings(path)
    assert [claim.statement for claim in found.claims] == [one.statement for one in EXPECTATIONS.values()]
    assert study_deviations(Run.read(path)) == []
    assert len(found.numbers["worlds"]) == 2
    for world in found.numbers["worlds"]:
        assert set(world["curves"]) == {"best of n, 16", "best of n, 64", "rl, 16", "rl, 64"}
        assert curve_of(world["curves"]["rl, 16"]).gain("proxy").mean(axis=0)[-1] > 0  # PPO does what it is told
    text = (path / "report.md").read_text(encoding="utf-8")
    for words in ("Peak and fall", "Proxy of 16 comparisons", "Limitations"):
        assert words in text
    again = run_study(RewardOveroptimisation(), "smoke", seed=1, path=path)
    assert read_findings(again).numbers == found.numbers
    assert isinstance(Run.read(path), RunRecord)
