"""The Python blocks of docs/sft.md run, its commands parse, and its table names every filter."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from alignlab.align.sft_cli import FineTuneCommand
from alignlab.align.sft_filter_cli import FilterCommand
from alignlab.align.sft_filter_settings import DEFAULT
from alignlab.align.sft_filters import FILTERS, check_filters
from alignlab.core.config import parse_cli

PAGE = (Path(__file__).parents[2] / "docs" / "sft.md").read_text()


def test_blocks_run() -> None:
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    for block in blocks:
        exec(compile(block, "sft.md", "exec"), names)
    assert len(blocks) == 2


def test_commands_parse() -> None:
    lines = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]
    parsed = 0
    for words in map(shlex.split, lines):
        if words[1] == "sft":
            command = parse_cli(FineTuneCommand, words[2:], prog="alignlab sft", first="data")
        elif words[1:3] == ["data", "filter"]:
            command = parse_cli(FilterCommand, words[3:], prog="alignlab data filter", first="data")  # type: ignore[assignment]
        else:
            continue
        check_filters(command.filters, command.filter)
        parsed += 1
    assert parsed == 5


def test_every_filter_is_in_the_table() -> None:
    named = re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)
    assert sorted(named) == sorted(FILTERS)
    assert named[: len(DEFAULT)] == list(DEFAULT)
