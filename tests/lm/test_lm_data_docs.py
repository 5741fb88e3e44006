"""The page on data: its Python runs as it stands, on a corpus made by its commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from alignlab.lm.data_cli import tokenize

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def test_batches_are_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    documents = [f"document {i} says that {i * i} is {i} times {i}" for i in range(400)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    tokenize(["text.jsonl", "--out", "tokens", "--vocab-size", "300"])
    (block,) = re.findall(r"```python\n(from alignlab\.data\.loader.*?)```", PAGE, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(block, "docs/data.md", "exec"), names)
    batch = names["batch"]
    assert isinstance(batch, dict)
    assert {key: tuple(value.shape) for key, value in batch.items()} == dict.fromkeys(
        ["tokens", "targets", "segments", "loss_mask"], (8, 64)
    )
    assert next(iter(names["held_out"]))["tokens"].shape == (8, 64)  # type: ignore[call-overload]
