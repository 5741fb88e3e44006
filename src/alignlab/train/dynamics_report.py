"""The report of `alignlab dynamics`: one page from what the observers of a training recorded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alignlab.stats.interval import Interval
from alignlab.train.dynamics_reading import (
    count,
    limits,
    read_activations,
    read_agreement,
    read_batch,
    read_gradients,
    read_loss,
    read_noise_scale,
    read_updates,
    recent_medians,
)
from alignlab.train.dynamics_records import DECAY, SWITCH_ON, Dynamics, LayerTable, gradient_spikes, smoothed
from alignlab.train.noise_scale import NoiseScale
from alignlab.train.range_test import RangeTest
from alignlab.viz.dynamics_figures import (
    batch_trade,
    gradient_norms,
    layer_heat,
    loss_and_rate,
    noise_scale_band,
    range_ramp,
)
from alignlab.viz.markup import emphasis
from alignlab.viz.page import KeyNumber, Page


@dataclass(frozen=True)
class Measured:
    """What was measured on the model of the run, after its training."""

    text: str
    """On what: the corpus and how much of it."""
    noise: NoiseScale | None = None
    """From the gradients of single examples."""
    ramp: RangeTest | None = None
    """Learning-rate range test of a new model of the same shape."""


def build_report(dynamics: Dynamics, *, measured: Measured | None = None, decay: float = DECAY) -> Page:
    """The page for one training. RunError when nothing was observed and nothing measured; parts without data say so."""
    if measured is None:
        dynamics.require_observed()
    page = Page(f"Training dynamics: {dynamics.run.name}", _lede(dynamics))
    _add_cards(page, dynamics, decay)
    _add_loss(page, dynamics, decay)
    _add_noise(page, dynamics, measured, decay)
    _add_layers(page, dynamics)
    _add_gradients(page, dynamics)
    if measured is not None and measured.ramp is not None:
        _add_ramp(page, measured.ramp, measured.text)
    return page.footer(
        f"Run {dynamics.run.path.name}, training {dynamics.name}. Every number on this page is computed from its "
        "metrics.jsonl" + (" or was measured on its model." if measured else ".")
    )


def _lede(dynamics: Dynamics) -> str:
    steps = [step for step, _ in dynamics.series("loss")]
    return (
        f"{dynamics.name}: {len(steps):,} logged updates, steps {steps[0]:,} to {steps[-1]:,}. How its loss fell, how "
        "large a batch its gradients were worth, and what happened in each layer."
    )


def _add_cards(page: Page, dynamics: Dynamics, decay: float) -> None:
    loss = smoothed(dynamics.series("loss"), _loss_decay(dynamics, decay))
    cards: list[KeyNumber] = [("Loss at the end", f"{loss[-1][1]:.3f}", "smoothed", None)]
    scales = dynamics.noise_scales(decay)
    if scales:
        scale = scales[-1][1]
        shown = count(scale.estimate) if math.isfinite(scale.estimate) else "–"
        cards.append(("Noise scale at the end", shown, f"tokens; {limits(scale)}", None))
        if batch := dynamics.series("noise_scale/batch"):
            cards.append(("Batch of the run", count(batch[-1][1]), "tokens an update", None))
    updates = dynamics.table("update_ratio")
    if updates is not None and (recent := sorted(recent_medians(updates).values())):
        cards.append(("Update to weight", f"{recent[len(recent) // 2]:.1e}", "median layer, last quarter", None))
    norms = dynamics.series("grad_norm")
    if norms:
        cards.append(("Gradient spikes", len(gradient_spikes(norms)), f"in {len(norms):,} logged updates", None))
    page.key_numbers(cards)


def _add_loss(page: Page, dynamics: Dynamics, decay: float) -> None:
    points, decay = dynamics.series("loss"), _loss_decay(dynamics, decay)
    average = smoothed(points, decay)
    page.heading("Loss and learning rate").text(emphasis(read_loss(average)))
    figure = loss_and_rate(points, average, dynamics.series("learning_rate"), dynamics.validation())
    page.figure(figure, f"Loss of each logged update, its moving average over about {_window(decay)}, learning rate.")


def _add_noise(page: Page, dynamics: Dynamics, measured: Measured | None, decay: float) -> None:
    page.heading("Gradient noise scale and critical batch size")
    scales = dynamics.noise_scales(decay)
    batches = dynamics.series("noise_scale/batch")
    batch = batches[-1][1] if batches else None
    single = None if measured is None else measured.noise
    if not scales and single is None:
        page.text(f"Not recorded. To record it, {SWITCH_ON}; it needs at least two micro-batches an update.")
        return
    page.text(
        "The noise scale is the batch size at which the noise of a batch's gradient is as large as the gradient. "
        "Far below it, doubling the batch halves the number of updates; far above it, doubling the batch only doubles "
        "the computation."
    )
    scale, unit = None, "tokens"
    if scales:
        scale = scales[-1][1]
        page.text(emphasis(read_noise_scale(scales, batch)))
        if any(math.isfinite(each.estimate) and each.estimate > 0 for _, each in scales):
            caption = (
                f"Noise scale, smoothed over about {_window(decay)}, with its 95 % band (no upper edge: no bound)."
            )
            page.figure(noise_scale_band(scales, batches), caption)
    if single is not None and measured is not None:
        page.text(f"Measured on {measured.text}.")
        if scale is not None and single.unit == "tokens":
            page.text(emphasis(read_agreement(scale, single)))
        else:
            scale, unit = single.scale, single.unit
            told = f"Single examples give **{count(scale.estimate)} {unit}** ({limits(scale)}). "
            page.text(emphasis(told + (read_batch(scale, batch, unit) if batch and unit == "tokens" else "")))
    _add_trade(page, scale, batch if unit == "tokens" else None, unit)


def _add_trade(page: Page, scale: Interval | None, batch: float | None, unit: str) -> None:
    if scale is None or not math.isfinite(scale.estimate) or scale.estimate <= 0:
        return
    ends = [math.log10(scale.estimate) - 2, math.log10(scale.estimate) + 2]
    if batch:
        ends = [min(ends[0], math.log10(batch) - 0.3), max(ends[1], math.log10(batch) + 0.3)]
    sizes = [10 ** (ends[0] + (ends[1] - ends[0]) * i / 80) for i in range(81)]
    caption = (
        "What a batch size buys at the end of the training. The curves cross at the noise scale, where training takes "
        "twice the fewest updates and twice the fewest tokens."
    )
    page.figure(batch_trade(sizes, scale, batch, unit=unit), caption)


def _add_layers(page: Page, dynamics: Dynamics) -> None:
    page.heading("Updates, layer by layer")
    updates = dynamics.table("update_ratio")
    if updates is None:
        page.text(f"Not recorded. To record it, {SWITCH_ON}.")
    else:
        page.text(emphasis(read_updates(updates)))
        _add_heat(page, updates, "update / weight", "Norm of a layer's update over the norm of its weights.")
    page.heading("Activations, layer by layer")
    sizes = dynamics.table("activation_rms")
    if sizes is None:
        page.text(f"Not recorded. To record them, {SWITCH_ON}.")
        return
    page.text(emphasis(read_activations(sizes, dynamics.table("activation_max"))))
    _add_heat(page, sizes, "activation", "Root mean square of what each layer puts out.")


def _add_gradients(page: Page, dynamics: Dynamics) -> None:
    page.heading("Gradients and their spikes")
    norms = [(step, value) for step, value in dynamics.series("grad_norm") if math.isfinite(value)]
    if norms:
        clip = dynamics.setting("grad_clip")
        clip = float(clip) if isinstance(clip, int | float) and clip > 0 else None
        spikes = gradient_spikes(norms)
        page.text(emphasis(read_gradients(norms, spikes, clip)))
        caption = "Norm of the whole gradient before clipping; diamonds stand out from the 50 logged steps before them."
        page.figure(gradient_norms(norms, spikes, clip), caption)
    table = dynamics.table("gradient_norm")
    if table is not None:
        _add_heat(page, table, "gradient norm", "Norm of the gradient of each layer, before clipping.")
    if not norms and table is None:
        page.text("The run logged no gradient norm.")


def _add_heat(page: Page, table: LayerTable, name: str, caption: str) -> None:
    if (table.values > 0).any():
        page.figure(layer_heat(table.steps, table.layers, table.values.tolist(), name=name), caption)
    else:
        page.text("All values are 0.")


def _add_ramp(page: Page, ramp: RangeTest, text: str) -> None:
    page.heading("Learning-rate range test")
    marks = {"steepest": ramp.steepest, "suggested": ramp.suggested, "lowest loss": ramp.turning_point}
    if ramp.suggested is None:
        page.text("The loss fell at no rate of the ramp, which may have begun too high.")
    else:
        left = " Above that it blew up." if ramp.blew_up else " It did not blow up up to the highest rate."
        page.text(
            emphasis(
                f"On {text}, from new weights of the same shape, with AdamW: the smoothed loss was lowest at a rate of "
                f"{ramp.turning_point:.1e} and fell fastest at {ramp.steepest:.1e}.{left} "
                f"A tenth of the turning point, **{ramp.suggested:.1e}**, is a peak to start from."
            )
        )
    figure = range_ramp(ramp.rates, ramp.losses, ramp.smoothed, {k: v for k, v in marks.items() if v is not None})
    page.figure(figure, "Loss while the learning rate rises; the weights were put back afterwards.")


def _loss_decay(dynamics: Dynamics, decay: float) -> float:
    """A moving average worth at most a twentieth of the training; a longer one would lag above a falling loss."""
    window = max(1.0, len(dynamics.series("loss")) / 20)
    return min(decay, (window - 1) / (window + 1))


def _window(decay: float) -> str:
    """How many updates a moving average is worth."""
    return f"{max(1.0, (1 + decay) / (1 - decay)):.0f} logged updates"
