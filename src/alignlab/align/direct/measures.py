"""What learning from preferences did to answers that it has not seen: which became likelier, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from alignlab.align.pairs import PreferencePair
from alignlab.align.reward.examples import dialogues
from alignlab.core.errors import DataError
from alignlab.stats.interval import Interval
from alignlab.stats.paired import mean_interval

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Gains:
    """Named numbers with intervals; of several comparisons of one dialogue only the dialogue counts as independent."""

    items: int
    """Pairs, or rated responses, measured."""
    dialogues: int
    """Dialogues they come from."""
    values: dict[str, Interval]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        values = {name: value.as_dict() for name, value in self.values.items()}
        return {"items": self.items, "dialogues": self.dialogues, "values": values}

    def lines(self) -> list[str]:
        """A table for the terminal."""
        width = max(map(len, self.values))
        return [f"{name:<{width}}  {value}" for name, value in self.values.items()]


def pair_gains(
    before: Float[FloatArray, "n 2"],
    after: Float[FloatArray, "n 2"],
    tokens: Float[FloatArray, "n 2"],
    pairs: Sequence[PreferencePair],
    *,
    per_token: bool = False,
) -> Gains:
    """From log-probabilities (nats) of chosen and rejected before and after training, and their lengths in tokens.

    Pairs whose label is a coin's (probability 0.5) say nothing and are left out. The implicit reward is what the
    method's own is, up to a factor: the gain in log-probability, per token where `per_token`. DataError where no pair
    is left.
    """
    decided = np.array([pair.probability != 0.5 for pair in pairs], dtype=bool)
    if not decided.any():
        raise DataError("no pair to measure on has a preferred side")
    kept = [pair for pair, use in zip(pairs, decided, strict=True) if use]
    clusters = dialogues(kept)
    before, after, tokens = before[decided], after[decided], tokens[decided]
    gain = (after - before) / (tokens if per_token else 1.0)
    change = (after - before) / tokens

    def share(better: FloatArray) -> Interval:
        right = (better[:, 0] > better[:, 1]) + 0.5 * (better[:, 0] == better[:, 1])
        return mean_interval(right, clusters=clusters, n_resamples=2000)

    def mean(values: FloatArray) -> Interval:
        return mean_interval(values, clusters=clusters, limits=None, n_resamples=2000)

    values = {
        "chosen likelier per token, before": share(before / tokens),
        "chosen likelier per token, after": share(after / tokens),
        "chosen gained more (implicit reward)": share(gain),
        "change of the chosen, nats a token": mean(change[:, 0]),
        "change of the rejected, nats a token": mean(change[:, 1]),
    }
    return Gains(len(kept), len(set(clusters)), values)


def rated_gains(
    before: Float[FloatArray, " n"],
    after: Float[FloatArray, " n"],
    tokens: Float[FloatArray, " n"],
    good: Sequence[bool],
    clusters: Sequence[int],
) -> Gains:
    """The same for single responses: the mean change of good and of bad ones, in nats a token."""
    change, groups, wanted = (after - before) / tokens, np.array(clusters), np.array(good, dtype=bool)
    values = {
        f"change of {name} answers, nats a token": mean_interval(
            change[where], clusters=groups[where].tolist(), limits=None, n_resamples=2000
        )
        for name, where in (("good", wanted), ("bad", ~wanted))
        if where.any()
    }
    return Gains(len(good), len(set(clusters)), values)
