"""The walk-through from raw text to chat does what it says: its commands are run as they stand."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from alignlab.__main__ import main
from alignlab.core.config import load_yaml
from alignlab.lm.pretrain_config import PretrainConfig

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "from-scratch.md"
STORY = "The mill by the river grinds the corn, and the miller sings. Nobody knows who built it, or when.\n"


def commands() -> list[str]:
    blocks = re.findall(r"<!-- run -->\n```bash\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_the_commands_of_the_guide_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "runs"))
    Path("text.txt").write_text("".join(STORY.replace("mill", f"mill {i}") for i in range(500)))
    talk = [{"messages": [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "the miller"}]}] * 8
    Path("talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talk))
    assert len(commands()) == 6
    said = ""
    for line in commands():
        program, *arguments = shlex.split(line)
        assert program == "alignlab"
        code = main(arguments)
        captured = capsys.readouterr()
        assert code == 0, f"{line}: {captured.err}"
        said += captured.out
    assert "bits a byte" in said
    assert "bits per byte, 95 %" in said
    assert (next((tmp_path / "runs").glob("*-pretrain-*")) / "dynamics.html").is_file()
    assert "small-chat" in said


PRETRAINING = [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if "alignlab pretrain" in path.read_text()]
"""Those of `alignlab rlhf` have tests of their own."""


@pytest.mark.parametrize("recipe", PRETRAINING, ids=lambda path: path.stem)
def test_recipes_are_configurations(recipe: Path) -> None:
    config = load_yaml(PretrainConfig, recipe)
    assert config != PretrainConfig()
    assert config.batch_size % config.micro_batch == 0
