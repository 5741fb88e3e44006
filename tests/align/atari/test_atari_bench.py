"""bench/atari_preferences.py end to end at its smallest scale, interrupted and gone on with; the pages' words hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import atari_preferences
import pytest

from alignlab.align.atari.cli import AtariCommand

pytest.importorskip("ale_py")
ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "atari.md").read_text()


@pytest.mark.slow
def test_the_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    flags = ["--out", str(out), "--arms", "preferences+demonstrations:2", "demonstrations:1", "--jobs", "2"]
    options = atari_preferences.arguments(flags)
    atari_preferences.train_agent(options, "demonstrations", 0)
    before = atari_preferences.file_of(options, "demonstrations", 0).stat().st_mtime_ns
    atari_preferences.main(flags)
    assert atari_preferences.file_of(options, "demonstrations", 0).stat().st_mtime_ns == before
    found = json.loads((out / "results.json").read_text())
    assert found["arms"]["preferences+demonstrations"]["over_episodes"]["n"] == 6
    assert list(found["comparisons"]) == ["preferences+demonstrations against demonstrations"]
    assert "boxing, scale smoke, 3 of 3 agents" in (out / "table.txt").read_text()
    assert "Boxing from demonstrations and preferences" in (out / "report.html").read_text()
    assert (out / "logs" / "boxing-preferences-demonstrations-1.jsonl").read_text().count("\n") >= 3
    capsys.readouterr()
    atari_preferences.main([*flags, "--part", "table"])
    assert "random actions" in capsys.readouterr().out
    atari_preferences.main([*flags, "--part", "speed"])
    assert "steps/s" in capsys.readouterr().out
    atari_preferences.main([*flags, "--part", "reward"])
    assert capsys.readouterr().out.count("orders fresh pairs as the score does") == 10
    assert (out / "reward.txt").is_file()


def test_the_plan_and_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = atari_preferences.planned(
        atari_preferences.arguments(["--arms", "preferences+demonstrations:2", "true reward"])
    )
    assert plan == [("preferences+demonstrations", 0), ("true reward", 0), ("preferences+demonstrations", 1)]
    with pytest.raises(SystemExit):
        atari_preferences.arguments(["--arms", "guessing:2"])
    assert "--arms names 'guessing'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="holds no agent of these arms yet"):
        atari_preferences.main(["--part", "table", "--out", str(tmp_path)])


def test_the_flags_of_the_page_exist() -> None:
    fields = {name.replace("_", "-") for name in AtariCommand.__dataclass_fields__}
    commands = "\n".join(line for line in PAGE.splitlines() if line.startswith("alignlab reward atari"))
    named = re.findall(r" --([a-z-]+)", commands) + re.findall(r"^\| `--([a-z-]+)", PAGE, re.M)
    assert named
    assert set(named) <= fields


@pytest.mark.slow
def test_the_blocks_of_the_page_run() -> None:
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(compile(block, "atari.md", "exec"), names)
    assert names
