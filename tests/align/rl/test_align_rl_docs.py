"""The Python blocks of docs/policy-optimisation.md run, and its settings exist."""

from __future__ import annotations

import re
from pathlib import Path

from alignlab.align.rl.config import GRPOConfig

PAGE = (Path(__file__).parents[3] / "docs" / "policy-optimisation.md").read_text()


def test_the_blocks_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "policy-optimisation.md", "exec"), names)


def test_the_settings_exist() -> None:
    table = PAGE.split("settings of `GRPOConfig`")[1].split("\n\n")[0]
    named = set(re.findall(r"(\w+)=", table))
    assert len(named) > 8
    assert named <= set(GRPOConfig.__dataclass_fields__)
