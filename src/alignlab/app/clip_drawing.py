"""Clips of control tasks as small moving drawings: SVG that the browser animates by itself, without a script."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alignlab.align.trajectories.clips import Clip

_START = '{"clip":'
_HOLD = 0.25
"""Of the time of a clip, how long its last frame stays."""
_SCALE = 42.0
"""Pixels of a unit of the cart's track."""


def drawing(content: str) -> str | None:
    """The drawing of a clip; None for a text that is none."""
    if not content.startswith(_START):
        return None
    from alignlab.align.trajectories.clips import read_clip
    from alignlab.core.errors import DataError

    try:
        clip = read_clip(content)
    except DataError:
        return None
    body = _cart(clip) if clip.env == "CartPole-v1" else _pendulum(clip)
    bar = _animated("width", _values(f"{240 * (i + 1) / len(clip.frames):.0f}" for i in range(len(clip.frames))), clip)
    return (
        f'<svg class="clip" viewBox="0 0 240 150" role="img" aria-label="Clip of {clip.env}, {len(clip.frames)} steps">'
        f'{body}<rect class="far" x="0" y="147" height="3" width="240">{bar}</rect></svg>'
    )


def _cart(clip: Clip) -> str:
    """Track, its two ends, cart and pole; faint where it began."""
    places = [120 + _SCALE * max(-2.8, min(2.8, place)) for place, _ in clip.frames]
    angles = [math.degrees(angle) for _, angle in clip.frames]
    moving = _moving("translate", (f"{x:.1f} 110" for x in places), clip)
    turning = _moving("rotate", (f"{angle:.1f}" for angle in angles), clip)
    ends = "".join(f'<path class="end" d="M{120 + side * _SCALE * 2.4:.1f} 104v24"/>' for side in (-1, 1))
    cart = '<rect class="body" x="-17" y="-8" width="34" height="16" rx="3"/>'
    pole = '<path class="pole" d="M0 0v-74"/>'
    return (
        f'<path class="track" d="M0 118h240"/>{ends}'
        f'<g class="began" transform="translate({places[0]:.1f} 110)">{cart}'
        f'<g transform="rotate({angles[0]:.1f})">{pole}</g></g>'
        f"<g>{moving}{cart}<g>{turning}{pole}</g></g>"
    )


def _pendulum(clip: Clip) -> str:
    """The rod, upright at the top, and an arc that shows which way and how hard it is turned."""
    # The angle grows against the clock, which is the other way round in SVG.
    angles = [-math.degrees(angle) for angle, _ in clip.frames]
    whole = [angles[0]]
    for angle in angles[1:]:  # without a jump at the bottom
        whole.append(whole[-1] + (angle - whole[-1] + 180) % 360 - 180)
    turning = _moving("rotate", (f"{angle:.1f}" for angle in whole), clip)
    rod = '<path class="pole" d="M0 0v-58"/>'
    torque = _moving("scale", (f"{-torque / 2:.2f} 1" for _, torque in clip.frames), clip)
    return (
        f'<g transform="translate(120 74)"><circle class="track" r="64"/><path class="end" d="M0 -70v12"/>'
        f'<g class="began" transform="rotate({whole[0]:.1f})">{rod}</g><g>{turning}{rod}</g>'
        f'<circle class="body" r="5"/></g>'
        f'<g transform="translate(120 142)"><g>{torque}<path class="torque" d="M0 0h60"/></g></g>'
    )


def _moving(kind: str, values: Iterable[str], clip: Clip) -> str:
    return (
        f'<animateTransform attributeName="transform" type="{kind}" values="{_values(values)}" {_timing(clip)} '
        f'keyTimes="{_times(clip)}"/>'
    )


def _animated(attribute: str, values: str, clip: Clip) -> str:
    return f'<animate attributeName="{attribute}" values="{values}" {_timing(clip)} keyTimes="{_times(clip)}"/>'


def _timing(clip: Clip) -> str:
    return f'dur="{clip.seconds * (1 + _HOLD):.2f}s" repeatCount="indefinite" calcMode="discrete"'


def _times(clip: Clip) -> str:
    """When each frame comes, as shares of the whole: the last one stays."""
    count = len(clip.frames)
    return ";".join(f"{i / (count * (1 + _HOLD)):.4f}" for i in range(count))


def _values(values: Iterable[str]) -> str:
    return ";".join(values)
