"""The account of a set of points as a figure and as one self-contained page."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from alignlab.align.objectives.tradeoffs import Tradeoffs
from alignlab.viz.page import Page
from alignlab.viz.tradeoff_figures import tradeoff

if TYPE_CHECKING:
    import plotly.graph_objects as go

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def tradeoff_figure(account: Tradeoffs, x: str, y: str, *, marked: str | None = None) -> go.Figure:
    """All points in two objectives with their intervals; the front is that in all objectives."""
    points = account.points
    cells = {name: (row[x], row[y]) for name, row in account.intervals.items()}
    seeds = {name: f"{len(own)} training{'s' if len(own) > 1 else ''}" for name, own in points.seeds.items()}
    return tradeoff(cells, account.front, x_label=points.label(x), y_label=points.label(y), marked=marked, notes=seeds)


def tradeoff_page(account: Tradeoffs, title: str = "Trade-offs") -> Page:
    """Figure, volume, every point, choices by weight, claims and bounds."""
    points, table = account.points, account.points.table
    page = Page(title, account.scope + ".")
    volume = account.volume
    cards = [("on the front", f"{len(account.front)} of {len(table.names)}", None, None)]
    if volume is not None:
        cards.append(("hypervolume", volume.interval.estimate, volume.interval, None))  # type: ignore[arg-type]
    page.key_numbers(cards)  # type: ignore[arg-type]
    for x, y in combinations(table.objectives, 2):
        page.figure(tradeoff_figure(account, x, y), f"{points.label(x)} against {points.label(y)}, with intervals")
    page.heading("Points")
    columns = ("point", *(points.label(name) for name in table.objectives), "stands", "beaten by")
    rows = [
        [name, *(account.intervals[name][o] for o in table.objectives), account.standing(name),
         ", ".join(account.beaten.get(name, [])) or None]
        for name in table.names
    ]  # fmt: skip
    page.table(columns, rows)
    page.text(
        f"Beaten: worse in every objective beyond noise, after Holm's correction over {len(account.claims)} pairs."
    )
    if account.noise_known and len(table.objectives) == 2:
        _choices(page, account)
    bounds = account.bound_lines()
    if bounds:
        page.heading("Under bounds").details("Who meets them, and at what loss", "\n".join(bounds[1:]), is_open=True)
    return page


def _choices(page: Page, account: Tradeoffs) -> None:
    """What to take for some weights of two objectives, and what it costs."""
    first, second = account.points.table.objectives
    rows = []
    for share in SHARES:
        choice = account.choose({first: share, second: 1 - share})
        costs = [choice.cost[name] for name in (first, second)]
        rows.append(
            [f"{share:g} : {1 - share:g}", choice.name, f"{choice.share[choice.name]:.0%}"]
            + [None if top == choice.name else gap for top, gap in costs]
        )
    page.heading("Choices by weight")
    columns = (f"{first} : {second}", "best", "best in resamples", f"short of the best in {first}", f"in {second}")
    page.table(columns, rows, caption="Weights of objectives that are each scaled to their range among the points")
