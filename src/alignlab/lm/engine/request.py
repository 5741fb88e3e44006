"""What goes into the engine and comes out of it, and the state of one request inside."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from alignlab.core.errors import AlignlabError, SamplerError
from alignlab.lm.engine.blocks import chain_hash
from alignlab.lm.types import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

    from alignlab.lm.constrained import GuideState
    from alignlab.lm.engine.engine import Engine

FinishReason = Literal["stop", "length", "scored", "cancelled", "failed"]


@dataclass(frozen=True)
class Request:
    """One prompt to continue, or one text to score."""

    tokens: Sequence[int]
    """The prompt; for a score, the whole text."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """Its own: requests with different parameters share a batch."""
    priority: int = 0
    """Higher goes first; who waits long enough is overtaken by nobody."""
    id: str = ""
    """Name among the requests in flight; where empty, the engine gives one."""
    seed: int | None = None
    """Of its random stream; where None, what `generate.row_seeds` gives a prompt that stands alone in a call."""
    end_ids: frozenset[int] | None = None
    """Tokens after which the answer ends; the tokenizer's where None."""
    score_from: int | None = None
    """Nothing is generated: the log-probabilities of the tokens from this index on are the answer."""


class Event(NamedTuple):
    """What a step did for one request."""

    id: str
    token: int | None = None
    """The new token, None where the request ended without one."""
    logprob: float | None = None
    """Its log-probability under the model (nats)."""
    finished: FinishReason | None = None
    """Why the request ended with this event; None where it goes on."""


@dataclass(eq=False)
class Job:
    """A request inside the engine. `tokens` grows; keys and values of its first `computed` are in `blocks`."""

    request: Request
    id: str
    tokens: list[int]
    budget: int
    """Most new tokens."""
    rank: tuple[float, int]
    """The smallest goes first."""
    arrived_step: int = 0
    uniforms: list[float] = field(default_factory=list)
    """One random number for each new token."""
    prompt_length: int = 0
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    names: list[bytes] = field(default_factory=list)
    """Of the full blocks of `tokens`, as far as they were asked for."""
    logprobs: list[float] = field(default_factory=list)
    finished: FinishReason | None = None
    error: AlignlabError | None = None
    rule: SamplingParams = field(default_factory=SamplingParams)
    """What decides how its tokens are drawn: requests with equal rules are drawn together."""
    end_ids: frozenset[int] = frozenset()
    state: GuideState | None = None
    """Where its constraint stands, if it has one."""
    seen: Tensor | None = None
    """1 for each token of the vocabulary in `tokens`, where a repetition penalty is set."""
    waited: int = 0
    """Steps before its first token was read."""
    preempted: int = 0
    reused: int = 0
    """Prompt tokens that were found in the cache when it was first admitted."""
    arrived_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    finished_at: float | None = None

    @property
    def scores(self) -> bool:
        """Whether it is scored rather than continued."""
        return self.request.score_from is not None

    @property
    def goal(self) -> int:
        """How many tokens must be read before its next answer; nobody asks what follows the last of a scored text."""
        return len(self.tokens) - self.scores

    @property
    def remaining(self) -> int:
        """Tokens still to read; 1 while it decodes."""
        return self.goal - self.computed

    @property
    def new_tokens(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    @property
    def reusable(self) -> int:
        """Leading tokens whose keys and values may come from elsewhere: the last one read must give a hidden state."""
        return len(self.tokens) - 1 if self.request.score_from is None else self.request.score_from - 1

    def block_names(self, block_size: int, n_tokens: int) -> list[bytes]:
        """Names of the full blocks among the first `n_tokens`."""
        for i in range(len(self.names), n_tokens // block_size):
            before = self.names[i - 1] if i else b""
            self.names.append(chain_hash(before, self.tokens[i * block_size : (i + 1) * block_size]))
        return self.names[: n_tokens // block_size]

    def end(self, reason: FinishReason, error: AlignlabError | None = None) -> None:
        self.finished, self.error, self.finished_at = reason, error, time.monotonic()
        self.seen = None


class Handle:
    """The caller's hold on a request. Whoever waits for something drives the engine, for all requests in flight."""

    def __init__(self, engine: Engine, job: Job) -> None:
        self._engine, self._job = engine, job

    @property
    def id(self) -> str:
        return self._job.id

    @property
    def request(self) -> Request:
        return self._job.request

    @property
    def tokens(self) -> list[int]:
        """The new tokens so far."""
        return self._job.new_tokens

    @property
    def logprobs(self) -> list[float]:
        """Log-probabilities (nats, temperature 1, no filter) of the new tokens, or of the scored ones."""
        return list(self._job.logprobs)

    @property
    def finished(self) -> FinishReason | None:
        """Why it ended; None while it goes on."""
        return self._job.finished

    @property
    def error(self) -> AlignlabError | None:
        return self._job.error

    @property
    def waited(self) -> int:
        """Steps that the engine made before it began with this request."""
        return self._job.waited

    @property
    def preempted(self) -> int:
        """How often it had to give its blocks back and start over."""
        return self._job.preempted

    @property
    def reused(self) -> int:
        """Tokens of the prompt that did not have to be read, because another request had."""
        return self._job.reused

    @property
    def seconds(self) -> tuple[float, float | None, float | None]:
        """When it arrived, began and ended, by `time.monotonic`."""
        return self._job.arrived_at, self._job.started_at, self._job.finished_at

    def stream(self) -> Iterator[int]:
        """The new tokens as they come. Raises the request's error, if it ends in one."""
        sent = 0
        while True:
            ended = self.finished is not None  # asked first: another thread may step at any moment
            ready = self._job.tokens[self._job.prompt_length + sent :]
            sent += len(ready)
            yield from ready
            if ended:
                break
            if not ready:
                self._engine.advance(self._job, sent)
        self._raise()

    def wait(self) -> Handle:
        """Step until this request has ended. Raises its error, if it ended in one."""
        while not self.finished:
            self._engine.advance(self._job, len(self._job.tokens) - self._job.prompt_length)
        self._raise()
        return self

    def cancel(self) -> None:
        """End it now, whatever it is doing; a finished request stays as it is."""
        self._engine.abandon(self._job)

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error
        if self.finished == "cancelled":
            raise SamplerError(f"request {self.id!r} was cancelled after {len(self.tokens)} tokens")
