"""What a training recorded of its dynamics, read back from a run's metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alignlab.core.errors import RunError
from alignlab.core.run_record import RunRecord
from alignlab.stats.interval import Interval
from alignlab.stats.validation import FloatArray
from alignlab.train.noise_scale import MovingMoments

SWITCH_ON = "pretrain with --noise-scale-every and --statistics-every (see docs/dynamics.md)"
DECAY = 0.98
SPIKE_WINDOW = 50
SPIKE_HISTORY = 10
SPIKE_DEVIATIONS = 6.0
SPIKE_FACTOR = 2.0

Points = list[tuple[int, float]]


@dataclass(frozen=True)
class LayerTable:
    """One statistic of every layer at every measured step."""

    steps: list[int]
    layers: list[str]
    """In the order of the network."""
    values: FloatArray = field(repr=False)
    """(layers, steps); not a number where a layer was not measured."""


class Dynamics:
    """The metrics of one training of a run. Raises RunError where there is none, naming what to switch on."""

    def __init__(self, run: RunRecord, name: str | None = None) -> None:
        self.run = run
        self._rows = run.metrics()
        self.name = _training(run, self._rows, name)
        keys = dict.fromkeys(key for row in self._rows for key in row)
        self._keys = [key.removeprefix(f"{self.name}/") for key in keys if key.startswith(f"{self.name}/")]

    @property
    def has_noise_scale(self) -> bool:
        """Whether `GradientNoiseScale` was among the observers."""
        return "noise_scale/variance" in self._keys

    @property
    def has_layers(self) -> bool:
        """Whether `LayerStatistics` was among the observers."""
        return any(key.startswith("layers/") for key in self._keys)

    def require_observed(self) -> None:
        """RunError unless at least one observer of this library recorded something."""
        if not self.has_noise_scale and not self.has_layers:
            raise RunError(
                f"the training {self.name!r} of run {self.run.path} recorded neither noise scale nor layer statistics; "
                f"to record them, {SWITCH_ON}"
            )

    def series(self, key: str) -> Points:
        """(step, value) of a metric, in order; empty where it was not logged."""
        full = f"{self.name}/{key}"
        return [(row["step"], float(row[full])) for row in self._rows if row.get(full) is not None]

    def validation(self) -> Points:
        """The validation loss, under whichever name it was logged."""
        names = ("validation/loss", "validation_loss", "val/loss", "val_loss")
        return next((found for name in names if (found := self.series(name))), [])

    def noise_scales(self, decay: float = DECAY, confidence: float = 0.95) -> list[tuple[int, Interval]]:
        """The noise scale over steps, smoothed over the whole training at once (also across interruptions)."""
        moments = MovingMoments(decay)
        variance = dict(self.series("noise_scale/variance"))
        found = []
        for step, square in self.series("noise_scale/gradient_square"):
            moments.add(square, variance[step])
            found.append((step, moments.estimate(confidence).scale))
        return found

    def table(self, statistic: str) -> LayerTable | None:
        """One statistic of `LayerStatistics` by layer and step; None where it was not logged."""
        ending = f"/{statistic}"
        keys = [key for key in self._keys if key.startswith("layers/") and key.endswith(ending)]
        full = [f"{self.name}/{key}" for key in keys]
        rows = [row for row in self._rows if any(key in row for key in full)]
        if not rows:
            return None
        values = np.array([[float(row.get(key, math.nan)) for row in rows] for key in full])
        layers = [key.removeprefix("layers/").removesuffix(ending) for key in keys]
        return LayerTable([row["step"] for row in rows], layers, values)

    def setting(self, name: str) -> Any:
        """A setting of the run's configuration, wherever it is nested; None where it has none."""
        return _find(self.run.config_dict, name)


def smoothed(points: Points, decay: float = DECAY) -> Points:
    """Exponential moving average, corrected for its start; what is not finite is passed over."""
    mean = weight = 0.0
    found = []
    for step, value in points:
        if math.isfinite(value):
            mean, weight = decay * mean + (1 - decay) * value, decay * weight + (1 - decay)
        found.append((step, mean / weight if weight else math.nan))
    return found


def gradient_spikes(points: Points) -> Points:
    """Steps whose gradient norm stands out from the steps before it.

    The logarithm is more than 6 robust standard deviations (1.4826 times the median absolute deviation), and more than
    a factor of 2, above the median of the previous 50 logged steps; the first 10 have too little before them. What is
    not finite is a spike.
    """
    if len(points) <= SPIKE_HISTORY:
        return [point for point in points if not math.isfinite(point[1])]
    values = np.array([value for _, value in points])
    logs = np.log(np.where(np.isfinite(values) & (values > 0), values, np.nan))
    before = np.concatenate([np.full(SPIKE_WINDOW, np.nan), logs[:-1]])
    windows = np.lib.stride_tricks.sliding_window_view(before, SPIKE_WINDOW)  # (n, window), the past of each step
    known = np.isfinite(windows).sum(axis=1)
    ready = known >= SPIKE_HISTORY
    found = ~np.isfinite(values)
    if not ready.any():
        return [point for point, is_spike in zip(points, found, strict=True) if is_spike]
    middle = np.nanmedian(windows[ready], axis=1)
    spread = 1.4826 * np.nanmedian(np.abs(windows[ready] - middle[:, None]), axis=1)
    limit = middle + np.maximum(SPIKE_DEVIATIONS * spread, math.log(SPIKE_FACTOR))
    found[ready] |= logs[ready] > limit
    return [point for point, is_spike in zip(points, found, strict=True) if is_spike]


def _training(run: RunRecord, rows: Sequence[Mapping[str, Any]], name: str | None) -> str:
    """Which training of the run: the one asked for, or the only one, or the only one with observers."""
    keys = dict.fromkeys(key for row in rows for key in row)
    trained = [key.removesuffix("/loss") for key in keys if key.endswith("/loss")]
    trained = [each for each in trained if f"{each}/learning_rate" in keys]
    if not trained:
        raise RunError(f"the run {run.path} has logged no training (no loss with a learning rate in metrics.jsonl)")
    if name is not None:
        if name not in trained:
            raise RunError(f"the run {run.path} has no training {name!r}, it has: {', '.join(trained)}")
        return name
    watched = [
        each for each in trained if any(key.startswith((f"{each}/noise_scale/", f"{each}/layers/")) for key in keys)
    ]
    chosen = watched or trained
    if len(chosen) > 1:
        raise RunError(f"the run {run.path} has several trainings, name one of: {', '.join(chosen)}")
    return chosen[0]


def _find(tree: Any, name: str) -> Any:
    if isinstance(tree, Mapping):
        if name in tree:
            return tree[name]
        return next((found for value in tree.values() if (found := _find(value, name)) is not None), None)
    return None
