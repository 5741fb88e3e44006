"""Chat templates: from a conversation to the text a model was trained on.

A template that ships with a catalogued model (known by its SHA-256) renders in this process. Any other renders in a
separate process with limits of time, memory and output, because a template is a program from whoever made the file.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from alignlab.core.errors import ModelError
from alignlab.lm import template_worker
from alignlab.lm.types import Message

TIME_LIMIT = 5.0
MAX_TEMPLATE = 200_000

TRUSTED = frozenset(
    {
        # SmolLM2-Instruct, all sizes
        "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",
    }
)
"""SHA-256 of templates that were read and only walk over the messages."""


def render_template(
    source: str,
    messages: Sequence[Message],
    *,
    generation_prompt: bool = True,
    special: dict[str, str] | None = None,
) -> str:
    """The conversation as text. `special` holds `bos_token` and the like.

    Raises `ModelError` when the messages are malformed, the template rejects them, or it exceeds its limits
    (`TIME_LIMIT` seconds, and the memory and output of `template_worker`).
    """
    check_messages(messages)
    if len(source) > MAX_TEMPLATE:
        raise ModelError(f"the chat template has {len(source)} characters, allowed: {MAX_TEMPLATE}")
    variables: dict[str, Any] = {
        **(special or {}),
        "messages": list(messages),
        "add_generation_prompt": generation_prompt,
        "tools": None,
        "documents": None,
    }
    if hashlib.sha256(source.encode()).hexdigest() in TRUSTED:
        try:
            return template_worker.render(source, variables)
        except Exception as error:
            raise ModelError(f"the chat template failed: {error}") from None
    return _worker.render(source, variables)


def check_messages(messages: Sequence[Message]) -> None:
    """Raise `ModelError` unless every message has a role and a content, both text."""
    if isinstance(messages, str) or not messages:
        raise ModelError("a conversation needs at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise ModelError(
                f"message {i} must be a mapping with text under 'role' and 'content', got {message!r:.200}"
            )


def unused_mark(texts: Iterable[str]) -> str:
    """A private-use character that occurs in none of the texts."""
    used = set().union(*map(set, (t for t in texts if isinstance(t, str))))
    return next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in used)


class _Worker:
    """The separate process, started on first use, replaced after it was killed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0
        self.lock = threading.Lock()

    def render(self, source: str, variables: dict[str, Any]) -> str:
        request = json.dumps({"template": source, "variables": variables}).encode() + b"\n"
        with self.lock:
            reply = self.ask(request)
        if "text" in reply:
            return str(reply["text"])
        raise ModelError(f"the chat template failed: {reply.get('error')}")

    def ask(self, request: bytes) -> dict[str, Any]:
        process = self.running()
        assert process.stdin is not None
        assert process.stdout is not None
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(TIME_LIMIT, expire)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            # JSON escapes at most twelve bytes a character.
            line = process.stdout.readline(12 * template_worker.MAX_OUTPUT + 100)
        except OSError:
            line = b""
        finally:
            timer.cancel()
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if isinstance(reply, dict) and not expired.is_set():
            return reply
        self.stop()
        if expired.is_set():
            return {"error": f"it did not finish within {TIME_LIMIT:g} seconds"}
        return {"error": "its process died, most likely from lack of memory"}

    def running(self) -> subprocess.Popen[bytes]:
        # After a fork the parent's pipes are shared; a child must not talk through them.
        if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
            if self.owner == os.getpid():
                self.stop()
            # -P: the program's own folder must not shadow modules of the standard library.
            command = [sys.executable, "-P", str(Path(template_worker.__file__))]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            self.owner = os.getpid()
        return self.process

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is None or self.owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # unsent input of a killed process
                    pipe.close()


_worker = _Worker()
atexit.register(_worker.stop)
