"""What the page *Chat* does when somebody writes, votes, rates or stops; Gradio hands over the values of the fields."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

from alignlab.app.chat_judgements import HIGHEST, PROJECT, ChatJudgements, Judge
from alignlab.app.chat_models import Offer, first_choice, offers, ready_sampler
from alignlab.app.chat_session import SIDES, ChatSettings, Conversation, Vote
from alignlab.app.chat_view import panel, standing
from alignlab.app.context import AppContext
from alignlab.app.kept_store import KeptStore
from alignlab.app.markup import notice, text
from alignlab.app.model_shelf import ModelShelf
from alignlab.core.errors import AlignlabError, ConfigError

VOTES: tuple[tuple[Vote, str, str], ...] = (
    ("left", "Left is better", "1"), ("tie", "Equal", "0"), ("right", "Right is better", "2"),
)  # fmt: skip
"""A vote, what its button says, and its key."""
_LOOK_SECONDS = 0.08
"""How often a page looks for new words of its models."""
_LONGEST_LOOK = 900.0
_NOTHING = (
    '<p class="soft">There is no model to talk to: <code>alignlab models pull smollm2-135m-instruct</code> fetches '
    "one, <code>alignlab align</code> makes one, and <code>alignlab app --model PATH</code> names one.</p>"
)


def _done(sentence: str) -> str:
    return f'<p class="soft" role="status">{text(sentence)}</p>'


@dataclass(frozen=True)
class Said:
    """What stands in the fields of the page when something is done: models, settings, judgements not yet stored."""

    left: str | None
    right: str | None
    blind: bool
    joint: bool
    temperature: float
    max_tokens: float
    seed: float
    system: str
    name: str
    project: str
    ratings: tuple[int | None, int | None]
    notes: tuple[str, str]

    @classmethod
    def of(cls, values: Sequence[Any]) -> Said:
        """From the values of the components in the order of the fields, ratings and notes by side."""
        *plain, left, left_note, right, right_note = values
        named = dict(zip((one.name for one in fields(cls)), plain, strict=False))
        return cls(**named, ratings=(left, right), notes=(left_note or "", right_note or ""))

    def settings(self) -> ChatSettings:
        """Raises ConfigError for what is not allowed."""
        numbers = (self.temperature, self.max_tokens, self.seed)
        if any(number is None for number in numbers):
            raise ConfigError("temperature, most tokens and seed are numbers: one of them is empty")
        return ChatSettings(float(self.temperature), int(self.max_tokens), int(self.seed), self.system or "")

    def judge(self) -> Judge:
        """Who speaks."""
        return Judge(self.name or "", self.project or PROJECT)


class Handlers:
    """What the page does; one for all users of a server, who share its models. Nothing here knows components."""

    def __init__(self, context: AppContext, shelf: ModelShelf | None = None) -> None:
        self._context = context
        self.shelf = shelf or ModelShelf(ready_sampler)
        self.judgements = ChatJudgements(KeptStore(context.store_url))

    def offered(self) -> list[Offer]:
        """What can be chosen now."""
        return offers(self._context)

    def chosen(self, said: Said) -> list[Offer | None]:
        """The models that stand on the two sides, as far as they are offered."""
        known = {offer.spec: offer for offer in self.offered()}
        return [known.get(said.left or ""), known.get(said.right or "")]

    def begin(self, conversation: Conversation | None, words: str, said: Said) -> list[Offer | None]:
        """Store what was noted of the last answers, then put the words to both models, which are returned.

        Raises AlignlabError where either cannot be: nothing has begun then, and the fields stay as they are.
        """
        if conversation is None:
            raise ConfigError("the page is still being opened: send it again in a moment")
        chosen = self.chosen(said)
        if None in chosen:
            raise ConfigError("choose a model on each side first")
        settings = said.settings()
        self.keep_notes(conversation, said)
        conversation.say(words, cast("list[Offer]", chosen), settings, blind=said.blind)
        return chosen

    def keep_notes(self, conversation: Conversation | None, said: Said) -> list[str]:
        """Store ratings and notes of the last answers that are not stored yet; what was stored, in words."""
        exchange, stored = None if conversation is None else conversation.last, list[str]()
        if exchange is None:
            return []
        for side, reply in enumerate(exchange.replies):
            rating, note = said.ratings[side], said.notes[side].strip()
            mark = (said.judge(), rating, note)
            if (rating is None and not note) or reply.judged == mark:
                continue
            self.judgements.rate(exchange, side, rating, note, said.judge())
            reply.judged = mark
            stored.append(f"{SIDES[side]} {'' if rating is None else f'{rating} of {HIGHEST}'}".strip())
        return stored

    def prefer(self, conversation: Conversation | None, vote: Vote, said: Said) -> str:
        """Store a vote on the last answers. Raises AlignlabError where it cannot be."""
        exchange = None if conversation is None else conversation.last
        if conversation is None or exchange is None:
            raise ConfigError("there are no answers to compare yet")
        self.keep_notes(conversation, said)
        self.judgements.prefer(exchange, vote, said.judge())
        conversation.prefer(vote, joint=said.joint)
        words = next(label for name, label, _ in VOTES if name == vote)
        return f"{words}: stored in the project {said.judge().project}."


def panels(conversation: Conversation, chosen: Sequence[Offer | None], blind: bool) -> list[str]:
    """Both sides as they are now."""
    return [panel(conversation, side, chosen[side], blind=blind) for side in (0, 1)]


class Events:
    """The handlers as Gradio calls them: values of components in, values for components out."""

    def __init__(self, does: Handlers) -> None:
        self._does = does

    def opened(self, wanted: list[str]) -> list[Any]:
        """The page is opened, perhaps for two models."""
        import gradio as gr

        conversation = Conversation(self._does.shelf)
        try:
            offered = self._does.offered()
        except AlignlabError as error:
            return [conversation, gr.skip(), gr.skip(), "", "", "", "", notice(str(error))]
        known = {offer.spec: offer for offer in offered} | {offer.label: offer for offer in offered}
        asked = [known[name].spec for name in wanted if name in known]
        left, right = (*asked, *asked)[:2] if asked else first_choice(offered)
        choices = [(offer.label, offer.spec) for offer in offered]
        pickers = [gr.update(choices=choices, value=value) for value in (left, right)]
        chosen = [known.get(left or ""), known.get(right or "")]
        shown = [*self._standing(chosen), *panels(conversation, chosen, False)]
        return [conversation, *pickers, *shown, "" if offered else _NOTHING]

    def _standing(self, chosen: Sequence[Offer | None]) -> list[str]:
        return [standing(self._does.shelf, offer) for offer in chosen]

    async def send(self, conversation: Conversation | None, words: str, *values: Any) -> AsyncIterator[list[Any]]:
        """Put the words to both models and show what comes until both are done or stopped."""
        import gradio as gr

        said, still = Said.of(values), [gr.skip()] * 5
        try:
            chosen = await asyncio.to_thread(self._does.begin, conversation, words or "", said)
        except AlignlabError as error:
            yield [gr.skip(), gr.skip(), notice(str(error)), *[gr.skip()] * 3, *still]
            return
        assert conversation is not None
        exchange = conversation.last
        assert exchange is not None
        busy = [gr.update(interactive=on) for on in (False, True, False)]
        shown = panels(conversation, chosen, said.blind)
        try:
            yield [*shown, "", *busy, "", None, None, "", ""]
            while not exchange.settled:
                await asyncio.sleep(_LOOK_SECONDS)
                now = panels(conversation, chosen, said.blind)
                if now != shown:
                    shown = now
                    yield [*shown, *[gr.skip()] * 4, *still]
        finally:
            if not exchange.settled:  # the page was closed
                conversation.stop()
        idle = [gr.update(interactive=on) for on in (True, False, True)]
        yield [*panels(conversation, chosen, said.blind), gr.skip(), *idle, *still]

    async def prepare(self, *values: Any) -> AsyncIterator[list[str]]:
        """Load both models in the background and tell how far they are, until they are there."""
        chosen = self._does.chosen(Said.of(values))
        specs = [offer.spec for offer in chosen if offer is not None]
        for spec in specs:
            self._does.shelf.prepare(spec)
        until, shown = time.monotonic() + _LONGEST_LOOK, [""]
        while time.monotonic() < until:
            going = any(self._does.shelf.loading(spec) for spec in specs)  # looked at first: the end is shown too
            now = self._standing(chosen)
            if now != shown:
                shown = now
                yield list(shown)
            if not going:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def stop(self, conversation: Conversation | None) -> None:
        """End both answers."""
        if conversation is not None:
            conversation.stop()

    def fresh(self, conversation: Conversation | None, *values: Any) -> list[Any]:
        """A new conversation; what was noted of the last answers is stored first."""
        import gradio as gr

        said = Said.of(values)
        try:
            self._does.keep_notes(conversation, said)
            chosen = self._does.chosen(said)
        except AlignlabError as error:
            return [gr.skip(), gr.skip(), gr.skip(), notice(str(error)), *[gr.skip()] * 5]
        self.stop(conversation)
        conversation = Conversation(self._does.shelf)
        return [conversation, *panels(conversation, chosen, said.blind), "", "", None, None, "", ""]

    def voter(self, vote: Vote) -> Any:
        """The handler of one of the three buttons."""
        import gradio as gr

        def prefer(conversation: Conversation | None, *values: Any) -> list[Any]:
            said = Said.of(values)
            try:
                told = self._does.prefer(conversation, vote, said)
                assert conversation is not None
                return [*panels(conversation, self._does.chosen(said), said.blind), _done(told)]
            except AlignlabError as error:
                return [gr.skip(), gr.skip(), notice(str(error))]

        return prefer

    def keep(self, conversation: Conversation | None, *values: Any) -> str:
        """Store ratings and notes; what is there to say of it."""
        import gradio as gr

        said = Said.of(values)
        try:
            stored = self._does.keep_notes(conversation, said)
        except AlignlabError as error:
            return notice(str(error))
        told = f"Stored in the project {said.judge().project}: {', '.join(stored)}."
        return _done(told) if stored else gr.skip()
