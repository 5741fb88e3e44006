"""From values to safe HTML: everything is escaped; the only markup comes from the types of this file."""

from __future__ import annotations

import html
import math
import re
from dataclasses import dataclass

from alignlab.stats.interval import Interval


@dataclass(frozen=True)
class Inline:
    """Text that is HTML already; made by `emphasis`, never from data."""

    html: str


@dataclass(frozen=True)
class Badge:
    """A verdict as a coloured pill: "better", "worse", "tied", "pass", "fail", or any other word in grey."""

    verdict: str


_SIGNS = {
    "better": ("good", "▲"),
    "pass": ("good", "✓"),
    "worse": ("bad", "▼"),
    "fail": ("bad", "✕"),
    "tied": ("even", "="),
}


def emphasis(text: str) -> Inline:
    """Escaped text in which **strong**, *emphasis* and `code` are set as such: for our own sentences, not for data."""
    safe = html.escape(text)
    parts = re.split(r"`([^`]+)`", safe)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = f"<code>{part}</code>"
            continue
        part = re.sub(r"\*\*(\S(?:.*?\S)?)\*\*", r"<strong>\1</strong>", part)
        parts[i] = re.sub(r"(?<![\w*])\*(\S(?:[^*]*\S)?)\*(?![\w*])", r"<em>\1</em>", part)
    return Inline("".join(parts))


def render(value: object) -> str:
    """HTML of one value: numbers formatted, intervals with their limits, everything else escaped text."""
    if value is None:
        return '<span class="muted">–</span>'
    if isinstance(value, Inline):
        return value.html
    if isinstance(value, Badge):
        kind, sign = _SIGNS.get(value.verdict, ("even", ""))
        return f'<span class="badge {kind}">{sign} {html.escape(value.verdict)}</span>'.replace("> ", ">")
    if isinstance(value, Interval):
        return f'{number(value.estimate)} <span class="limits">{limits(value)}</span>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    return html.escape(str(value))


def limits(interval: Interval) -> str:
    """`[low, high]`, with – for a limit that the data do not bound."""
    return f"[{number(interval.low)}, {number(interval.high)}]"


def number(value: float) -> str:
    """At most three decimals, thousands separated, a true minus sign; – for what is not finite."""
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size == 0:
        text = "0"
    elif size < 1e-3:
        text = f"{value:.4f}" if size >= 1e-4 else f"{value:.1e}"
    else:
        text = f"{value:,.{3 if size < 10 else 1 if size < 1000 else 0}f}"
    return text.replace("-", "−")


def is_number(value: object) -> bool:
    """True for cells that line up on the right."""
    return isinstance(value, int | float | Interval) and not isinstance(value, bool)
