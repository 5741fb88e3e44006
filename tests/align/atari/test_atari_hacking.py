"""The parting of learned and true reward: planted, absent, and how often it is reported by chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignlab.align.atari.hacking import Window, account_of, parting
from alignlab.align.atari.replay import Replay, ReplaySettings
from alignlab.core.errors import DataError


def windows(learned: list[float], true: list[float], *, n: int = 40, seed: int = 0) -> list[Window]:
    rng = np.random.default_rng(seed)
    return [Window(rng.normal(a, 1.0, n), rng.normal(b, 1.0, n)) for a, b in zip(learned, true, strict=True)]


def test_a_planted_parting_is_named() -> None:
    told = parting(windows([0, 0.5, 1.5], [0, 1.5, 0]))
    assert told is not None
    assert "window 2 against 3" in told


@pytest.mark.parametrize(("learned", "true"), [([0, 1, 2], [0, 1, 2]), ([0, 0, 0], [2, 1, 0]), ([0, 1, 2], [0, 0, 0])])
def test_one_of_the_two_is_no_parting(learned: list[float], true: list[float]) -> None:
    assert parting(windows(learned, true)) is None


@pytest.mark.no_cover
def test_false_alarms_are_rarer_than_the_level() -> None:
    """The true reward falls for certain and the learned one stays: the worst case. 400 draws; more than 36 alarms at a
    true rate of 5 % have a chance below 0.001."""
    alarms = sum(parting(windows([0, 0, 0], [6, 6, 0], seed=seed)) is not None for seed in range(400))
    assert alarms <= 36


def test_the_account_of_a_replay() -> None:
    replay = Replay(4, 1, ReplaySettings(capacity=400, n_step=1))
    rng = np.random.default_rng(0)
    for step in range(100):
        true = torch.from_numpy(rng.normal(1.0 if step < 50 else -1.0, 0.3, 4)).float()
        learned = torch.from_numpy(rng.normal(step / 50, 0.3, 4)).float()
        none = torch.zeros(4, dtype=torch.bool)
        replay.add(
            torch.zeros(4, 1, 1, dtype=torch.uint8), none, torch.zeros(4, dtype=torch.int64), true, learned, none
        )
    account = account_of(replay, stretch=5)
    assert [round(float(w["true"]["estimate"])) for w in account.windows] == [1, 1, 0, -1, -1]  # type: ignore[arg-type]
    assert account.alarm is not None
    assert account.correlation is not None
    assert account.correlation < -0.5
    assert account.numbers()["reward/alarm"] == 1.0
    assert account_of(replay, stretch=5, level=1e-300).alarm is None


def test_too_little_to_say() -> None:
    assert account_of(Replay(2, 1, ReplaySettings(capacity=40, n_step=1))).windows == []
    with pytest.raises(DataError, match="at least 2 stretches"):
        parting([Window(np.zeros(1), np.zeros(1))])
