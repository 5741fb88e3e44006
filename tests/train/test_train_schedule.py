"""Schedules against transformers' where the two agree, and at hand-computed points where they do not."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignlab.train.schedule import Schedule, learning_rate_at

STEPS, WARMUP, FLOOR = 50, 10, 0.1


def theirs(make: Callable[[torch.optim.Optimizer], Any]) -> list[float]:
    """Learning rates of updates 0 ... STEPS - 1 under a scheduler of transformers, for a peak of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = make(optimizer), []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def ours(schedule: Schedule, floor: float = FLOOR, decay_fraction: float = 0.2) -> list[float]:
    return [
        learning_rate_at(
            step,
            peak=1.0,
            steps=STEPS,
            warmup_steps=WARMUP,
            schedule=schedule,
            min_lr_ratio=floor,
            decay_fraction=decay_fraction,
        )
        for step in range(STEPS)
    ]


def test_equal_to_transformers_after_the_warm_up() -> None:
    library = pytest.importorskip("transformers.optimization")
    pairs: list[tuple[list[float], Callable[[torch.optim.Optimizer], Any]]] = [
        (
            ours("cosine"),
            lambda o: library.get_cosine_with_min_lr_schedule_with_warmup(o, WARMUP, STEPS, min_lr_rate=FLOOR),
        ),
        (ours("linear", floor=0.0), lambda o: library.get_linear_schedule_with_warmup(o, WARMUP, STEPS)),
        (ours("constant"), lambda o: library.get_constant_schedule_with_warmup(o, WARMUP)),
        (ours("inverse_sqrt", floor=0.0), lambda o: library.get_inverse_sqrt_schedule(o, WARMUP)),
        (
            ours("wsd", decay_fraction=0.3),
            lambda o: library.get_wsd_schedule(o, WARMUP, 15, STEPS, decay_type="1-sqrt", min_lr_ratio=FLOOR),
        ),
    ]
    for own, make in pairs:
        assert own[WARMUP:] == pytest.approx(theirs(make)[WARMUP:], rel=1e-12)


def test_wsd_by_hand() -> None:
    # 8 updates, 2 of warm-up, the last half decays: u = 0, 1/4, 1/2, 3/4
    got = [learning_rate_at(i, peak=4, steps=8, warmup_steps=2, schedule="wsd", decay_fraction=0.5) for i in range(8)]
    assert got == pytest.approx([2, 4, 4, 4, 4, 2, 4 * (1 - math.sqrt(0.5)), 4 * (1 - math.sqrt(0.75))])


def test_wsd_never_decays_during_the_warm_up() -> None:
    got = [learning_rate_at(i, peak=1, steps=6, warmup_steps=4, schedule="wsd", decay_fraction=1.0) for i in range(6)]
    assert got == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1 - math.sqrt(0.5)])


def test_inverse_root_does_not_know_the_end_and_stops_at_the_floor() -> None:
    for steps in (100, 10_000):
        rate = learning_rate_at(400, peak=2, steps=steps, warmup_steps=100, schedule="inverse_sqrt")
        assert rate == pytest.approx(1.0)
    assert learning_rate_at(10**6, peak=2, steps=9, warmup_steps=4, schedule="inverse_sqrt", min_lr_ratio=0.25) == 0.5
    assert learning_rate_at(3, peak=1, steps=9, warmup_steps=0, schedule="inverse_sqrt") == pytest.approx(0.5)


@given(
    schedule=st.sampled_from(["cosine", "linear", "constant", "wsd", "inverse_sqrt"]),
    steps=st.integers(1, 60),
    warmup=st.integers(0, 80),
    floor=st.floats(0, 1),
    fraction=st.floats(0, 1),
)
def test_between_floor_and_peak_and_never_rising_after_the_warm_up(
    schedule: Schedule, steps: int, warmup: int, floor: float, fraction: float
) -> None:
    rates = [
        learning_rate_at(
            step,
            peak=1.0,
            steps=steps,
            warmup_steps=warmup,
            schedule=schedule,
            min_lr_ratio=floor,
            decay_fraction=fraction,
        )
        for step in range(warmup + steps + 5)
    ]
    later = rates[warmup:]
    assert all(floor - 1e-12 <= rate <= 1 + 1e-12 for rate in later)
    assert all(b <= a + 1e-12 for a, b in pairwise(later))
    assert rates[0] > 0 or floor == 0
