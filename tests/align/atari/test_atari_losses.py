"""n-step returns against a loop, the margin's loss in closed form, sampling and its correction."""

from __future__ import annotations

import pytest
import torch

from alignlab.align.atari.losses import (
    double_q_targets,
    importance_weights,
    margin_losses,
    n_step_returns,
    sampling_probabilities,
)


def naive_return(rewards: list[float], ends: list[bool], gamma: float) -> tuple[float, float]:
    total, discount = 0.0, 1.0
    for reward, end in zip(rewards, ends, strict=True):
        total += discount * reward
        discount *= gamma
        if end:
            return total, 0.0
    return total, discount


@pytest.mark.parametrize("n", [1, 2, 5, 10])
def test_returns_equal_a_loop(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    rewards = torch.randn(200, n, generator=generator, dtype=torch.float64)
    ends = torch.rand(200, n, generator=generator) < 0.2
    returns, discounts = n_step_returns(rewards, ends, 0.9)
    expected = [naive_return(r, e, 0.9) for r, e in zip(rewards.tolist(), ends.tolist(), strict=True)]
    assert torch.allclose(returns, torch.tensor([r for r, _ in expected], dtype=torch.float64), atol=1e-12)
    assert torch.allclose(discounts, torch.tensor([d for _, d in expected], dtype=torch.float64), atol=1e-12)


def test_double_q_takes_the_online_networks_action() -> None:
    # By hand: online prefers action 1, whose target value is 10, not the target's own best of 20.
    online, target = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[5.0, 10.0, 20.0]])
    found = double_q_targets(torch.tensor([0.5]), torch.tensor([0.81]), online, target)
    assert found.item() == pytest.approx(0.5 + 0.81 * 10)


def test_margin_in_closed_form() -> None:
    values = torch.tensor([[1.0, 0.9, 0.0], [1.0, 0.9, 0.0], [2.0, 0.5, 1.5], [0.0, 0.0, 0.0]])
    expert = torch.tensor([0, 1, 0, 2])
    # max(Q_E, max_other + 0.3) - Q_E: 1.2 - 1; 1.3 - 0.9; 2 - 2; 0.3 - 0
    expected = torch.tensor([0.2, 0.4, 0.0, 0.3])
    assert torch.allclose(margin_losses(values, expert, 0.3), expected, atol=1e-6)


def test_the_margin_pushes_only_the_rival_and_the_expert() -> None:
    values = torch.tensor([[1.0, 0.9, 0.0]], requires_grad=True)
    margin_losses(values, torch.tensor([0]), 0.3).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[-1.0, 1.0, 0.0]]


def test_importance_weights_undo_the_sampling() -> None:
    # At beta = 1 the weighted mean over draws is the plain mean over slots, whatever the priorities.
    generator = torch.Generator().manual_seed(0)
    priorities, errors = torch.rand(8, generator=generator).double() + 0.1, torch.randn(8, generator=generator).double()
    chances = sampling_probabilities(priorities)
    assert chances.sum().item() == pytest.approx(1.0)
    weights = importance_weights(chances, 8, 1.0)
    assert weights.max().item() == pytest.approx(1.0)
    unnormalised = weights * (8 * chances).min() ** -1.0
    assert (chances * unnormalised * errors).sum().item() == pytest.approx(errors.mean().item())
    assert torch.allclose(importance_weights(chances, 8, 0.0), torch.ones(8, dtype=torch.float64))
