"""What a constrained training should end at, where the actions can be listed."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from alignlab.core.errors import TrainingError


def tilted_to_limit(
    reference: Float[Tensor, " actions"],
    rewards: Float[Tensor, " actions"],
    costs: Float[Tensor, " actions"],
    *,
    beta: float,
    limit: float,
) -> tuple[Float[Tensor, " actions"], float]:
    """The exact answer over actions that can be listed: (policy, multiplier).

    The maximum of `E[r] - beta KL(pi || reference)` under `E[c] <= limit` is `pi ~ reference exp((r - lambda c) /
    beta)` with the least lambda >= 0 that meets the limit, found by bisection (E[c] falls in lambda). Raises
    TrainingError where no policy meets it.
    """

    def at(multiplier: float) -> Tensor:
        return (reference.double().log() + (rewards.double() - multiplier * costs.double()) / beta).softmax(-1)

    def cost(multiplier: float) -> float:
        return float((at(multiplier) * costs.double()).sum())

    if cost(0.0) <= limit:
        return at(0.0), 0.0
    least = float(costs[reference > 0].min())
    if least >= limit:
        raise TrainingError(f"no policy meets the limit {limit:g}: the least cost of any action is {least:g}")
    low, high = 0.0, 1.0
    while cost(high) > limit:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) > limit else (low, middle)
    return at(high), high
