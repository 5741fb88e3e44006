"""The examples in docs/generation.md run as they are printed, and its tables know every field."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from alignlab.lm.types import SamplingParams

GUIDE = Path(__file__).parents[2] / "docs" / "generation.md"


def test_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)
    assert len(blocks) == 10
    assert "length" in capsys.readouterr().out


def test_every_sampling_parameter_is_explained_with_its_default() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    for field in fields(SamplingParams):
        assert re.search(rf"^\| `{field.name}` \| {re.escape(str(field.default))}( \(off\))? \|", text, re.MULTILINE), (
            field.name
        )
