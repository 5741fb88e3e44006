"""The Python blocks of docs/trajectory-preferences.md run, and its flags exist."""

from __future__ import annotations

import re
from pathlib import Path

from alignlab.align.trajectories.cli import TrajectoryCommand

PAGE = (Path(__file__).parents[3] / "docs" / "trajectory-preferences.md").read_text()


def test_the_blocks_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "trajectory-preferences.md", "exec"), names)


def test_the_flags_exist() -> None:
    fields = {name.replace("_", "-") for name in TrajectoryCommand.__dataclass_fields__} | {"no-compare"}
    commands = "\n".join(line for line in PAGE.splitlines() if line.startswith("alignlab reward trajectories"))
    named = re.findall(r" --([a-z-]+)", commands) + re.findall(r"^\| `--([a-z-]+)", PAGE, re.M)
    assert named
    assert set(named) <= fields
