"""What a sweep tries: settings crossed with seeds, and the command or the function that each of them is given to."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from alignlab.core.config import require
from alignlab.core.errors import ConfigError

Over = Literal["last", "last_third"]
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class SweepConfig:
    """A sweep: `command` (a command of alignlab) or `function`, for each setting and each seed."""

    name: str = "sweep"
    """Name of the directory below ./sweeps."""
    command: tuple[str, ...] = ()
    """A command of alignlab with what all runs share; settings become flags, `--run` and `--seed` are added."""
    function: str = ""
    """Instead of a command: FILE.py:NAME or MODULE:NAME, called as `function(settings, seed, run)`."""
    settings: dict[str, list[Any]] = field(default_factory=dict)
    """A grid: for each setting its values; every combination is tried."""
    points: tuple[dict[str, Any], ...] = ()
    """Further combinations, each a mapping from settings to values, perhaps with a `name`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each combination is run once with each of them."""
    metrics: tuple[str, ...] = ()
    """What the table shows, of the runs' metrics; none: all that every finished run has."""
    over: Over = "last"
    """The number of a run: the last value that it logged, or the mean of the last third of them."""
    baseline: str = ""
    """The point that the others are compared with, by its name; none: the first."""

    def __post_init__(self) -> None:
        require(bool(self.command) != bool(self.function), "command", list(self.command), "a command or a function")
        require(bool(self.settings) or bool(self.points), "settings", self.settings, "settings or points to try")
        require(bool(self.seeds), "seeds", list(self.seeds), "at least one seed")
        require(len(set(self.seeds)) == len(self.seeds), "seeds", list(self.seeds), "different whole numbers")
        require(self.over in ("last", "last_third"), "over", self.over, "last or last_third")
        require(not self.name.startswith(".") and "/" not in self.name, "name", self.name, "a name without '/'")
        for key, values in self.settings.items():
            require(bool(values), f"settings.{key}", values, "a list of at least one value")
        points = combinations(self)
        names = list(points)
        require(not self.baseline or self.baseline in names, "baseline", self.baseline, f"one of {'; '.join(names)}")
        for name, point in points.items():
            for key, value in point.items():
                fits = isinstance(value, _PLAIN) or (
                    isinstance(value, list) and all(isinstance(item, _PLAIN) for item in value)
                )
                require(fits, f"{key} of {name}", value, "a number, text, true, false, null or a list of them")
                taken = bool(self.command) and key.replace("_", "-") in ("run", "seed")
                require(not taken, f"settings.{key}", value, "other settings: the sweep gives every run its own")


def combinations(config: SweepConfig) -> dict[str, dict[str, Any]]:
    """The points by name: the grid in the order it is written, the last setting fastest, then `points`."""
    found: dict[str, dict[str, Any]] = {}
    grid = itertools.product(*config.settings.values()) if config.settings else iter(())
    for values in grid:
        _add(found, dict(zip(config.settings, values, strict=True)))
    for point in config.points:
        _add(found, {key: value for key, value in point.items() if key != "name"}, point.get("name"))
    return found


def _add(found: dict[str, dict[str, Any]], point: dict[str, Any], name: Any = None) -> None:
    if name is not None and (not isinstance(name, str) or not name):
        raise ConfigError(f"the name of a point is {name!r}, allowed: text")
    name = name or ", ".join(f"{key}={value}" for key, value in point.items())
    if name in found:
        raise ConfigError(f"point {name!r} comes twice; leave one out or give it a name of its own")
    found[name] = point


def place_of(name: str) -> str:
    """A point's directory: its name where that makes one, else its beginning and a digest."""
    plain = re.sub(r"[^A-Za-z0-9._=,+-]+", "", name.replace(", ", ","))
    if plain == name.replace(", ", ",") and len(plain) <= 80 and not plain.startswith("."):
        return plain
    return f"{plain.lstrip('.')[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings as flags of the command line: `rank: 4` is `--rank 4`, `packed: true` is `--packed`."""
    found: list[str] = []
    for key, value in settings.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            head, _, last = name.rpartition(".")
            found.append(f"--{name}" if value else f"--{head}.no-{last}" if head else f"--no-{last}")
        else:
            values = value if isinstance(value, list) else [value]
            found += [f"--{name}", *("None" if item is None else str(item) for item in values)]
    return found
