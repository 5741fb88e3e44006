"""Alarms about what the reward pays for: hacking, length, repetition, sameness, answers that do not end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignlab.align.diagnostics.alarms import BLOCKS, Alarm, Look
from alignlab.align.diagnostics.changes import slope_within
from alignlab.stats.interval import Interval

NAMES = {"gold": "the gold reward", "gold_reward": "the gold reward", "judge": "the judge", "win_rate": "the win rate"}


@dataclass(frozen=True)
class LengthAccount:
    """How much of the gained reward length alone accounts for."""

    slope: float
    """Reward of one more token, among the answers of one step."""
    gained: float
    """Reward of the last quarter less that of the first."""
    by_length: float
    """`slope` times the growth of the answers."""
    variance: float
    """Share of the reward's variance inside a step that a line on length explains, in [0, 1]."""

    @property
    def share(self) -> float | None:
        """`by_length / gained`; None where nothing was gained."""
        return self.by_length / self.gained if self.gained > 0 else None


def reward_hacking(look: Look) -> Alarm | None:
    """The optimised reward rises while a reference that is not optimised falls, over the same quarters.

    The fall is measured from each earlier quarter, with limits for all of them and for all references together; the
    rise must be as certain (both must hold, so neither needs more correction).
    """
    proxy, references = look.history.proxy, look.history.references
    if proxy is None:
        return None
    for name in references:
        tests = len(references) * (BLOCKS - 1)
        for quarter in range(BLOCKS - 1):
            fall = look.change(name, quarter, tests=tests)
            rise = look.change(proxy, quarter, tests=tests)
            if fall is None or rise is None or not (fall.high < 0 < rise.low):
                continue
            block = look.block(name, -1)
            assert block is not None
            since = "the beginning" if quarter == 0 else f"quarter {quarter + 1} of the steps so far"
            sentence = (
                f"since {since} the reward rose by {_limits(rise)} while {NAMES[name]} fell by {_limits(_turned(fall))}"
                f" ({block.groups} {block.unit} in the last quarter): the policy is learning what the reward gets wrong"
            )
            return look.alarm("reward hacking", "serious" if quarter == 0 else "warning", sentence)
    return None


def length_growth(look: Look) -> Alarm | None:
    """Answers become longer, and the reward pays for it."""
    name, limits = "response_length", look.limits
    growth = look.change(name, times=limits.length_growth)
    if growth is None or not growth.low > 0:
        return None
    before, after = look.mean(name, 0), look.mean(name, -1)
    sentence = f"answers grew from {before:.1f} to {after:.1f} tokens ({after / before:.2f} times as long)"
    account = length_account(look)
    if account is None or account.share is None:
        return look.alarm("length growth", "warning", sentence + _without(look, account))
    paid = (
        f"{sentence}; one token more is worth {account.slope:.3g} of reward among the answers of a step, so that "
        f"length alone accounts for {account.share:.0%} of the {account.gained:.3g} gained"
    )
    if account.share >= limits.length_share:
        return look.alarm("length growth", "serious", paid)
    return look.alarm("length growth", "warning", paid) if after > 2 * before else None


def length_account(look: Look) -> LengthAccount | None:
    """Length's part in the reward over the steps of a look; None where responses were not recorded one by one."""
    paid, counted = look.history.singles.get("rewards"), look.history.singles.get("lengths")
    gained = look.change("reward")
    if paid is None or counted is None or gained is None or look.block("response_length", 0) is None:
        return None
    size = len(look.history)
    if not np.array_equal(paid.ends[: size + 1], counted.ends[: size + 1]):
        return None
    rewards, lengths = (single.values[: int(single.ends[size])] for single in (paid, counted))
    steps = np.repeat(look.history.steps, np.diff(paid.ends[: size + 1]))
    slope = slope_within(rewards, lengths, steps)
    back = slope_within(lengths, rewards, steps)
    grown = look.mean("response_length", -1) - look.mean("response_length", 0)
    return LengthAccount(slope, gained.estimate, slope * grown, min(1.0, max(0.0, slope * back)))


def shrinking(look: Look) -> Alarm | None:
    """Answers become shorter than half of what they were."""
    change = look.change("response_length", times=0.5)
    if change is None or not change.high < 0:
        return None
    before, after = look.mean("response_length", 0), look.mean("response_length", -1)
    sentence = f"answers shrank from {before:.1f} to {after:.1f} tokens, to less than half"
    return look.alarm("length collapse", "warning", sentence)


def unended(look: Look) -> Alarm | None:
    """Most answers run into `max_tokens`, more than at the beginning."""
    fall, now = look.change("ended"), look.level("ended")
    if fall is None or now is None or not (fall.high < 0 and now.high < 0.5):
        return None
    sentence = (
        f"{1 - now.estimate:.0%} of the answers run into max_tokens, {1 - look.mean('ended', 0):.0%} did at the "
        "beginning: raise max_tokens or set missing_end_penalty"
    )
    return look.alarm("answers do not end", "warning", sentence)


def repetition(look: Look) -> Alarm | None:
    """Answers say the same words again."""
    rise, now = look.change("repetition"), look.level("repetition")
    if rise is None or now is None or not (rise.low > 0 and now.low > look.limits.repetition):
        return None
    sentence = (
        f"{now.estimate:.0%} of an answer's 4-grams are said before in the same answer, "
        f"{look.mean('repetition', 0):.0%} at the beginning"
    )
    return look.alarm("repetition", "serious" if now.low > 0.5 else "warning", sentence)


def sameness(look: Look) -> Alarm | None:
    """Answers to different prompts become the same."""
    fall = look.change("distinct", times=0.5)
    if fall is None or not fall.high < 0:
        return None
    before, after = look.mean("distinct", 0), look.mean("distinct", -1)
    sentence = (
        f"of the word pairs in a step's answers {after:.0%} are different, {before:.0%} were at the beginning: answers "
        "to different prompts become the same"
    )
    return look.alarm("sameness", "warning", sentence)


def equal_groups(look: Look) -> Alarm | None:
    """Nearly all groups of answers have equal rewards, so that there is little left to learn from."""
    made, equal = look.block("groups", -1), look.block("equal_groups", -1)
    if made is None or equal is None or len(made.values) != len(equal.values) or made.mean == 0:
        return None
    now = look.level("equal_groups")
    if now is None or not now.low > look.limits.equal_groups * made.mean:
        return None
    sentence = (
        f"in {now.estimate / made.mean:.0%} of the groups all answers have the same reward, which teaches nothing: "
        "take harder or easier prompts, or larger groups"
    )
    return look.alarm("equal groups", "warning", sentence)


def _without(look: Look, account: LengthAccount | None) -> str:
    if account is None:
        return "; whether the reward pays for it cannot be said without responses recorded one by one"
    return f"; the reward did not rise ({account.gained:.3g})"


def _turned(found: Interval) -> Interval:
    return Interval(-found.estimate, -found.high, -found.low, found.n, found.confidence, found.method)


def _limits(found: Interval) -> str:
    return f"{found.estimate:.3g} [{found.low:.3g}, {found.high:.3g}]"
