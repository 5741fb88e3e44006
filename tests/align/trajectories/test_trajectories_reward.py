"""Rewards from comparisons of clips: exact Bradley-Terry on two steps, a planted reward, the teacher, the questions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from alignlab.align.trajectories.policy_training import Rollout
from alignlab.align.trajectories.queries import choose_pairs, labels_due
from alignlab.align.trajectories.reward_nets import RATIO, RewardNets, RewardSettings
from alignlab.align.trajectories.segments import ClipPool, Comparisons, Segments
from alignlab.align.trajectories.teacher import SyntheticTeacher
from alignlab.core.errors import ConfigError, DataError


def clips(rng: np.random.Generator, n: int, length: int = 10, size: int = 3) -> Segments:
    """Clips of random steps whose planted reward is 2 x0 - x1 + x2^2."""
    inputs = rng.normal(size=(n, length, size))
    return Segments(inputs, 2 * inputs[..., 0] - inputs[..., 1] + inputs[..., 2] ** 2)


def linear(nets: RewardNets) -> None:
    """Make every member the reward 2 x, exactly (one input; leaky units in pairs make a straight line)."""
    with torch.no_grad():
        for part in nets.parameters():
            part.zero_()
        nets.weights[0][:, 0, 0], nets.weights[0][:, 0, 1] = 1.0, -1.0
        nets.weights[1][:, 0, 0], nets.weights[1][:, 1, 1] = 1.0, 1.0
        # leaky(leaky(x)) - leaky(leaky(-x)) = (1 + 0.01^2) x
        nets.weights[2][:, 0, 0], nets.weights[2][:, 1, 0] = 2 / (1 + 1e-4), -2 / (1 + 1e-4)


def test_the_exact_probability_and_loss_of_clips_of_two_steps() -> None:
    """Equation 1 by hand: sums 2 (0.3 - 0.1) and 2 (0.5 + 0.2), a tenth of the answers uniform."""
    nets = RewardNets(1, RewardSettings(members=2, hidden=2))
    linear(nets)
    first = Segments(np.array([[[0.3], [-0.1]]]), np.zeros((1, 2)))
    second = Segments(np.array([[[0.5], [0.2]]]), np.zeros((1, 2)))
    p = math.exp(0.4) / (math.exp(0.4) + math.exp(1.4))
    np.testing.assert_allclose(nets.probabilities(first, second).numpy(), [[p], [p]], rtol=1e-5)
    seen = 0.9 * p + 0.1 * 0.5
    for label in (1.0, 0.0, 0.5):
        tensors = [torch.tensor(part.inputs, dtype=torch.float32) for part in (first, second)]
        loss = nets._losses(*tensors, torch.tensor([label]))
        expected = -(label * math.log(seen) + (1 - label) * math.log(1 - seen))
        np.testing.assert_allclose(loss.detach().numpy(), [[expected], [expected]], rtol=1e-5)


def test_a_planted_reward_comes_back_but_for_scale_and_shift() -> None:
    """From 400 answers: single steps correlate with the planted reward, and the reward is normalised."""
    rng = np.random.default_rng(0)
    first, second = clips(rng, 400, 6), clips(rng, 400, 6)
    data = Comparisons(first, second, SyntheticTeacher().judge(first, second, rng))
    nets = RewardNets(3, RewardSettings(steps=200), seed=1)
    train, held = nets.fit(data)
    assert train <= held < 0.45
    test = clips(rng, 200)
    found = nets.rewards(test.inputs)
    assert np.corrcoef(found.ravel(), test.rewards.ravel())[0, 1] > 0.9
    everything = np.concatenate([first.inputs, second.inputs])
    assert abs(nets.rewards(everything).mean()) < 1e-5
    assert 0.85 < nets.rewards(everything).std() <= 1.0 + 1e-6  # the mean of members of deviation 1


def test_each_member_has_a_bootstrap_sample_that_grows() -> None:
    """Poisson(1): earlier counts stay, and a share of 1/e is held out (within 5 standard errors)."""
    rng = np.random.default_rng(0)
    first, second = clips(rng, 900, length=2), clips(rng, 900, length=2)
    data = Comparisons(first, second, np.ones(900))
    few = Comparisons(first.pick(np.arange(50)), second.pick(np.arange(50)), np.ones(50))
    nets = RewardNets(3, RewardSettings(steps=1))
    nets.fit(few)
    before = nets._counts.copy()
    nets.fit(data)
    np.testing.assert_array_equal(nets._counts[:, :50], before)
    assert nets._counts.shape == (3, 900)
    share = (nets._counts == 0).mean()
    assert abs(share - math.exp(-1)) < 5 * math.sqrt(math.exp(-1) * (1 - math.exp(-1)) / 2700)


def test_the_penalty_follows_the_ratio_of_losses() -> None:
    nets = RewardNets(2, RewardSettings(members=3, penalty=1e-3))
    nets._adapt(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([RATIO[0] - 0.01, 1.3, RATIO[1] + 0.01]))
    torch.testing.assert_close(nets.penalties, torch.tensor([1e-3 / 1.5, 1e-3, 1.5e-3]))


def test_the_teachers_rates() -> None:
    """Error rate, ties and Bradley-Terry's probabilities, each within 5 standard errors of what was asked for."""
    rng, n = np.random.default_rng(3), 20_000
    better, worse = Segments(np.zeros((n, 1, 1)), np.ones((n, 1))), Segments(np.zeros((n, 1, 1)), np.zeros((n, 1)))
    within = lambda share, p: abs(share - p) < 5 * math.sqrt(p * (1 - p) / n)  # noqa: E731
    assert SyntheticTeacher().judge(better, worse, rng).tolist() == [1.0] * n
    assert SyntheticTeacher().judge(worse, better, rng).tolist() == [0.0] * n
    assert SyntheticTeacher(error_rate=0.1).judge(better, better, rng).tolist() == [0.5] * n
    assert within((SyntheticTeacher(error_rate=0.1).judge(better, worse, rng) == 0).mean(), 0.1)
    noisy = SyntheticTeacher(rationality=2.0).judge(better, worse, rng)
    assert within(noisy.mean(), 1 / (1 + math.exp(-2)))
    assert set(SyntheticTeacher(tie_within=1.0).judge(better, worse, rng)) == {0.5}


def test_questions_are_asked_where_the_ensemble_disagrees() -> None:
    rng = np.random.default_rng(0)
    nets = RewardNets(3, seed=2)
    pool = ClipPool(length=4, actions=0, most_steps=10_000)
    shape = (30, 8)
    pool.add(rollout_of(rng.normal(size=(*shape, 2)), rng.normal(size=(*shape, 1)), np.zeros(shape, dtype=bool)))
    random = choose_pairs(pool, None, 20, candidates=10, rng=np.random.default_rng(1))
    chosen = choose_pairs(pool, nets, 20, candidates=10, rng=np.random.default_rng(1))
    spread = [nets.probabilities(*pair).var(dim=0, correction=0) for pair in (random, chosen)]
    assert len(chosen[0]) == 20
    assert spread[1].min() > spread[0].median()
    assert bool((spread[1][:-1] >= spread[1][1:]).all())  # the most disputed first


def rollout_of(observations: np.ndarray, actions: np.ndarray, truncated: np.ndarray) -> Rollout:
    shape = truncated.shape
    rewards = np.arange(shape[0])[:, None] + 100.0 * np.arange(shape[1])
    flags = np.zeros(shape, dtype=bool)
    return Rollout(observations, observations, torch.from_numpy(actions), torch.zeros(shape), rewards, flags, truncated)


def test_clips_are_whole() -> None:
    """None runs over a time limit, and all the others turn up, over the seam of two rollouts too."""
    shape = (6, 2)
    cut = np.zeros(shape, dtype=bool)
    cut[3, 0] = True  # copy 0 began anew at step 4
    pool = ClipPool(length=3, actions=0, most_steps=10_000)
    for offset in (0, 6):
        steps = np.broadcast_to(np.arange(6)[:, None] + offset, shape)[..., None].astype(float)
        pool.add(rollout_of(steps, np.zeros((*shape, 1)), cut if offset == 0 else np.zeros_like(cut)))
    drawn = pool.draw(3000, np.random.default_rng(0))
    copies = (drawn.rewards[:, 0] >= 100).astype(int)
    begins = {(int(c), int(s)) for c, s in zip(copies, drawn.inputs[:, 0, 0])}
    assert begins == {(0, s) for s in range(10) if s not in (2, 3)} | {(1, s) for s in range(10)}
    assert (np.diff(drawn.inputs[..., 0], axis=1) == 1).all()


def test_the_schedule_of_questions() -> None:
    due = [labels_due(t, steps=1000, labels=700, initial=0.25, annealing=0.2) for t in range(0, 1001, 100)]
    assert due[0] == 175
    assert due[-1] == 700
    steps = np.diff(due)
    assert (steps[:-1] >= steps[1:] - 1).all()
    # The rate is in proportion to a / (t + a): of the asked, 175 + 525 log(1 + t / a) / log(1 + 1000 / a).
    assert due[5] == 175 + math.floor(525 * math.log(3.5) / math.log(6))


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match=r"error_rate is 0\.7"):
        SyntheticTeacher(error_rate=0.7)
    with pytest.raises(ConfigError, match="members is 0"):
        RewardSettings(members=0)
    pool = ClipPool(length=5, actions=0, most_steps=100)
    pool.add(rollout_of(np.zeros((4, 1, 1)), np.zeros((4, 1, 1)), np.zeros((4, 1), dtype=bool)))
    with pytest.raises(DataError, match="clips have 5 steps, and 4 were taken so far"):
        pool.draw(1, np.random.default_rng(0))
