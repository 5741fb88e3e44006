"""Loss spikes: how to see one, and which batches to leave out when training starts again before it.

The recipe of PaLM (Chowdhery et al. 2022, section 5.1): go back to a checkpoint before the spike and skip the batches
around it. Everything here is a function of the losses seen, so that an interrupted training takes the same decisions.
"""

from __future__ import annotations

import math
from bisect import insort
from dataclasses import dataclass, field
from statistics import median

from alignlab.train.observer import Metrics
from alignlab.train.precision import SMALLEST

WINDOW = 128
FEWEST = 16
"""Losses that must have been seen before one is called a spike."""
_SIGMA = 1.4826  # of a normal distribution, in median absolute deviations
_FLOOR = 1e-3  # of the median: a loss that hardly moves must not make noise a spike


class LossSpike(Exception):
    """Training must rewind. Never reaches the user: `Trainer` rewinds, or says that training diverges."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(reason)
        self.step, self.reason = step, reason


@dataclass
class SpikeDetector:
    """Flags a loss more than `factor` robust deviations above the running median of the last 128 accepted ones.

    The deviation is `1.4826 * median(|loss - median|)`, at least a thousandth of the median. A `factor` of 0 flags
    nothing.
    """

    factor: float
    """Deviations above the median."""
    losses: list[float] = field(default_factory=list)
    """The window, oldest first; belongs into checkpoints."""

    def threshold(self) -> float:
        """The largest loss that is no spike; infinite while too few were seen."""
        if not self.factor or len(self.losses) < FEWEST:
            return math.inf
        middle = median(self.losses)
        spread = _SIGMA * median(abs(loss - middle) for loss in self.losses)
        return middle + self.factor * max(spread, _FLOOR * abs(middle))

    def accept(self, loss: float) -> None:
        """Let a loss that is no spike into the window."""
        if self.factor:
            self.losses = [*self.losses[-(WINDOW - 1) :], loss]


@dataclass
class DataOrder:
    """Which data each update gets: update `step` (from 1) gets the `step`-th slot that is not skipped.

    Slot s stands for the micro-batches `s * accumulate` to `(s + 1) * accumulate - 1`.
    """

    skipped: list[int] = field(default_factory=list)
    """Slots to leave out, sorted; belongs into checkpoints."""

    def slot(self, step: int) -> int:
        """The slot, from 0, of update `step`."""
        slot = step - 1
        for skipped in self.skipped:
            if skipped <= slot:
                slot += 1
        return slot

    def skip(self, first_step: int, last_step: int) -> list[int]:
        """From now on leave out what the updates `first_step` to `last_step` used; returns those slots."""
        slots = [self.slot(step) for step in range(first_step, last_step + 1)]
        for slot in slots:
            insort(self.skipped, slot)
        return slots


def judge(name: str, step: int, metrics: Metrics, spikes: SpikeDetector) -> None:
    """Refuse an update by its numbers. A float16 gradient that overflowed is no reason: its update was left out.

    Raises:
        LossSpike: a number is not finite, or the loss is above where spikes begin.
    """
    scale = metrics.get("loss_scale")
    if scale is not None and "update_skipped" not in metrics:
        skipped = not math.isfinite(metrics["grad_norm"])
        metrics["update_skipped"] = float(skipped)
        if skipped and scale > SMALLEST:
            metrics["grad_norm"] = 0.0  # nothing was done with that gradient
    for key, value in metrics.items():
        if not math.isfinite(value):
            raise LossSpike(step, f"{name}/{key} is {value} at step {step}, it must be finite")
    limit = spikes.threshold()
    if metrics["loss"] > limit:
        said = f"{name}/loss is {metrics['loss']:.4g} at step {step}"
        raise LossSpike(step, f"{said}, above {limit:.4g}, where spikes begin")


def steps_to_skip(step: int, checkpoint_step: int, rewinds: int) -> range:
    """The updates whose data a rewind leaves out: the last `2 ** (rewinds - 1)` up to `step`, after the checkpoint.

    The first rewind skips only the batch that spiked. If training spikes again before the next checkpoint, the weights
    were on their way there earlier, so twice as many go.
    """
    return range(max(checkpoint_step + 1, step - 2 ** (rewinds - 1) + 1), step + 1)
