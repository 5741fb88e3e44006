"""The examples in docs/engines.md run as they are printed, against a server here, and its tables know every field."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alignlab.lm.bench_model import COLUMNS
from alignlab.lm.remote import RemoteLimits
from alignlab.lm.remote_limits import Dialect

GUIDE = Path(__file__).parents[2] / "docs" / "engines.md"


class Handler(BaseHTTPRequestHandler):
    """Says `wet` as often as it is asked to."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said: dict[str, Any] = {"message": {"content": "wet"}} if "messages" in body else {"text": "wet"}
        choices = [{"index": i, "finish_reason": "stop", **said} for i in range(body.get("n", 1))]
        reply = json.dumps({"choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 1}}).encode()
        kind = "application/json"
        if body.get("stream"):
            kind, reply = "text/event-stream", b"data: " + reply + b"\n\ndata: [DONE]\n\n"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/v1"
    http.shutdown()
    http.server_close()
    thread.join()


def test_examples_run(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = GUIDE.read_text(encoding="utf-8").replace("http://localhost:8000/v1", url)
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        code = compile(block, str(GUIDE), "exec")
        if "VLLMSampler" not in block:
            exec(code, names)
    assert len(blocks) == 5
    printed = capsys.readouterr().out
    assert "['wet', 'wet', 'wet', 'wet']" in printed
    assert "1 requests; 3 tokens in, 1 out; 0.0000 EUR" in printed
    assert json.loads((tmp_path / "usage.json").read_text())["requests"] == 1


def test_tables_know_every_field() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    for field in fields(RemoteLimits):
        assert re.search(rf"^\| `{field.name}` \| {re.escape(str(field.default))} \|", text, re.MULTILINE), field.name
    for dialect in Dialect.__args__:  # type: ignore[attr-defined]
        assert f"| `{dialect}` |" in text
    for title, _ in COLUMNS:
        assert title in ("batch", "prompt", "new", "engine", "bound by") or f"| `{title}` |" in text, title
