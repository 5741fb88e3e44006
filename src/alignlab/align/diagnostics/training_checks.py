"""Alarms about the optimisation itself: entropy, value function, clipping, drift, numbers that are none."""

from __future__ import annotations

from alignlab.align.diagnostics.alarms import Alarm, Look
from alignlab.align.diagnostics.history import History

SETTLED = 16
"""Steps before which a value head, which starts at zero, is not judged."""
NO_ENTROPY = 0.05
"""Nats a token at which a policy says one thing only."""


def entropy_collapse(look: Look) -> Alarm | None:
    """The policy has nearly stopped to vary its words."""
    fall, now = look.change("entropy", times=look.limits.entropy_left), look.level("entropy")
    if fall is None or now is None or not fall.high < 0:
        return None
    before = look.mean("entropy", 0)
    sentence = (
        f"the entropy fell from {before:.3g} to {now.estimate:.3g} nats a token, {now.estimate / before:.0%} of the "
        "beginning's: there is little left to explore"
    )
    return look.alarm("entropy collapse", "serious" if now.high < NO_ENTROPY else "warning", sentence)


def value_function(look: Look) -> Alarm | None:
    """The value head predicts returns worse than their mean would."""
    now = look.level("explained_variance")
    if now is None or len(look.history) < SETTLED or not now.high < look.limits.explained_variance:
        return None
    sentence = (
        f"the value function explains {now.estimate:.2f} [{now.low:.2f}, {now.high:.2f}] of the variance of the "
        "returns, a constant would explain 0: lower value_learning_rate, or check the scale of the reward"
    )
    return look.alarm("value function", "serious" if now.high < -1 else "warning", sentence)


def clipping(look: Look) -> Alarm | None:
    """A large part of the tokens is clipped: each batch asks for more than its steps may take."""
    now, limit = look.level("clip_fraction"), look.limits.clip_fraction
    if now is None or not now.low > limit:
        return None
    sentence = (
        f"{now.estimate:.0%} [{now.low:.0%}, {now.high:.0%}] of the tokens are clipped, more than {limit:.0%}: lower "
        "the learning rate or the number of epochs"
    )
    return look.alarm("clipping", "serious" if now.low > 0.5 else "warning", sentence)


def drift(look: Look) -> Alarm | None:
    """Sampler and trainer part: their log-probabilities differ more and more, on the way to where the run stops."""
    now, limit = look.level("mismatch_mean"), look.limits.max_mismatch
    growth = look.change("mismatch_mean", times=2.0)
    if now is None or growth is None or not (growth.low > 0 and now.low > limit / 10):
        return None
    before = look.mean("mismatch_mean", 0)
    sentence = (
        f"the log-probabilities of sampler and trainer differ by {now.estimate:.3g} nats a token, by {before:.3g} at "
        f"the beginning; at {limit:g} the training stops"
    )
    return look.alarm("sampler drift", "serious" if now.low > limit / 2 else "warning", sentence)


def not_finite(history: History) -> list[Alarm]:
    """Values that were logged and are no number: one alarm for the first step that has any."""
    if not history.not_finite:
        return []
    step = history.not_finite[0][0]
    names = sorted({name for at, name in history.not_finite if at == step})
    steps = len({at for at, _ in history.not_finite})
    more = f", and so in {steps - 1} later steps" if steps > 1 else ""
    sentence = f"{', '.join(names)} of step {step} {'is' if len(names) == 1 else 'are'} not finite{more}"
    still = history.not_finite[-1][0] == int(history.steps[-1])
    return [Alarm("not finite", step, "serious", sentence, still)]
