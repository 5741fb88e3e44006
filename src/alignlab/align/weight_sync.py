"""Samplers that hold weights of their own, as a server does: they get the policy's before every rollout batch."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from alignlab.align.shared_work import SharedWork
from alignlab.lm.model import GPTModel
from alignlab.lm.types import Sampler


@runtime_checkable
class TakesWeights(Protocol):
    """A sampler whose model is not the one that is trained."""

    def take_weights(self, model: GPTModel) -> None:
        """Answer from now on as `model` would, whose weights are whole; SamplerError where that cannot be done."""
        ...


def bring_up_to_date(sampler: Sampler, model: GPTModel, work: SharedWork) -> None:
    """Give a sampler that holds weights of its own the policy's; rank 0 does it, the others wait."""
    if isinstance(sampler, TakesWeights):
        work.main(lambda: sampler.take_weights(model))
