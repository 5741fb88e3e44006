"""A server on this machine whose answers tests write byte by byte."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from alignlab.lm.remote import RemoteLimits, RemoteSampler

QUICK = RemoteLimits(concurrency=4, timeout=2.0, retries=2, first_wait=0.001, longest_wait=0.01)
Respond = Callable[["Wire", dict[str, Any], int], None]


class Wire(BaseHTTPRequestHandler):
    """One request; tests write the answer byte by byte and close when they like."""

    respond: Respond
    seen: list[dict[str, Any]]
    lock: threading.Lock

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            self.seen.append(body)
            n = len(self.seen)
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client has left, as some tests want
            type(self).respond(self, body, n)

    def head(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def whole(self, reply: Any, status: int = 200, **headers: str) -> None:
        raw = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.head(status, Content_Length=str(len(raw)), **headers)
        self.wfile.write(raw)

    def events(self, *events: Any, end: bool = True) -> None:
        self.head(Content_Type="text/event-stream")
        for event in events:
            raw = event if isinstance(event, bytes) else f"data: {json.dumps(event)}\n\n".encode()
            self.wfile.write(raw)
            self.wfile.flush()
        if end:
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server:
    """A server on a free port of this machine that answers as `respond` says."""

    def __init__(self) -> None:
        class Handler(Wire):
            seen: list[dict[str, Any]] = []  # noqa: RUF012
            lock = threading.Lock()

        self.handler = Handler
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def seen(self) -> list[dict[str, Any]]:
        return self.handler.seen

    def will(self, respond: Respond) -> None:
        self.handler.seen.clear()
        self.handler.respond = respond

    def sampler(self, limits: RemoteLimits = QUICK, **fields: Any) -> RemoteSampler:
        return RemoteSampler(self.url, "m", limits=limits, **fields)


@contextmanager
def running() -> Iterator[Server]:
    """A server that ends with the block."""
    server = Server()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        server.thread.join()


def answer(*texts: str, tokens: tuple[int, int] | None = (3, 2)) -> dict[str, Any]:
    choices = [{"index": i, "text": text, "finish_reason": "stop"} for i, text in enumerate(texts)]
    usage = {} if tokens is None else {"usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}}
    return {"choices": choices, **usage}


def piece(text: str, index: int = 0, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": index, "text": text, "finish_reason": finish}]}
