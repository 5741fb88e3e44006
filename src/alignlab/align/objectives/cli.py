"""`alignlab pareto`: the front of a sweep, with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from alignlab.core.config import parse_cli, require
from alignlab.core.errors import ConfigError


@dataclass(frozen=True)
class ParetoCommand:
    """Front, hypervolume with intervals, and who beats whom beyond noise, of points in several objectives."""

    points: tuple[Path, ...]
    """A JSONL file of points, a sweep, a folder of runs, or runs."""
    objectives: tuple[str, ...] = ()
    """The objectives, of those recorded (or metrics that runs logged); none: all, up to four."""
    minimise: tuple[str, ...] = ()
    """Those that are to be small."""
    reference: tuple[str, ...] = ()
    """Corner of the hypervolume, as `helpful=-1 harmless=-1`; none: the worst of the points, a tenth beyond."""
    bound: tuple[str, ...] = ()
    """Least value (the most, where less is better) of objectives, as `harmless=0.5`: who meets it, and at what loss."""
    weights: tuple[str, ...] = ()
    """Which point is best for these, as `helpful=2 harmless=1`; objectives are scaled to their range among points."""
    confidence: float = 0.95
    """Of every interval, and of the claims."""
    last: float = 0.2
    """Share of a run's steps that a logged metric is averaged over."""
    html: Path | None = None
    """Where to write the account as a page with its figure."""
    out: Path | None = None
    """Where to write the numbers as JSON."""
    title: str = "Trade-offs"
    """Of the page."""

    def __post_init__(self) -> None:
        require(bool(self.points), "points", list(self.points), "at least one file of points, sweep or folder of runs")
        require(0 < self.confidence < 1, "confidence", self.confidence, "a number between 0 and 1")


def pareto(argv: list[str]) -> int:
    """The `alignlab pareto` command; returns its exit code."""
    command = parse_cli(ParetoCommand, argv, prog="alignlab pareto", first="points")
    from alignlab.align.objectives.sources import read_points
    from alignlab.align.objectives.tradeoffs import Tradeoffs
    from alignlab.core.files import atomic_write
    from alignlab.core.run_creation import pretty_json

    points = read_points(command.points, command.objectives, command.minimise, last=command.last)
    bounds, reference = numbers(command.bound, "bound"), numbers(command.reference, "reference")
    account = Tradeoffs(points, reference or None, bounds or None, command.confidence)
    print("\n".join(account.lines()))
    weights = numbers(command.weights, "weights")
    if weights:
        choice = account.choose(weights)
        print(f"\nbest for {' '.join(command.weights)}: {choice.name}, in {choice.share[choice.name]:.0%} of resamples")
        for objective, (top, gap) in choice.cost.items():
            short = "is best in it" if top == choice.name else f"falls short of {top} by {gap}"
            print(f"  {objective}: {short}")
    if command.html is not None:
        from alignlab.align.objectives.page import tradeoff_page

        print(f"page  {tradeoff_page(account, command.title).save(command.html)}")
    if command.out is not None:
        atomic_write(command.out, pretty_json(account.as_dict()))
        print(f"numbers  {command.out}")
    return 0


def numbers(given: tuple[str, ...], name: str) -> dict[str, float]:
    """`a=1 b=2` as numbers by name; ConfigError for anything else."""
    found: dict[str, float] = {}
    for text in given:
        key, sign, value = text.rpartition("=")
        try:
            found[key] = float(value)
        except ValueError:
            sign = ""
        if not sign or not key or not math.isfinite(found[key]):
            raise ConfigError(f"{name} is {text!r}, right is OBJECTIVE=NUMBER")
    return found
