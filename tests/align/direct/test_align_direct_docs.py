"""The Python blocks of docs/direct-preferences.md run, and its methods and flags are those that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args, get_type_hints

from alignlab.align.direct.cli import PreferCommand, PreferConfig
from alignlab.align.direct.objectives import DEFAULT_BETA, Method

PAGE = (Path(__file__).parents[3] / "docs" / "direct-preferences.md").read_text()


def test_the_blocks_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "direct-preferences.md", "exec"), names)


def test_the_methods_and_flags_exist() -> None:
    table = {method: float(beta) for method, beta in re.findall(r"^\| `([a-z-]+)` \|.*\| ([\d.]+) \|$", PAGE, re.M)}
    assert table == DEFAULT_BETA
    assert set(table) == set(get_args(Method)) == set(get_args(get_type_hints(PreferConfig)["method"]))
    fields = {f"--{name.replace('_', '-')}" for name in PreferCommand.__dataclass_fields__}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) <= fields
