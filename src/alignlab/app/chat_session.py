"""One person's conversation with two models: what was said, who answers, and from which answers it goes on."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from alignlab.app.chat_models import Offer
from alignlab.app.model_shelf import ModelShelf, Stopped, Ticket
from alignlab.core.config import require
from alignlab.core.errors import AlignlabError, ConfigError, FeedbackError, SamplerError
from alignlab.lm.types import Message, Prompt, SamplingParams

if TYPE_CHECKING:
    from alignlab.lm.local import LocalSampler

State = Literal["waiting", "answering", "done", "stopped", "failed"]
Vote = Literal["left", "right", "tie"]
SIDES = ("left", "right")
LONGEST_PROMPT = 100_000
MOST_TOKENS = 2048


@dataclass(frozen=True)
class ChatSettings:
    """How both sides answer. Raises ConfigError for what is not allowed."""

    temperature: float = 0.7
    """0 takes the most likely token."""
    max_tokens: int = 256
    """Most new tokens of an answer."""
    seed: int = 0
    """Same seed, same words, same models: same conversation."""
    system: str = ""
    """Instructions before the conversation; of no meaning for a model without a chat template."""

    def __post_init__(self) -> None:
        require(0 <= self.temperature <= 5, "temperature", self.temperature, "a number from 0 to 5")
        allowed = f"a whole number from 1 to {MOST_TOKENS}"
        require(1 <= self.max_tokens <= MOST_TOKENS, "max_tokens", self.max_tokens, allowed)

    def sampling(self, turn: int) -> SamplingParams:
        """Of the turn with this number: each has a seed of its own, as in `alignlab chat`."""
        return SamplingParams(max_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed + turn)


@dataclass(eq=False)
class Reply:
    """What one side answers. Written by the thread that generates, read by whoever shows it."""

    offer: Offer
    messages: list[Message]
    """The conversation that it answers, its own side's."""
    judged: object = None
    """What was stored of it last, so that nothing is stored twice."""
    ticket: Ticket = field(default_factory=Ticket)
    text: str = ""
    state: State = "waiting"
    error: str = ""
    plain: bool = False
    """The model has no chat template: it continues the last message as text."""

    @property
    def settled(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("done", "stopped", "failed")

    @property
    def prompt(self) -> Prompt:
        """What the model was given."""
        return self.messages[-1]["content"] if self.plain else self.messages


@dataclass(eq=False)
class Exchange:
    """What a person said and what the two sides answered."""

    said: str
    settings: ChatSettings
    number: int
    replies: tuple[Reply, Reply]
    blind: bool = False
    vote: Vote | None = None
    goes_on: tuple[int, int] = (0, 1)
    """From whose answer each side goes on."""
    settled_at: float | None = None
    """By `time.monotonic`."""
    sent: dict[object, Any] = field(default_factory=dict)
    """Comparisons that a judgement of this exchange is on its way with, to be sent again if it does not arrive."""

    @property
    def settled(self) -> bool:
        """Whether both sides are done."""
        return all(reply.settled for reply in self.replies)

    @property
    def hidden(self) -> bool:
        """Whether the names of the models are not to be shown yet."""
        return self.blind and self.vote is None

    def shared_prompt(self) -> Prompt:
        """What both sides answered. Raises FeedbackError where no one can be preferred to the other."""
        left, right = self.replies
        if not self.settled:
            raise FeedbackError("both answers must be there before one is preferred")
        if "failed" in (left.state, right.state):
            raise FeedbackError("one of the models gave no answer, there is nothing to compare")
        same = left.prompt == right.prompt
        if left.plain != right.plain:  # the same to both only where nothing came before
            same = left.messages == right.messages and len(left.messages) == 1
        if not same:
            raise FeedbackError(
                "the two answers follow different conversations, so neither can be preferred; rate them one by one, "
                "or begin a new conversation"
            )
        return left.messages if left.plain != right.plain else left.prompt


class Conversation:
    """The exchanges of one open page. Its two answers are generated in threads; any thread may look or stop."""

    def __init__(self, shelf: ModelShelf, *, toss: Callable[[], bool] = lambda: secrets.randbelow(2) == 1) -> None:
        """`toss` says whether the sides of a blind exchange change places: nobody is to foresee it."""
        self.shelf, self._toss = shelf, toss
        self.exchanges: list[Exchange] = []
        self._turned = False
        self._lock = threading.Lock()

    @property
    def last(self) -> Exchange | None:
        """The newest exchange."""
        return self.exchanges[-1] if self.exchanges else None

    @property
    def busy(self) -> bool:
        """Whether answers are being made."""
        return self.last is not None and not self.last.settled

    def say(self, said: str, offered: Sequence[Offer], settings: ChatSettings, *, blind: bool = False) -> Exchange:
        """Put the words to both sides and return at once; the answers grow in the exchange.

        Raises ConfigError for no words, too many, or while the last answers are still coming.
        """
        said = said.strip()
        if not said:
            raise ConfigError("there is nothing to send: write something first")
        require(len(said) <= LONGEST_PROMPT, "the message", f"{len(said)} characters long", f"up to {LONGEST_PROMPT}")
        with self._lock:
            if self.busy:
                raise ConfigError("the models are still answering: wait for them, or stop them")
            number = len(self.exchanges)
            histories = [self._history(side, said, settings.system) for side in (0, 1)]
            if histories[0] == histories[1]:  # else each side goes on with the model that it began with
                self._turned = blind and self._toss()
            placed = tuple(offered)[:: -1 if self._turned else 1]
            replies = [Reply(offer, history) for offer, history in zip(placed, histories, strict=True)]
            exchange = Exchange(said, settings, number, cast("tuple[Reply, Reply]", tuple(replies)), blind)
            self.exchanges.append(exchange)
        for reply in replies:
            threading.Thread(target=self._answer, args=(exchange, reply), name="chat", daemon=True).start()
        return exchange

    def stop(self) -> None:
        """End the answers that are being made; what is there of them stays."""
        exchange = self.last
        if exchange is not None:
            for reply in exchange.replies:
                reply.ticket.stopped.set()
                self._settle(exchange, reply, "stopped")

    def prefer(self, vote: Vote, *, joint: bool) -> None:
        """Write down which of the last answers is better; where `joint`, both sides go on from it (a tie: the left)."""
        exchange = self.last
        assert exchange is not None
        place = 1 if vote == "right" else 0
        exchange.vote, exchange.goes_on = vote, (place, place) if joint else (0, 1)

    def _history(self, side: int, said: str, system: str) -> list[Message]:
        messages: list[Message] = [{"role": "system", "content": system.strip()}] if system.strip() else []
        for exchange in self.exchanges:
            reply = exchange.replies[exchange.goes_on[side]]
            if reply.text:  # what failed, or was stopped at once, leaves no trace
                messages.append({"role": "user", "content": exchange.said})
                messages.append({"role": "assistant", "content": reply.text})
        return [*messages, {"role": "user", "content": said}]

    def _answer(self, exchange: Exchange, reply: Reply) -> None:
        try:
            with self.shelf.use(reply.offer.spec, reply.ticket) as sampler:
                reply.plain = sampler.lm.tokenizer.chat_template is None
                _check_length(sampler, reply)
                if not self._grow(reply, ""):
                    return
                for piece in sampler.stream(reply.prompt, exchange.settings.sampling(exchange.number)):
                    if not self._grow(reply, piece):
                        return
            self._settle(exchange, reply, "done")
        except Stopped:
            self._settle(exchange, reply, "stopped")
        except AlignlabError as error:
            self._settle(exchange, reply, "failed", str(error))
        except Exception as error:  # out of memory, say: the person is told, the server goes on
            first = (str(error).splitlines() or [""])[0]
            self._settle(exchange, reply, "failed", f"the model could not answer: {type(error).__name__}, {first}")

    def _grow(self, reply: Reply, piece: str) -> bool:
        """Whether it still grows: nothing is added to an answer that was stopped."""
        with self._lock:
            if not reply.settled:
                reply.state = "answering"
                reply.text += piece
            return not reply.settled

    def _settle(self, exchange: Exchange, reply: Reply, state: State, error: str = "") -> None:
        with self._lock:
            if not reply.settled:
                reply.state, reply.error = state, error
                if exchange.settled:
                    exchange.settled_at = time.monotonic()


def _check_length(sampler: LocalSampler, reply: Reply) -> None:
    count, limit = len(sampler.lm.tokenizer.encode_prompt(reply.prompt)), sampler.lm.model.config.n_ctx - 1
    if count > limit:
        raise SamplerError(
            f"the conversation has {count} tokens, this model reads at most {limit}: say it shorter, or begin a new "
            "conversation"
        )
