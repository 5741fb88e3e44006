"""Models that the users of one server share: each loaded once, a few at a time, one answer at a time each."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from alignlab.core.config import require
from alignlab.core.errors import AlignlabError, ModelError

if TYPE_CHECKING:
    from alignlab.lm.local import LocalSampler

MOST_MODELS = 3
"""Models in memory at a time: two that are compared, and one that comes."""
_LOOK_SECONDS = 0.1


class Stopped(Exception):
    """Whoever waited has been told to stop."""


@dataclass(eq=False)
class Ticket:
    """Somebody who wants an answer of a model: what they wait for, and whether they still want it."""

    stopped: threading.Event = field(default_factory=threading.Event)
    told: str = ""
    """What is waited for, for people; empty where it is their turn."""

    def check(self) -> None:
        """Raises Stopped once it was told to."""
        if self.stopped.is_set():
            raise Stopped


@dataclass(eq=False)
class _Place:
    """A model on the shelf, or on its way there."""

    began: float
    sampler: LocalSampler | None = None
    error: str = ""
    users: int = 0
    used: float = 0.0
    line: deque[Ticket] = field(default_factory=deque)


class ModelShelf:
    """At most `most` models, loaded by `load` when they are first asked for; the one unused longest makes room.

    Each answers one user at a time, in the order in which they came. A model that somebody uses or waits for stays.
    """

    def __init__(self, load: Callable[[str], LocalSampler], *, most: int = MOST_MODELS) -> None:
        require(most >= 1, "most", most, "a whole number of at least 1")
        self._load, self._most = load, most
        self._places: dict[str, _Place] = {}
        self._failed: dict[str, str] = {}
        self._changed = threading.Condition()

    def names(self) -> tuple[str, ...]:
        """What is in memory or on its way, the one unused longest first."""
        with self._changed:
            return tuple(sorted(self._places, key=lambda name: self._places[name].used))

    def prepare(self, name: str) -> None:
        """Begin to load a model in the background; nothing where it is there, or where there is no room for it now."""
        with self._changed:
            if name not in self._places and self._make_room():
                self._begin(name)

    def loading(self, name: str) -> bool:
        """Whether a model is on its way."""
        with self._changed:
            return name in self._places and self._places[name].sampler is None

    def told(self, name: str) -> str:
        """How far a model is, for people: loading for how long, ready, why it failed; empty where nobody asked."""
        with self._changed:
            place = self._places.get(name)
            if place is None:
                return self._failed.get(name, "")
            return "ready" if place.sampler is not None else _loading(place)

    @contextmanager
    def use(self, name: str, ticket: Ticket) -> Iterator[LocalSampler]:
        """The model for this user alone, once it is loaded and it is their turn; `ticket` tells what is waited for.

        Raises:
            Stopped: the ticket was stopped.
            ModelError: the model cannot be loaded.
        """
        place = self._take(name, ticket)
        try:
            with self._turn(place, ticket):
                assert place.sampler is not None
                yield place.sampler
        finally:
            self._leave(place)

    def _take(self, name: str, ticket: Ticket) -> _Place:
        """The loaded model, counted as used by one more."""
        with self._changed:
            while (place := self._places.get(name)) is None:
                ticket.check()
                if self._make_room():
                    place = self._begin(name)
                    break
                ticket.told = f"waiting: {self._most} other models are in use"
                self._changed.wait(_LOOK_SECONDS)
            place.users += 1
            try:
                return self._wait_for(place, ticket)
            except BaseException:
                place.users -= 1
                raise

    def _wait_for(self, place: _Place, ticket: Ticket) -> _Place:
        while place.sampler is None:
            ticket.check()
            if place.error:
                raise ModelError(place.error)
            ticket.told = _loading(place)
            self._changed.wait(_LOOK_SECONDS)
        return place

    def _make_room(self) -> bool:
        """Whether one more fits, perhaps after the one unused longest has left."""
        if len(self._places) < self._most:
            return True
        idle = [name for name, place in self._places.items() if place.users == 0]
        if not idle:
            return False
        del self._places[min(idle, key=lambda name: self._places[name].used)]
        return True

    def _begin(self, name: str) -> _Place:
        """A place for a model, which a thread of its own loads: whoever waits can be told how it goes, and stop."""
        place = self._places[name] = _Place(time.monotonic(), users=1)
        self._failed.pop(name, None)

        def work() -> None:
            sampler, error = None, ""
            try:
                sampler = self._load(name)
            except Exception as problem:  # whatever it is, those who wait are told
                error = _why(name, problem)
            with self._changed:
                place.sampler, place.error = sampler, error
                place.users -= 1
                place.used = time.monotonic()
                if sampler is None:  # the next who asks tries again
                    del self._places[name]
                    self._failed[name] = error
                self._changed.notify_all()

        threading.Thread(target=work, name=f"load {name}", daemon=True).start()
        return place

    @contextmanager
    def _turn(self, place: _Place, ticket: Ticket) -> Iterator[None]:
        with self._changed:
            place.line.append(ticket)
        try:
            with self._changed:
                while place.line[0] is not ticket:
                    ticket.check()
                    ahead = place.line.index(ticket)
                    ticket.told = f"waiting: {ahead} before you"
                    self._changed.wait(_LOOK_SECONDS)
            ticket.told = ""
            yield
        finally:
            with self._changed:
                place.line.remove(ticket)
                self._changed.notify_all()

    def _leave(self, place: _Place) -> None:
        with self._changed:
            place.users -= 1
            place.used = time.monotonic()
            self._changed.notify_all()


def _loading(place: _Place) -> str:
    return f"loading for {time.monotonic() - place.began:.0f} s"


def _why(name: str, error: Exception) -> str:
    """One sentence, also for what is nobody's mistake: memory that is not there, a file that cannot be read."""
    if isinstance(error, AlignlabError):
        return str(error)
    first = (str(error).splitlines() or [""])[0]
    return f"the model {name!r} cannot be loaded: {type(error).__name__}{f', {first}' if first else ''}"
