"""Pairs of responses as token batches, and their log-probabilities under the policy and under its reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.align.adapters import reference_mode
from alignlab.align.batching import in_length_order
from alignlab.align.direct.joint import Encoded, EncodedPair, joint_logprobs, joint_pairs, may_share
from alignlab.align.pairs import Batch, PreferencePair, encode_response, pad_masks, pad_rows
from alignlab.align.policy import evaluating, sequence_logprobs
from alignlab.align.reward.branching import branched_length
from alignlab.core.progress import Progress
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.model import GPTModel
from alignlab.train.config import Precision


class PairScores(NamedTuple):
    """What a loss on pairs reads: log-probabilities of whole responses (nats), and how many tokens each has."""

    chosen: Float[Tensor, " batch"]
    rejected: Float[Tensor, " batch"]
    reference_chosen: Float[Tensor, " batch"]
    """Zeros where the method has no reference."""
    reference_rejected: Float[Tensor, " batch"]
    chosen_tokens: Float[Tensor, " batch"]
    rejected_tokens: Float[Tensor, " batch"]
    probability: Float[Tensor, " batch"]
    """How sure each label is."""

    def means(self) -> PairScores:
        """The same with log-probabilities averaged over a response's tokens."""
        chosen, rejected = self.chosen_tokens, self.rejected_tokens
        return self._replace(
            chosen=self.chosen / chosen,
            rejected=self.rejected / rejected,
            reference_chosen=self.reference_chosen / chosen,
            reference_rejected=self.reference_rejected / rejected,
        )


def encode_pair(lm: LanguageModel, pair: PreferencePair, max_length: int) -> EncodedPair:
    """Both responses after the prompt they share."""
    chosen, rejected = (
        encode_response(lm.tokenizer, pair.prompt, response, max_length=max_length)
        for response in (pair.chosen, pair.rejected)
    )
    return chosen, rejected


def pair_lengths(rows: Sequence[EncodedPair]) -> list[int]:
    """Tokens of each pair in a joint row."""
    return [branched_length(first[0], second[0]) for first, second in rows]


def stack_pairs(rows: Sequence[EncodedPair]) -> Batch:
    """One batch with the first responses in the first half of the rows and the second ones in the other."""
    both = [row[0] for row in rows] + [row[1] for row in rows]
    return {"tokens": pad_rows([tokens for tokens, _ in both]), "loss_mask": pad_masks([mask for _, mask in both])}


def batch_pairs(model: GPTModel, rows: Sequence[EncodedPair]) -> Batch:
    """The pairs as the model reads them fastest: joint rows, or two rows each where it drops out."""
    return joint_pairs(rows) if may_share(model) else stack_pairs(rows)


def pair_logprobs(model: GPTModel, batch: Batch) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """(log-probability in nats, number of tokens) of each response, the first ones and then the second ones."""
    if "parts" in batch:
        return joint_logprobs(model, batch)
    sums = sequence_logprobs(model, batch["tokens"], batch["loss_mask"])
    return sums, batch["loss_mask"].sum(dim=1).to(sums.dtype)


def pair_scores(model: GPTModel, batch: Batch) -> PairScores:
    """Both sides in one pass. `batch` is `batch_pairs`'s with `reference` (n, 2) and `probability` (n,)."""
    sums, counts = pair_logprobs(model, batch)
    chosen, rejected = sums.chunk(2)
    chosen_tokens, rejected_tokens = counts.chunk(2)
    sides = (chosen, rejected, batch["reference"][:, 0], batch["reference"][:, 1])
    return PairScores(*sides, chosen_tokens, rejected_tokens, batch["probability"])


@torch.no_grad()
def score_rows(
    model: GPTModel,
    rows: Sequence[Encoded],
    *,
    batch_size: int = 16,
    precision: Precision = "fp32",
    progress: Progress | None = None,
    label: str = "log-probabilities",
) -> Float[Tensor, " n_rows"]:
    """Log-probability (nats) of each response under the model as it is, longest rows first."""
    device = model.head_weight.device
    found = torch.zeros(len(rows))
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    with (
        (progress or Progress.silent()).task(label, len(rows), unit="responses") as task,
        evaluating(model),
        bf16,
    ):
        for members in in_length_order([len(tokens) for tokens, _ in rows], batch_size):
            tokens = pad_rows([rows[i][0] for i in members]).to(device)
            mask = pad_masks([rows[i][1] for i in members]).to(device)
            found[members] = sequence_logprobs(model, tokens, mask).float().cpu()
            task.advance(len(members), tokens=int(mask.sum()))
    return found


@torch.no_grad()
def reference_scores(
    model: GPTModel,
    rows: Sequence[EncodedPair],
    *,
    batch_size: int = 8,
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> Float[Tensor, "n_pairs 2"]:
    """The same of both responses of each pair, with the model's adapter off, or as it comes where it has none."""
    device = model.head_weight.device
    found = torch.zeros(len(rows), 2)
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    with (
        (progress or Progress.silent()).task("reference log-probabilities", len(rows), unit="pairs") as task,
        evaluating(model),
        reference_mode(model),
        bf16,
    ):
        for members in in_length_order(pair_lengths(rows), batch_size):
            batch = batch_pairs(model, [rows[i] for i in members])
            sums, counts = pair_logprobs(model, {key: value.to(device) for key, value in batch.items()})
            found[members] = torch.stack(sums.chunk(2), dim=1).float().cpu()
            task.advance(len(members), tokens=int(counts.sum()))
    return found
