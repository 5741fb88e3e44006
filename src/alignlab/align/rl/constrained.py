"""Constrained RL: the most reward whose costs stay under their limits, by Lagrange multipliers on the costs.

`LagrangianReward` goes wherever a reward goes, so PPO, GRPO, RLOO and REINFORCE become their Lagrangian forms: the
policy climbs `r - sum_k lambda_k c_k`, the multipliers climb the violations (Altman 1999; Dai et al. 2024, Safe RLHF,
eq. 9 to 11), with the proportional and derivative terms of Stooke et al. (2020, PID Lagrangian, algorithm 2). Unlike
theirs, the derivative counts with either sign: a policy with momentum overshoots in both directions. The trajectory of
the multipliers is part of every step's metrics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from alignlab.align.rl.rewards import Guarded, Reward, after_step
from alignlab.core.config import require
from alignlab.core.errors import TrainingError
from alignlab.lm.types import Prompt

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class CostLimit:
    """A cost whose mean over the responses is to stay at or below `limit`, and how its multiplier moves."""

    cost: Reward
    """Like a reward: a function or a model; larger is worse."""
    limit: float
    """Highest mean cost."""
    rate: float = 0.05
    """How far the multiplier moves for each unit of violation in each step (the integral term)."""
    proportional: float = 0.0
    """Added for each unit of the present violation: damps the swings that the integral alone makes."""
    derivative: float = 0.0
    """Added for each unit that the violation grew by since the step before: meets a policy that has momentum early."""
    smoothing: float = 0.0
    """Share of its past in the running mean of the violation that those two terms read; 0: the step's own."""
    settle: int | None = None
    """Steps after which the rate falls as one over the step, so that the multiplier comes to rest; none: never."""
    start: float = 0.0
    """The multiplier before the first step."""
    maximum: float = 100.0
    """Where the multiplier stops: a limit that cannot be met would drive it on for ever."""

    def __post_init__(self) -> None:
        require(math.isfinite(self.limit), "limit", self.limit, "a finite number")
        require(self.rate > 0, "rate", self.rate, "a positive number")
        for name in ("proportional", "derivative"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or a positive number")
        require(0 <= self.smoothing < 1, "smoothing", self.smoothing, "a number from 0 to below 1")
        require(self.settle is None or self.settle >= 1, "settle", self.settle, "none or a whole number of at least 1")
        require(0 < self.maximum < math.inf, "maximum", self.maximum, "a positive number")
        require(0 <= self.start <= self.maximum, "start", self.start, f"a number from 0 to maximum ({self.maximum:g})")


@dataclass(frozen=True)
class Multiplier:
    """A multiplier and what it remembers."""

    value: float
    integral: float
    smoothed: float | None = None
    """The running mean of the violation; None before the first step."""


def next_multiplier(bound: CostLimit, now: Multiplier, violation: float, step: int) -> Multiplier:
    """The multiplier after step `step` (0-based) with mean cost `limit + violation`.

    `I <- clip(I + rate_t v)`, `s <- smoothing s + (1 - smoothing) v`, `lambda = clip(I + proportional s + derivative
    (s - s_before))`, both clipped to 0 and `maximum`; `rate_t` is `rate` up to `settle` steps and `rate * settle /
    (step + 1)` after them.
    """
    falling = 1.0 if bound.settle is None else min(1.0, bound.settle / (step + 1))
    integral = min(max(now.integral + bound.rate * falling * violation, 0.0), bound.maximum)
    before = violation if now.smoothed is None else now.smoothed
    smoothed = bound.smoothing * before + (1 - bound.smoothing) * violation
    value = integral + bound.proportional * smoothed + bound.derivative * (smoothed - before)
    return Multiplier(min(max(value, 0.0), bound.maximum), integral, smoothed)


@dataclass
class LagrangianReward:
    """`r - sum_k lambda_k c_k`, with multipliers that follow the costs of what was scored since the last step.

    The training loop calls `after_step` once a rollout batch; scoring alone moves nothing. With `normalise` the sum is
    divided by `1 + sum_k lambda_k` (Safe RLHF), which keeps its size as multipliers grow, but also makes a KL penalty
    beside it weigh more. A multiplier that reaches its `maximum` with the limit still broken stops the run.
    """

    reward: Reward
    limits: Mapping[str, CostLimit]
    normalise: bool = False
    time_limit: float | None = 60.0
    trajectory: list[dict[str, float]] = field(default_factory=list, init=False)
    """Of each step: mean cost, violation (cost less limit) and multiplier of every limit."""

    def __post_init__(self) -> None:
        require(bool(self.limits), "limits", dict(self.limits), "at least one cost limit with a name")
        self._reward = Guarded(self.reward, self.time_limit)
        self._costs = {name: Guarded(bound.cost, self.time_limit) for name, bound in self.limits.items()}
        self._state = {name: Multiplier(bound.start, bound.start) for name, bound in self.limits.items()}
        self._reset()

    @property
    def multipliers(self) -> dict[str, float]:
        """Of every limit, as the next responses are scored."""
        return {name: state.value for name, state in self._state.items()}

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " batch"]:
        """The penalised reward of each response."""
        total = self._reward.score(prompts, responses)
        self._count += len(responses)
        self._reward_sum += float(total.double().sum())
        for name, cost in self._costs.items():
            costs = cost.score(prompts, responses)
            self._cost_sums[name] += float(costs.double().sum())
            total = total - self._state[name].value * costs
        return total / (1 + sum(self.multipliers.values())) if self.normalise else total

    def after_step(self) -> dict[str, float]:
        """Move the multipliers; the step's mean reward and costs, and the multipliers it was scored with."""
        if self._count == 0:
            return {}
        measured = {"plain_reward": self._reward_sum / self._count}
        for name, bound in self.limits.items():
            cost, before, step = self._cost_sums[name] / self._count, self._state[name], len(self.trajectory)
            violation = cost - bound.limit
            measured |= {
                f"cost/{name}": cost, f"violation/{name}": violation, f"multiplier/{name}": before.value
            }  # fmt: skip
            after = self._state[name] = next_multiplier(bound, before, violation, step)
            if before.value == after.value == bound.maximum and violation > 0:
                raise TrainingError(
                    f"the multiplier of {name} has reached its maximum ({bound.maximum:g}) at step {step + 1} and the "
                    f"mean cost is still {cost:.4g}, allowed: {bound.limit:g}; the limit may be out of reach"
                )
        self.trajectory.append(measured)
        self._reset()
        return {**after_step(self.reward), **measured}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, the reward's own state with it."""
        own = {name: asdict(state) for name, state in self._state.items()}
        return {"multipliers": own, "trajectory": list(self.trajectory), "reward": self._reward.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; TrainingError where it is of other limits or an earlier version."""
        if set(state["multipliers"]) != set(self.limits):
            there, here = ", ".join(state["multipliers"]), ", ".join(self.limits)
            raise TrainingError(f"the checkpoint has multipliers of {there}, this training of {here}; they must agree")
        if not all(isinstance(own, Mapping) for own in state["multipliers"].values()):
            raise TrainingError(
                "the checkpoint keeps multipliers without their past, as earlier versions did; begin anew"
            )
        self._state = {name: Multiplier(**own) for name, own in state["multipliers"].items()}
        self.trajectory = [dict(row) for row in state["trajectory"]]
        self._reward.load_state_dict(state["reward"])

    def _reset(self) -> None:
        self._count, self._reward_sum = 0, 0.0
        self._cost_sums = dict.fromkeys(self.limits, 0.0)


def trajectory_figure(reward: LagrangianReward, name: str) -> go.Figure:
    """Mean cost, its limit and the multiplier of one constraint over the steps."""
    from alignlab.viz.figures import line  # plotly takes its time to load

    steps = range(1, len(reward.trajectory) + 1)
    series = {
        "mean cost": [(step, row[f"cost/{name}"]) for step, row in zip(steps, reward.trajectory, strict=True)],
        "limit": [(step, reward.limits[name].limit) for step in steps],
        "multiplier": [(step, row[f"multiplier/{name}"]) for step, row in zip(steps, reward.trajectory, strict=True)],
    }
    return line(series, x_label="step", y_label=name)
