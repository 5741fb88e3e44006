"""What the page *Preferences* sends, read with care: whatever a browser can send is data or one clear sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alignlab.core.errors import FeedbackError

if TYPE_CHECKING:
    from alignlab.align.preference_data.judgement import Comparison

Message = Mapping[str, Any]
Reply = dict[str, Any]
MOST_SECONDS = 86_400.0


def take(message: Message, name: str) -> str:
    """A text of the message. Raises FeedbackError where there is none, or nothing in it."""
    found = message.get(name)
    if not isinstance(found, str) or not found.strip():
        raise FeedbackError(f"{name} is empty, right is some text")
    return found


def described(task: Comparison) -> Reply:
    """What the page must send back to judge this comparison as it was shown."""
    return {"id": task.id, "kind": task.kind, "token": task.token, "shown": [answer.id for answer in task.answers]}


def shown_comparison(message: Message) -> Comparison:
    """The comparison that was shown, from `described` in a message; the texts themselves are not needed to judge it."""
    from alignlab.align.preference_data.judgement import Answer, Comparison

    shown = message.get("shown")
    if not _texts(shown):
        raise FeedbackError(f"shown is {shown!r:.60}, allowed: the ids of the answers as they were shown")
    answers = tuple(Answer(one, "") for one in shown or ())
    return Comparison(
        take(message, "comparison"), take(message, "project"), "pair", "", answers, take(message, "token")
    )


def judged(message: Message) -> dict[str, Any]:
    """The `choice`, `ranking` or `ratings` of a message, with reason and seconds, as `record` takes them."""
    found: dict[str, Any] = {}
    choice, ranking, ratings = (message.get(name) for name in ("choice", "ranking", "ratings"))
    if isinstance(choice, int | str) and not isinstance(choice, bool):
        found["choice"] = choice
    if isinstance(ranking, list) and all(isinstance(group, list) and _places(group) for group in ranking):
        found["ranking"] = ranking
    if isinstance(ratings, list) and _places(ratings):
        found["ratings"] = ratings
    if len(found) != 1:
        raise FeedbackError("a judgement is one of a choice, a ranking and ratings")
    reason = message.get("reason")
    return {**found, "reason": reason if isinstance(reason, str) else None, "seconds": _seconds(message)}


def _texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _places(value: list[object]) -> bool:
    return all(isinstance(one, int) and not isinstance(one, bool) for one in value)


def _seconds(message: Message) -> float | None:
    """The time that the page has measured; a page that was left open overnight says nothing about how long it took."""
    seconds = message.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MOST_SECONDS:
        return None
    return float(seconds)
