"""The Python blocks of docs/reward-validation.md run, and its commands name flags that exist."""

from __future__ import annotations

import re
from pathlib import Path

from alignlab.align.reward_validation.cli import ValidateCommand
from alignlab.align.reward_validation.edits import EDITS

PAGE = (Path(__file__).parents[3] / "docs" / "reward-validation.md").read_text()


def test_the_blocks_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "reward-validation.md", "exec"), names)


def test_the_flags_and_edits_are_those_of_the_command() -> None:
    fields = {f"--{name.replace('_', '-')}" for name in ValidateCommand.__dataclass_fields__}
    for line in re.findall(r"^alignlab reward validate .*", PAGE, re.M):
        for flag in re.findall(r"--[a-z-]+", line):
            assert flag in fields, flag
    kinds = [edit.kind for edit in EDITS]
    assert (kinds.count("paraphrase"), kinds.count("length")) == (6, 3)
    assert "Six edits" in PAGE
    assert "three change the length" in PAGE
