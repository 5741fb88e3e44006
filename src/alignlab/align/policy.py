"""Log-probabilities of responses, and the policy: a language model with a value head on the same trunk.

One convention everywhere: column `t` of a result is about token `t + 1`, so results have one column fewer than
`tokens`; `loss_mask` (as wide as `tokens`) is True on the tokens of the response, and results are 0 elsewhere. Only
the hidden states that predict a response token are unembedded, in chunks, so that no tensor of size tokens x
vocabulary is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alignlab.core.errors import TrainingError
from alignlab.lm.model import GPTModel
from alignlab.train.losses import check_mask, chunked_cross_entropy


class PolicyOutput(NamedTuple):
    """What one trunk pass gives."""

    logprobs: Float[Tensor, "batch pos-1"]
    """Log-probability of each response token, nats."""
    values: Float[Tensor, "batch pos-1"]
    """Value of the state before each response token."""
    entropy: Float[Tensor, "batch pos-1"] | None
    """Entropy of the distribution each response token was drawn from, nats; None unless asked for."""


class Policy(nn.Module):
    """A language model and a linear value head that reads its final hidden states.

    The head starts at zero: the first value estimate is 0 for every state. With `detach_value` the value loss trains
    the head alone, without it also the trunk.
    """

    def __init__(self, model: GPTModel, *, detach_value: bool = True) -> None:
        super().__init__()
        self.model = model
        self.detach_value = detach_value
        weight = model.head_weight
        self.value_head = nn.Linear(model.config.d_model, 1, device=weight.device, dtype=torch.float32)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(
        self, tokens: Int[Tensor, "batch pos"], loss_mask: Bool[Tensor, "batch pos"], *, entropy: bool = False
    ) -> PolicyOutput:
        """Log-probabilities and values of the response tokens from one pass through the trunk."""
        rows, targets = response_states(self.model, tokens, loss_mask)
        nll = next_token_nll(self.model, rows, targets)
        features = rows.detach() if self.detach_value else rows
        with torch.autocast(rows.device.type, enabled=False):
            values = self.value_head(features.float()).squeeze(-1)
        spread = exact_entropy(self.model, rows) if entropy else None
        where = loss_mask[:, 1:]
        return PolicyOutput(
            _scatter(-nll, where), _scatter(values, where), None if spread is None else _scatter(spread, where)
        )


def response_states(
    model: GPTModel, tokens: Int[Tensor, "batch pos"], loss_mask: Bool[Tensor, "batch pos"]
) -> tuple[Float[Tensor, "n d_model"], Int[Tensor, " n"]]:
    """Hidden states that predict the response tokens, and those tokens, in row-major order.

    Raises TrainingError when the mask is empty, differs in shape, or claims the first token of a row, which nothing
    predicts.
    """
    if tokens.shape != loss_mask.shape:
        raise TrainingError(
            f"tokens have shape {tuple(tokens.shape)} and the loss mask {tuple(loss_mask.shape)}, they must be equal"
        )
    if bool(loss_mask[:, 0].any()):
        raise TrainingError("the loss mask is True on the first token of a row, which no earlier token predicts")
    where = loss_mask[:, 1:]
    check_mask(where)
    hidden = model.hidden_states(tokens)
    return hidden[:, :-1][where], tokens[:, 1:][where]


def next_token_nll(
    model: GPTModel, rows: Float[Tensor, "n d_model"], targets: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Negative log-likelihood of each target under the model's head, in chunks, in float32."""
    return chunked_cross_entropy(rows, model.head_weight, targets, softcap=model.config.logit_softcap).float()


def token_logprobs(
    model: GPTModel, tokens: Int[Tensor, "batch pos"], loss_mask: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos-1"]:
    """Log-probability (nats) of each response token given everything before it; 0 outside the response."""
    rows, targets = response_states(model, tokens, loss_mask)
    return _scatter(-next_token_nll(model, rows, targets), loss_mask[:, 1:])


def sequence_logprobs(
    model: GPTModel, tokens: Int[Tensor, "batch pos"], loss_mask: Bool[Tensor, "batch pos"]
) -> Float[Tensor, " batch"]:
    """Log-probability (nats) of each whole response given its prompt: the sum of `token_logprobs`."""
    return token_logprobs(model, tokens, loss_mask).sum(dim=1)


def exact_entropy(model: GPTModel, rows: Float[Tensor, "n d_model"], *, chunk: int = 256) -> Float[Tensor, " n"]:
    """Entropy (nats) of the next-token distribution at each hidden state, with gradient.

    Exact over the vocabulary, `chunk` rows at a time; the backward pass computes each chunk's logits again.
    """

    def one(part: Tensor) -> Tensor:
        log_probabilities = model.unembed(part).float().log_softmax(dim=-1)
        return -(log_probabilities.exp() * log_probabilities).sum(dim=-1)

    parts = rows.split(chunk)
    if not torch.is_grad_enabled():
        return torch.cat([one(part) for part in parts])
    return torch.cat([checkpoint(one, part, use_reentrant=False) for part in parts])


def sampled_entropy(logprobs: Float[Tensor, "batch pos"], loss_mask: Bool[Tensor, "batch pos"]) -> float:
    """Entropy per token (nats) estimated from the sample: minus the mean log-probability of tokens drawn from the
    policy.

    Unbiased where the tokens were drawn at temperature 1 without filters; costs nothing.
    """
    return float(-logprobs[loss_mask].double().mean())


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in eval mode (dropout off) inside the block, as it was after it."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _scatter(values: Float[Tensor, " n"], where: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
    return torch.zeros(where.shape, dtype=values.dtype, device=values.device).masked_scatter(where, values)
