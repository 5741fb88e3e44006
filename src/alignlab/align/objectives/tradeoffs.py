"""The account of a set of points: front, volume, claims beyond noise, choices by weight and under bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.align.objectives.points import PointSet
from alignlab.core.config import require
from alignlab.core.errors import ConfigError
from alignlab.stats.interval import Interval
from alignlab.stats.pareto import contributions, non_dominated
from alignlab.stats.pareto_choice import BoundMet, Choice, best_for_weights, under_bounds
from alignlab.stats.pareto_resampling import Hypervolume, covered_volume, on_front_share, worst_corner
from alignlab.stats.pareto_table import Dominance, dominance, objective_intervals
from alignlab.stats.validation import FloatArray

if TYPE_CHECKING:
    pass

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, eq=False)
class Tradeoffs:
    """What can be said of the points; everything is computed once, when first asked for."""

    points: PointSet
    reference: Mapping[str, float] | None = None
    """Corner of the hypervolume, in the objectives' own signs; none: the worst of the points, a tenth beyond."""
    bounds: Mapping[str, float] | None = None
    """Least value of objectives (the most where less is better), for choices under bounds."""
    confidence: float = 0.95

    def __post_init__(self) -> None:
        require(0 < self.confidence < 1, "confidence", self.confidence, "a number between 0 and 1")
        names = self.points.table.objectives
        if self.reference is not None and set(self.reference) != set(names):
            raise ConfigError(
                f"reference is {dict(self.reference)}, right is one number for each of {', '.join(names)}"
            )
        for name in self.bounds or {}:
            self.points.table.column(name)
        if self.bounds and len(self.bounds) >= len(names):
            raise ConfigError("every objective has a bound; leave one without, which is to be as large as it can")

    @cached_property
    def intervals(self) -> dict[str, dict[str, Interval]]:
        """By point and objective, in the objective's own sign."""
        found = objective_intervals(self.points.table, self.confidence)
        return {p: {o: self.points.shown(o, cell) for o, cell in row.items()} for p, row in found.items()}

    @cached_property
    def front(self) -> list[str]:
        """The points that no other beats in the measured means."""
        table = self.points.table
        return [name for name, ahead in zip(table.names, non_dominated(table.means), strict=True) if ahead]

    @cached_property
    def corner(self) -> FloatArray:
        """The reference with the table's signs."""
        if self.reference is None:
            return worst_corner(self.points.table)
        given = [self.reference[name] for name in self.points.table.objectives]
        return np.array(given, dtype=np.float64) * self.points.signs()

    @cached_property
    def volume(self) -> Hypervolume | None:
        """None where nothing says how noisy the points are."""
        if not self.noise_known:
            return None
        return covered_volume(self.points.table, self.corner, confidence=self.confidence)

    @property
    def noise_known(self) -> bool:
        """Whether there are items, or seeds, to see noise by."""
        return self.points.table.items > 1 or self.points.table.new_trainings

    @cached_property
    def added(self) -> dict[str, float]:
        """What the volume would lose without each point."""
        table = self.points.table
        return dict(zip(table.names, contributions(table.means, self.corner).tolist(), strict=True))

    @cached_property
    def share(self) -> dict[str, float]:
        """How often each point is on the front of resampled means; empty where noise is unknown."""
        table = self.points.table
        return dict(zip(table.names, on_front_share(table).tolist(), strict=True)) if self.noise_known else {}

    @cached_property
    def claims(self) -> list[Dominance]:
        """All ordered pairs, Holm-corrected."""
        return dominance(self.points.table, alpha=1 - self.confidence)

    @cached_property
    def beaten(self) -> dict[str, list[str]]:
        """The points that others beat beyond noise."""
        found: dict[str, list[str]] = {}
        for claim in self.claims:
            if claim.confident:
                found.setdefault(claim.worse, []).append(claim.better)
        return found

    def choose(self, weights: Mapping[str, float]) -> Choice:
        """The best point for weights of objectives that are each scaled to their range among the points."""
        means = self.points.table.means
        ranges = dict(zip(self.points.table.objectives, np.ptp(means, axis=0), strict=True))
        return best_for_weights(
            self.points.table, {n: w / (ranges.get(n) or 1.0) for n, w in weights.items()}, n_resamples=500
        )

    def held(self, rivals: Sequence[str] | None = None, names: Sequence[str] | None = None) -> list[BoundMet]:
        """Every point (or some) under the bounds, best first among those that meet them; empty without bounds."""
        if not self.bounds:
            return []
        table, signs = self.points.table, dict(zip(self.points.table.objectives, self.points.signs(), strict=True))
        free = next(name for name in table.objectives if name not in self.bounds)
        bounds = {name: signs[name] * bound for name, bound in self.bounds.items()}
        found = [under_bounds(table, name, free, bounds, rivals) for name in names or table.names]
        return sorted(found, key=lambda one: (not one.met, -one.kept.estimate))

    @property
    def scope(self) -> str:
        """What the intervals hold for."""
        table = self.points.table
        seeds = [len(own) for own in self.points.seeds.values()]
        count = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
        items = f"{table.items} item{'s' if table.items > 1 else ''}"
        said = f"{len(table.names)} points, {count} training{'s' if max(seeds) > 1 else ''} each, {items}"
        if table.new_trainings:
            return f"{said}; intervals hold for new trainings" + (" and new items" if table.items > 1 else "")
        if table.items > 1:
            if any(table.repeated):
                return f"{said}; intervals hold for new items, and for new trainings of points with three or more"
            return f"{said}; intervals hold for new items, not for new trainings (three seeds a point would)"
        return f"{said}; one number a training and fewer than three trainings a point: nothing says how noisy it is"

    def lines(self) -> list[str]:
        """The account as text."""
        table, width = self.points.table, max(len(name) for name in self.points.table.names)
        found = [self.scope, ""]
        for name in table.names:
            cells = "  ".join(f"{self.points.label(o)} {self.intervals[name][o]}" for o in table.objectives)
            found.append(f"  {name:<{width}}  {cells}  {self.standing(name)}")
        found += ["", f"front: {', '.join(self.front)}"]
        corner = ", ".join(
            f"{o} {v:.3g}" for o, v in zip(table.objectives, self.corner * self.points.signs(), strict=True)
        )
        if self.volume is not None:
            found.append(f"hypervolume above ({corner}): {self.volume.interval}, measured {self.volume.measured:.3g}")
        found += [f"{one} is beaten beyond noise by {', '.join(by)}" for one, by in self.beaten.items()]
        if not self.beaten:
            found.append(f"no point is beaten beyond noise (Holm over {len(self.claims)} pairs)")
        return found + self.bound_lines()

    def standing(self, name: str) -> str:
        """On the front or behind it, in words."""
        if name in self.front:
            often = f", in {self.share[name]:.0%} of resamples" if self.share else ""
            return f"front{often}, adds {self.added[name]:.3g}"
        return "beaten" if name in self.beaten else "behind, within noise"

    def bound_lines(self, rivals: Sequence[str] | None = None, names: Sequence[str] | None = None) -> list[str]:
        """The bounds, who meets them, and at what loss."""
        held = self.held(rivals, names)
        if not held:
            return []
        table = self.points.table
        free = next(name for name in table.objectives if name not in (self.bounds or {}))
        said = ", ".join(
            f"{n} {'at most' if n in self.points.minimised else 'at least'} {b:g}"
            for n, b in (self.bounds or {}).items()
        )
        found = ["", f"under {said}, by {free}:"]
        for one in held:
            how = "met" + (" surely" if one.surely else "") if one.met else "broken"
            kept = self.points.shown(free, one.kept)
            found.append(f"  {one.name}: {how}, {free} {kept}")
            if one.met:
                for rival, (gap, p) in one.rivals.items():
                    found.append(f"    against {rival}: {self.points.shown(free, gap)}, p {p:.3g}")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON."""
        table = self.points.table
        return {
            "scope": self.scope,
            "objectives": list(table.objectives),
            "minimised": list(self.points.minimised),
            "points": {
                name: {
                    "seeds": list(self.points.seeds[name]),
                    "settings": dict(self.points.settings[name]),
                    "objectives": {o: cell.as_dict() for o, cell in self.intervals[name].items()},
                    "front": name in self.front,
                    "front_share": self.share.get(name),
                    "adds": self.added[name],
                    "beaten_by": self.beaten.get(name, []),
                }
                for name in table.names
            },
            "reference": dict(zip(table.objectives, (self.corner * self.points.signs()).tolist(), strict=True)),
            "hypervolume": None
            if self.volume is None
            else {"measured": self.volume.measured, "interval": self.volume.interval.as_dict()},
            "dominance": [asdict(claim) for claim in self.claims],
        }
