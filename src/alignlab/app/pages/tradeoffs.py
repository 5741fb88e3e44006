"""Trade-offs: points in several objectives with intervals; choose a weight, see which is best and what it costs."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.app.context import AppContext
from alignlab.app.markup import interval, notice, table, text
from alignlab.app.page import Page
from alignlab.core.errors import AlignlabError

if TYPE_CHECKING:
    from alignlab.align.objectives.tradeoffs import Tradeoffs

_LEDE = "Points in two objectives, with intervals. Move the weight to see which point is best, and what it costs."
_EMPTY = (
    '<p class="soft">There are no points yet: <code>alignlab sweep</code> makes a file of them, and so does any run '
    "that keeps <code>artifacts/objectives.json</code>.</p>"
)


def sources(root: Path) -> list[tuple[str, str]]:
    """Labels and places of what can be shown: files of points below the folder of runs, and the runs' own records."""
    found: list[tuple[str, str]] = []
    if not root.is_dir():
        return found
    for file in sorted([root / "points.jsonl", *root.glob("*/points.jsonl")]):
        if file.is_file():
            found.append((str(file.relative_to(root)), str(file)))
    if any(root.glob("*/artifacts/objectives.json")):
        found.append(("runs of this folder", str(root)))
    return found


def account_of(context: AppContext, source: str) -> Tradeoffs:
    """The account of one of the sources; read again only when it changed."""
    if source not in [place for _, place in sources(context.runs_dir)]:
        from alignlab.core.errors import DataError

        raise DataError("this source of points is not (or no longer) among the runs")
    path = Path(source)
    files = [path] if path.is_file() else sorted(path.glob("*/artifacts/objectives.json"))
    return _account(tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files), path.is_file())


@lru_cache(maxsize=8)
def _account(files: tuple[tuple[str, int, int], ...], single: bool) -> Tradeoffs:
    from alignlab.align.objectives.sources import read_points
    from alignlab.align.objectives.tradeoffs import Tradeoffs

    places = [Path(name) if single else Path(name).parents[1] for name, _, _ in files]
    return Tradeoffs(read_points(places))


def told(account: Tradeoffs, x: str, y: str, share: float) -> tuple[str, str]:
    """(the best point for the weight, words and tables about it)."""
    if not account.noise_known:
        return account.front[0], f'<p class="soft">{text(account.scope)}.</p>{_points(account)}'
    choice = account.choose({x: share, y: 1 - share})
    rows = [
        (name, top, None if top == choice.name else interval(gap.as_dict()))
        for name, (top, gap) in choice.cost.items()
        if name in (x, y)
    ]
    costs = table(("objective", "best in it", "falls short by"), rows, caption=f"What {choice.name} costs")
    often = f"the best in {choice.share[choice.name]:.0%} of resamples"
    said = f"<p><b>{text(choice.name)}</b> is best for this weight, {often}. {text(account.scope)}.</p>"
    return choice.name, f"{said}{costs}{_points(account)}"


def _points(account: Tradeoffs) -> str:
    objectives = account.points.table.objectives
    rows = [
        (name, *(interval(account.intervals[name][o].as_dict()) for o in objectives), account.standing(name))
        for name in account.points.table.names
    ]
    return table(("point", *map(account.points.label, objectives), "stands"), rows, caption="All points")


def build(context: AppContext) -> None:
    """Fill the page."""
    import gradio as gr

    from alignlab.app.gradio_pages import on_load

    def html(content: str = "") -> Any:
        return gr.HTML(content, apply_default_css=False, elem_classes="lab")

    html(f'<h1>Trade-offs</h1><p class="lede">{_LEDE}</p>')
    with gr.Row():
        source = gr.Dropdown(label="Points", choices=[])
        across = gr.Dropdown(label="Across", choices=[])
        upwards = gr.Dropdown(label="Upwards", choices=[])
    weight = gr.Slider(
        0, 1, value=0.5, step=0.05, label="Weight of the objective across", info="the other has the rest"
    )
    plot = gr.Plot(label="Trade-off", show_label=False)
    words = html()
    shown = [across, upwards, plot, words]

    def show(picked: str | None, x: str | None, y: str | None, share: float) -> list[Any]:
        from alignlab.align.objectives.page import tradeoff_figure

        if not picked:
            return [gr.skip(), gr.skip(), None, _EMPTY]
        try:
            account = account_of(context, picked)
            names = list(account.points.table.objectives)
            x = x if x in names else names[0]
            y = y if y in names and y != x else next(name for name in names if name != x)
            best, said = told(account, x, y, float(share))
            drawn = tradeoff_figure(account, x, y, marked=best)
        except AlignlabError as error:
            return [gr.skip(), gr.skip(), None, notice(str(error))]
        return [gr.update(choices=names, value=x), gr.update(choices=names, value=y), drawn, said]

    def opened(wanted: list[str]) -> list[Any]:
        there = sources(context.runs_dir)
        named = dict(there)
        first = next((named[name] for name in wanted if name in named), there[0][1] if there else None)
        return [gr.update(choices=there, value=first), *show(first, None, None, 0.5)]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    on_load(opened, [source, *shown], query="points")
    controls: list[Any] = [source, across, upwards, weight]
    gr.on([source.input, across.input, upwards.input, weight.input], show, controls, shown, **quiet)


PAGE = Page("/trade-offs", "Trade-offs", build=build)
