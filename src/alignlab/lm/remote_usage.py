"""What asking an endpoint costs: tokens in and out, and money where the user gives the price."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from alignlab.core.config import require
from alignlab.core.errors import DataError
from alignlab.core.files import atomic_write


@dataclass(frozen=True)
class Price:
    """What an endpoint charges, in any currency, for a million tokens."""

    prompt: float
    """A million tokens of prompts."""
    completion: float
    """A million generated tokens."""
    cached: float | None = None
    """A million tokens of prompts that the server had in its cache; None: as any other."""
    currency: str = "USD"

    def __post_init__(self) -> None:
        for name in ("prompt", "completion", "cached"):
            value = getattr(self, name)
            require(value is None or value >= 0, name, value, "0 or a positive price of a million tokens")


@dataclass
class Usage:
    """Counts over any number of requests."""

    requests: int = 0
    """Requests that were answered."""
    retried: int = 0
    """Further attempts that were needed."""
    failed: int = 0
    """Requests given up."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Part of `prompt_tokens`."""
    unreported: int = 0
    """Answers without a usable count: their tokens and cost are missing above."""

    def cost(self, price: Price) -> float:
        """Money; a lower bound where `unreported` is not 0."""
        cached = price.prompt if price.cached is None else price.cached
        fresh = (self.prompt_tokens - self.cached_tokens) * price.prompt
        return (fresh + self.cached_tokens * cached + self.completion_tokens * price.completion) / 1e6


class UsageMeter:
    """Adds up what requests used; samplers may share one. With `path`, totals are kept there and go on from there.

    Raises `DataError` where `path` holds something else than such totals.
    """

    def __init__(self, price: Price | None = None, *, path: str | Path | None = None) -> None:
        self.price, self.path = price, None if path is None else Path(path)
        self._lock = threading.Lock()
        self._total = Usage()
        if self.path is not None and self.path.exists():
            self._total = _read(self.path)

    @property
    def total(self) -> Usage:
        """A copy of the totals."""
        with self._lock:
            return Usage(**asdict(self._total))

    @property
    def cost(self) -> float | None:
        """Money so far, None without a price."""
        return None if self.price is None else self.total.cost(self.price)

    def answered(self, reply: Any) -> int | None:
        """Count one answered request from its reply; returns its tokens, None where the server does not tell."""
        usage = reply.get("usage") if isinstance(reply, dict) else None
        usage = usage if isinstance(usage, dict) else {}
        prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
        details = usage.get("prompt_tokens_details")
        cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
        known = prompt is not None and completion is not None
        with self._lock:
            self._total.requests += 1
            self._total.unreported += not known
            self._total.prompt_tokens += prompt or 0
            self._total.completion_tokens += completion or 0
            self._total.cached_tokens += min(cached or 0, prompt or 0)
        return (prompt or 0) + (completion or 0) if known else None

    def retried(self) -> None:
        """Count a further attempt."""
        with self._lock:
            self._total.retried += 1

    def failed(self) -> None:
        """Count a request that was given up."""
        with self._lock:
            self._total.failed += 1

    def as_dict(self) -> dict[str, Any]:
        """Totals, and cost where there is a price, as JSON can hold them."""
        total = self.total
        found: dict[str, Any] = asdict(total)
        if self.price is not None:
            found |= {"cost": total.cost(self.price), "currency": self.price.currency, "price": asdict(self.price)}
        return found

    def report(self) -> str:
        """The totals as one line."""
        total = self.total
        parts = [f"{total.requests:,} requests", f"{total.prompt_tokens:,} tokens in, {total.completion_tokens:,} out"]
        if total.retried or total.failed:
            parts.append(f"{total.retried:,} attempts repeated, {total.failed:,} requests given up")
        if self.price is not None:
            least = "at least " if total.unreported else ""
            parts.append(f"{least}{total.cost(self.price):.4f} {self.price.currency}")
        if total.unreported:
            parts.append(f"{total.unreported:,} answers without a token count")
        return "; ".join(parts)

    def write(self) -> None:
        """Write the totals to `path`, if there is one; whole or not at all."""
        if self.path is not None:
            atomic_write(self.path, json.dumps(self.as_dict(), indent=2) + "\n")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _read(path: Path) -> Usage:
    try:
        found = json.loads(path.read_text())
        return Usage(**{f.name: int(found[f.name]) for f in fields(Usage)})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{path} holds no totals of an endpoint's usage; remove it or name another file") from None
