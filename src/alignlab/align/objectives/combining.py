"""Several rewards as one, in the three ways that there are: weighted, constrained, lexicographic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from alignlab.align.objectives.lexicographic import Lexicographic
from alignlab.align.rl.constrained import CostLimit, LagrangianReward
from alignlab.align.rl.normalising import Normalisation
from alignlab.align.rl.rewards import Combined, Reward, call_of, name_of
from alignlab.core.config import require
from alignlab.core.errors import ConfigError
from alignlab.lm.types import Prompt

Combination = Literal["weighted", "constrained", "lexicographic"]


@dataclass(frozen=True)
class ObjectivesConfig:
    """How rewards are put together."""

    method: Combination = "weighted"
    """A weighted sum; one reward with lower bounds on the means of others; or a strict order."""
    weights: dict[str, float] = field(default_factory=dict)
    """weighted: one for each reward, after normalisation; none: 1 each."""
    maximise: str = ""
    """constrained: the reward that is to be large."""
    bounds: dict[str, float] = field(default_factory=dict)
    """constrained: the least mean of other rewards, in their own units."""
    order: tuple[str, ...] = ()
    """lexicographic: the names, the weightiest first."""
    tolerances: dict[str, float] = field(default_factory=dict)
    """lexicographic: how far behind the best answer is as good as equal, for any but the last, in deviations."""
    normalise: Normalisation = "running"
    """How each reward is brought to mean 0 and deviation 1; never those under a bound, whose units mean something."""
    rate: float = 0.3
    """constrained: how fast multipliers follow violations."""
    proportional: float = 0.5
    """constrained: how much of the present violation they add."""
    derivative: float = 0.0
    """constrained: how much they add of the violation's growth since the step before."""
    smoothing: float = 0.0
    """constrained: share of its past in the violation that those two read."""
    start: float = 0.0
    """constrained: the multipliers before the first step."""
    maximum: float = 100.0
    """constrained: where a multiplier stops, and with it a run that cannot meet its bound."""
    time_limit: float | None = 60.0
    """Seconds for one call of a reward; none waits for ever."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", tuple(self.order))
        require(self.method in get_args(Combination), "method", self.method, " or ".join(get_args(Combination)))
        require(self.normalise in get_args(Normalisation), "normalise", self.normalise, "none, batch or running")
        own = {
            "weighted": ("weights",),
            "constrained": ("maximise", "bounds"),
            "lexicographic": ("order", "tolerances"),
        }
        for method, names in own.items():
            for name in names:
                free = method == self.method or not getattr(self, name)
                require(free, name, getattr(self, name), f"nothing unless method is {method!r} (it is {self.method!r})")
        if self.method == "constrained":
            require(bool(self.maximise), "maximise", self.maximise, "the name of the reward that is to be large")
            require(bool(self.bounds), "bounds", self.bounds, "the least mean of at least one other reward")
            other = self.maximise not in self.bounds
            require(other, "bounds", self.bounds, f"bounds on others than {self.maximise!r}, which is to be large")
        if self.method == "lexicographic":
            require(len(self.order) >= 2, "order", self.order, "at least two names, the weightiest first")


def combine(rewards: Mapping[str, Reward], config: ObjectivesConfig) -> Combined | LagrangianReward | Lexicographic:
    """One reward for any training loop; what it has to remember goes into the loop's checkpoints.

    ConfigError where the config names a reward that is not there, or leaves one out of an order or the bounds.
    """
    named = [*config.weights, *config.bounds, *config.order] + ([config.maximise] if config.maximise else [])
    for name in named:
        if name not in rewards:
            raise ConfigError(f"there is no reward {name!r}, allowed: {', '.join(rewards)}")
    limit = config.time_limit
    if config.method == "weighted":
        return Combined(rewards, config.weights or None, config.normalise, limit)
    unnamed = [name for name in rewards if name not in named]
    if unnamed:
        raise ConfigError(f"reward {unnamed[0]!r} has no place in the {config.method} combination; name it or drop it")
    if config.method == "lexicographic":
        ordered = {name: rewards[name] for name in config.order}
        return Lexicographic(ordered, config.tolerances, config.normalise, limit)
    main = Combined({config.maximise: rewards[config.maximise]}, None, config.normalise, limit)
    limits = {
        name: CostLimit(
            Shortfall(rewards[name]), limit=-bound, rate=config.rate, proportional=config.proportional,
            derivative=config.derivative, smoothing=config.smoothing, start=config.start, maximum=config.maximum,
        )
        for name, bound in config.bounds.items()
    }  # fmt: skip
    return LagrangianReward(main, limits, time_limit=limit)


@dataclass
class Shortfall:
    """A reward as a cost: its negative, so that a lower bound on one is a limit on the other."""

    reward: Reward

    def __post_init__(self) -> None:
        self.name = name_of(self.reward)
        self._call: Any = call_of(self.reward)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " batch"]:
        """The negative of each score."""
        given = self._call(list(prompts), list(responses))
        if isinstance(given, Tensor):
            return -given
        return [value if value is None else -value for value in given]  # type: ignore[return-value]
