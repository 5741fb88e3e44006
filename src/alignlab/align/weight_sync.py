"""Samplers that hold weights of their own, as a server does: they get the policy's before every rollout batch."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from alignlab.align.shared_work import SharedWork
from alignlab.lm.model import GPTModel
from alignlab.lm.types import Sampler


@runtime_checkable
class TakesWeights(Protocol):
    """A sampler whose model is not the one that is trained."""

    def send_weights(self, model: GPTModel) -> str:
        """Have the weights of `model`, which are whole, answered from; the name to ask for them by."""
        ...

    def use_weights(self, name: str, model: GPTModel) -> None:
        """Ask for the weights of that name from now on; `model` holds the same here."""
        ...


def bring_up_to_date(sampler: Sampler, model: GPTModel, work: SharedWork) -> None:
    """Give a sampler that holds weights of its own the policy's: rank 0 sends them, all ask for them."""
    if isinstance(sampler, TakesWeights):
        holder: TakesWeights = sampler
        holder.use_weights(work.main(lambda: holder.send_weights(model)), model)
