"""One request to an endpoint: rate limits, retries, time-outs, streams, and the words for what went wrong."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message as Headers
from typing import IO, Any, TypeVar

from alignlab.core.errors import SamplerError
from alignlab.lm.remote_limits import RateLimiter, RemoteLimits, Stopped, retry_after, too_long
from alignlab.lm.remote_sse import MAX_REPLY_BYTES, Assembly, Cut, read_events
from alignlab.lm.remote_usage import UsageMeter

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_FATAL = frozenset({401, 402, 403, 404, 405})
_CHUNK = 2**16

T = TypeVar("T")


class EndpointError(SamplerError):
    """A request that failed; `fatal` where every other one would fail in the same way."""

    def __init__(self, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Headers, newurl: str
    ) -> None:
        return None


class Transport:
    """Posts JSON to `base_url`; shared by threads."""

    def __init__(self, base_url: str, key: str | None, limits: RemoteLimits, usage: UsageMeter) -> None:
        if not _is_web_address(base_url):
            raise SamplerError(
                f"endpoint {base_url!r} is not a web address, expected for example http://localhost:8000/v1"
            )
        self.base_url, self.limits, self.usage = base_url.rstrip("/"), limits, usage
        self.limiter = RateLimiter(limits.requests_per_minute, limits.tokens_per_minute)
        self._key = key
        self._open = urllib.request.build_opener(_NoRedirect()).open

    def post(self, path: str, body: dict[str, Any], *, tokens: int, stop: threading.Event) -> dict[str, Any]:
        """The reply to one request of about `tokens`; `stop` gives it up (`Stopped`). Raises `EndpointError`."""
        url = self.base_url + path

        def read(reply: http.client.HTTPResponse) -> dict[str, Any]:
            with reply:
                return _parse(url, _read(reply, self.limits.timeout))

        return self._ask(url, body, tokens, stop, read)

    def collect(self, path: str, body: dict[str, Any], *, tokens: int, stop: threading.Event) -> dict[str, Any]:
        """The same over a stream, put together."""
        url = self.base_url + path

        def read(reply: http.client.HTTPResponse) -> dict[str, Any]:
            with reply:
                parts = Assembly(url)
                for _ in self._pieces(reply, url, parts):
                    if stop.is_set():
                        raise Cut("the call was given up")
                return parts.reply()

        return self._ask(url, _streaming(body), tokens, stop, read)

    def stream(self, path: str, body: dict[str, Any], *, tokens: int) -> Iterator[str]:
        """The text of the first answer as it comes. Until its first piece a broken stream is asked for again."""
        url, opened = self.base_url + path, list[http.client.HTTPResponse]()

        def begin(reply: http.client.HTTPResponse) -> tuple[Assembly, Iterator[list[tuple[int, str]]], Any]:
            opened.append(reply)
            parts = Assembly(url)
            pieces = self._pieces(reply, url, parts)
            return parts, pieces, next(pieces, None)

        try:
            parts, pieces, new = self._ask(url, _streaming(body), tokens, threading.Event(), begin)
            try:
                while new is not None:
                    yield from (text for index, text in new if index == 0 and text)
                    new = next(pieces, None)
                self.usage.answered(parts.reply())
            except (Cut, OSError, http.client.HTTPException) as error:
                said = len(parts.choices.get(0, {}).get("text", ""))
                self.usage.failed()
                raise EndpointError(f"{url}: {self._words(error)}, after {said} characters of the answer") from None
            except SamplerError:
                self.usage.failed()
                raise
        finally:
            for reply in opened:
                reply.close()

    def _pieces(self, reply: Any, url: str, parts: Assembly) -> Iterator[list[tuple[int, str]]]:
        kind = reply.headers.get_content_type()
        if kind != "text/event-stream":
            start = reply.read(200)
            raise SamplerError(f"{url}: asked for a stream of events, the server sent {kind}: {start!r}")
        try:
            for event in read_events(reply, url, self.limits.timeout):
                yield parts.add(event)
        except Cut:
            # Some servers close the connection instead of sending [DONE]; nothing is missing then.
            if not parts.finished:
                raise

    def _ask(
        self,
        url: str,
        body: dict[str, Any],
        tokens: int,
        stop: threading.Event,
        read: Callable[[http.client.HTTPResponse], T],
    ) -> T:
        """Send until `read` has what it wants or patience ends."""
        headers = {"Content-Type": "application/json", "User-Agent": "alignlab"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data, problem, fatal = json.dumps(body).encode(), "", False
        for attempt in range(self.limits.retries + 1):
            entry = self.limiter.admit(tokens, stop.wait)
            asked, fatal = 0.0, False
            try:
                answer = read(self._open(urllib.request.Request(url, data, headers), timeout=self.limits.timeout))
                used = self.usage.answered(answer) if isinstance(answer, dict) else None
                self.limiter.settle(entry, tokens if used is None else used)
                return answer
            except urllib.error.HTTPError as error:
                with error:
                    problem, fatal = f"answered {error.code}: {_reason(error)}", error.code in _FATAL
                self.limiter.settle(entry, 0)
                if error.code not in _RETRIED:
                    break
                asked = retry_after(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException, Cut) as error:
                problem = self._words(error)
                fatal = isinstance(getattr(error, "reason", error), ConnectionRefusedError)
            except SamplerError:
                self.usage.failed()
                raise
            if attempt < self.limits.retries:
                refused = too_long(asked, self.limits)
                if refused is not None:
                    problem, fatal = f"{problem}, and {refused}", True
                    break
                self.usage.retried()
                self._pause(attempt, asked, stop)
        self.usage.failed()
        raise EndpointError(f"{url}: {problem}", fatal=fatal)

    def _pause(self, attempt: int, asked: float, stop: threading.Event) -> None:
        # The jitter spreads retries of parallel requests; it never touches a result.
        own = min(self.limits.first_wait * 2**attempt, self.limits.longest_wait) * random.uniform(0.75, 1.0)
        if asked:
            self.limiter.hold(asked)  # the next attempt waits for it too, when it asks to be admitted
        if stop.wait(own):
            raise Stopped

    def _words(self, error: Exception) -> str:
        if isinstance(error, Cut):
            return str(error)
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return f"timed out: it was silent or unfinished for {self.limits.timeout:g} seconds"
        if isinstance(error, http.client.RemoteDisconnected):
            return "closed the connection without an answer"
        if isinstance(error, http.client.HTTPException):
            return f"broke off: {type(error).__name__}"
        return f"cannot be reached: {reason or error}"


def _is_web_address(text: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False


def _streaming(body: dict[str, Any]) -> dict[str, Any]:
    return body | {"stream": True, "stream_options": {"include_usage": True}}


def _read(reply: http.client.HTTPResponse, timeout: float) -> bytes:
    """All of a reply within `timeout` seconds: the socket's own limit only bounds each wait, and a drip has none."""
    expected = reply.headers.get("Content-Length")
    parts, size, started = [], 0, time.monotonic()
    while piece := reply.read1(_CHUNK):
        parts.append(piece)
        size += len(piece)
        if size > MAX_REPLY_BYTES:
            break
        if time.monotonic() - started > timeout:
            raise TimeoutError
    if expected is not None and expected.isdigit() and size < int(expected):
        raise Cut(f"the reply was cut after {size} of {expected} bytes")
    return b"".join(parts)


def _parse(url: str, raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_REPLY_BYTES:
        raise SamplerError(f"{url}: the reply is longer than {MAX_REPLY_BYTES} bytes")
    try:
        reply = json.loads(raw)
    except (ValueError, RecursionError):
        raise SamplerError(f"{url}: the reply is not JSON: {raw[:100]!r}") from None
    if not isinstance(reply, dict):
        raise SamplerError(f"{url}: the reply is a JSON {type(reply).__name__} instead of an object")
    return reply


def _reason(error: urllib.error.HTTPError) -> str:
    """The server's own words, from the JSON shapes that servers use, or the start of the text."""
    try:
        raw = error.read(10_000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    try:
        said = json.loads(raw)
        said = said.get("error", said) if isinstance(said, dict) else said
        said = said.get("message", said) if isinstance(said, dict) else said
    except (ValueError, RecursionError):
        said = raw
    return " ".join(str(said).split())[:300] or str(error.reason)
