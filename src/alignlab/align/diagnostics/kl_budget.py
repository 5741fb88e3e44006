"""The KL to the reference as a budget: how much of it is spent, what it bought, when it will be gone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.special import stdtrit

from alignlab.align.diagnostics.alarms import BLOCKS, Alarm, Look
from alignlab.align.diagnostics.changes import block_of, change
from alignlab.align.diagnostics.history import History
from alignlab.stats.interval import Interval


@dataclass(frozen=True)
class Purchase:
    """What one quarter of the steps spent and bought beyond the quarter before it."""

    start: int
    end: int
    """First and last step."""
    spent: Interval
    """Growth of the KL, nats a response."""
    bought: Interval
    """Growth of the reward."""

    @property
    def rate(self) -> float | None:
        """Reward for a nat; None where the KL did not grow."""
        return self.bought.estimate / self.spent.estimate if self.spent.estimate > 0 else None


@dataclass(frozen=True)
class KLBudget:
    """An account of the KL of a training."""

    spent: float
    """Nats a response, mean of the last quarter."""
    per_step: float
    """Nats that a step adds, by a line through the last half."""
    per_step_error: float
    """Standard error of that."""
    rate: float | None
    """Reward for a nat over the whole training; None where nothing was spent."""
    purchases: tuple[Purchase, ...]
    """Quarter by quarter."""
    budget: float | None = None
    """What may be spent."""
    gone_at: float | None = None
    """Step at which the line reaches the budget; None without a budget or where the KL does not grow."""
    gone_early: float | None = None
    """The earliest such step that the line's 95 % interval allows."""


def kl_budget(history: History, budget: float | None = None, *, confidence: float = 0.95) -> KLBudget | None:
    """The account of a training; None where fewer than 8 steps logged a KL and a reward."""
    proxy = history.proxy
    if proxy is None or not history.has("kl") or int(np.isfinite(history.columns["kl"]).sum()) < 2 * BLOCKS:
        return None
    size, alpha = len(history), (1 - confidence) / 2
    edges = [round(size * i / BLOCKS) for i in range(BLOCKS + 1)]
    kls = [block_of(history, "kl", a, b) for a, b in pairwise(edges)]
    rewards = [block_of(history, proxy, a, b) for a, b in pairwise(edges)]
    purchases = []
    for i in range(1, BLOCKS):
        spent, bought = change(kls[i - 1], kls[i], alpha), change(rewards[i - 1], rewards[i], alpha)
        if spent is not None and bought is not None:
            start, end = int(history.steps[edges[i]]), int(history.steps[edges[i + 1] - 1])
            purchases.append(Purchase(start, end, spent, bought))
    last, first = kls[-1], kls[0]
    if last is None or first is None or rewards[0] is None or rewards[-1] is None:
        return None
    slope, error, now = _line(history, size // 2)
    grown = last.mean - first.mean
    rate = (rewards[-1].mean - rewards[0].mean) / grown if grown > 0 else None
    half = float(stdtrit(max(size - size // 2 - 2, 1), 1 - alpha)) * error
    step = int(history.steps[-1])
    gone = None if budget is None else _reached(step, now, slope, budget)
    early = None if budget is None else _reached(step, now, slope + half, budget)
    return KLBudget(last.mean, slope, error, rate, tuple(purchases), budget, gone, early)


def over_budget(look: Look) -> Alarm | None:
    """More KL is spent than allowed, or will be before the training ends."""
    budget, now = look.limits.kl_budget, look.level("kl")
    if budget is None or now is None:
        return None
    if now.low > budget:
        sentence = f"the policy is {now.estimate:.3g} nats a response from its reference, allowed are {budget:g}"
        return look.alarm("KL budget", "serious", sentence)
    account, total = kl_budget(look.history, budget), look.limits.total_steps
    if account is None or account.gone_at is None or total is None:
        return None
    size = len(look.history)
    half = float(stdtrit(max(size - size // 2 - 2, 1), 1 - look.alpha)) * account.per_step_error
    late = _reached(look.step, account.spent, account.per_step - half, budget)
    if late is None or late >= total:
        return None
    sentence = (
        f"the KL grows by {account.per_step:.3g} nats a step and will pass the {budget:g} allowed at about step "
        f"{account.gone_at:.0f} of {total}"
    )
    return look.alarm("KL budget", "warning", sentence)


def wasted(look: Look) -> Alarm | None:
    """The policy goes on moving away from its reference, and the reward does not rise any more."""
    proxy = look.history.proxy
    if proxy is None:
        return None
    spent, bought = look.change("kl", BLOCKS - 2, times=1.1), look.change(proxy, BLOCKS - 2)
    if spent is None or bought is None or not spent.low > 0:
        return None
    gains = [look.mean(proxy, i) - look.mean(proxy, 0) for i in range(1, BLOCKS) if look.block(proxy, i) is not None]
    if not bought.high < max(0.1 * max(gains), 0.0):
        return None
    grown = look.mean("kl", -1) - look.mean("kl", BLOCKS - 2)
    sentence = (
        f"the last quarter of the steps spent {grown:.3g} nats a response more and bought {bought.estimate:.3g} "
        f"[{bought.low:.3g}, {bought.high:.3g}] of reward; the best quarter had bought {max(gains):.3g} in all"
    )
    return look.alarm("KL without reward", "warning", sentence)


def _line(history: History, start: int) -> tuple[float, float, float]:
    """(slope, its standard error, value at the last step) of a least-squares line through the KL from `start` on."""
    x, y = history.steps[start:].astype(np.float64), history.columns["kl"][start:]
    there = np.isfinite(y)
    x, y = x[there], y[there]
    if len(x) < 3 or float(np.ptp(x)) == 0:
        return 0.0, math.inf, float(y.mean()) if len(y) else math.nan
    centred = x - x.mean()
    square = float(centred @ centred)
    slope = float(centred @ y) / square
    residual = y - y.mean() - slope * centred
    error = math.sqrt(float(residual @ residual) / (len(x) - 2) / square)
    return slope, error, float(y.mean() + slope * (float(history.steps[-1]) - x.mean()))


def _reached(step: int, now: float, slope: float, budget: float) -> float | None:
    if now >= budget:
        return float(step)
    return step + (budget - now) / slope if slope > 0 and math.isfinite(slope) else None
