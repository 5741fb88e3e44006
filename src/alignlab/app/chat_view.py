"""Conversations with two models as HTML: what people and models say is text, whatever it holds."""

from __future__ import annotations

from alignlab.app.chat_models import Offer
from alignlab.app.chat_session import SIDES, Conversation, Exchange, Reply
from alignlab.app.markup import text
from alignlab.app.model_shelf import ModelShelf

_VERDICTS = {"left": (0, "better"), "right": (1, "better"), "tie": (None, "equal")}


def panel(conversation: Conversation, side: int, chosen: Offer | None, *, blind: bool = False) -> str:
    """One side of the page: the conversation from its beginning."""
    name = hidden_name(side) if blind or chosen is None else chosen.label
    busy = "true" if conversation.busy else "false"
    body = "".join(_exchange(one, side) for one in conversation.exchanges)
    return (
        f'<section class="talk" role="log" tabindex="0" aria-live="off" aria-busy="{busy}" '
        f'aria-label="Conversation with {text(name)}">{body or _NOTHING_SAID}</section>'
    )


_NOTHING_SAID = '<p class="soft">Nothing has been said yet.</p>'


def hidden_name(side: int) -> str:
    """What a side is called while nobody is to know which model it is."""
    return f"Model {'AB'[side]}"


def standing(shelf: ModelShelf, chosen: Offer | None) -> str:
    """How far the model chosen for a side is."""
    if chosen is None:
        return '<p class="soft">Choose a model above.</p>'
    told = shelf.told(chosen.spec) or "loaded when you begin to write"
    return f'<p class="soft" role="status">{text(chosen.label)}: {text(told)}</p>'


def _exchange(exchange: Exchange, side: int) -> str:
    reply = exchange.replies[side]
    name = hidden_name(side) if exchange.hidden else reply.offer.label
    return (
        f'<p class="said">You</p><p class="verbatim asked">{text(exchange.said)}</p>'
        f'<p class="said">{text(name)} {_badge(exchange, side)}</p>{_answer(exchange, reply)}{_went_on(exchange, side)}'
    )


def _badge(exchange: Exchange, side: int) -> str:
    if exchange.vote is None:
        return ""
    better, word = _VERDICTS[exchange.vote]
    return f'<span class="badge good">{word}</span>' if better in (None, side) else ""


def _answer(exchange: Exchange, reply: Reply) -> str:
    parts = [f'<p class="verbatim">{text(reply.text)}</p>'] if reply.text else []
    if not reply.settled and not reply.text:
        parts.append(f'<p class="soft" role="status">{text(reply.ticket.told or "reading")} …</p>')
        parts.append('<progress aria-label="Waiting for the model"></progress>')
    elif reply.state == "failed":
        parts.append(f'<p class="badword" role="alert">{text(reply.error)}</p>')
    elif reply.state == "stopped":
        parts.append('<p class="soft">stopped</p>')
    elif reply.state == "done" and not reply.text:
        parts.append('<p class="soft">It said nothing.</p>')
    if reply.plain and reply.settled and reply.state != "failed":
        parts.append('<p class="soft">No chat template: this model continues your words as text.</p>')
    return "".join(parts)


def _went_on(exchange: Exchange, side: int) -> str:
    if exchange.goes_on[side] == side:
        return ""
    return f'<p class="soft">From here on it goes on from the answer on the {SIDES[1 - side]}.</p>'
