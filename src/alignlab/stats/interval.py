"""The one type for "a number with its uncertainty", and Wilson's interval for a proportion."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import ndtri

from alignlab.core.errors import DataError
from alignlab.stats.validation import check_confidence


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval and the number of items behind it."""

    estimate: float
    """The point estimate, in the units of the data."""
    low: float
    """Lower limit; -inf when the data cannot bound it (one item, or one cluster)."""
    high: float
    """Upper limit; inf when the data cannot bound it."""
    n: int
    """Items (or pairs) behind the estimate."""
    confidence: float = 0.95
    """Nominal coverage."""
    method: str = ""
    """How the limits were found: "bca", "wilson", "clustered t", ..."""

    def excludes(self, value: float) -> bool:
        """True when `value` lies strictly outside the interval."""
        return value < self.low or value > self.high

    def as_dict(self) -> dict[str, float | int | str | None]:
        """JSON-ready form: an unbounded limit becomes None."""
        return {
            "estimate": self.estimate,
            "low": self.low if math.isfinite(self.low) else None,
            "high": self.high if math.isfinite(self.high) else None,
            "n": self.n,
            "confidence": self.confidence,
            "method": self.method,
        }

    @classmethod
    def from_dict(cls, record: dict[str, object]) -> Interval:
        """The inverse of `as_dict`; DataError when a key is missing or not a number."""
        try:
            low, high = record["low"], record["high"]
            return cls(
                estimate=float(record["estimate"]),  # type: ignore[arg-type]
                low=-math.inf if low is None else float(low),  # type: ignore[arg-type]
                high=math.inf if high is None else float(high),  # type: ignore[arg-type]
                n=int(record["n"]),  # type: ignore[call-overload]
                confidence=float(record["confidence"]),  # type: ignore[arg-type]
                method=str(record["method"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not the record of an interval ({error}): {record!r}") from error

    def __str__(self) -> str:
        return f"{self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}] (n={self.n})"


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval for a proportion; never leaves [0, 1] and is honest at 0 and n successes.

    Solves |p_hat - p| = z sqrt(p (1 - p) / n) for p (Wilson 1927, J. Am. Stat. Assoc. 22:209).
    Raises DataError unless 0 <= successes <= n and n >= 1.
    """
    check_confidence(confidence)
    if n < 1:
        raise DataError(f"n is {n}; a proportion needs at least one trial")
    if not 0 <= successes <= n:
        raise DataError(f"successes is {successes}, which is not between 0 and n = {n}")
    z = float(ndtri(0.5 + confidence / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At 0 and n successes one limit is exactly 0 or 1; rounding must not move it past the estimate.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(p, low, high, n, confidence, "wilson")
