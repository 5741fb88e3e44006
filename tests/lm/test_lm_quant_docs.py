"""The examples in docs/quantisation.md run as they are printed, and its tables know every scheme."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alignlab.lm.quant_cli import GGUF, IN_MEMORY

GUIDE = Path(__file__).parents[2] / "docs" / "quantisation.md"


def test_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)
    assert len(blocks) == 4
    assert "int4, groups of 32: 14 matrices" in capsys.readouterr().out


def test_every_scheme_is_explained() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    assert all(f"`{scheme}`" in text for scheme in (*IN_MEMORY, *GGUF))
