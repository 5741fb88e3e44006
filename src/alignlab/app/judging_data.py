"""What the page *Preferences* asks the server for: the next comparison, a judgement stored, the last one taken back.

A message is a JSON object that says everything anew (who, which project, what was shown), so that the server keeps
nothing about a person between two messages: a page that is loaded again, or a server that is started again, goes on
where it was. A message that is sent twice does no more than once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignlab.app import judging_markup as markup
from alignlab.app.judging_files import FileDesk
from alignlab.app.judging_messages import Message, Reply, described, judged, shown_comparison, take
from alignlab.app.kept_store import KeptStore
from alignlab.app.markup import notice
from alignlab.core.errors import AlignlabError, FeedbackError, StoreError

if TYPE_CHECKING:
    from alignlab.align.preference_data.collector import PreferenceCollector
    from alignlab.align.preference_data.judgement import Comparison, Judgement
    from alignlab.core.store import Store


_REST = 20
"""How many times as long as the agreement took to measure it is shown unchanged, so that it never fills a core."""


@dataclass(frozen=True)
class _Measured:
    """The agreement of a project, of so many judgements, good for all that come before `until`."""

    state: tuple[int, int]
    html: str
    until: float


class Desk:
    """Answers the messages of all who judge."""

    def __init__(self, kept: KeptStore) -> None:
        self.kept = kept
        self._agreements: dict[str, _Measured] = {}
        self._measuring = threading.Lock()
        files = FileDesk(kept)
        self._acts: dict[str, Callable[[Message], Reply]] = {
            "open": self.open,
            "next": self.next,
            "record": self.record,
            "undo": self.undo,
            "agreement": self.agreement,
            "add": files.add,
            "import": files.take_file,
            "export": files.give_file,
        }

    def act(self, message: object) -> Reply:
        """Do what the message says under `do`.

        The reply has `ok`; where it is false, `error` is a sentence and `again` says whether the same message may be
        sent again as it is, because it was the database that could not be reached.
        """
        try:
            if not isinstance(message, Mapping) or message.get("do") not in self._acts:
                raise FeedbackError("the page asked for something that this version does not know; load it again")
            return {"ok": True, **self._acts[str(message["do"])](message)}
        except StoreError as error:
            return {"ok": False, "error": str(error), "again": True}
        except AlignlabError as error:
            return {"ok": False, "error": str(error), "again": False}

    def open(self, message: Message) -> Reply:
        """The projects that there are."""
        from alignlab.align.preference_data.questions import projects

        if not self.kept.exists():
            return {"projects": []}
        with self.kept.use() as store:
            return {"projects": projects(store)}

    def next(self, message: Message) -> Reply:
        """What to show now: the comparison named by `current` if it is still open to this person, else the next."""
        with self.kept.use() as store:
            return self._next(seat(store, message), message.get("current"))

    def record(self, message: Message) -> Reply:
        """Store a judgement of the comparison that was shown, then what to show next."""
        with self.kept.use() as store:
            collector = seat(store, message)
            told = judged(message)
            try:
                stored = collector.record(shown_comparison(message), **told)
            except FeedbackError as error:  # its answers were deleted, or it was judged elsewhere: nothing to repeat
                return {"notice": notice(f"This judgement was not stored: {error}"), **self._next(collector)}
            return {"said": f"Saved: {said(stored)}.", **self._next(collector)}

    def undo(self, message: Message) -> Reply:
        """Withdraw the judgement with this token, then show its comparison again."""
        with self.kept.use() as store:
            collector = seat(store, message)
            token = take(message, "token")
            if all(token != own.token for own in own_judgements(store, collector, token)):
                raise FeedbackError("that judgement is not yours to take back")
            taken = collector.withdraw(token, reason="taken back on the page")
            again = self._next(collector, taken.comparison_id)
            return {"said": f"Taken back: {said(taken)}.", **again}

    def agreement(self, message: Message) -> Reply:
        """Whether the people agree; empty until two have judged."""
        with self.kept.use() as store:
            collector = seat(store, message)
            progress = collector.progress()
            if len(progress.annotators) < 2:
                return {"agreement": ""}
            state = (progress.judgements, progress.withdrawn)
            before = self._agreements.get(collector.project)
            current = before is not None and (before.state == state or time.monotonic() < before.until)
            # One at a time: it takes long where there is much, and meanwhile all others want to judge.
            if not current and self._measuring.acquire(blocking=False):
                try:
                    began = time.monotonic()
                    found = markup.agreement(collector.agreement())
                    until = began + (time.monotonic() - began) * (1 + _REST)
                    before = self._agreements[collector.project] = _Measured(state, found, until)
                finally:
                    self._measuring.release()
            return {"agreement": before.html if before is not None else ""}

    def _next(self, collector: PreferenceCollector, current: object = None) -> Reply:
        task = open_comparison(collector, current) if isinstance(current, str) else None
        task = task or collector.next_task()
        progress = collector.progress()
        last = own_judgements(collector.store, collector)
        return {
            "task": None if task is None else described(task),
            "html": markup.nothing_left(progress) if task is None else markup.comparison(task),
            "progress": markup.progress_line(progress),
            "undo": last[0].token if last else None,
            "people": len(progress.annotators),
        }


def seat(store: Store, message: Message) -> PreferenceCollector:
    """The collector of the person and project that a message names."""
    from alignlab.align.preference_data.collector import PreferenceCollector

    project, name = take(message, "project"), take(message, "name")
    overlap = message.get("overlap")
    return PreferenceCollector(
        store, project=project, annotator=name, order=message.get("order") or "given",
        overlap=overlap if isinstance(overlap, int) and overlap > 0 else None,
    )  # fmt: skip


def open_comparison(collector: PreferenceCollector, comparison: str) -> Comparison | None:
    """The comparison as this person is shown it, None where they have judged it or it is gone."""
    from alignlab.align.preference_data.choosing import open_to
    from alignlab.align.preference_data.tables import COMPARISONS
    from alignlab.core.store.orm import select

    wanted = open_to(collector.project, collector.annotator, None)
    with collector.store.snapshot() as session:
        found = session.execute(select(COMPARISONS.c.id).where(wanted, COMPARISONS.c.id == comparison)).scalar()
    return None if found is None else collector.comparison(found)


def own_judgements(store: Store, collector: PreferenceCollector, token: str | None = None) -> list[Judgement]:
    """This person's latest judgement in the project that stands (none or one); with `token` that one, standing or
    not, if it is theirs."""
    from alignlab.align.preference_data.judging import as_judgement
    from alignlab.align.preference_data.tables import COMPARISONS, JUDGEMENTS
    from alignlab.core.store.orm import select

    own = select(JUDGEMENTS).join(COMPARISONS, COMPARISONS.c.id == JUDGEMENTS.c.comparison_id)
    own = own.where(COMPARISONS.c.project == collector.project, JUDGEMENTS.c.annotator == collector.annotator)
    own = own.where(JUDGEMENTS.c.withdrawn.is_(None) if token is None else JUDGEMENTS.c.token == token)
    with store.snapshot() as session:
        return [as_judgement(row) for row in session.execute(own.order_by(JUDGEMENTS.c.number.desc()).limit(1))]


def said(judgement: Judgement) -> str:
    """A judgement in words, by the places that were shown."""
    from alignlab.align.preference_data.judging import said as in_words

    verdict, shown = judgement.verdict, judgement.shown
    if verdict.outcome == "choice":
        return f"answer {shown.index(str(verdict.choice)) + 1} is better"
    if verdict.outcome == "rating":
        ratings = verdict.ratings or {}
        return "ratings " + ", ".join(f"{ratings[one]:g}" for one in shown if one in ratings)
    return {"tie": "the answers are equal", "skip": "skipped"}.get(verdict.outcome) or in_words(judgement)
