"""KTO, ORPO, SimPO and DPO's relatives against trl, closed forms, and optima that are known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from alignlab.align.direct.losses import (
    balanced_weights,
    kto_baseline,
    kto_loss,
    log_odds,
    orpo_loss,
    robust_dpo_loss,
    simpo_loss,
)
from alignlab.align.losses import dpo_loss
from alignlab.core.errors import ConfigError, TrainingError


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted() -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities per token of 5 chosen and 5 rejected responses, the reference's sums, and the mask."""
    mask = torch.arange(6) < torch.tensor([6, 3, 4, 1, 2, 5, 6, 2, 3, 4])[:, None]
    return (-normal(10, 6, seed=4).abs() * mask).requires_grad_(), -normal(10, seed=5).abs() * 5, mask


def assert_equal(ours: Tensor, theirs: Tensor, of: Tensor, atol: float = 1e-12) -> None:
    """Value and gradient."""
    assert abs(float((ours - theirs).detach())) < atol
    found, wanted = (torch.autograd.grad(x, of, retain_graph=True)[0] for x in (ours, theirs))
    assert bool((wanted != 0).any())
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol, check_dtype=False)


# trl ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


class Metrics(dict):
    def __missing__(self, key: str) -> Metrics | list:
        self[key] = Metrics() if key in ("train", "eval") else []
        return self[key]


def trainer_with(**settings: object) -> SimpleNamespace:
    """What trl's losses ask of their trainer, without a trainer."""
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
    shared = {"aux_loss_enabled": False, "_metrics": Metrics(), "_total_train_tokens": 0, "_tp_size": 1}
    model = SimpleNamespace(training=True)
    return SimpleNamespace(**{"model": model, "accelerator": accelerator, **shared, **settings})


def outputs_of(logps: Tensor) -> SimpleNamespace:
    extra = {"entropy": logps.detach(), "mean_logits": logps.detach(), "is_top1": torch.zeros_like(logps).bool()}
    return SimpleNamespace(log_probs=logps, **extra)


def inputs_of(mask: Tensor) -> dict[str, Tensor]:
    rows, width = mask.shape
    return {
        "input_ids": torch.zeros(rows, width + 1, dtype=torch.long),
        "attention_mask": torch.ones(rows, width + 1),
        "completion_mask": torch.cat([torch.zeros(rows, 1, dtype=torch.long), mask.long()], dim=1),
    }


def trl_dpo(kind: str, beta: float, smoothing: float, logps: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """trl's own `DPOTrainer._compute_loss`, given a model that returns these log-probabilities per token."""
    from trl import DPOTrainer

    known = {"ld_alpha": None, "precompute_ref_logps": True, "f_divergence_type": "reverse_kl", "use_weighting": False}
    trainer = trainer_with(loss_types=[kind], loss_weights=[1.0], beta=beta, label_smoothing=smoothing, **known)
    chosen, rejected = reference.chunk(2)
    inputs = inputs_of(mask) | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs_of(logps), inputs, False)


def trl_kto(good: Tensor, mismatched: Tensor, reference_mismatched: Tensor, **settings: float) -> Callable[..., Tensor]:
    """trl's own `KTOTrainer._compute_loss`."""
    from trl import KTOTrainer

    def loss(logps: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        known = {"calculate_KL": True, "precompute_ref_logps": True, "loss_type": "kto"}
        trainer = trainer_with(**known, **settings, _compute_kl_logps=lambda *_: mismatched)
        inputs = inputs_of(mask) | {"label": good, "ref_logps": reference, "ref_KL_logps": reference_mismatched}
        return KTOTrainer._compute_loss(trainer, lambda **_: outputs_of(logps), inputs, False)

    return loss


def trl_orpo(chosen: Tensor, rejected: Tensor, nll: Tensor, weight: float) -> Tensor:
    """trl's own `ORPOTrainer.get_batch_loss_metrics`."""
    from trl.experimental.orpo import ORPOTrainer

    nothing = torch.zeros(1)
    forward = (chosen, rejected, nothing, nothing, nll)
    trainer = trainer_with(beta=weight, concatenated_forward=lambda *_: forward)
    trainer.odds_ratio_loss = partial(ORPOTrainer.odds_ratio_loss, trainer)
    return ORPOTrainer.get_batch_loss_metrics(trainer, None, {})[0]


def trl_simpo(chosen: Tensor, rejected: Tensor, beta: float, gamma: float, smoothing: float) -> Tensor:
    """trl's own `CPOTrainer.cpo_loss`."""
    from trl.experimental.cpo import CPOTrainer

    trainer = trainer_with(alpha=0.0, loss_type="simpo", simpo_gamma=gamma, beta=beta, label_smoothing=smoothing)
    return CPOTrainer.cpo_loss(trainer, chosen, rejected)[0].mean()


@pytest.mark.parametrize(("beta", "rate"), [(0.1, 0.0), (0.7, 0.2)])
def test_robust_dpo_equals_trl(beta: float, rate: float) -> None:
    logps, reference, mask = planted()
    ours = robust_dpo_loss(*logps.sum(1).chunk(2), *reference.chunk(2), beta=beta, flip_rate=rate)
    assert_equal(ours.loss, trl_dpo("robust", beta, rate, logps, reference, mask), logps)
    assert not ours.chosen_rewards.requires_grad


def test_robust_dpo_on_soft_labels_is_the_mean_over_labels() -> None:
    logps, reference, mask = planted()
    swap = torch.cat([torch.arange(5, 10), torch.arange(5)])
    theirs = 0.7 * trl_dpo("robust", 0.3, 0.2, logps, reference, mask)
    theirs = theirs + 0.3 * trl_dpo("robust", 0.3, 0.2, logps[swap], reference[swap], mask[swap])
    sides = (*logps.sum(1).chunk(2), *reference.chunk(2))
    ours = robust_dpo_loss(*sides, beta=0.3, flip_rate=0.2, label_probability=0.7).loss
    assert_equal(ours, theirs, logps)


@pytest.mark.parametrize(("ours", "theirs"), [("sigmoid", "sigmoid_norm"), ("ipo", "ipo")])
def test_length_normalised_losses_equal_trl_on_means(ours: str, theirs: str) -> None:
    logps, reference, mask = planted()
    lengths = mask.sum(1)
    sides = (*(logps.sum(1) / lengths).chunk(2), *(reference / lengths).chunk(2))
    found = dpo_loss(*sides, beta=0.6, kind=ours)[0]  # type: ignore[arg-type]
    assert_equal(found, trl_dpo(theirs, 0.6, 0.0, logps, reference, mask), logps)


@pytest.mark.parametrize("shift", [0.4, -9.0])
def test_kto_equals_trl(shift: float) -> None:
    logps, reference, mask = planted()
    good = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0, 0, 0]).bool()
    mismatched, reference_mismatched = normal(10, seed=6) + shift, normal(10, seed=7)
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    theirs = trl_kto(good, mismatched, reference_mismatched, beta=0.3, **weights)(logps, reference, mask)
    level = kto_baseline(mismatched, reference_mismatched)
    assert (float(level) > 0) == (shift > 0)
    ours = kto_loss(logps.sum(1), reference, good, baseline=level, beta=0.3, good_weight=1.3, bad_weight=0.7)
    assert_equal(ours.loss, theirs, logps)


@pytest.mark.parametrize("weight", [0.1, 1.0])
def test_orpo_equals_trl(weight: float) -> None:
    """trl computes the odds in float32, hence 1e-6."""
    logps, _, mask = planted()
    means = logps.sum(1) / mask.sum(1)
    nll = -logps[:5].sum() / mask[:5].sum()
    ours = orpo_loss(*means.chunk(2), nll, weight=weight)
    assert_equal(ours.loss, trl_orpo(*means.chunk(2), nll, weight), logps, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_simpo_equals_trl(smoothing: float) -> None:
    logps, _, mask = planted()
    sides = (logps.sum(1) / mask.sum(1)).chunk(2)
    ours = simpo_loss(*sides, beta=2.5, margin=1.4, label_smoothing=smoothing)
    assert_equal(ours.loss, trl_simpo(*sides, 2.5, 1.4, smoothing), logps)


# closed forms ---------------------------------------------------------------------------------------------------------


def test_where_policy_and_reference_agree() -> None:
    """Each loss and its slope at the start of a training."""
    start = torch.tensor([-4.0, -2.0], dtype=torch.float64, requires_grad=True)
    same = start.detach()
    robust = robust_dpo_loss(start, same, same, same, beta=0.4, flip_rate=0.1).loss
    assert float(robust.detach()) == pytest.approx(math.log(2))
    torch.testing.assert_close(torch.autograd.grad(robust, start)[0], torch.full_like(same, -0.4 / 2 / 2 / 0.8))
    good = torch.tensor([True, False])
    kto = kto_loss(start, same, good, beta=0.4, good_weight=1.0, bad_weight=3.0)
    assert float(kto.loss.detach()) == pytest.approx((0.5 + 3 * 0.5) / 2)
    wanted = torch.tensor([-0.4 / 4 / 2, 3 * 0.4 / 4 / 2], dtype=torch.float64)  # sigma'(0) = 1/4
    torch.testing.assert_close(torch.autograd.grad(kto.loss, start)[0], wanted)
    simpo = simpo_loss(start, same, beta=2.0, margin=0.5).loss
    assert float(simpo.detach()) == pytest.approx(math.log(1 + math.exp(0.5)))
    orpo = orpo_loss(start, same, -start.mean(), weight=0.3).loss
    assert float(orpo.detach()) == pytest.approx(3 + 0.3 * math.log(2))


def test_log_odds_by_hand_and_at_both_ends() -> None:
    p = torch.tensor([0.5, 0.2, 1 - 1e-9, 1e-30], dtype=torch.float64)
    log_p = p.log().requires_grad_()
    found = log_odds(log_p)
    torch.testing.assert_close(found.detach(), torch.log(p / (1 - p)), rtol=1e-7, atol=0)
    found.sum().backward()
    torch.testing.assert_close(log_p.grad, 1 / (1 - p), rtol=1e-7, atol=0)
    certain = torch.zeros(1, requires_grad=True)
    found = log_odds(certain)
    found.backward()
    assert float(found.detach()) == pytest.approx(-math.log(torch.finfo(torch.float32).eps), rel=1e-3)
    assert float(certain.grad) == 0
    with pytest.raises(TrainingError, match=r"log-probability of 0\.5"):
        log_odds(torch.tensor([0.5]))


def test_kto_saturates_and_its_baseline_is_never_negative() -> None:
    far = torch.tensor([1e4, -1e4], dtype=torch.float64)
    rated = kto_loss(far, torch.zeros_like(far), torch.tensor([True, False]))
    assert float(rated.loss) == 0
    assert float(kto_baseline(torch.tensor([-3.0, 1.0]), torch.zeros(2))) == 0
    assert float(kto_baseline(torch.tensor([3.0, 1.0]), torch.zeros(2))) == 2
    assert not kto_baseline(torch.ones(2, requires_grad=True), torch.zeros(2)).requires_grad


def test_balanced_weights() -> None:
    assert balanced_weights(10, 40) == (1.0, 0.25)
    assert balanced_weights(30, 10) == (pytest.approx(1 / 3), 1.0)
    assert balanced_weights(7, 7) == balanced_weights(3, 0) == (1.0, 1.0)


# optima on one-step categorical policies ------------------------------------------------------------------------------

ACTIONS = 6


def minimise(loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Log-probabilities of the categorical policy that minimises the loss."""
    logits = torch.zeros(ACTIONS, dtype=torch.float64, requires_grad=True)
    settings = {"max_iter": 400, "line_search_fn": "strong_wolfe", "tolerance_grad": 1e-12, "tolerance_change": 1e-16}
    optimiser = torch.optim.LBFGS([logits], **settings)  # type: ignore[arg-type]

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(logits.log_softmax(0))
        value.backward()
        return value

    optimiser.step(closure)
    return logits.detach().log_softmax(0)


def all_pairs() -> tuple[Tensor, Tensor, Tensor]:
    """First and second answer of every pair there is, and the probability under Bradley-Terry that the first wins."""
    first, second = torch.tensor(list(itertools.combinations(range(ACTIONS), 2))).T
    rewards = normal(ACTIONS, seed=1)
    return first, second, torch.sigmoid(rewards[first] - rewards[second])


def tilted(beta: float) -> Tensor:
    """pi_ref exp(r / beta) / Z."""
    return (reference() + normal(ACTIONS, seed=1) / beta).softmax(0)


def reference() -> Tensor:
    return normal(ACTIONS, seed=2).log_softmax(0)


def total_variation(p: Tensor, q: Tensor) -> float:
    return float((p - q).abs().sum() / 2)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_dpo_on_every_pair_reaches_the_tilted_reference(beta: float) -> None:
    first, second, wins = all_pairs()
    ref = reference()

    def loss(policy: Tensor) -> Tensor:
        sides = policy[first], policy[second], ref[first], ref[second]
        return dpo_loss(*sides, beta=beta, label_smoothing=1 - wins)[0]

    assert total_variation(minimise(loss).exp(), tilted(beta)) < 1e-6


def test_robust_dpo_undoes_flipped_labels_and_conservative_dpo_shrinks() -> None:
    """A fifth of the labels is flipped: robust DPO reaches the optimum of the true labels, the others do not."""
    first, second, wins = all_pairs()
    ref, beta, rate = reference(), 0.5, 0.2
    seen = wins * (1 - rate) + (1 - wins) * rate

    def robust(policy: Tensor) -> Tensor:
        sides = policy[first], policy[second], ref[first], ref[second]
        return robust_dpo_loss(*sides, beta=beta, flip_rate=rate, label_probability=seen).loss

    def plain(policy: Tensor) -> Tensor:
        sides = policy[first], policy[second], ref[first], ref[second]
        return dpo_loss(*sides, beta=beta, label_smoothing=1 - seen)[0]

    assert total_variation(minimise(robust).exp(), tilted(beta)) < 1e-5
    assert total_variation(minimise(plain).exp(), tilted(beta)) > 0.05


def test_ipo_regresses_the_log_ratio_on_the_win_rate() -> None:
    """One pair, first wins with probability p: the least mean of squares is at (2p - 1) / (2 beta)."""
    gap = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    nothing = torch.zeros(1, dtype=torch.float64)
    for p, beta in ((0.8, 0.3), (1.0, 1.0)):
        loss = dpo_loss(gap, nothing, nothing, nothing, beta=beta, label_smoothing=1 - p, kind="ipo")[0]
        (slope,) = torch.autograd.grad(loss, gap)  # 2 (gap - minimum), and gap is 0
        assert float(-slope / 2) == pytest.approx((2 * p - 1) / (2 * beta))


def test_kto_prefers_good_answers_and_keeps_those_that_are_as_often_bad() -> None:
    """Answer 0 is always good, 1 always bad, the others as often one as the other: those cost sigma(x) + sigma(-x) = 1
    whatever x is, so what holds the policy to the reference alone decides their ratios, and leaves them."""
    ref = reference()
    answers = torch.tensor([0, 0, 1, 1, *[a for a in range(2, ACTIONS) for _ in range(2)]])
    good = torch.tensor([True, True, False, False, *[True, False] * (ACTIONS - 2)])

    def loss(policy: Tensor) -> Tensor:
        held = 0.01 * (policy.exp() * (policy - ref)).sum()  # KTO alone has its minimum at infinity here
        return kto_loss(policy[answers], ref[answers], good, beta=0.5).loss + held

    found = minimise(loss) - ref
    assert float(found[0]) > 0.1
    assert float(found[1]) < -0.1
    assert float(found[2:].max() - found[2:].min()) < 1e-5


def test_bad_input_is_refused_in_words() -> None:
    two, three = torch.zeros(2), torch.zeros(3)
    with pytest.raises(TrainingError, match="reference_rejected"):
        robust_dpo_loss(two, two, two, three)
    with pytest.raises(ConfigError, match=r"flip_rate is 0\.5"):
        robust_dpo_loss(two, two, two, two, flip_rate=0.5)
    with pytest.raises(TrainingError, match=r"good \(3,\)"):
        kto_loss(two, two, three.bool())
    with pytest.raises(TrainingError, match="empty batch"):
        kto_loss(two[:0], two[:0], two[:0].bool())
    with pytest.raises(TrainingError, match="different shapes"):
        simpo_loss(two, three)
    with pytest.raises(ConfigError, match="label_smoothing"):
        simpo_loss(two, two, label_smoothing=1.2)
    with pytest.raises(TrainingError, match="different shapes"):
        orpo_loss(two, three, torch.zeros(()))
