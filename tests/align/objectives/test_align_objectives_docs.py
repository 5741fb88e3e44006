"""Every Python block of docs/pareto.md runs as printed."""

from __future__ import annotations

import re
from pathlib import Path


def test_documentation_runs() -> None:
    text = (Path(__file__).parents[3] / "docs" / "pareto.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/pareto.md, block {number}", "exec"), names)
