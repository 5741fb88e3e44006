"""The examples in docs/studies.md run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alignlab.studies import study

GUIDE = Path(__file__).parents[2] / "docs" / "studies.md"


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path))
    monkeypatch.setattr(study, "_ADDED", {})
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {"__name__": "studies_page"}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec", dont_inherit=True), names)
    assert len(blocks) == 4
    out = capsys.readouterr().out
    assert "MAUVE 1.00" in out
    assert out.rstrip().endswith("confirmed")
