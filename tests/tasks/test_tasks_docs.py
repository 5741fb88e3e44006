"""Every code block of docs/evaluation.md runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def test_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "evaluation_page"}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"docs/evaluation.md, block {number}", "exec"), names)
    assert "0.25 [0.0456, 0.699] (n=4)" in capsys.readouterr().out
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
    assert (tmp_path / "logs" / "rome" / "samples.parquet").exists()
