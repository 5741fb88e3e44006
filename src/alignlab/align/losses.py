"""Losses of preference learning and policy optimisation, as pure functions on tensors.

Every function here is used by the training loops next door and by the tests that compare it with closed forms and with
`trl`. A mask is named by what True means: `loss_mask` is True where a token takes part in the loss.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from alignlab.core.errors import ConfigError, TrainingError
from alignlab.train.losses import check_mask

PreferenceLossKind = Literal["sigmoid", "ipo"]
KLEstimator = Literal["k1", "k2", "k3"]


class PolicyLoss(NamedTuple):
    """The clipped surrogate and what it did to the batch."""

    loss: Tensor
    """Scalar with gradient."""
    clip_fraction: Tensor
    """Share of tokens whose gradient the clip switched off, in [0, 1]."""
    approx_kl: Tensor
    """KL(old policy || new policy) per token, in nats, by the k3 estimator."""


class ValueLoss(NamedTuple):
    """The clipped squared error of the value head."""

    loss: Tensor
    """Scalar with gradient."""
    clip_fraction: Tensor
    """Share of tokens where the clipped error is the larger one, in [0, 1]."""


def masked_mean(values: Float[Tensor, "*shape"], loss_mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean of the values where the mask is True; raises TrainingError when it is True nowhere."""
    check_mask(loss_mask)
    # `where`, not a product: a masked position may hold inf or nan, and 0 * inf is nan.
    return torch.where(loss_mask, values, torch.zeros_like(values)).sum() / loss_mask.sum()


def bradley_terry_loss(
    chosen: Float[Tensor, " batch"],
    rejected: Float[Tensor, " batch"],
    margin: Float[Tensor, " batch"] | float = 0.0,
    label_probability: Float[Tensor, " batch"] | float = 1.0,
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the preferences under the Bradley-Terry model.

    `-[p log sigma(d) + (1-p) log sigma(-d)]` with `d = chosen - rejected - margin`, rewards in nats of log-odds and p
    the probability that the label is right. p = 1 is eq. 1 of Ouyang et al. 2022; the margin is eq. 2 of Touvron et
    al. 2023 (Llama 2); soft labels are those of Bai et al. 2022 (Constitutional AI, section 4.1). Raises
    TrainingError when the shapes differ or the batch is empty, ConfigError when p leaves [0, 1].
    """
    same_shape("bradley_terry_loss", chosen=chosen, rejected=rejected)
    check_probability("label_probability", label_probability)
    difference = chosen - rejected - margin
    return -(label_probability * F.logsigmoid(difference) + (1 - label_probability) * F.logsigmoid(-difference)).mean()


def dpo_loss(
    policy_chosen: Float[Tensor, " batch"],
    policy_rejected: Float[Tensor, " batch"],
    reference_chosen: Float[Tensor, " batch"],
    reference_rejected: Float[Tensor, " batch"],
    *,
    beta: float = 0.1,
    label_smoothing: Float[Tensor, " batch"] | float = 0.0,
    kind: PreferenceLossKind = "sigmoid",
) -> tuple[Float[Tensor, ""], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Direct preference optimisation: (mean loss, implicit rewards of the chosen, and of the rejected).

    Arguments are log-probabilities of whole responses in nats. `sigmoid` is eq. 7 of Rafailov et al. 2023; a positive
    `label_smoothing` (the probability that a label is flipped) gives the conservative DPO of Mitchell 2023. `ipo` is
    eq. 17 of Azar et al. 2023 with tau = beta; its target margin has no length, so pass log-probabilities averaged over
    the response's tokens. The rewards, `beta * log(policy / reference)`, carry no gradient.
    """
    same_shape(
        "dpo_loss",
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
    )
    check_probability("label_smoothing", label_smoothing)
    chosen_ratio = policy_chosen - reference_chosen
    rejected_ratio = policy_rejected - reference_rejected
    difference = chosen_ratio - rejected_ratio
    if kind == "sigmoid":
        scaled = beta * difference
        loss = -(F.logsigmoid(scaled) * (1 - label_smoothing) + F.logsigmoid(-scaled) * label_smoothing).mean()
    elif kind == "ipo":
        # A flipped label asks for the opposite margin; with smoothing the two squares are mixed as in cDPO.
        target = 1 / (2 * beta)
        loss = (
            (difference - target) ** 2 * (1 - label_smoothing) + (difference + target) ** 2 * label_smoothing
        ).mean()
    else:
        raise ConfigError(f"kind is {kind!r}, allowed: 'sigmoid' or 'ipo'")
    return loss, beta * chosen_ratio.detach(), beta * rejected_ratio.detach()


def ppo_policy_loss(
    logprobs: Float[Tensor, "batch pos"],
    old_logprobs: Float[Tensor, "batch pos"],
    advantages: Float[Tensor, "batch pos"],
    loss_mask: Bool[Tensor, "batch pos"],
    *,
    clip: float = 0.2,
) -> PolicyLoss:
    """Clipped surrogate of Schulman et al. 2017 (PPO), eq. 7, negated: `-mean(min(r A, clamp(r, 1-c, 1+c) A))`.

    r is the probability ratio of the token under the new and the old policy. Advantages and old log-probabilities are
    data.
    """
    same_shape("ppo_policy_loss", logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=loss_mask)
    log_ratio = torch.where(loss_mask, logprobs - old_logprobs, torch.zeros_like(logprobs))
    ratio = log_ratio.exp()
    plain = ratio * advantages
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages
    loss = -masked_mean(torch.minimum(plain, clipped), loss_mask)
    with torch.no_grad():
        clip_fraction = masked_mean((clipped < plain).float(), loss_mask)
        # The samples come from the old policy, so this is KL(old || new).
        approx_kl = masked_mean(kl_estimate(old_logprobs, logprobs, "k3"), loss_mask)
    return PolicyLoss(loss, clip_fraction, approx_kl)


def ppo_value_loss(
    values: Float[Tensor, "batch pos"],
    old_values: Float[Tensor, "batch pos"],
    returns: Float[Tensor, "batch pos"],
    loss_mask: Bool[Tensor, "batch pos"],
    *,
    clip: float | None = 0.2,
) -> ValueLoss:
    """`0.5 * mean(max((v - R)^2, (clamp(v, v_old - c, v_old + c) - R)^2))`: the value clipping of OpenAI's `baselines`
    (Engstrom et al. 2020, section 3, item 1). `clip=None` leaves the plain squared error."""
    same_shape("ppo_value_loss", values=values, old_values=old_values, returns=returns, mask=loss_mask)
    error = (values - returns) ** 2
    if clip is None:
        return ValueLoss(0.5 * masked_mean(error, loss_mask), torch.zeros(()))
    clipped = (values.clamp(old_values - clip, old_values + clip) - returns) ** 2  # a value within stays as it is
    fraction = masked_mean((clipped > error).float(), loss_mask).detach()
    return ValueLoss(0.5 * masked_mean(torch.maximum(error, clipped), loss_mask), fraction)


def kl_estimate(
    logprobs: Float[Tensor, "*shape"], reference_logprobs: Float[Tensor, "*shape"], estimator: KLEstimator = "k1"
) -> Float[Tensor, "*shape"]:
    """One-sample estimates of KL(policy || reference) in nats, for tokens drawn from the policy (Schulman 2020,
    "Approximating KL divergence").

    With `l = log(reference / policy)`: k1 = -l is unbiased and may be negative; k2 = l^2 / 2 is biased and small in
    variance; k3 = e^l - 1 - l is unbiased and never negative.
    """
    log_ratio = reference_logprobs - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio**2
    if estimator == "k3":
        return torch.expm1(log_ratio) - log_ratio
    raise ConfigError(f"estimator is {estimator!r}, allowed: 'k1', 'k2' or 'k3'")


def same_shape(where: str, **tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) != 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise TrainingError(f"{where} got tensors of different shapes ({listed}), they must be equal")
    name, first = next(iter(tensors.items()))
    if first.numel() == 0:
        raise TrainingError(
            f"{where} got an empty batch ({name} has shape {shapes[name]}), at least one item is needed"
        )


def check_probability(name: str, value: Tensor | float) -> None:
    tensor = torch.as_tensor(value)
    if not bool(((tensor >= 0) & (tensor <= 1)).all()):
        raise ConfigError(f"{name} is {value!r}, allowed: probabilities in [0, 1]")
