"""How patiently, how fast and in which dialect an endpoint is asked; the limiter that keeps to it."""

from __future__ import annotations

import email.utils
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from alignlab.core.config import require
from alignlab.core.errors import SamplerError

WINDOW_SECONDS = 60.0

Dialect = Literal["openai", "vllm", "sglang", "llama.cpp"]


@dataclass(frozen=True)
class RemoteLimits:
    """How patiently an endpoint is asked, and how much of it at once."""

    concurrency: int = 8
    """Requests in flight at once."""
    timeout: float = 120.0
    """Seconds for one whole reply; of a stream, for each wait until its next piece."""
    retries: int = 5
    """Further attempts after a refusal that may pass (429, 5xx), a broken connection or a reply that was cut."""
    first_wait: float = 0.5
    """Seconds before the second attempt; doubled each time up to `longest_wait`, with jitter."""
    longest_wait: float = 30.0
    """Longest pause of our own choice."""
    longest_retry_after: float = 300.0
    """A pause that the server asks for (`Retry-After`) is kept in full; beyond this many seconds it is an error."""
    requests_per_minute: int = 0
    """Most attempts in any 60 seconds; 0 is no limit."""
    tokens_per_minute: int = 0
    """Most tokens in any 60 seconds, prompts and answers; 0 is no limit. Until a reply tells its real number, a request
    counts with its prompt (four characters a token where no tokenizer is given) and all tokens it may generate."""

    def __post_init__(self) -> None:
        require(self.concurrency >= 1, "concurrency", self.concurrency, "a whole number of at least 1")
        require(self.timeout > 0, "timeout", self.timeout, "a positive number of seconds")
        for name in ("retries", "first_wait", "longest_wait", "longest_retry_after"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or a positive number")
        for name in ("requests_per_minute", "tokens_per_minute"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 (no limit) or a positive whole number")


@dataclass(frozen=True)
class RemoteOptions:
    """What an endpoint understands, and what to ask of it. `docs/engines.md` lists how servers differ."""

    dialect: Dialect = "openai"
    """Names of what the API leaves open. `openai` sends nothing outside the API unless it is used; the others also send
    filters that are off, because those servers otherwise put defaults of their own or of the model in their place."""
    n_in_one: bool = True
    """Several answers a prompt are one request with `n`; False asks once for each (servers that ignore `n`)."""
    streamed: bool = False
    """`generate` reads streams: a long answer is then given up by silence, not by its length."""
    ask_logprobs: bool = False
    """Ask for the log-probability of every token of an answer."""
    token_prompts: bool = False
    """Send prompts as token ids of `tokenizer`; raw text and rendered conversations both go to `/completions`."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of every request, for example `{"return_token_ids": True}` for vLLM."""

    def __post_init__(self) -> None:
        dialects = get_args(Dialect)
        require(self.dialect in dialects, "dialect", self.dialect, ", ".join(dialects))


class Stopped(Exception):
    """The call that a request belongs to has been given up; no user sees it."""


class RateLimiter:
    """Admits requests so that no 60 seconds hold more requests or tokens than allowed.

    A log of the last 60 seconds, not a bucket that refills: the limit holds for every window, however it is laid.
    `clock` and `sleep(seconds)` (True: give up waiting) are arguments for tests. Threads are served in the order in
    which they come to wait. One request larger than the whole limit goes when nothing else is in the window.
    """

    def __init__(
        self, requests_per_minute: int = 0, tokens_per_minute: int = 0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.requests, self.tokens, self.clock = requests_per_minute, tokens_per_minute, clock
        self._log: deque[list[float]] = deque()  # [time, tokens], oldest first
        self._held_until = 0.0
        self._state, self._turn = threading.Lock(), threading.Lock()

    def admit(self, tokens: int, sleep: Callable[[float], bool]) -> list[float]:
        """Wait for room for a request of `tokens`; returns its entry, to be settled. Raises `Stopped`."""
        with self._turn:
            while True:
                with self._state:
                    now = self.clock()
                    wait = self._wait(now, tokens)
                    if wait <= 0:
                        entry = [now, float(tokens)]
                        self._log.append(entry)
                        return entry
                if sleep(wait):
                    raise Stopped

    def settle(self, entry: list[float], tokens: int) -> None:
        """Count a request with what it really took."""
        with self._state:
            entry[1] = float(tokens)

    def hold(self, seconds: float) -> None:
        """Admit nothing for `seconds`: the server has asked for a pause, which is everybody's."""
        with self._state:
            self._held_until = max(self._held_until, self.clock() + seconds)

    def _wait(self, now: float, tokens: int) -> float:
        while self._log and self._log[0][0] <= now - WINDOW_SECONDS:
            self._log.popleft()
        wait = self._held_until - now
        if self.requests and len(self._log) >= self.requests:
            wait = max(wait, self._log[len(self._log) - self.requests][0] + WINDOW_SECONDS - now)
        if self.tokens and self._log:
            # The oldest entries leave first: find the one whose leaving makes enough room.
            excess = sum(entry[1] for entry in self._log) + tokens - self.tokens
            for at, used in self._log:
                if excess <= 0:
                    break
                excess -= used
                wait = max(wait, at + WINDOW_SECONDS - now)
        return wait


def retry_after(header: str | None) -> float:
    """Seconds that a `Retry-After` header asks for, in either form (RFC 9110, 10.2.3); 0 without a clear one."""
    text = (header or "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return seconds if 0 < seconds < float("inf") else 0.0


def too_long(seconds: float, limits: RemoteLimits) -> SamplerError | None:
    """The error of a server that wants a longer pause than `limits` allow."""
    if seconds <= limits.longest_retry_after:
        return None
    return SamplerError(
        f"asks to come back in {seconds:.0f} seconds, longer than longest_retry_after "
        f"({limits.longest_retry_after:.0f}); start again later or raise it"
    )
