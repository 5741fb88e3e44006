"""One self-contained HTML page: no address outside itself, readable on a phone, light and dark, everything escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from alignlab.core.errors import ConfigError, DataError
from alignlab.core.files import atomic_write
from alignlab.stats.interval import Interval
from alignlab.viz.markup import Badge, Inline, is_number, limits, render
from alignlab.viz.style import CSS, SCRIPT

# The browser itself refuses every request: a page that tried to load anything would fail, not leak.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_CONTENTS_FROM = 3

KeyNumber = tuple[str, str | int | float, Interval | str | None, str | None]
"""Label, value, interval (or a note in words), verdict."""


class Page:
    """A report built part by part; every method returns the page, so that calls chain.

    Text is plain text and is escaped; `alignlab.viz.markup.emphasis` marks our own sentences. A Page can be put inside
    `details` of another.
    """

    def __init__(self, title: str, lede: str | Inline | None = None) -> None:
        self.title, self.lede = title, lede
        self._parts: list[str] = []
        self._figures: list[str] = []
        self._headings: list[tuple[str, str]] = []
        self._footer = ""

    def heading(self, text: str, level: int = 2) -> Page:
        """A heading of level 2 (also in the list of contents) or 3."""
        if level not in (2, 3):
            raise ConfigError(f"level is {level!r}, allowed: 2 or 3")
        if level == 3:
            return self._add(f"<h3>{html.escape(text)}</h3>")
        anchor = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
        taken = [name for name, _ in self._headings]
        while anchor in taken:
            anchor += "-more"
        self._headings.append((anchor, text))
        return self._add(f'<h2 id="{anchor}">{html.escape(text)}</h2>')

    def text(self, content: str | Inline) -> Page:
        """Paragraphs; an empty line in plain text starts a new one."""
        if isinstance(content, Inline):
            return self._add(f"<p>{content.html}</p>")
        for paragraph in re.split(r"\n\s*\n", content.strip()):
            self._add(f"<p>{html.escape(paragraph)}</p>")
        return self

    def key_numbers(self, numbers: Sequence[KeyNumber]) -> Page:
        """Cards of (label, value, interval or note, verdict); a number is formatted, text is shown as it is."""
        if not numbers:
            raise DataError("numbers is empty; key_numbers needs at least one (label, value, interval, verdict)")
        cards = []
        for name, value, interval, verdict in numbers:
            inside = f'<span class="label">{html.escape(name)}</span><span class="value">{render(value)}</span>'
            if isinstance(interval, Interval):
                level = f"{interval.confidence * 100:g} %"
                shown = f"<span>{level}</span> <span>{limits(interval)}</span> <span>n = {interval.n:,}</span>"
                inside += f'<span class="limits">{shown}</span>'
            elif interval is not None:
                inside += f'<span class="note">{html.escape(interval)}</span>'
            if verdict is not None:
                inside += render(Badge(verdict))
            cards.append(f'<div class="card">{inside}</div>')
        kind = "cards one" if len(cards) == 1 else "cards"
        return self._add(f'<div class="{kind}">{"".join(cards)}</div>')

    def figure(self, figure: go.Figure, caption: str | Inline | None = None) -> Page:
        """An interactive figure as wide as the page; the caption is also what a screen reader says."""
        self._figures.append(str(figure.to_json()))
        name = "Figure" if caption is None else re.sub(r"<[^>]+>", "", render(caption))
        height = figure.layout.height or 340
        # The number of the figure is known only when pages are joined, so `html` fills it in.
        size = f'style="min-height:{int(height)}px"'
        box = f'<div class="canvas" role="img" aria-label="{name}" data-spec="{_SLOT}" {size}></div>'
        under = f"<figcaption>{render(caption)}</figcaption>" if caption is not None else ""
        return self._add(f'<figure class="plot">{box}{under}</figure>')

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str | Inline | None = None
    ) -> Page:
        """A table that scrolls sideways where it is too wide. Cells: text, numbers, Interval, Badge, Inline or None."""
        for i, row in enumerate(rows):
            if len(row) != len(columns):
                raise DataError(f"row {i} of the table has {len(row)} cells for {len(columns)} columns")
        numeric = [
            bool(rows)
            and any(is_number(row[j]) for row in rows)
            and all(is_number(row[j]) or row[j] is None for row in rows)
            for j in range(len(columns))
        ]
        marks = [' class="num"' if flag else "" for flag in numeric]
        head = "".join(f'<th scope="col"{m}>{html.escape(c)}</th>' for c, m in zip(columns, marks, strict=True))
        lines = [
            "".join(f"<td{mark or _short(cell)}>{render(cell)}</td>" for cell, mark in zip(row, marks, strict=True))
            for row in rows
        ]
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        title = f"<caption>{render(caption)}</caption>" if caption is not None else ""
        inside = f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        # Focusable, because a box that scrolls must be reachable by keyboard.
        return self._add(f'<div class="tablebox" tabindex="0">{inside}</div>')

    def side_by_side(self, examples: Sequence[Mapping[str, Any]]) -> Page:
        """Texts beside each other (below each other on a phone), such as response, critique and revision.

        Each example: {"title": text, "columns": [(label, text), ...]}, line breaks kept. DataError for another shape.
        """
        for i, example in enumerate(examples):
            try:
                title, columns = str(example["title"]), [(str(name), str(body)) for name, body in example["columns"]]
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"example {i} needs 'title' and 'columns' of (label, text) pairs: {error}") from error
            inside = "".join(
                f'<div class="column"><div class="label">{html.escape(name)}</div>'
                f'<div class="body">{html.escape(body)}</div></div>'
                for name, body in columns
            )
            self._add(
                f'<article class="example"><h3>{html.escape(title)}</h3><div class="columns">{inside}</div></article>'
            )
        return self

    def details(self, summary: str, content: str | Inline | Page, *, is_open: bool = False) -> Page:
        """A section that unfolds: preformatted plain text, one marked sentence, or the parts of another page."""
        if isinstance(content, Page):
            self._figures.extend(content._figures)
            inside = "".join(content._parts)
        elif isinstance(content, Inline):
            inside = f"<p>{content.html}</p>"
        else:
            inside = f"<pre>{html.escape(content)}</pre>"
        state = " open" if is_open else ""
        return self._add(
            f'<details{state}><summary>{html.escape(summary)}</summary><div class="inside">{inside}</div></details>'
        )

    def footer(self, text: str | Inline) -> Page:
        """The last line of the page; a second call replaces the first."""
        self._footer = f"<footer>{render(text)}</footer>"
        return self

    def html(self) -> str:
        """The whole document. plotly.js is inlined once, and only when there is a figure."""
        body = "\n".join(self._parts)
        specs = []
        for i, figure in enumerate(self._figures):
            body = body.replace(f'"{_SLOT}"', f'"figure-{i}"', 1)
            # "<" could close the script element or open a comment in it; \\u003c is the same character to JSON.
            safe = figure.replace("<", "\\u003c")
            specs.append(f'<script type="application/json" id="figure-{i}">{safe}</script>')
        scripts = ""
        if specs:
            scripts = "\n".join([*specs, f"<script>{get_plotlyjs()}</script>", f"<script>{SCRIPT}</script>"])
        lede = f'<p class="lede">{render(self.lede)}</p>' if self.lede is not None else ""
        contents = ""
        if len(self._headings) >= _CONTENTS_FROM:
            links = "".join(f'<a href="#{anchor}">{html.escape(text)}</a>' for anchor, text in self._headings)
            contents = f'<nav aria-label="Contents">{links}</nav>'
        title = html.escape(self.title)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta name="color-scheme" content="light dark">\n<title>{title}</title>\n<style>{CSS}</style>\n</head>\n'
            f"<body>\n<main>\n<header><h1>{title}</h1>{lede}{contents}</header>\n{body}\n{self._footer}\n</main>\n"
            f"{scripts}\n</body>\n</html>\n"
        )

    def save(self, path: str | Path) -> Path:
        """Write the document to `path`, whole or not at all."""
        atomic_write(path, self.html())
        return Path(path)

    def _add(self, part: str) -> Page:
        self._parts.append(part)
        return self


_SLOT = "figure-slot"


def _short(cell: object) -> str:
    # A word or two stays on one line, so that a phone scrolls the table rather than breaking "SL-CAI" in two.
    return ' class="short"' if isinstance(cell, str) and len(cell) <= 24 else ""
