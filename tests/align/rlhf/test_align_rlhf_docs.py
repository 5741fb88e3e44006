"""The Python blocks of docs/rlhf.md run, its commands are understood, and its recipes exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from alignlab.__main__ import COMMANDS
from alignlab.align.rlhf.cli import RLHFCommand
from alignlab.align.rlhf.methods import method_config
from alignlab.align.rlhf.rewards import RewardSpec
from alignlab.core.config import parse_cli

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "rlhf.md").read_text()


def test_the_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sqlmodel", reason="the block about a store needs alignlab[store]")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "rlhf.md", "exec"), names)
    assert (tmp_path / "my_rewards.py").is_file()


def commands() -> list[str]:
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.S)).replace("\\\n", " ")
    return [line for line in shell.splitlines() if line.startswith("alignlab ")]


@pytest.mark.parametrize("command", commands())
def test_the_commands_are_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, name, *arguments = shlex.split(command, comments=True)
    assert name in COMMANDS
    if name != "rlhf":
        return
    parsed = parse_cli(RLHFCommand, arguments, prog="alignlab rlhf", first="comparisons")
    parsed.check_sources()
    method_config(parsed.method, parsed.rl, parsed.seed)
    for text in parsed.rewards:
        RewardSpec.parse(text)
