"""Looking at every update from outside: an `Observer` sees the gradients before a step and the weights after it.

The trainer calls each observer twice an update and logs what it returns under `<name>/<key>`, so that measurements of
training dynamics need no change to the loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import nn

from alignlab.core.errors import TrainingError

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


@runtime_checkable
class StatefulObserver(Observer, Protocol):
    """An observer whose reports depend on earlier updates: what it has to remember is kept in checkpoints."""

    def state(self) -> dict[str, Any]:
        """What the next reports depend on, as JSON holds it: no number that is not finite."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a `state` of earlier."""
        ...


def observer_states(observers: Sequence[Observer]) -> dict[str, dict[str, Any]]:
    """What a checkpoint keeps of the observers that have a state, by the names of their classes."""
    return {name: each.state() for name, each in _stateful(observers).items()}


def load_observer_states(
    observers: Sequence[Observer], states: Mapping[str, dict[str, Any]], where: str = "the checkpoint"
) -> None:
    """Put back what `observer_states` gave. An observer that the checkpoint does not know starts as it is.

    Raises:
        TrainingError: a state is of another kind of observer with the same name.
    """
    for name, each in _stateful(observers).items():
        if name not in states:
            continue
        try:
            each.load_state(states[name])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TrainingError(
                f"the state of observer {name} in {where} does not fit it ({type(error).__name__}: {error}); "
                "train with the observer that wrote it, or without"
            ) from error


def _stateful(observers: Sequence[Observer]) -> dict[str, StatefulObserver]:
    """Observers with a state by name; a second one of a class is `<class> 2`, in the order given."""
    found: dict[str, StatefulObserver] = {}
    seen: dict[str, int] = {}
    for each in observers:
        if isinstance(each, StatefulObserver):
            name = type(each).__name__
            seen[name] = seen.get(name, 0) + 1
            found[name if seen[name] == 1 else f"{name} {seen[name]}"] = each
    return found


def micro_gradients_due(observers: Sequence[Observer], step: int) -> bool:
    """Whether any observer asked for the norms of the micro-batches' gradients at update `step`."""
    return any(each.micro_gradients_every and step % each.micro_gradients_every == 0 for each in observers)
