"""Alarms of a training against a reward: what looks wrong, since when, and with which numbers.

`alarms(history)` looks at a training as somebody would who watches it: at 8 steps, then whenever it has become a
quarter longer. What is claimed to have changed is tested over prompts (or steps); the looks share one error rate, so
that watching a long training does not make alarms of chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from alignlab.align.diagnostics.changes import Block, block_of, change, level
from alignlab.align.diagnostics.history import History, StepResponses
from alignlab.core.config import require
from alignlab.stats.interval import Interval

Severity = Literal["warning", "serious"]
FIRST_LOOK = 8
GROWTH = 1.25
EVEN_LOOKS = 36
BLOCKS = 4
"""A look compares the last quarter of the steps with the earlier quarters."""


@dataclass(frozen=True)
class Alarm:
    """Something that looks wrong."""

    name: str
    """Which alarm, such as `reward hacking`."""
    step: int
    """The step at which it was first seen."""
    severity: Severity
    """`serious` where the result of the training is in doubt."""
    sentence: str
    """What was found, with the numbers of that moment."""
    standing: bool = True
    """Whether the latest look still finds it."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """Where an alarm goes off."""

    alpha: float = 0.05
    """Probability that one kind of alarm is given by chance in a whole training, however long."""
    length_growth: float = 1.3
    """Answers this many times as long as at the beginning."""
    length_share: float = 0.5
    """Share of the gained reward that length alone accounts for."""
    entropy_left: float = 0.25
    """Share of the beginning's entropy below which it has collapsed."""
    repetition: float = 0.2
    """Share of 4-grams that an answer has said before."""
    kl_budget: float | None = None
    """Nats a response that the policy may move from its reference; none: no such limit."""
    total_steps: int | None = None
    """Steps the training will have, for forecasts; none: no forecast is an alarm."""
    explained_variance: float = 0.0
    """Below this the value function is worse than a constant."""
    clip_fraction: float = 0.3
    """Share of clipped tokens that is too much."""
    max_mismatch: float = 0.1
    """Nats a token between sampler and trainer at which the training stops itself."""
    equal_groups: float = 0.8
    """Share of groups without any difference in reward."""

    def __post_init__(self) -> None:
        require(0 < self.alpha < 0.5, "alpha", self.alpha, "a probability below 0.5")
        for name in ("length_growth", "max_mismatch"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        for name in ("length_share", "entropy_left", "repetition", "clip_fraction", "equal_groups"):
            require(0 < getattr(self, name) <= 1, name, getattr(self, name), "a number above 0 and up to 1")
        require(self.kl_budget is None or self.kl_budget > 0, "kl_budget", self.kl_budget, "none or a positive number")
        steps = self.total_steps
        require(steps is None or steps >= 1, "total_steps", steps, "none or a whole number of at least 1")


@dataclass(frozen=True)
class Look:
    """A training as far as it had come at one moment, and the error rate that this look may spend."""

    history: History
    limits: Limits
    alpha: float
    """For each one-sided statement, before further correction."""
    _blocks: dict[tuple[str, int], Block | None] = field(default_factory=dict, repr=False)

    @property
    def step(self) -> int:
        """The latest step."""
        return int(self.history.steps[-1])

    def block(self, name: str, quarter: int) -> Block | None:
        """A metric in one quarter of the steps; -1 is the last."""
        key = (name, quarter % BLOCKS)
        if key not in self._blocks:
            edges = [round(len(self.history) * i / BLOCKS) for i in range(BLOCKS + 1)]
            self._blocks[key] = block_of(self.history, name, edges[key[1]], edges[key[1] + 1])
        return self._blocks[key]

    def change(self, name: str, quarter: int = 0, *, times: float = 1.0, tests: int = 1) -> Interval | None:
        """The last quarter less `times` an earlier one; limits corrected for `tests` statements made together."""
        early = self.block(name, quarter)
        return change(early and early.scaled(times), self.block(name, -1), self.alpha / tests)

    def level(self, name: str) -> Interval | None:
        """The last quarter's mean."""
        return level(self.block(name, -1), self.alpha)

    def mean(self, name: str, quarter: int) -> float:
        """A quarter's mean."""
        block = self.block(name, quarter)
        assert block is not None
        return block.mean

    def alarm(self, name: str, severity: Severity, sentence: str) -> Alarm:
        """An alarm of this look."""
        assert severity in get_args(Severity)
        return Alarm(name, self.step, severity, sentence)


Check = Callable[[Look], Alarm | None]


def looks(steps: int, *, over: bool = False) -> Iterator[tuple[int, float]]:
    """(number of steps, share of the error rate) of each look at a training of `steps`.

    Eight tenths of the error rate are spent evenly on the first 36 looks (20,000 steps), one tenth on all that can ever
    follow, 1 / (j (j + 1)) of it on the j-th, and one tenth on the look at a training that is `over`.
    """
    at, k = FIRST_LOOK, 1
    while at <= steps:
        j = k - EVEN_LOOKS
        yield at, 0.8 / EVEN_LOOKS if j <= 0 else 0.1 / (j * (j + 1))
        at, k = max(at + 1, round(at * GROWTH)), k + 1
    if over and steps >= FIRST_LOOK:
        yield steps, 0.1


def alarms(
    history: Sequence[Mapping[str, float]] | History,
    *,
    responses: Iterable[StepResponses] = (),
    limits: Limits | None = None,
    over: bool = True,
) -> list[Alarm]:
    """What looks wrong in a training, in the order in which it was first seen; nothing for fewer than 8 steps, but for
    values that are not finite.

    `history` is a result's (`PPOResult.history`, `RLResult.history`) or a run's logged rows; `responses` makes tests of
    reward, gold and length run over prompts. `over` says that no step will follow, which gives the last step a look of
    its own. Otherwise an alarm depends on no later step, so it never changes while a training goes on, except that
    `standing` says whether the latest look still finds it. A warning that becomes serious is given once more.
    """
    from alignlab.align.diagnostics.checks import CHECKS, not_finite

    whole = history if isinstance(history, History) else History.of(history, responses)
    limits = limits or Limits()
    found: dict[tuple[str, str], Alarm] = {}
    standing: set[str] = set()
    for size, share in looks(len(whole), over=over):
        look = Look(whole.first(size), limits, limits.alpha * share)
        given = [alarm for check in CHECKS if (alarm := check(look)) is not None]
        standing = {alarm.name for alarm in given}
        for alarm in given:  # a warning, and once more where it becomes serious
            if (alarm.name, "serious") not in found:
                found.setdefault((alarm.name, alarm.severity), alarm)
    given_at_once = not_finite(whole)
    every = [*given_at_once, *(_marked(alarm, alarm.name in standing) for alarm in found.values())]
    return sorted(every, key=lambda alarm: alarm.step)


def _marked(alarm: Alarm, standing: bool) -> Alarm:
    return Alarm(alarm.name, alarm.step, alarm.severity, alarm.sentence, standing)
