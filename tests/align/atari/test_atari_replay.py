"""The replay against lists of what happened: stacks, n-step returns, who can be drawn and how often."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from alignlab.align.atari.acting import LatestFrames
from alignlab.align.atari.replay import Episodes, Replay, ReplaySettings
from alignlab.core.errors import ConfigError, DataError

SETTINGS = ReplaySettings(capacity=40, n_step=3, gamma=0.9, alpha=0.5, beta=0.4)
COPIES = 2


def play(replay: Replay, steps: int, *, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Fill the replay with frames whose only pixel counts the steps; what was put in, and the stacks as seen."""
    generator, told = torch.Generator().manual_seed(seed), []
    latest, first = LatestFrames(COPIES, 1, "cpu"), torch.ones(COPIES, dtype=torch.bool)
    for step in range(steps):
        frames = torch.tensor([2 * step, 2 * step + 1], dtype=torch.uint8).reshape(COPIES, 1, 1)
        latest.take(frames.numpy(), first.numpy())
        rewards, ends = torch.randn(COPIES, generator=generator), torch.rand(COPIES, generator=generator) < 0.15
        actions = torch.randint(4, (COPIES,), generator=generator)
        replay.add(frames, first, actions, rewards, 10 * rewards, ends)
        told.append({"stack": latest.look().clone(), "actions": actions, "rewards": rewards, "ends": ends})
        first = ends
    return told


def demonstrations(steps: int = 12) -> Episodes:
    ends = np.zeros(steps, dtype=bool)
    ends[[4, steps - 1]] = True
    frames = (200 + np.arange(steps)).astype(np.uint8).reshape(steps, 1, 1)
    return Episodes(frames, np.arange(steps) % 4, np.ones(steps, dtype=np.float32), ends)


@pytest.mark.parametrize("steps", [9, 20, 33, 71])
@pytest.mark.parametrize("hide", [False, True])
def test_what_is_drawn_is_what_happened(steps: int, hide: bool) -> None:
    replay = Replay(COPIES, 1, SETTINGS, hide_ends=hide)
    told = play(replay, steps)
    slots = torch.nonzero(replay.priorities > 0).squeeze(1)
    assert len(slots) == COPIES * min(steps - SETTINGS.n_step, replay.length - SETTINGS.n_step - 3)
    batch = replay._batch(slots, torch.ones(len(slots)), "learned")
    for i, slot in enumerate(slots.tolist()):
        copy, place = divmod(slot, replay.length)
        time = next(t for t in reversed(range(steps)) if t % replay.length == place)
        assert torch.equal(batch.stacks[i], told[time]["stack"][copy])
        assert torch.equal(batch.later[i], told[time + 3]["stack"][copy])
        expected, discount = 0.0, 1.0
        for k in range(3):
            expected += discount * 10 * told[time + k]["rewards"][copy].item()
            discount *= 0.9
            if told[time + k]["ends"][copy] and not hide:
                discount = 0.0
                break
        assert batch.returns[i].item() == pytest.approx(expected, abs=1e-4)
        assert batch.discounts[i].item() == pytest.approx(discount, abs=1e-6)
        assert batch.actions[i] == told[time]["actions"][copy]


def test_draws_follow_the_priorities() -> None:
    """120,000 draws, each within 5 deviations of its multinomial share: false alarm below 1e-4 over all slots."""
    replay = Replay(COPIES, 1, SETTINGS, demonstrations())
    play(replay, 30)
    slots = torch.nonzero(replay.priorities > 0).squeeze(1)
    replay.priorities[slots] = torch.linspace(0.1, 3.0, len(slots), dtype=torch.float64)
    chances, generator = replay.probabilities(), torch.Generator().manual_seed(0)
    counts = torch.zeros(len(chances), dtype=torch.float64)
    for _ in range(400):
        batch = replay.draw(300, generator)
        counts += torch.bincount(batch.slots, minlength=len(counts))
    n = 120_000
    deviations = (n * chances * (1 - chances)).sqrt().clamp(min=1e-9)
    assert (((counts - n * chances) / deviations).abs() < 5).all()
    expected = (len(slots) * chances[batch.slots]) ** -0.4
    assert torch.allclose(batch.weights.double(), expected / expected.max(), atol=1e-6)


def test_errors_become_priorities_with_their_bonus() -> None:
    replay = Replay(COPIES, 1, SETTINGS, demonstrations())
    play(replay, 30)
    batch = replay.draw(64, torch.Generator().manual_seed(1))
    errors = torch.linspace(-2, 2, 64)
    replay.set_errors(batch, errors)
    for slot in batch.slots.unique().tolist():
        last = torch.nonzero(batch.slots == slot).flatten()
        bonus = 1.0 if slot >= replay.own else 0.001
        allowed = [(abs(errors[i].item()) + bonus) ** 0.5 for i in last]
        assert min(abs(replay.priorities[slot].item() - value) for value in allowed) < 1e-6


def test_demonstrations_stay_and_do_not_mix_episodes() -> None:
    replay = Replay(COPIES, 1, SETTINGS, demonstrations())
    play(replay, 100)
    kept = replay.frames[replay.own :].flatten().tolist()
    assert kept == list(range(200, 212))
    # Step 6 of the demonstrations is the second of its episode, which begins at 205.
    assert replay.stacks(torch.tensor([replay.own + 6])).flatten().tolist() == [205, 205, 205, 206]
    drawn = replay.draw_demonstrations(500, torch.Generator().manual_seed(0))
    assert drawn.demonstrated.all()
    assert drawn.slots.min() == replay.own
    assert drawn.slots.max() == replay.own + 12 - 3 - 1


def test_filled_is_in_order_and_whole() -> None:
    replay = Replay(COPIES, 1, SETTINGS, demonstrations())
    play(replay, 50)
    slots = replay.filled()
    assert len(slots) == COPIES * (20 - 3) + 12
    seen = replay.frames[slots].flatten().tolist()
    assert seen == [*range(66, 100, 2), *range(67, 100, 2), *range(200, 212)]


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="n_step is 0"):
        replace(SETTINGS, n_step=0)
    with pytest.raises(DataError, match="fewer than the 8 that a draw looks at"):
        Replay(8, 1, SETTINGS)
    with pytest.raises(DataError, match="no demonstrations"):
        Replay(COPIES, 1, SETTINGS).draw_demonstrations(4, torch.Generator())
    with pytest.raises(DataError, match="too short"):
        Replay(COPIES, 1, replace(SETTINGS, n_step=12), demonstrations())
