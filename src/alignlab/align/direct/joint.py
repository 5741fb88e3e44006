"""Both responses of a pair after one copy of what they share: the prompt goes through the model once.

The rows are `align.reward.branching`'s; here every response token is read from the state that predicts it. Where the
two sides share their first tokens too, one state predicts for both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.align.pairs import Batch
from alignlab.align.policy import next_token_nll
from alignlab.align.reward.branching import PREFIX, branch_batch, branched_states
from alignlab.lm.model import GPTModel

Encoded = tuple[list[int], list[bool]]
"""(tokens, loss mask) of a prompt and its response."""

EncodedPair = tuple[Encoded, Encoded]
"""The chosen and the rejected response, each after its prompt."""


def may_share(model: GPTModel) -> bool:
    """Whether two responses may share a row: not where the trunk drops out, since each then needs its own draw."""
    return not model.config.dropout and not model.config.attn_dropout


def joint_pairs(rows: Sequence[EncodedPair]) -> Batch:
    """`tokens` and `parts` of joint rows; of each response token itself (`targets`), the state that predicts it
    (`source`, in the flattened batch), and its response (`owner`: the first ones, then the second ones)."""
    batch = branch_batch([(first[0], second[0]) for first, second in rows])
    width, n = batch["tokens"].shape[1], len(rows)
    shared = (batch["parts"] == PREFIX).sum(dim=1).tolist()
    source, targets, owner = list[int](), list[int](), list[int]()
    for i, pair in enumerate(rows):
        for side, (tokens, mask) in enumerate(pair):
            skipped = len(pair[0][0]) - shared[i] if side else 0
            for j in [j for j, learned in enumerate(mask) if learned]:
                source.append(i * width + j - 1 + (skipped if j > shared[i] else 0))
                targets.append(tokens[j])
                owner.append(i + side * n)
    return batch | {"source": torch.tensor(source), "targets": torch.tensor(targets), "owner": torch.tensor(owner)}


def joint_logprobs(model: GPTModel, batch: Batch) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """(log-probability in nats, number of tokens) of each response, the first ones and then the second ones."""
    states = branched_states(model, batch["tokens"], batch["parts"])
    nll = next_token_nll(model, states.flatten(0, 1)[batch["source"]], batch["targets"])
    nothing = torch.zeros(2 * len(batch["tokens"]), dtype=nll.dtype, device=nll.device)
    return nothing.index_add(0, batch["owner"], -nll), nothing.index_add(0, batch["owner"], torch.ones_like(nll))
