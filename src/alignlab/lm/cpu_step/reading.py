"""Reading tokens during generation: by the compiled program where it serves, by torch elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignlab.lm.cache import KVCache

if TYPE_CHECKING:
    from alignlab.lm.cpu_step.step import CpuStep
    from alignlab.lm.model import GPTModel


class Reading(NamedTuple):
    """What a pass says about the next token of each row."""

    logits: Float[Tensor, "batch vocab"]
    best: Int[Tensor, " batch"] | None = None
    """The first largest logit of each row, where it is known already."""
    total: Float[Tensor, " batch"] | None = None
    """The log of the sum of the exponentials of each row's logits, where it is known already."""


class Stepper:
    """One generation's passes of a model. What a `Reading` holds is overwritten by the next one."""

    def __init__(self, model: GPTModel) -> None:
        self.model = model
        self.compiled: CpuStep | None = None
        if model.embed.weight.device.type == "cpu" and not torch.is_grad_enabled():
            from alignlab.lm.cpu_step.step import open_step  # nothing of it is needed on a GPU

            self.compiled = open_step(model)

    def hidden_states(
        self, tokens: Int[Tensor, "batch pos"], cache: KVCache, segments: Int[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """As the model's, for tokens that continue `cache`."""
        if self.compiled is not None and self.compiled.serves(cache, tokens.numel()):
            return self.compiled.hidden_states(tokens, cache, segments)
        return self.model.hidden_states(tokens, cache=cache, segments=segments)

    def unembed(self, hidden: Float[Tensor, "batch d_model"]) -> Reading:
        """What hidden states say."""
        if self.compiled is not None and self.compiled.is_fresh():
            return self.compiled.unembed(hidden)
        return Reading(self.model.unembed(hidden))

    def next(self, tokens: Int[Tensor, " batch"], cache: KVCache) -> Reading:
        """What follows one more token of each row."""
        if self.compiled is not None and self.compiled.serves(cache):
            return self.compiled.read(tokens, cache)
        return Reading(self.model.unembed(self.model.hidden_states(tokens[:, None], cache=cache)[:, -1]))
