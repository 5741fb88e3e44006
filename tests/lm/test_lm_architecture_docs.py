"""The examples of docs/architectures.md run, and its table names real fields and values."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from alignlab.lm.config import GPTConfig

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"


def test_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    exec("\n".join(blocks), {})
    shape, scales, refusal = capsys.readouterr().out.splitlines()
    assert shape == "torch.Size([1, 16, 256])"
    assert scales == "1.0 0.25"
    assert refusal.startswith("positions is 'alibi', which no architecture")


def test_the_table_names_real_choices() -> None:
    table = PAGE.read_text(encoding="utf-8").split("## Choices")[1].split("Notes:")[0]
    cells = [row.split("|")[2] for row in table.splitlines() if row.startswith("| ") and "`" in row.split("|")[2]]
    assert len(cells) >= 25
    known = {field.name for field in fields(GPTConfig)}
    for cell in cells:
        names = re.findall(r"`(\w+)[=`]", cell)
        assert names
        assert set(names) <= known, cell
        for name, value in re.findall(r'`(\w+)="(\w+)"', cell):
            GPTConfig(**{"gated_mlp": False, name: value})
