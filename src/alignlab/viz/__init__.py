"""Figures and self-contained HTML pages, in one calm design for light and dark."""

from __future__ import annotations

from alignlab.viz.figures import cost_bars, difference_plot, kl_reward, line, stage_bars
from alignlab.viz.markup import Badge, Inline, emphasis
from alignlab.viz.page import Page

__all__ = [
    "Badge",
    "Inline",
    "Page",
    "cost_bars",
    "difference_plot",
    "emphasis",
    "kl_reward",
    "line",
    "stage_bars",
]
