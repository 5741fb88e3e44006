"""Training: a policy at work against a reward: curves, alarms, KL account, answers and what in them earned it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignlab.app.context import AppContext
from alignlab.app.markup import notice
from alignlab.app.page import Page
from alignlab.core.errors import AlignlabError

_EVERY_SECONDS = 3.0
_NOBODY = (
    "No run here trains against a reward yet: PPO, GRPO, RLOO and REINFORCE do, and their runs appear here as soon as "
    "they log."
)


def build(context: AppContext) -> None:
    """Fill the page."""
    import gradio as gr

    import alignlab.app.training_data  # noqa: F401  # now, in the background, and not when the first run is asked for
    from alignlab.app.gradio_pages import on_load

    def html(content: str = "") -> Any:
        return gr.HTML(content, apply_default_css=False, elem_classes="lab")

    html('<h1>Training</h1><p class="lede">A policy at work: what its reward pays for, and what looks wrong.</p>')
    name = gr.Dropdown(label="Run", choices=[], value=None)
    told = html()
    html("<h2>Alarms</h2>")
    alarms = html()
    html("<h2>Curves</h2>")
    plot = gr.Plot(label="Curves", show_label=False)
    html("<h2>KL budget and length</h2>")
    budget = gr.Number(label="KL that may be spent, nats a response", value=None, minimum=0)
    account = html()
    html("<h2>Answers</h2>")
    with gr.Row():
        step = gr.Slider(label="Step", minimum=1, maximum=2, step=1, value=2)
        follow = gr.Checkbox(label="Follow the newest step", value=True)
    answers = html()
    seen = gr.State("")
    shown = [told, plot, alarms, account, step, answers, seen]
    controls: list[Any] = [name, budget, step, follow]

    def show(picked: str | None, nats: float | None, at: float | None, newest: bool) -> list[Any]:
        return _show(context.runs_dir, picked, nats, at, newest)

    def tick(picked: str | None, nats: float | None, at: float | None, newest: bool, mark: str) -> list[Any]:
        if picked is None or not _changed(context.runs_dir, picked, mark):
            return [gr.skip()] * len(shown)
        found = show(picked, nats, at, newest)
        if not newest:  # the reader may have moved on while this was made: only the slider's end is new
            found[shown.index(step)].pop("value", None)
            found[shown.index(answers)] = gr.skip()
        return found

    def spend(picked: str | None, nats: float | None) -> list[Any]:
        found = show(picked, nats, None, True)
        return [found[shown.index(one)] for one in (plot, alarms, account)]

    def opened(wanted: list[str]) -> list[Any]:
        there, asked = _asked(context.runs_dir, wanted)
        return [gr.update(choices=there, value=asked), *show(asked, None, None, True)]

    def followed(picked: str | None, nats: float | None, at: float | None, newest: bool) -> list[Any]:
        return show(picked, nats, at, newest) if newest else [gr.skip()] * len(shown)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    on_load(opened, [name, *shown])
    name.input(show, controls, shown, **quiet)
    gr.on([budget.submit, budget.blur], spend, [name, budget], [plot, alarms, account], **quiet)
    gr.on([step.input, step.release], lambda: False, [], follow, **quiet)
    step.change(lambda picked, at: _answers(context.runs_dir, picked, at), [name, step], answers, **quiet)
    follow.input(followed, controls, shown, **quiet)
    gr.Timer(_EVERY_SECONDS).tick(tick, [*controls, seen], shown, **quiet)


def _show(root: Path, picked: str | None, nats: float | None, at: float | None, newest: bool) -> list[Any]:
    """Everything but the list of runs; where the run has nothing to show, one sentence."""
    import gradio as gr

    from alignlab.align.diagnostics.report import curve_points, marks
    from alignlab.app import training_data as data
    from alignlab.viz.training_figures import training_curves

    if picked is None:
        return [notice(_NOBODY), None, "", "", gr.skip(), "", ""]
    path = root / picked
    before = data.mark(path)
    try:
        training = data.training_of(path)
        limits = training.limits(kl_budget=nats if nats and nats > 0 else None)
        found = training.alarms(limits)
        drawn = training_curves(curve_points(training), marks(found))
        steps = data.sample_steps(training)
        where = None if newest or at is None else int(at)
        slider = _slider(steps, where)
        parts = [data.alarms_html(training, found), data.budget_html(training, limits.kl_budget)]
        return [data.state_html(training), drawn, *parts, slider, data.answers_html(training, where), before]
    except AlignlabError as error:
        return [notice(str(error)), None, "", "", gr.skip(), "", before]


def _changed(root: Path, picked: str, mark: str) -> bool:
    from alignlab.app import training_data as data

    return data.mark(root / picked) != mark


def _asked(root: Path, wanted: list[str]) -> tuple[list[tuple[str, str]], str | None]:
    """The runs to choose from, and the one that the address names, else the newest."""
    from alignlab.app.training_data import choices

    there = choices(root, wanted)
    known = [name for _, name in there]
    return there, next((name for name in wanted if name in known), known[0] if known else None)


def _slider(steps: list[int], at: int | None) -> Any:
    import gradio as gr

    if not steps:
        return gr.update(interactive=False)
    low, high = steps[0], max(steps[-1], steps[0] + 1)
    value = steps[-1] if at is None else min(max(at, low), high)
    return gr.update(minimum=low, maximum=high, value=value, interactive=True)


def _answers(root: Path, picked: str | None, at: float) -> str:
    from alignlab.app import training_data as data

    if picked is None:
        return ""
    try:
        return data.answers_html(data.training_of(root / picked), int(at))
    except AlignlabError as error:
        return notice(str(error))


PAGE = Page("/training", "Training", build=build)
