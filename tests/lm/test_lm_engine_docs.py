"""The examples in docs/engine.md run as they are printed, and its table knows every option with its default."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from alignlab.lm.engine.options import EngineOptions

GUIDE = Path(__file__).parents[2] / "docs" / "engine.md"


def test_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)
    assert len(blocks) == 4
    assert "cancelled" in capsys.readouterr().out


def test_every_option_is_explained_with_its_default() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    for field in fields(EngineOptions):
        default = "" if field.default is None else re.escape(str(field.default))
        assert re.search(rf"^.*`{field.name}`.* \| {default}", text, re.MULTILINE), field.name
