"""What optimisation against a proxy does to a gold reward: curves, fits and verdicts put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignlab.align.reward_validation.best_of_n import FloatArray
from alignlab.align.reward_validation.curves import Curve, CurveFit, best_of_n_curve, fall_after_peak, fit_curve
from alignlab.align.reward_validation.figures import overoptimisation_figure
from alignlab.align.reward_validation.sampled import pair_agreement, within_deviation
from alignlab.core.errors import DataError
from alignlab.stats.interval import Interval
from alignlab.stats.paired import mean_interval
from alignlab.viz.markup import Badge
from alignlab.viz.page import Page


@dataclass(frozen=True)
class Overoptimisation:
    """Curves by name, rewards in deviations of the reference's answers to one prompt."""

    curves: dict[str, Curve]
    """Best-of-n and, where there was RL, its points."""
    fits: dict[str, CurveFit | None]
    """Gao et al.'s form for the gold reward of each curve; None where its points are too few or too near."""
    falls: dict[str, Interval]
    """Gold reward at the end less at its best (`fall_after_peak`)."""
    agreement: dict[str, Interval]
    """Share of pairs of answers to one prompt that proxy and gold order alike, by proxy."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "curves": {name: curve.as_dict() for name, curve in self.curves.items()},
            "fits": {name: None if fit is None else fit.as_dict() for name, fit in self.fits.items()},
            "falls": {name: fall.as_dict() for name, fall in self.falls.items()},
            "agreement": {name: value.as_dict() for name, value in self.agreement.items()},
        }

    def lines(self) -> list[str]:
        """For the terminal."""
        found = [f"{name} and gold order a pair of answers alike  {value}" for name, value in self.agreement.items()]
        for name, curve in self.curves.items():
            fit, gains = self.fits[name], (curve.gains("proxy")[-1], curve.gains("gold")[-1])
            found.append(f"{name}, at sqrt(KL) {curve.distance[-1]:.2f}: proxy {gains[0]}, gold {gains[1]}")
            turn = "has no fit" if fit is None else f"turns at sqrt(KL) {fit.turn} ({fit.verdict})"
            found.append(f"{name}: gold {turn}, end less best {self.falls[name]}")
        return found

    def add_to(self, page: Page) -> Page:
        """A section of the report."""
        page.heading("Over-optimisation")
        page.text(
            "A policy is optimised against the proxy reward; the gold reward stands for what is wanted. Rewards are "
            "gains over the policy as it was, in deviations of its answers to one prompt."
        )
        for name, curve in self.curves.items():
            fit = self.fits[name]
            page.heading(name, level=3)
            page.figure(overoptimisation_figure([curve], [fit], names=[name]), f"Gain against d = sqrt(KL): {name}")
            rows: list[list[object]] = [["gold at the end less at its best", self.falls[name]]]
            if fit is not None:
                form = "d (a − b d)" if fit.kind == "best-of-n" else "d (a − b log d)"
                rows = [
                    [f"a of {form}", fit.a],
                    ["b", fit.b],
                    ["d at which gold turns", fit.turn],
                    ["within what was measured", Badge(fit.verdict)],
                    *rows,
                ]
            page.table(["gold reward", "value"], rows)
            word = "n" if curve.kind == "best-of-n" else "step"
            points = zip(curve.at, curve.kl.mean(axis=0), curve.gains("proxy"), curve.gains("gold"), strict=True)
            cells = [[int(at), float(kl), proxy, gold] for at, kl, proxy, gold in points]
            table = Page("").table([word, "KL", "proxy", "gold"], cells)
            page.details("All points", table)
        return page


def measure_overoptimisation(
    samples: Mapping[str, FloatArray], gold: FloatArray, rl: Mapping[str, tuple[str, Curve]] | None = None
) -> Overoptimisation:
    """From rewards (prompts, samples) of the reference's answers, by proxy, and the gold reward of the same answers.

    `rl` holds curves of RL by name, each with the name of its proxy; all are put into the same units.
    """
    if not samples:
        raise DataError("there is no proxy, at least one is needed")
    unit = within_deviation(gold)
    units = {name: within_deviation(table) for name, table in samples.items()}
    curves = {
        f"best of n, {name}": best_of_n_curve(table, gold).in_units(units[name], unit)
        for name, table in samples.items()
    }
    for name, (proxy, curve) in (rl or {}).items():
        curves[name] = curve.in_units(units[proxy], unit)
    agreement = {name: pair_agreement(table, gold) for name, table in samples.items()}
    return Overoptimisation(
        curves,
        {name: _fit(curve) for name, curve in curves.items()},
        {name: fall_after_peak(curve) for name, curve in curves.items()},
        {name: mean_interval(shares[np.isfinite(shares)]) for name, shares in agreement.items()},
    )


def _fit(curve: Curve) -> CurveFit | None:
    try:
        return fit_curve(curve)
    except DataError:
        return None
