"""Objectives of group methods: trl's own code on the same tensors, closed forms, enumerable distributions."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from alignlab.align.losses import KLEstimator, kl_estimate
from alignlab.align.rl.objectives import (
    equal_groups,
    group_advantages,
    grpo_loss,
    kl_loss,
    leave_one_out_advantages,
    overlong_penalty,
    reinforce_loss,
    rloo_loss,
    token_weights,
)
from alignlab.core.errors import ConfigError, TrainingError

LENGTHS = (6, 3, 4, 1, 2, 5, 6, 2)
GROUP, WIDTH = 4, 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(new, old, reference log-probabilities, mask, scores) of 2 groups of 4; new leaves the clip range."""
    mask = torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]
    old = -normal(8, WIDTH, seed=1).abs() * mask
    new = (old + 0.3 * normal(8, WIDTH, seed=2) * mask).requires_grad_()
    return new, old, old + 0.5 * normal(8, WIDTH, seed=3) * mask, mask, normal(8, seed=4).mul(2)


# trl's own code, on a stand-in for the trainer that holds nothing but these tensors


class FakeAccelerator:
    device, num_processes, process_index, sync_gradients = torch.device("cpu"), 1, 0, True

    @staticmethod
    def gather(tensor: Tensor) -> Tensor:
        return tensor

    @staticmethod
    def reduce(tensor: Tensor, reduction: str) -> Tensor:
        return tensor

    @staticmethod
    def unwrap_model(model: object) -> object:
        return model


class Log(dict):
    def __missing__(self, key: str) -> Log | list:
        self[key] = Log() if key in ("train", "eval", "rewards", "extra") else []
        return self[key]


def stand_in(logprobs: Tensor, **changes: object) -> SimpleNamespace:
    values: dict[str, object] = {
        "accelerator": FakeAccelerator,
        "model": SimpleNamespace(training=True),
        "_get_per_token_logps_and_entropies": lambda *a, **k: (logprobs, torch.zeros_like(logprobs), None),
        "_metrics": Log(),
        "_logs": Log(),
        "_pending_extra_logs": {},
        "_pending_metrics": {},
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "beta": 0.0,
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "loss_type": "grpo",
        "use_vllm": False,
        "_entropy_bonus_enabled": False,
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": WIDTH,
        "args": SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
    }
    return SimpleNamespace(**(values | changes))


def trl_inputs(mask: Tensor, advantages: Tensor, **more: Tensor) -> dict[str, Tensor]:
    rows = len(mask)
    ids = torch.zeros(rows, WIDTH, dtype=torch.long)
    prompt = {"prompt_ids": torch.zeros(rows, 2, dtype=torch.long), "prompt_mask": torch.ones(rows, 2).long()}
    own = {"completion_ids": ids, "completion_mask": mask.long(), "advantages": advantages}
    return {**prompt, **own, "num_items_in_batch": mask.sum(), **more}


def trl_grpo(case: tuple, advantages: Tensor, *, ratio: bool = False, **changes: object) -> Tensor:
    from trl import GRPOTrainer

    new, old, reference, mask, _ = case
    trainer = stand_in(new, **changes)
    trainer.args.use_bias_correction_kl = ratio
    inputs = trl_inputs(mask, advantages, old_per_token_logps=old, ref_per_token_logps=reference)
    return GRPOTrainer._compute_loss(trainer, trainer.model, inputs)


def same_with_gradients(ours: Tensor, theirs: Tensor, leaf: Tensor) -> None:
    assert abs(float((ours - theirs).detach())) < 1e-7
    own, other = (torch.autograd.grad(loss, leaf)[0] for loss in (ours, theirs))
    assert float(own.abs().max()) > 1e-3
    torch.testing.assert_close(own, other, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("aggregate", "theirs", "level", "high"),
    [
        ("sequence", "grpo", "token", 0.2),
        ("token", "bnpo", "token", 0.2),
        ("token", "dapo", "token", 0.28),
        ("constant", "dr_grpo", "token", 0.2),
        ("sequence", "grpo", "sequence", 0.05),
    ],
)
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_grpo_equals_trl_with_gradients(aggregate: str, theirs: str, level: str, high: float, beta: float) -> None:
    case = new, old, reference, mask, scores = planted()
    advantages = group_advantages(scores, GROUP)
    weights = token_weights(mask, aggregate, max_tokens=WIDTH).double()  # type: ignore[arg-type]
    found = grpo_loss(new, old, advantages, weights, clip_low=0.1, clip_high=high, level=level)  # type: ignore[arg-type]
    ours = found.loss + beta * kl_loss(new, reference, weights)
    options = {"loss_type": theirs, "importance_sampling_level": level, "epsilon_low": 0.1, "epsilon_high": high}
    same_with_gradients(ours, trl_grpo(case, advantages, beta=beta, **options), new)
    assert 0.05 < float(found.clip_fraction) < 0.9  # the clip was at work on both sides


def test_the_kl_term_with_ratios_equals_trl() -> None:
    case = new, old, reference, mask, scores = planted()
    advantages, weights = group_advantages(scores, GROUP), token_weights(mask, "sequence").double()
    ours = grpo_loss(new, old, advantages, weights).loss
    ours = ours + 0.3 * kl_loss(new, reference, weights, old_logprobs=old)
    same_with_gradients(ours, trl_grpo(case, advantages, beta=0.3, ratio=True), new)


def trl_advantages(trainer_class: type, scores: Tensor, **changes: object) -> Tensor:
    """What trl computes from these scores, its generation and scoring replaced."""
    _, old, reference, _, _ = planted()
    answered = [[5] * length for length in LENGTHS]

    def logps(model: object, *rest: object, **more: object) -> tuple:
        return (reference if model == "reference" else old), torch.zeros_like(old), None

    trainer = stand_in(
        old,
        _get_per_token_logps_and_entropies=logps,
        _generate=lambda prompts: ([[1, 2]] * 8, answered, ["text"] * 8),
        _tokenizer=SimpleNamespace(pad_token_id=0),
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        ref_model="reference",
        num_generations=GROUP,
        reward_weights=torch.ones(1),
        reward_func_names=["planted"],
        reward_clip_range=None,
        log_multimodal=False,
        _calculate_rewards=lambda *a: scores[:, None],
        **changes,
    )
    trainer.args = SimpleNamespace(per_device_train_batch_size=8, gradient_checkpointing_kwargs=None)
    trainer.args.gradient_checkpointing = False
    trainer.model = torch.nn.Linear(1, 1)
    trainer.model.is_gradient_checkpointing = False
    return trainer_class._generate_and_score_completions(trainer, [{"prompt": "p"}] * 8)["advantages"]


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_rloo_equals_trl_from_scores_to_gradients(normalise: bool, beta: float) -> None:
    from trl import RLOOTrainer

    new, old, reference, mask, scores = planted()
    theirs = trl_advantages(RLOOTrainer, scores, beta=beta, normalize_advantages=normalise)
    kl = ((old - reference) * mask).sum(dim=1)
    ours = leave_one_out_advantages(scores - beta * kl, GROUP, normalise=normalise)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
    found = rloo_loss(new, old, ours, mask, clip_low=0.1, clip_high=0.3)
    trainer = stand_in(new, epsilon_low=0.1, epsilon_high=0.3)
    inputs = trl_inputs(mask, theirs, old_logps=(old * mask).sum(dim=1))
    same_with_gradients(found.loss, RLOOTrainer._compute_loss(trainer, trainer.model, inputs), new)


def naive_group_advantages(scores: Tensor, scale: str) -> list[float]:
    out: list[float] = []
    whole = [float(score) for score in scores]

    def deviation(values: list[float]) -> float:
        middle = sum(values) / len(values)
        return math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1))

    for at in range(0, len(whole), GROUP):
        group = whole[at : at + GROUP]
        divisor = {"group": deviation(group) + 1e-4, "batch": deviation(whole) + 1e-4, "none": 1.0}[scale]
        out += [(value - sum(group) / GROUP) / divisor for value in group]
    return out


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages_by_hand(scale: str) -> None:
    scores = planted()[-1]
    found = group_advantages(scores, GROUP, scale=scale)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor(naive_group_advantages(scores, scale), dtype=torch.float64))
    torch.testing.assert_close(found.view(-1, GROUP).sum(dim=1), torch.zeros(2, dtype=torch.float64))


def test_leaving_one_out_is_the_mean_difference_stretched() -> None:
    scores = planted()[-1]
    stretched = group_advantages(scores, GROUP, scale="none") * GROUP / (GROUP - 1)
    torch.testing.assert_close(leave_one_out_advantages(scores, GROUP), stretched)


# Distributions that can be enumerated


def categorical(seed: int, size: int = 5) -> Tensor:
    return normal(size, seed=seed).softmax(0)


def expected_gradient(logits: Tensor, per_action: Tensor, old: Tensor) -> Tensor:
    """The gradient of a loss's sample mean, averaged exactly over what the old policy may draw."""
    return torch.autograd.grad((old * per_action).sum(), logits, retain_graph=True)[0]


@pytest.mark.parametrize(
    ("estimator", "ratio", "pulls"),
    [
        ("k1", False, "nothing"),
        ("k2", False, "policy||reference"),
        ("k3", False, "reference||policy"),
        ("k1", True, "policy||reference"),
        ("k3", True, "policy||reference"),
    ],
)
def test_what_the_gradient_of_each_kl_term_is(estimator: KLEstimator, ratio: bool, pulls: str) -> None:
    """Exact over five actions: the published k3 term pulls towards another divergence than the one it estimates."""
    logits = normal(5, seed=7).requires_grad_()
    reference = categorical(8)
    old = logits.softmax(0).detach()
    per_action = torch.stack(
        [
            kl_loss(
                logits.log_softmax(0)[a].view(1, 1),
                reference.log()[a].view(1, 1),
                torch.ones(1, 1, dtype=torch.float64),
                estimator=estimator,
                old_logprobs=old.log()[a].view(1, 1) if ratio else None,
            )
            for a in range(5)
        ]
    )
    policy = logits.softmax(0)
    wanted = {
        "nothing": 0 * policy.sum(),
        "policy||reference": (policy * (policy / reference).log()).sum(),
        "reference||policy": (reference * (reference / policy).log()).sum(),
    }
    found = expected_gradient(logits, per_action, old)
    torch.testing.assert_close(found, torch.autograd.grad(wanted[pulls], logits)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimators_are_unbiased_exactly_and_in_samples(estimator: KLEstimator) -> None:
    """Exact: the mean over all actions is the KL. In samples: the mean of 100 000 lies within 5 standard errors, which
    an unbiased estimator misses with probability 6e-7 (two estimators: 1.2e-6)."""
    policy, reference = categorical(1), categorical(2)
    truth = float((policy * (policy / reference).log()).sum())
    estimates = kl_estimate(policy.log(), reference.log(), estimator)
    assert float((policy * estimates).sum()) == pytest.approx(truth, abs=1e-12)
    drawn = torch.multinomial(policy, 100_000, replacement=True, generator=torch.Generator().manual_seed(3))
    sample = estimates[drawn]
    assert abs(float(sample.mean()) - truth) < 5 * float(sample.std()) / math.sqrt(len(sample))


def test_the_bias_of_k2_is_the_one_of_its_definition() -> None:
    """k2 is half the second moment of the log-ratio: close to the KL of near distributions, biased for far ones."""
    policy = categorical(1)
    for reference, near in ((categorical(2), False), ((policy * (1 + 0.02 * normal(5, seed=9))), True)):
        reference = reference / reference.sum()
        truth = float((policy * (policy / reference).log()).sum())
        found = float((policy * kl_estimate(policy.log(), reference.log(), "k2")).sum())
        assert found == pytest.approx(truth, rel=0.05) if near else abs(found - truth) > 0.05 * truth


def test_the_leave_one_out_gradient_is_unbiased_and_the_groups_mean_shrinks_it() -> None:
    """Exact over all 5 x 5 x 5 groups of three: leave-one-out gives the gradient of the expected reward, the group's
    mean gives two thirds of it."""
    logits, rewards = normal(5, seed=1).requires_grad_(), normal(5, seed=2)
    groups = torch.cartesian_prod(*[torch.arange(5)] * 3)
    old = logits.softmax(0).detach()
    chance = old[groups].prod(dim=1)
    advantages = leave_one_out_advantages(rewards[groups].flatten(), 3)
    shrunk = group_advantages(rewards[groups].flatten(), 3, scale="none")
    truth = torch.autograd.grad((logits.softmax(0) * rewards).sum(), logits)[0]
    for values, factor in ((advantages, 1.0), (shrunk, 2 / 3)):
        losses = reinforce_terms(logits.log_softmax(0)[groups], values.view(-1, 3))
        found = torch.autograd.grad((chance * losses).sum(), logits, retain_graph=True)[0]
        torch.testing.assert_close(found, -factor * truth, rtol=0, atol=1e-12)


def reinforce_terms(logprobs: Tensor, advantages: Tensor) -> Tensor:
    weights = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    return torch.stack(
        [reinforce_loss(row[None], gains[None], weights) for row, gains in zip(logprobs, advantages, strict=True)]
    )


def test_all_losses_have_reinforces_gradient_at_the_policy_that_answered() -> None:
    new, _, _, mask, scores = planted()
    gains, weights = group_advantages(scores, GROUP), token_weights(mask, "constant", max_tokens=1).double()
    plain = reinforce_loss(new, gains[:, None].expand_as(new), weights)
    wanted = torch.autograd.grad(plain, new)[0]
    for loss in (grpo_loss(new, new.detach(), gains, weights).loss, rloo_loss(new, new.detach(), gains, mask).loss):
        torch.testing.assert_close(torch.autograd.grad(loss, new)[0], wanted, rtol=0, atol=1e-12)


# Weights and small functions


def test_microbatches_add_up_to_the_minibatch() -> None:
    new, old, _, mask, scores = planted()
    gains = group_advantages(scores, GROUP)
    for aggregate in ("sequence", "token", "constant"):
        weights = token_weights(mask, aggregate, max_tokens=9).double()  # type: ignore[arg-type]
        whole = grpo_loss(new, old, gains, weights).loss
        parts = [grpo_loss(new[p], old[p], gains[p], weights[p]).loss for p in torch.arange(8).split(3)]
        torch.testing.assert_close(sum(parts), whole)


def test_weights_by_hand() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert token_weights(mask, "sequence").tolist() == [[0.25, 0.25, 0.0], [0.5, 0.0, 0.0]]
    torch.testing.assert_close(token_weights(mask, "token"), mask / 3)
    torch.testing.assert_close(token_weights(mask, "constant", max_tokens=5), mask / 10)


def test_what_lies_outside_the_mask_is_not_touched() -> None:
    new, old, reference, mask, scores = planted()
    gains, weights = group_advantages(scores, GROUP), token_weights(mask).double()
    spoiled = torch.where(mask, new, torch.full_like(new, float("nan")))
    torch.testing.assert_close(grpo_loss(spoiled, old, gains, weights).loss, grpo_loss(new, old, gains, weights).loss)
    torch.testing.assert_close(rloo_loss(spoiled, old, gains, mask).loss, rloo_loss(new, old, gains, mask).loss)
    torch.testing.assert_close(kl_loss(spoiled, reference, weights), kl_loss(new, reference, weights))


def test_overlong_penalty_by_hand() -> None:
    lengths = torch.tensor([5, 12, 14, 16, 20])
    assert overlong_penalty(lengths, max_tokens=16, buffer=4).tolist() == [0.0, 0.0, -0.5, -1.0, -1.0]


def test_equal_groups_by_hand() -> None:
    assert equal_groups(torch.tensor([1.0, 1.0, 0.0, 1.0]), 2).tolist() == [True, False]


def test_bad_input_is_refused_in_words() -> None:
    new, old, _, mask, scores = planted()
    with pytest.raises(ConfigError, match=r"\(8,\) scores do not fall into groups of 3"):
        group_advantages(scores, 3)
    with pytest.raises(ConfigError, match="group_size is 1"):
        leave_one_out_advantages(scores, 1)
    with pytest.raises(ConfigError, match="'all', allowed: 'group'"):
        group_advantages(scores, GROUP, scale="all")  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="selects none of the batch's 48 positions"):
        token_weights(torch.zeros_like(mask))
    with pytest.raises(TrainingError, match="selects none of the batch's 48 positions"):
        rloo_loss(new, old, scores, torch.zeros_like(mask))
    with pytest.raises(ConfigError, match="max_tokens is None"):
        token_weights(mask, "constant")
    with pytest.raises(ConfigError, match="'mean', allowed"):
        token_weights(mask, "mean")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'word', allowed"):
        grpo_loss(new, old, scores, token_weights(mask).double(), level="word")  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="different shapes"):
        grpo_loss(new, old[:, :2], scores, token_weights(mask).double())
    with pytest.raises(ConfigError, match="buffer is 0"):
        overlong_penalty(torch.tensor([3]), 4, 0)
