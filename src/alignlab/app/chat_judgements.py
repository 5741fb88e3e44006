"""What people say of answers in Chat, in the store: which of two is better, how good one is, what is wrong with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from alignlab.app.chat_session import Exchange, Reply, Vote
from alignlab.core.errors import FeedbackError

if TYPE_CHECKING:
    from alignlab.align.preference_data.collector import PreferenceCollector
    from alignlab.align.preference_data.judgement import Judgement
    from alignlab.app.kept_store import KeptStore

PROJECT = "chat"
"""The project of the judgements unless another is named."""
LOWEST, HIGHEST = 1, 5


@dataclass(frozen=True)
class Judge:
    """Who says it, and into which project."""

    name: str
    project: str = PROJECT


class ChatJudgements:
    """Keeps judgements of answers in a store, which is opened (and made) when the first comes.

    The same judgement sent again after a StoreError is stored once: it goes with the token that it went with before.
    """

    def __init__(self, store: KeptStore) -> None:
        self._store = store

    def prefer(self, exchange: Exchange, vote: Vote, judge: Judge) -> Judgement:
        """Store which answer of an exchange is better; another vote of the same person takes the place of this one.

        Raises:
            FeedbackError: the answers cannot be compared, or the names are none.
            StoreError: the database cannot be written; vote again.
        """
        prompt, texts = exchange.shared_prompt(), [reply.text for reply in exchange.replies]
        models = [reply.offer.label for reply in exchange.replies]
        seconds = None if exchange.settled_at is None else time.monotonic() - exchange.settled_at

        def record(collector: PreferenceCollector) -> Judgement:
            shown = exchange.sent.get((judge, vote))
            if shown is None:
                shown = collector.collect_preferences(
                    prompt, texts, kind="pair", models=models, about=_about(exchange, *exchange.replies)
                )
                # The collector shuffles; here they stood as they were generated.
                shown = replace(
                    shown, answers=tuple(sorted(shown.answers, key=lambda answer: texts.index(answer.text)))
                )
                exchange.sent[judge, vote] = shown
            choice = {"left": 1, "right": 2, "tie": 0}[vote]
            found = collector.record(shown, choice, seconds=seconds, change=True)
            exchange.sent.clear()  # each token is good for one judgement
            return found

        return self._kept(record, judge)

    def rate(self, exchange: Exchange, side: int, rating: int | None, note: str, judge: Judge) -> Judgement:
        """Store how good an answer is (1 to 5, None: only a note) and what is wrong with it.

        What the same person said of it before is withdrawn. Raises as `prefer` does.
        """
        reply = exchange.replies[side]
        if not reply.settled or reply.state == "failed":
            raise FeedbackError("an answer must be there before it is judged")
        if rating is None and not note.strip():
            raise FeedbackError(f"an answer is judged by a rating from {LOWEST} to {HIGHEST}, a note, or both")
        if rating is not None and not LOWEST <= rating <= HIGHEST:
            raise FeedbackError(f"a rating is {rating}, allowed: {LOWEST} to {HIGHEST}")
        said: dict[str, Any] = {"choice": "skip"} if rating is None else {"ratings": [rating]}
        said |= {"reason": note.strip() or None, "change": True}

        def record(collector: PreferenceCollector) -> Judgement:
            shown = collector.collect_preferences(
                reply.prompt, [reply.text], kind="rating", models=[reply.offer.label], about=_about(exchange, reply)
            )
            found = collector.record(shown, **said)
            if found.repeated and found.reason != said["reason"]:  # the same rating with another note
                collector.withdraw(found, reason="the note was changed")
                found = collector.record(collector.comparison(shown.id), **said)
            return found

        return self._kept(record, judge)

    def _kept(self, record: Callable[[PreferenceCollector], Judgement], judge: Judge) -> Judgement:
        from alignlab.align.preference_data.collector import PreferenceCollector

        if not judge.name.strip():
            raise FeedbackError("say who you are first: judgements are kept with a name")
        with self._store.use(create=True) as store:
            project, name = judge.project.strip() or PROJECT, judge.name.strip()
            return record(PreferenceCollector(store, project=project, annotator=name))


def _about(exchange: Exchange, *replies: Reply) -> Mapping[str, object]:
    settings = exchange.settings
    return {
        "page": "chat", "turn": exchange.number + 1, "temperature": settings.temperature,
        "max_tokens": settings.max_tokens, "seed": settings.seed, "blind": exchange.blind,
        "ended": [reply.state for reply in replies],
    }  # fmt: skip
