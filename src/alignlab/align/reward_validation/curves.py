"""Over-optimisation curves: proxy and gold reward against the distance d = sqrt(KL) that optimisation has gone.

Gao, Schulman & Hilton 2022 ("Scaling laws for reward model overoptimization", section 3) fit the gold reward's gain by
`R_bon(d) = d (a - b d)` for best-of-n and `R_RL(d) = d (a - b log d)` for RL. Both are linear in a and b, so that a
bootstrap over prompts refits them exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr
from scipy.stats import t as student_t

from alignlab.align.reward_validation.best_of_n import (
    FloatArray,
    best_of_n,
    best_of_n_kl,
    doubling_sizes,
    sample_table,
)
from alignlab.core.config import require
from alignlab.core.errors import DataError
from alignlab.stats.interval import Interval
from alignlab.stats.paired import mean_interval
from alignlab.stats.validation import check_confidence, check_resamples

CurveKind = Literal["best-of-n", "rl"]
Verdict = Literal["turned", "not yet", "undecided"]
FOLDS = 10


@dataclass(frozen=True)
class Curve:
    """Rewards along a path of optimisation, by prompt. The first point is the reference policy itself."""

    kind: CurveKind
    """How the policy was optimised, which says what is fitted."""
    at: FloatArray
    """(points,): n of best-of-n, or the step of RL."""
    kl: FloatArray
    """(prompts, points): KL to the reference in nats; estimates may be a little below 0."""
    proxy: FloatArray
    """(prompts, points): expected proxy reward."""
    gold: FloatArray
    """(prompts, points): expected gold reward."""

    def __post_init__(self) -> None:
        require(self.kind in get_args(CurveKind), "kind", self.kind, " or ".join(get_args(CurveKind)))
        object.__setattr__(self, "at", np.asarray(self.at, dtype=np.float64))
        for name in ("proxy", "gold"):
            object.__setattr__(self, name, sample_table(getattr(self, name), name))
        kl = np.asarray(self.kl, dtype=np.float64)
        if kl.ndim == 1 and len(kl) == self.gold.shape[1]:
            kl = np.broadcast_to(kl, self.gold.shape)
        object.__setattr__(self, "kl", sample_table(kl, "kl"))
        shapes = {self.kl.shape, self.proxy.shape, self.gold.shape, (len(self.gold), *self.at.shape)}
        if len(shapes) > 1 or len(self.at) < 3:
            raise DataError(f"a curve got shapes {sorted(shapes)}, right is (prompts, points) with at least 3 points")
        if abs(float(self.kl[:, 0].mean())) > 1e-6:
            raise DataError(
                f"the first point of a curve has KL {self.kl[:, 0].mean():g}, it must be the reference itself"
            )

    @property
    def distance(self) -> FloatArray:
        """d = sqrt(KL) of each point, (points,)."""
        return np.asarray(np.sqrt(np.maximum(self.kl.mean(axis=0), 0)))

    def gain(self, name: Literal["proxy", "gold"]) -> FloatArray:
        """Reward above the reference's, (prompts, points)."""
        table: FloatArray = getattr(self, name)
        return table - table[:, :1]

    def in_units(self, proxy: float, gold: float) -> Curve:
        """The same with rewards divided by the units given."""
        return replace(self, proxy=self.proxy / proxy, gold=self.gold / gold)

    def gains(self, name: Literal["proxy", "gold"]) -> list[Interval]:
        """Mean gain at each point with its interval over prompts."""
        return [mean_interval(column, limits=None, n_resamples=2000) for column in self.gain(name).T]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form: the means over prompts with intervals."""
        points = [
            {"at": float(at), "kl": float(kl), "d": float(d), "proxy": proxy.as_dict(), "gold": gold.as_dict()}
            for at, kl, d, proxy, gold in zip(
                self.at, self.kl.mean(axis=0), self.distance, self.gains("proxy"), self.gains("gold"), strict=True
            )
        ]
        return {"kind": self.kind, "prompts": len(self.gold), "points": points}


def best_of_n_curve(proxy: ArrayLike, gold: ArrayLike, sizes: Sequence[int] | None = None) -> Curve:
    """The curve of best-of-n from rewards (prompts, samples) of the reference's answers; sizes default to doublings."""
    table = sample_table(proxy, "proxy")
    sizes = list(sizes) if sizes is not None else doubling_sizes(table.shape[1])
    sizes = sizes if sizes and sizes[0] == 1 else [1, *sizes]
    n = np.asarray(sizes, dtype=np.float64)
    return Curve("best-of-n", n, best_of_n_kl(n), best_of_n(table, table, sizes), best_of_n(table, gold, sizes))


@dataclass(frozen=True)
class CurveFit:
    """Gao et al.'s form fitted to a curve's mean gain, with bootstrap intervals over prompts."""

    kind: CurveKind
    """`best-of-n`: d (a - b d); `rl`: d (a - b log d)."""
    a: Interval
    """alpha: the gain a unit of d brings at first (RL: at d = 1)."""
    b: Interval
    """beta: how the gain wears off."""
    turn: Interval
    """d at which the fitted gold reward is highest; inf where it never turns down."""
    error: float
    """Root mean square distance of the points from the fit, in units of the reward."""
    furthest: float
    """Largest d that was measured."""

    @property
    def verdict(self) -> Verdict:
        """`turned`: the turn's whole interval lies within what was measured; `not yet`: beyond it."""
        if self.turn.high < self.furthest:
            return "turned"
        return "not yet" if self.turn.low > self.furthest else "undecided"

    def gain(self, d: ArrayLike) -> FloatArray:
        """The fitted gain at distances d."""
        design = np.moveaxis(terms(self.kind, np.asarray(d, dtype=np.float64)), -1, 0)
        return np.asarray(self.a.estimate * design[0] + self.b.estimate * design[1])

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form; a turn that never comes is None."""
        turn = self.turn.as_dict()
        turn["estimate"] = self.turn.estimate if math.isfinite(self.turn.estimate) else None
        return {
            "kind": self.kind,
            "a": self.a.as_dict(),
            "b": self.b.as_dict(),
            "turn": turn,
            "error": self.error,
            "furthest": self.furthest,
            "verdict": self.verdict,
        }


def terms(kind: CurveKind, d: FloatArray) -> FloatArray:
    """What a and b multiply at distance d: (..., 2)."""
    if kind == "best-of-n":
        return np.stack([d, -(d**2)], axis=-1)
    logs = np.log(np.where(d > 0, d, 1.0))
    return np.stack([d, -d * logs], axis=-1)


def turning_point(kind: CurveKind, a: ArrayLike, b: ArrayLike) -> FloatArray:
    """The d at which the fitted reward is highest: a / (2 b), or exp(a / b - 1).

    inf where there is no maximum, 0 where the reward falls from the start.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    ratio = np.divide(first, second, out=np.zeros_like(first), where=second > 0)
    # exp of more than this is no distance that anything reaches.
    top = np.maximum(ratio / 2, 0) if kind == "best-of-n" else np.exp(np.minimum(ratio - 1, 50.0))
    return np.where((second > 0) & (top < math.exp(49)), top, np.inf)


def fit_curve(
    curve: Curve,
    name: Literal["proxy", "gold"] = "gold",
    *,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> CurveFit:
    """Least squares of the mean gain over the points, every point alike.

    Intervals are percentiles of a bootstrap that draws prompts with all their points, at levels widened for few prompts
    (Hesterberg 2015, "What teachers should know about the bootstrap", section 4.2). KL estimates are drawn along.
    Raises DataError for fewer than two prompts.
    """
    check_confidence(confidence)
    check_resamples(n_resamples)
    prompts = len(curve.gold)
    if prompts < 2:
        raise DataError("a fit with intervals needs at least 2 prompts, got 1")
    counts = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=n_resamples)
    shares = np.concatenate([np.full((1, prompts), 1 / prompts), counts / prompts])
    gains = shares @ curve.gain(name)  # (1 + R, points)
    design = terms(curve.kind, np.sqrt(np.maximum(shares @ curve.kl, 0)))  # (1 + R, points, 2)
    square = np.einsum("rpi,rpj->rij", design, design)
    if float(np.linalg.cond(square[0])) > 1e12:
        raise DataError("the points of the curve have too few different distances to fit a and b")
    # A draw of prompts whose KL estimates all lie at 0 says nothing: its least-squares solution of least size is 0, 0.
    values = (np.linalg.pinv(square, hermitian=True) @ np.einsum("rpi,rp->ri", design, gains)[..., None])[..., 0]
    turns = turning_point(curve.kind, values[:, 0], values[:, 1])
    widened = math.sqrt(prompts / (prompts - 1)) * float(student_t.ppf(0.5 + confidence / 2, prompts - 1))
    levels = ndtr(np.array([-widened, widened]))

    def interval(drawn: FloatArray) -> Interval:
        # No interpolation: between a turn and none there is nothing.
        low, high = np.quantile(drawn[1:], levels, method="inverted_cdf")
        return Interval(float(drawn[0]), float(low), float(high), prompts, confidence, "prompt bootstrap")

    error = float(np.sqrt(np.mean((gains[0] - design[0] @ values[0]) ** 2)))
    a, b, turn = interval(values[:, 0]), interval(values[:, 1]), interval(turns)
    return CurveFit(curve.kind, a, b, turn, error, float(curve.distance.max()))


def fall_after_peak(curve: Curve, *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Gold reward at the last point less that at the best one, without a fitted form; below 0 once it has turned.

    The best point of a noisy curve looks better than it is, so each prompt is measured at the point that is best on the
    prompts of the other folds.
    """
    prompts = len(curve.gold)
    if prompts < 2:
        raise DataError("the fall after the peak needs at least 2 prompts, got 1")
    fold = np.random.default_rng(seed).permutation(prompts) % min(FOLDS, prompts)
    falls = np.empty(prompts)
    for one in range(int(fold.max()) + 1):
        inside = fold == one
        peak = int(curve.gold[~inside].mean(axis=0).argmax())
        falls[inside] = curve.gold[inside, -1] - curve.gold[inside, peak]
    return mean_interval(falls, limits=None, n_resamples=4000, confidence=confidence, seed=seed)
