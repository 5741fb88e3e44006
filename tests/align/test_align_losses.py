"""Losses and advantages against trl, closed forms, naive loops and enumerable distributions."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignlab.align.advantages import KLController, explained_variance, gae, token_rewards, whiten
from alignlab.align.losses import (
    bradley_terry_loss,
    dpo_loss,
    kl_estimate,
    masked_mean,
    ppo_policy_loss,
    ppo_value_loss,
)
from alignlab.core.errors import ConfigError, TrainingError


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Bradley-Terry


class FakeAccelerator:
    device = torch.device("cpu")

    @staticmethod
    def gather(tensor: Tensor) -> Tensor:
        return tensor

    gather_for_metrics = gather


class Metrics(dict):
    def __missing__(self, key: str) -> Metrics | list:
        self[key] = Metrics() if key in ("train", "eval") else []
        return self[key]


def trl_reward_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | None) -> Tensor:
    """trl's own `RewardTrainer.compute_loss`, given a model that returns these rewards."""
    from trl import RewardTrainer

    logits = torch.cat([chosen, rejected])[:, None]
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=None),
        accelerator=FakeAccelerator,
        _metrics=Metrics(),
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {"attention_mask": torch.ones(len(logits), 3)} | ({} if margin is None else {"margin": margin})
    return RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=logits), inputs)


@pytest.mark.parametrize("with_margin", [False, True])
def test_bradley_terry_equals_trl_with_gradients(with_margin: bool) -> None:
    chosen, rejected = (normal(7, seed=s).mul(3).requires_grad_() for s in (1, 2))
    margin = normal(7, seed=3).abs() if with_margin else None
    theirs = trl_reward_loss(chosen, rejected, margin)
    ours = bradley_terry_loss(chosen, rejected, 0.0 if margin is None else margin)
    assert abs(float((ours - theirs).detach())) < 1e-12
    for own, other in zip(
        torch.autograd.grad(ours, (chosen, rejected)), torch.autograd.grad(theirs, (chosen, rejected)), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-12)


def test_bradley_terry_soft_labels_are_the_expected_loss_and_are_least_at_the_true_log_odds() -> None:
    chosen, rejected = normal(5, seed=1), normal(5, seed=2)
    mixed = 0.7 * bradley_terry_loss(chosen, rejected) + 0.3 * bradley_terry_loss(rejected, chosen)
    torch.testing.assert_close(bradley_terry_loss(chosen, rejected, label_probability=0.7), mixed)
    odds = torch.tensor([math.log(0.7 / 0.3)], dtype=torch.float64, requires_grad=True)
    bradley_terry_loss(odds, torch.zeros(1, dtype=torch.float64), label_probability=0.7).backward()
    assert abs(float(odds.grad)) < 1e-12


def test_bradley_terry_by_hand_and_without_overflow() -> None:
    one, zero = torch.tensor([1.0]), torch.tensor([0.0])
    assert float(bradley_terry_loss(one, zero)) == pytest.approx(math.log(1 + math.exp(-1)))
    assert float(bradley_terry_loss(torch.tensor([-1e4]), zero)) == pytest.approx(1e4)


# DPO


def trl_dpo_loss(kind: str, beta: float, logps: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """trl's own `DPOTrainer._compute_loss`, given a model that returns these log-probabilities per token."""
    from trl import DPOTrainer

    rows, width = logps.shape
    outputs = SimpleNamespace(
        log_probs=logps, entropy=logps.detach(), mean_logits=logps.detach(), is_top1=torch.zeros_like(logps).bool()
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=FakeAccelerator,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics=Metrics(),
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": torch.zeros(rows, width + 1, dtype=torch.long),
        "attention_mask": torch.ones(rows, width + 1),
        "completion_mask": torch.cat([torch.zeros(rows, 1, dtype=torch.long), mask.long()], dim=1),
        "ref_chosen_logps": reference[: rows // 2],
        "ref_rejected_logps": reference[rows // 2 :],
    }
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)


def planted_logps() -> tuple[Tensor, Tensor, Tensor]:
    """Per-token log-probabilities of 5 chosen and 5 rejected responses and the reference's sums."""
    mask = torch.arange(6) < torch.tensor([6, 3, 4, 1, 2, 5, 6, 2, 3, 4])[:, None]
    logps = (-normal(10, 6, seed=4).abs() * mask).requires_grad_()
    return logps, -normal(10, seed=5).abs() * 5, mask


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_equals_trl_with_gradients(beta: float) -> None:
    logps, reference, mask = planted_logps()
    chosen, rejected = logps.sum(1).chunk(2)
    ours, good, bad = dpo_loss(chosen, rejected, *reference.chunk(2), beta=beta)
    theirs = trl_dpo_loss("sigmoid", beta, logps, reference, mask)
    assert abs(float((ours - theirs).detach())) < 1e-12
    torch.testing.assert_close(*(torch.autograd.grad(x, logps)[0] for x in (ours, theirs)), rtol=0, atol=1e-12)
    torch.testing.assert_close(good - bad, beta * (chosen - rejected - reference[:5] + reference[5:]).detach())
    assert not good.requires_grad


def test_conservative_dpo_is_trls_loss_mixed_with_the_flipped_one() -> None:
    logps, reference, mask = planted_logps()
    swap = torch.cat([torch.arange(5, 10), torch.arange(5)])
    theirs = 0.8 * trl_dpo_loss("sigmoid", 0.3, logps, reference, mask)
    theirs = theirs + 0.2 * trl_dpo_loss("sigmoid", 0.3, logps[swap], reference[swap], mask[swap])
    ours = dpo_loss(*logps.sum(1).chunk(2), *reference.chunk(2), beta=0.3, label_smoothing=0.2)[0]
    assert abs(float((ours - theirs).detach())) < 1e-12
    torch.testing.assert_close(*(torch.autograd.grad(x, logps)[0] for x in (ours, theirs)), rtol=0, atol=1e-12)


def test_ipo_equals_trl_on_length_averaged_log_probabilities() -> None:
    logps, reference, mask = planted_logps()
    lengths = mask.sum(1)
    chosen, rejected = (logps.sum(1) / lengths).chunk(2)
    ours = dpo_loss(chosen, rejected, *(reference / lengths).chunk(2), beta=0.3, kind="ipo")[0]
    theirs = trl_dpo_loss("ipo", 0.3, logps, reference, mask)
    assert abs(float((ours - theirs).detach())) < 1e-12
    torch.testing.assert_close(*(torch.autograd.grad(x, logps)[0] for x in (ours, theirs)), rtol=0, atol=1e-12)


def test_dpo_starts_at_log_two_and_its_gradient_is_half_beta() -> None:
    same = torch.tensor([-4.0], dtype=torch.float64, requires_grad=True)
    loss, _, _ = dpo_loss(same, same.detach(), same.detach(), same.detach(), beta=0.4)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(2))
    assert float(same.grad) == pytest.approx(-0.2)


# PPO


def test_ppo_policy_loss_by_hand() -> None:
    # Ratios 1.5, 1.5, 0.5, 0.5, 1.1 with clip 0.2: which are cut depends on the sign of the advantage.
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1, 9.0]], dtype=torch.float64)
    advantage = torch.tensor([[1.0, -1.0, 1.0, -1.0, 2.0, 100.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, True, True, False]])
    logprobs = ratio.log().requires_grad_()
    found = ppo_policy_loss(logprobs, torch.zeros_like(ratio), advantage, mask, clip=0.2)
    # min: 1.2 (cut), -1.5, 0.5, -0.8 (cut), 2.2
    assert float(found.loss.detach()) == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8 + 2.2) / 5)
    assert float(found.clip_fraction) == pytest.approx(2 / 5)
    expected_kl = sum(r - 1 - math.log(r) for r in (1.5, 1.5, 0.5, 0.5, 1.1)) / 5
    assert float(found.approx_kl) == pytest.approx(expected_kl)
    found.loss.backward()
    # d(ratio)/d(logprob) = ratio where not cut, 0 where cut or masked.
    torch.testing.assert_close(
        logprobs.grad, torch.tensor([[0.0, 1.5, -0.5, 0.0, -2.2, 0.0]], dtype=torch.float64) / 5, rtol=0, atol=1e-12
    )


def test_ppo_gradient_on_policy_is_the_policy_gradient() -> None:
    logprobs = -normal(3, 4, seed=1).abs()
    advantages, mask = normal(3, 4, seed=2), normal(3, 4, seed=3) > -0.5
    new = logprobs.clone().requires_grad_()
    ppo_policy_loss(new, logprobs, advantages, mask).loss.backward()
    torch.testing.assert_close(new.grad, -advantages * mask / mask.sum())


def test_ppo_value_loss_by_hand() -> None:
    values = torch.tensor([[1.0, 0.1, 0.5]], dtype=torch.float64, requires_grad=True)
    old, returns = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    found = ppo_value_loss(values, old, returns, mask, clip=0.2)
    # squares 1, 0.81, 0.25; clipped to 0.2, 0.1, 0.2 they are 3.24, 0.81, 0.04: the larger of each pair
    assert float(found.loss.detach()) == pytest.approx(0.5 * (3.24 + 0.81 + 0.25) / 3)
    assert float(found.clip_fraction) == pytest.approx(1 / 3)
    plain = ppo_value_loss(values, old, returns, mask, clip=None)
    assert float(plain.loss.detach()) == pytest.approx(0.5 * (1 + 0.81 + 0.25) / 3)


def test_values_that_moved_less_than_the_clip_are_not_clipped() -> None:
    """Not by rounding either: fraction 0, and the plain error's gradient bit for bit."""
    generator = torch.Generator().manual_seed(0)
    old, values, returns = 0.19 * torch.rand(3, 64, 9, generator=generator)
    values.requires_grad_()
    mask = torch.ones(64, 9, dtype=torch.bool)
    clipped, plain = (ppo_value_loss(values, old, returns, mask, clip=clip) for clip in (0.2, None))
    assert float(clipped.clip_fraction) == 0.0
    assert float(clipped.loss.detach()) == float(plain.loss.detach())
    gradients = [torch.autograd.grad(found.loss, values)[0] for found in (clipped, plain)]
    assert torch.equal(*gradients)


def naive_gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> np.ndarray:
    """The definition: sum over l of (gamma lam)^l times the TD error l steps on, up to the end of the episode."""
    r, v, m = rewards.numpy(), values.numpy(), mask.numpy()
    found = np.zeros_like(r)
    for b in range(r.shape[0]):
        for t in range(r.shape[1]):
            step = t
            while step < r.shape[1] and m[b, step]:
                following = v[b, step + 1] if step + 1 < r.shape[1] and m[b, step + 1] else 0.0
                found[b, t] += (gamma * lam) ** (step - t) * (r[b, step] + gamma * following - v[b, step])
                step += 1
    return found


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9)),
)
def test_gae_equals_a_naive_double_loop(seed: int, gamma: float, lam: float, shape: tuple[int, int]) -> None:
    rewards, values = normal(*shape, seed=seed), normal(*shape, seed=seed + 1)
    mask = normal(*shape, seed=seed + 2) > -0.7
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    np.testing.assert_allclose(advantages.numpy(), naive_gae(rewards, values, mask, gamma, lam), atol=1e-12)
    torch.testing.assert_close(returns, advantages + values * mask)


def test_gae_by_hand_and_blind_to_padding() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.4, 0.3]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, _ = gae(rewards, values, mask, gamma=0.9, lam=0.5)
    last, middle, first = 1 - 0.3, 0.9 * 0.3 - 0.4, 0.9 * 0.4 - 0.5
    torch.testing.assert_close(
        advantages, torch.tensor([[first + 0.45 * (middle + 0.45 * last), middle + 0.45 * last, last]])
    )
    nan = torch.full((1, 2), float("nan"))
    padded = gae(
        torch.cat([nan, rewards, nan], 1),
        torch.cat([nan, values, nan], 1),
        torch.cat([nan.isfinite(), mask, nan.isfinite()], 1),
        gamma=0.9,
        lam=0.5,
    )[0]
    torch.testing.assert_close(padded[:, 2:5], advantages)
    assert bool((padded[:, [0, 1, 5, 6]] == 0).all())


def test_token_rewards_put_the_score_on_the_last_response_token() -> None:
    mask = torch.tensor([[False, True, True, False], [False, False, True, True]])
    logprobs, reference = normal(2, 4, seed=1), normal(2, 4, seed=2)
    scores = torch.tensor([3.0, -1.0], dtype=torch.float64)
    found = token_rewards(scores, logprobs, reference, mask, kl_coefficient=0.1)
    expected = -0.1 * (logprobs - reference) * mask
    expected[0, 2] += 3
    expected[1, 3] -= 1
    torch.testing.assert_close(found, expected)
    # Summed over the response: score - beta * (log policy - log reference), the objective of RLHF.
    torch.testing.assert_close(found.sum(1), scores - 0.1 * ((logprobs - reference) * mask).sum(1))


def test_whiten_uses_only_the_masked_tokens() -> None:
    values, mask = normal(4, 6, seed=1) * 3 + 7, normal(4, 6, seed=2) > 0
    found = whiten(torch.where(mask, values, torch.full_like(values, float("nan"))), mask)
    kept = found[mask]
    assert abs(float(kept.mean())) < 1e-12
    assert float(kept.std(correction=0)) == pytest.approx(1)
    assert bool((found[~mask] == 0).all())
    unshifted = whiten(values, mask, shift_mean=False)[mask]
    assert float(unshifted.mean()) == pytest.approx(float(values[mask].mean()))
    assert bool((whiten(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool)) == 0).all())


def test_explained_variance_of_perfect_constant_and_wrong_values() -> None:
    returns, mask = normal(3, 5, seed=1), torch.ones(3, 5, dtype=torch.bool)
    assert explained_variance(returns + 2, returns, mask) == pytest.approx(1)
    assert explained_variance(torch.zeros_like(returns), returns, mask) == pytest.approx(0)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3)
    assert explained_variance(returns, torch.ones_like(returns), mask) == 0


# KL


def test_kl_estimators_on_an_enumerable_distribution() -> None:
    """Expectations by enumeration: k1 and k3 give the KL exactly, k2 gives its gradient."""
    logits = normal(6, seed=1).requires_grad_()
    policy, reference = logits.log_softmax(0), normal(6, seed=2).log_softmax(0)
    p = policy.exp()
    kl = (p * (policy - reference)).sum()
    for estimator in ("k1", "k3"):
        assert float((p * kl_estimate(policy, reference, estimator)).sum().detach()) == pytest.approx(
            float(kl.detach()), abs=1e-12
        )
    second = (p.detach() * kl_estimate(policy, reference, "k2")).sum()
    assert float(second.detach()) != pytest.approx(float(kl.detach()), rel=0.02)  # biased
    torch.testing.assert_close(*(torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (second, kl)))
    assert bool((kl_estimate(policy, reference, "k3") >= 0).all())


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimators_are_unbiased_on_samples(estimator: str) -> None:
    """A z-test at 5 standard errors on 200,000 samples: false-alarm probability 6e-7, were the seed not fixed."""
    policy, reference = normal(6, seed=1).log_softmax(0), (normal(6, seed=1) + 0.3 * normal(6, seed=3)).log_softmax(0)
    drawn = torch.multinomial(policy.exp(), 200_000, True, generator=torch.Generator().manual_seed(7))
    estimates = kl_estimate(policy[drawn], reference[drawn], estimator)
    error = float(estimates.std() / len(drawn) ** 0.5)
    assert abs(float(estimates.mean() - (policy.exp() * (policy - reference)).sum())) < 5 * error


def test_kl_controller_follows_the_paper_and_settles() -> None:
    controller = KLController(0.2, target=6.0, gain=0.1)
    assert controller.update(6.6) == pytest.approx(0.2 * (1 + 0.1 * 0.1))
    assert KLController(0.2, target=6.0).update(600.0) == pytest.approx(0.2 * 1.02)  # error clipped at 0.2
    assert KLController(0.2, target=6.0).update(0.0) == pytest.approx(0.2 * 0.98)
    assert KLController(0.2).update(600.0) == 0.2
    # A policy whose KL is 1 / beta reaches the target KL.
    for _ in range(400):
        controller.update(1 / controller.coefficient)
    assert 1 / controller.coefficient == pytest.approx(6.0, rel=0.01)


# bad input


def test_bad_input_is_refused_in_words() -> None:
    two, three, none = torch.zeros(2), torch.zeros(3), torch.zeros(0)
    with pytest.raises(TrainingError, match=r"chosen \(2,\), rejected \(3,\)"):
        bradley_terry_loss(two, three)
    with pytest.raises(TrainingError, match="empty batch"):
        bradley_terry_loss(none, none)
    with pytest.raises(ConfigError, match="label_probability"):
        bradley_terry_loss(two, two, label_probability=1.2)
    with pytest.raises(TrainingError, match="reference_rejected"):
        dpo_loss(two, two, two, three)
    with pytest.raises(ConfigError, match="'hinge', allowed"):
        dpo_loss(two, two, two, two, kind="hinge")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'k4', allowed"):
        kl_estimate(two, two, "k4")  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="nothing to learn"):
        masked_mean(two, torch.zeros(2, dtype=torch.bool))
    with pytest.raises(TrainingError, match="different shapes"):
        gae(torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2, 3, dtype=torch.bool))
    mask = torch.tensor([[True], [False]])
    with pytest.raises(TrainingError, match=r"responses \[1\]"):
        token_rewards(two, torch.zeros(2, 1), torch.zeros(2, 1), mask, kl_coefficient=0.1)
    with pytest.raises(ConfigError, match="target is 0"):
        KLController(0.1, target=0)
