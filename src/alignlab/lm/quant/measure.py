"""Perplexity of a model on text: the number that says what quantisation cost."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from alignlab.core.errors import ModelError
from alignlab.data.prompts import heldout_text
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.model import GPTModel


def heldout_tokens(lm: LanguageModel, limit: int | None = None) -> list[Int[Tensor, " pos"]]:
    """The packaged held-out prose, a document an entry (cut to the model's context), at most `limit` tokens in all."""
    bos = lm.tokenizer.special.add_bos
    ids = [torch.tensor(lm.tokenizer.encode(text, bos=bos)) for text in heldout_text()]
    left = math.inf if limit is None else limit
    kept = []
    for document in ids:
        document = document[: int(min(left, lm.model.config.n_ctx, len(document)))]
        if len(document) > 1:
            kept.append(document)
            left -= len(document)
    return kept


@torch.no_grad()
def perplexity(model: GPTModel, documents: list[Int[Tensor, " pos"]]) -> float:
    """`exp` of the mean negative log-likelihood of every token but each document's first.

    Raises:
        ModelError: no document has two tokens.
    """
    total, count = 0.0, 0
    for tokens in documents:
        tokens = tokens.to(model.embed.weight.device)
        logits = model(tokens[None])[0, :-1].float()
        total += float(F.cross_entropy(logits, tokens[1:], reduction="sum"))
        count += len(tokens) - 1
    if not count:
        raise ModelError("perplexity needs a text of at least two tokens")
    return math.exp(total / count)
