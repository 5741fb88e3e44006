"""What the figures of training dynamics say, in words that follow from their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from alignlab.stats.interval import Interval
from alignlab.train.dynamics_records import LayerTable, Points
from alignlab.train.noise_scale import NoiseScale, progress_per_token, progress_per_update

FLAT = 0.01
"""A loss that changes by less than this share over the last tenth of the training is called flat."""
USUAL_RATIOS = (1e-4, 1e-2)
"""Updates relative to weights that raise no question; a common rule of thumb aims at 1e-3."""
LARGEST_HALF = 65504.0
"""Largest number of float16."""


def count(value: float) -> str:
    """A number of tokens or updates in three digits, such as 18,300."""
    if not math.isfinite(value):
        return "unbounded"
    if value < 100:
        return f"{value:.3g}"
    digits = max(0, math.floor(math.log10(value)) - 2)
    return f"{round(value, -digits):,.0f}"


def limits(interval: Interval) -> str:
    """`95 % interval 1,200 to 3,400`, or `at least 1,200` where there is no upper limit."""
    level = f"{100 * interval.confidence:g} %"
    if not math.isfinite(interval.high):
        return f"{level}: no bound" if interval.low <= 0 else f"{level}: at least {count(interval.low)}"
    return f"{level} interval {count(interval.low)} to {count(interval.high)}"


def read_loss(points: Points) -> str:
    """Whether the smoothed loss was still falling at the end."""
    first, last = points[0], points[-1]
    text = f"The smoothed loss went from {first[1]:.3f} at step {first[0]} to **{last[1]:.3f}** at step {last[0]}."
    earlier = points[max(0, int(0.9 * len(points)) - 1)]
    if len(points) < 20 or earlier[1] == 0:
        return text
    change = (last[1] - earlier[1]) / abs(earlier[1])
    if change < -FLAT:
        end = "so it was **still falling**: more steps would have lowered it further"
    elif change > FLAT:
        end = "so it was **rising**: look at the learning rate and at the spikes below"
    else:
        end = "so it was **flat** by then"
    return f"{text} Over the last tenth of the training it changed by {100 * change:+.1f} %, {end}."


def read_noise_scale(scales: Sequence[tuple[int, Interval]], batch: float | None, unit: str = "tokens") -> str:
    """The noise scale at the end, against the batch size and against its own past."""
    last = scales[-1][1]
    if not math.isfinite(last.estimate):
        return (
            f"At the end the true gradient is lost in the noise of the estimate ({limits(last)}): measure over more "
            "updates, or with more tokens in each."
        )
    text = f"At the end the noise scale is about **{count(last.estimate)} {unit}** ({limits(last)})."
    if batch:
        text += f" {read_batch(last, batch, unit)}"
    early = scales[len(scales) // 4][1]
    if early.high < last.low:
        text += (
            " It **grew** during the training, as it does while the loss falls: later updates deserve larger batches."
        )
    elif early.low > last.high:
        text += " It **fell** during the training."
    return text


def read_batch(scale: Interval, batch: float, unit: str) -> str:
    """Where the batch of the run stands against the critical one."""
    update, token = progress_per_update(batch, scale.estimate), progress_per_token(batch, scale.estimate)
    shares = (
        f"An update makes {100 * update:.0f} % of the progress of a noiseless one, and a {unit.removesuffix('s')} "
        f"{100 * token:.0f} % of what it gives in very small batches."
    )
    if batch < scale.low:
        place = "is **below** that: a larger batch would save updates almost in proportion"
    elif batch > scale.high:
        place = "is **above** that: a larger batch would save few updates, a smaller one would save computation"
    else:
        place = "lies **within** the interval: near the balance of both costs"
    return f"The batch of the run, {count(batch)} {unit}, {place}. {shares}"


def read_agreement(during: Interval, measured: NoiseScale) -> str:
    """The estimate from the training beside that from single examples."""
    other = measured.scale
    apart = during.low > other.high or other.low > during.high
    verdict = "**disagree**: the intervals do not overlap" if apart else "agree within their intervals"
    return (
        f"Single examples give {count(other.estimate)} {measured.unit} ({limits(other)}), the last updates of the "
        f"training {count(during.estimate)}: the two {verdict}."
    )


def read_updates(table: LayerTable) -> str:
    """How large updates are, and which layers differ from the others."""
    recent = recent_medians(table)
    if not recent:
        return "No layer has weights to compare its updates with."
    middle = float(np.median(list(recent.values())))
    low, high = USUAL_RATIOS
    text = f"In the last quarter of the training an update changed a layer's weights by {middle:.1e} of their norm."
    if middle > high:
        text += " That is **large** (a common rule of thumb is 1e-3): the learning rate may be too high."
    elif middle < low:
        text += " That is **small** (a common rule of thumb is 1e-3); at the end of a decaying schedule it is expected."
    else:
        text += " That is within the usual range (a common rule of thumb is 1e-3)."
    fast = [name for name, value in recent.items() if value > 10 * middle]
    slow = [name for name, value in recent.items() if value < middle / 10]
    if fast:
        text += f" More than ten times as fast: {some(fast)}."
    if slow:
        text += f" More than ten times as slow: {some(slow)}."
    return text


def read_activations(table: LayerTable, largest: LayerTable | None) -> str:
    """Growth of the residual stream with depth and with training, and room below float16's limit."""
    recent = recent_medians(table)
    blocks = [name for name in recent if name.rsplit(".", 1)[-1].isdigit()] or list(recent)
    if not blocks:
        return "No activation was measured."
    first, last = recent[blocks[0]], recent[blocks[-1]]
    text = f"At the end the typical output is {first:.3g} after {blocks[0]} and {last:.3g} after {blocks[-1]}."
    if first > 0 and last > 10 * first:
        text += " That is a **strong growth with depth**."
    row = table.values[table.layers.index(blocks[-1])]
    known = row[np.isfinite(row)]
    if len(known) > 4 and last > 3 * known[0] > 0:
        text += f" After {blocks[-1]} it grew by a factor of {last / known[0]:.1f} during the training."
    if largest is not None and np.isfinite(largest.values).any():
        top = float(np.nanmax(largest.values))
        where = largest.layers[int(np.nanargmax(np.nanmax(np.nan_to_num(largest.values), axis=1)))]
        room = " **That is close to what float16 can hold (65,504).**" if top > LARGEST_HALF / 10 else ""
        text += f" The largest single value was {top:.3g}, in {where}.{room}"
    return text


def read_gradients(norms: Points, spikes: Points, clip: float | None) -> str:
    """How many spikes there were, when, and how often gradients were clipped."""
    if not spikes:
        text = "There was **no spike**: no norm stands out from the 50 logged steps before it."
    else:
        steps = some([str(step) for step, _ in spikes])
        plural = "s" if len(spikes) > 1 else ""
        text = f"There {'were' if plural else 'was'} **{len(spikes)} spike{plural}**, at step{plural} {steps}."
    if clip:
        share = sum(value > clip for _, value in norms) / len(norms)
        text += f" In {100 * share:.0f} % of the logged updates the gradient was clipped to {clip:g}."
    return text


def recent_medians(table: LayerTable) -> dict[str, float]:
    """Median of each layer over the last quarter of the measured steps; layers without a number are left out."""
    last = table.values[:, -max(1, len(table.steps) // 4) :]
    known = {name: row[np.isfinite(row)] for name, row in zip(table.layers, last, strict=True)}
    return {name: float(np.median(values)) for name, values in known.items() if values.size}


def some(names: Sequence[str], limit: int = 6) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
