"""Server-sent events of a completion: what was cut or is no stream at all is told, never taken for an answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from alignlab.core.errors import SamplerError

MAX_REPLY_BYTES = 64 * 2**20


class Cut(Exception):
    """A reply that ended before its end; asking again may help."""


class Lines(Protocol):
    """What is read of a reply."""

    def readline(self, limit: int = -1, /) -> bytes:
        """The next line with its end, or b"" at the end."""
        ...


def read_events(
    reply: Lines, url: str, silence: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream until `[DONE]` (HTML standard, section 9.2; comments and other fields are skipped).

    Raises `Cut` where the stream ends without `[DONE]`, also inside an event; `SamplerError` for what is no UTF-8, no
    JSON object, an error that the server reports, or too long; `TimeoutError` after `silence` seconds without data.
    """
    data: list[str] = []
    size, heard = 0, clock()
    while True:
        raw = reply.readline(MAX_REPLY_BYTES + 1)
        if not raw:
            raise Cut("the stream ended inside an event" if data else "the stream ended before its end")
        if not raw.endswith((b"\n", b"\r")):
            raise Cut("the stream ended inside an event")
        size += len(raw)
        if size > MAX_REPLY_BYTES:
            raise SamplerError(f"{url}: the stream is longer than {MAX_REPLY_BYTES} bytes")
        line = _text(raw, url)
        if line:
            field, _, value = line.partition(":")
            if field == "data":
                data.append(value.removeprefix(" "))
            if clock() - heard > silence:
                raise TimeoutError
            continue
        if not data:
            continue
        heard, payload, data = clock(), "\n".join(data), []
        if payload.strip() == "[DONE]":
            return
        yield _event(payload, url)


def _text(raw: bytes, url: str) -> str:
    try:
        return raw.rstrip(b"\r\n").decode()
    except UnicodeDecodeError:
        raise SamplerError(f"{url}: the stream holds garbage (not UTF-8): {raw[:60]!r}") from None


def _event(payload: str, url: str) -> dict[str, Any]:
    try:
        event = json.loads(payload)
    except (ValueError, RecursionError):
        raise SamplerError(f"{url}: the stream holds garbage (not JSON): {payload[:100]!r}") from None
    if not isinstance(event, dict):
        raise SamplerError(f"{url}: the stream holds a JSON {type(event).__name__} instead of an object")
    if event.get("error"):
        said = event["error"]
        said = said.get("message", said) if isinstance(said, dict) else said
        raise SamplerError(f"{url}: the server broke off: {' '.join(str(said).split())[:300]}")
    return event


class Assembly:
    """Puts the pieces of a stream together to the reply that would have come in one piece."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.choices: dict[int, dict[str, Any]] = {}
        self.usage: Any = None

    def add(self, event: dict[str, Any]) -> list[tuple[int, str]]:
        """Take in one event; returns the new text by answer. `SamplerError` for what is no piece of an answer."""
        if isinstance(event.get("usage"), dict):
            self.usage = event["usage"]
        pieces = event.get("choices")
        if pieces is None and self.usage is not None:
            return []
        if not isinstance(pieces, list) or not all(isinstance(piece, dict) for piece in pieces):
            raise SamplerError(f"{self.url}: the stream holds something else than answers: {json.dumps(event)[:200]}")
        return [self._piece(piece) for piece in pieces]

    def _piece(self, piece: dict[str, Any]) -> tuple[int, str]:
        index = piece.get("index", 0)
        delta = piece.get("delta")
        text = delta.get("content") if isinstance(delta, dict) else piece.get("text")
        if not isinstance(index, int) or not (text is None or isinstance(text, str)):
            raise SamplerError(f"{self.url}: the stream holds something else than text: {json.dumps(piece)[:200]}")
        choice = self.choices.setdefault(index, {"index": index, "text": "", "finish_reason": None})
        choice["text"] += text or ""
        choice["finish_reason"] = piece.get("finish_reason") or choice["finish_reason"]
        if isinstance(piece.get("logprobs"), dict):
            kept = choice.setdefault("logprobs", {})
            for name, values in piece["logprobs"].items():
                if isinstance(values, list):
                    kept.setdefault(name, []).extend(values)
        if isinstance(piece.get("token_ids"), list):
            choice.setdefault("token_ids", []).extend(piece["token_ids"])
        return index, text or ""

    def reply(self) -> dict[str, Any]:
        """The whole reply. Raises `Cut` where an answer has no end."""
        for index, choice in sorted(self.choices.items()):
            if choice["finish_reason"] is None:
                raise Cut(f"answer {index} ended before its end, after {len(choice['text'])} characters")
            choice["message"] = {"content": choice["text"]}
        return {"choices": [self.choices[i] for i in sorted(self.choices)], "usage": self.usage}

    @property
    def finished(self) -> bool:
        """Whether every answer begun has ended."""
        return bool(self.choices) and all(choice["finish_reason"] for choice in self.choices.values())
