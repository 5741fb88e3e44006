"""Looking at every update from outside: an `Observer` sees the gradients before a step and the weights after it.

The trainer calls each observer twice an update and logs what it returns under `<name>/<key>`, so that measurements of
training dynamics need no change to the loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import nn

Metrics = dict[str, float]


@dataclass(frozen=True)
class UpdateView:
    """What an observer sees of one update; nothing in it may be changed."""

    model: nn.Module
    """The model as the user gave it, not the parallel wrapper."""
    parameters: Mapping[str, nn.Parameter]
    """Trainable parameters by name. `.grad` is the gradient of the update's mean loss: summed over micro-batches and
    ranks, divided by their weight, free of any loss scale; clipped only by the time of `after_update`. None where the
    loss did not reach."""
    step: int
    """Number of this update, from 1."""
    learning_rate: float
    """Scheduled learning rate of this update, before per-parameter scales."""
    micro_gradients_sq_norms: list[float] = field(default_factory=list)
    """Squared L2 norm of the gradient of each micro-batch's own mean loss, over all parameters together; on several
    ranks a micro-batch is the union of theirs. Empty unless an observer asked (`micro_gradients_every`)."""
    micro_tokens: list[float] = field(default_factory=list)
    """How many tokens each micro-batch's mean is over (1 where the loss reports no `tokens`); empty as above."""


@runtime_checkable
class Observer(Protocol):
    """Sees every update. Called in the order given; equal keys of two observers are an error."""

    micro_gradients_every: int
    """Ask for `micro_gradients_sq_norms` at updates that are a multiple of this; 0 never asks. Costs one set of
    gradients in memory and, on several ranks, a synchronisation for each micro-batch of such an update."""

    def before_update(self, view: UpdateView) -> Metrics:
        """Called once the gradients are complete, before they are clipped; returns what to log."""
        ...

    def after_update(self, view: UpdateView) -> Metrics:
        """Called once the weights have changed; returns what to log."""
        ...


def micro_gradients_due(observers: Sequence[Observer], step: int) -> bool:
    """Whether any observer asked for the norms of the micro-batches' gradients at update `step`."""
    return any(each.micro_gradients_every and step % each.micro_gradients_every == 0 for each in observers)
