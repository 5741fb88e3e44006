"""The page on configs and runs: its Python runs from top to bottom, and the messages it shows are the real ones."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from alignlab.core.config import from_dict, parse_cli
from alignlab.core.errors import ConfigError
from alignlab.core.runs import Run

PAGE = (Path(__file__).parents[2] / "docs" / "runs.md").read_text()


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's first three blocks define, run in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGNLAB_RUNS")
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "runs_page.py").write_text("\n".join(blocks[:3]))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "runs_page", raising=False)
    return vars(importlib.import_module("runs_page"))


def test_examples_do_what_the_page_says(names: dict[str, Any]) -> None:
    run = Run.read(names["run"].path)
    assert run.path.parent == Path("runs")
    assert [row["step"] for row in run.metrics()] == [1, 2, 3]
    assert run.stages()["prepare"].attempts == 1
    assert (run.artifacts / "summary.json").is_file()
    tune, warm_up = names["Tune"], names["WarmUp"]
    parsed = parse_cli(tune, ["--learning-rate", "3e-4", "--warm-up.steps", "5"], prog="tune")
    assert parsed == tune(learning_rate=3e-4, warm_up=warm_up(steps=5))


@pytest.mark.parametrize(
    "values", [{"learning_rate": -1.0}, {"warm_up": {"stps": 1}}, {"warm_up": {"steps": "many"}}], ids=str
)
def test_messages_are_those_of_the_page(names: dict[str, Any], values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(names["Tune"], values)
    assert f"\n{caught.value}\n" in PAGE
