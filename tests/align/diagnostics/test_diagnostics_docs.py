"""The Python blocks of docs/diagnostics.md run, and its table names every alarm."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alignlab.align.diagnostics.simulated import FAILURES

PAGE = (Path(__file__).parents[3] / "docs" / "diagnostics.md").read_text()


def test_the_blocks_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "diagnostics.md", "exec"), names)
    out = capsys.readouterr().out
    assert "'gold': 6.0" in out
    assert "entropy collapse 38 warning" in out
    assert "'banana ' 3.0" in out


def test_the_table_names_every_alarm() -> None:
    told = set(re.findall(r"^\| ([a-zA-Z ]+?) \|", PAGE.split("## Alarms")[1], re.M))
    assert set(FAILURES) | {"reward hacking", "KL without reward", "not finite"} <= told
