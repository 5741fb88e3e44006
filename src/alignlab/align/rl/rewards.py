"""Rewards in plain Python, alone or combined, and the guard that every training loop puts around them.

A reward is a function `(prompts, responses) -> one number each`, anything with such a `score` (a `PreferenceModel`, an
ensemble), or a `TaskReward`. `Guarded` adds what a run needs: a time limit, and errors that name the row.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.align.rl.normalising import Normalisation, Normaliser
from alignlab.align.rollout import RewardFn, ScoresResponses
from alignlab.core.config import require
from alignlab.core.errors import ConfigError, TrainingError
from alignlab.lm.types import Completion, Prompt
from alignlab.tasks.task import BatchScorer, Task

Reward = RewardFn | ScoresResponses


class RewardError(TrainingError):
    """A reward raised, hung, or gave something else than one finite number a response.

    `row` is the response it happened at, None where no single one is to blame.
    """

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


def name_of(reward: Reward) -> str:
    """What messages and metrics call a reward: its `name`, else its function's or class's."""
    return str(getattr(reward, "name", None) or getattr(reward, "__name__", None) or type(reward).__name__)


def call_of(reward: Reward) -> RewardFn:
    """The function behind a reward; ConfigError where there is none."""
    if isinstance(reward, ScoresResponses):
        return reward.score  # type: ignore[return-value]
    if callable(reward):
        return reward
    raise ConfigError(
        f"reward is a {type(reward).__name__}, allowed: a function (prompts, responses) or a score method"
    )


def after_step(reward: Reward) -> dict[str, float]:
    """What a reward that keeps account has to say at the end of a rollout batch (its own `after_step`)."""
    account = getattr(reward, "after_step", None)
    return {} if account is None else dict(account())


def finite_scores(given: object, expected: int, name: str) -> Float[Tensor, " batch"]:
    """A reward's answer as float32; RewardError names the first row that is None, not a number, or not finite."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        for row, value in enumerate(given):
            single = isinstance(value, Tensor) and value.numel() == 1
            if not single and not _is_number(value):
                raise RewardError(
                    f"reward {name} gave {value!r} for response {row}, right is one number per response", row
                )
        given = [float(value) for value in given]
    try:
        scores = torch.as_tensor(given, dtype=torch.float32).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(given).__name__
        raise RewardError(f"reward {name} gave {kind}, right is one number per response: {error}") from error
    if scores.shape != (expected,):
        raise RewardError(
            f"reward {name} gave shape {tuple(scores.shape)} for {expected} responses, right is one number per response"
        )
    bad = (~scores.isfinite()).nonzero().flatten().tolist()
    if bad:
        more = f" ({len(bad)} of {expected} are not finite)" if len(bad) > 1 else ""
        raise RewardError(
            f"reward {name}: the reward of response {bad[0]} is {float(scores[bad[0]])}, rewards must be finite{more}",
            bad[0],
        )
    return scores


CALLED = "a reward is called with two lists, all prompts and all responses of a batch, and gives a number for each"
"""What somebody is told whose reward seems to be written for a single response."""


@dataclass
class Guarded:
    """A reward with a time limit and checks; the scores it gives are finite, float32 and as many as the responses.

    Past `time_limit` seconds a call is given up (its thread cannot be killed; it is left behind and ends with the
    process). When a call fails, the responses are tried one by one, for at most as long again, to name the row.
    """

    reward: Reward
    time_limit: float | None = 60.0

    def __post_init__(self) -> None:
        limit = self.time_limit
        require(limit is None or limit > 0, "time_limit", limit, "none or a positive number of seconds")
        self.name = name_of(self.reward)
        self._call = call_of(self.reward)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " batch"]:
        """The scores, or RewardError with the numbers and the row."""
        prompts, responses = list(prompts), list(responses)
        attempt = _Attempt(lambda: self._call(prompts, responses))
        if not attempt.run(self.time_limit):
            raise self._blame(
                prompts, responses, f"took longer than {self.time_limit:g} s for {len(responses)} responses"
            )
        if attempt.error is not None:
            error = attempt.error
            if isinstance(error, RewardError):  # of a reward within this one, which has said what there is to say
                raise error
            hint = f" ({CALLED})" if isinstance(error, AttributeError | TypeError) else ""
            raise self._blame(prompts, responses, f"raised {type(error).__name__}: {error}{hint}") from error
        return finite_scores(attempt.value, len(responses), self.name)

    def state_dict(self) -> dict[str, Any] | None:
        """What the reward wants kept in a checkpoint; None for a model, which has its own files."""
        keep = getattr(self.reward, "state_dict", None)
        return None if keep is None or isinstance(self.reward, torch.nn.Module) else dict(keep())

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint."""
        if state is not None:
            self.reward.load_state_dict(state)  # type: ignore[union-attr]

    def after_step(self) -> dict[str, float]:
        """The reward's own account."""
        return after_step(self.reward)

    def _blame(self, prompts: list[Prompt], responses: list[str], what: str) -> RewardError:
        """The error, with the first response that fails alone."""
        at = -1

        def one_by_one() -> None:
            nonlocal at
            for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
                at = i
                self._call([prompt], [response])

        attempt = _Attempt(one_by_one)
        ended = attempt.run(self.time_limit)
        if ended and attempt.error is None:
            return RewardError(f"reward {self.name} {what}; of the {len(responses)} responses none fails alone")
        row = at
        text = responses[row] if len(responses[row]) <= 60 else responses[row][:57] + "..."
        how = f"raises {type(attempt.error).__name__}" if ended else f"is not done after {self.time_limit:g} s more"
        return RewardError(f"reward {self.name} {what}; one by one, response {row} ({text!r}) {how}", row)


class _Attempt:
    """A call in a thread of its own, so that it can be given up."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call, self.value, self.error = call, None, None  # type: tuple[Callable[[], object], Any, Exception | None]

    def run(self, seconds: float | None) -> bool:
        """Whether the call ended in time, in a value or in an error."""
        if seconds is None:
            self._work()
            return True
        thread = threading.Thread(target=self._work, daemon=True)  # a daemon does not keep the process alive
        thread.start()
        thread.join(seconds)
        return not thread.is_alive()

    def _work(self) -> None:
        try:
            with torch.no_grad():  # gradient mode belongs to the thread
                self.value = self.call()
        except Exception as error:
            self.error = error


@dataclass
class Combined:
    """A weighted sum of rewards, each perhaps normalised before it is weighted.

    `batch` subtracts the batch's mean and divides by its deviation, so that weights mean the same whatever the units;
    `running` does so with the mean and deviation of everything seen so far (Welford's sums), which keeps the sign of a
    batch that is good throughout. A reward that does not vary is shifted only. `parts` keeps the last raw scores.
    """

    rewards: Mapping[str, Reward]
    weights: Mapping[str, float] | None = None
    normalise: Normalisation = "none"
    time_limit: float | None = 60.0
    parts: dict[str, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        require(bool(self.rewards), "rewards", dict(self.rewards), "at least one reward with a name")
        weights = dict.fromkeys(self.rewards, 1.0) if self.weights is None else dict(self.weights)
        same = weights.keys() == self.rewards.keys() and all(map(_is_number, weights.values()))
        require(same, "weights", weights, f"one finite number for each of {', '.join(self.rewards)}")
        self.weights = weights
        self._guarded = {name: Guarded(reward, self.time_limit) for name, reward in self.rewards.items()}
        self._normaliser = Normaliser(self.rewards, self.normalise)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " batch"]:
        """The weighted sum for each response."""
        assert self.weights is not None
        self.parts = {name: reward.score(prompts, responses) for name, reward in self._guarded.items()}
        scaled = {name: self._normaliser(name, scores) for name, scores in self.parts.items()}
        return torch.stack([self.weights[name] * scores for name, scores in scaled.items()]).sum(dim=0)

    def after_step(self) -> dict[str, float]:
        """Mean raw score of each part in what was scored last."""
        return {f"reward/{name}": float(scores.mean()) for name, scores in self.parts.items()}

    def state_dict(self) -> dict[str, list[float]]:
        """Count, mean and sum of squares of each reward, for a checkpoint."""
        return self._normaliser.state_dict()

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from a checkpoint."""
        self._normaliser.load_state_dict(state)


@dataclass
class TaskReward:
    """A `Task`'s scorer as a reward: the prompts are the task's own, the score is that of the answer.

    An unscorable answer is an error unless `unscorable` gives the number that it is worth.
    """

    task: Task
    unscorable: float | None = None

    def __post_init__(self) -> None:
        self.name = self.task.name
        self._samples = {repr(sample.prompt): sample for sample in self.task.dataset}
        if len(self._samples) < len(self.task.dataset):
            raise ConfigError(
                f"task {self.task.name!r} has {len(self.task.dataset)} samples and {len(self._samples)} different "
                "prompts; a reward finds the sample by its prompt, so these must differ"
            )

    @property
    def prompts(self) -> list[Prompt]:
        """What to train on."""
        return [sample.prompt for sample in self.task.dataset]

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " batch"]:
        """The scorer's values; their sign is turned where lower is better."""
        missing = [row for row, prompt in enumerate(prompts) if repr(prompt) not in self._samples]
        if missing:
            raise RewardError(f"prompt {missing[0]} is not one of task {self.name!r}", missing[0])
        samples = [self._samples[repr(prompt)] for prompt in prompts]
        answers = [Completion(text, (), (), "stop") for text in responses]
        scorer = self.task.scorer
        if isinstance(scorer, BatchScorer):
            scores = scorer.score_batch(samples, answers)
        else:
            scores = [scorer(sample, answer) for sample, answer in zip(samples, answers, strict=True)]
        values = []
        for row, score in enumerate(scores):
            if score.value is None and self.unscorable is None:
                raise RewardError(f"task {self.name!r} cannot score response {row}: {score.reason}", row)
            sign = 1.0 if self.task.higher_is_better else -1.0
            values.append(self.unscorable if score.value is None else sign * score.value)
        return torch.tensor(values, dtype=torch.float32)


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str | bytes)
