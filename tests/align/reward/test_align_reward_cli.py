"""`alignlab reward train | validate | score` on a tiny model and a tiny encoder."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run

from alignlab.align.reward.cli import reward
from alignlab.align.reward.saved import load_reward
from alignlab.core.errors import ConfigError, DataError, ModelError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_run.build_model(tmp_path_factory.mktemp("models")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, rows = random.Random(0), []
    for i in range(60):
        asked = f"\n\nHuman: question {i // 2}\n\nAssistant: "
        good, bad = ("".join(rng.choices(letters, k=rng.randint(4, 9))) for letters in ("aeiou", "bcdfg"))
        rows.append({"chosen": asked + good, "rejected": asked + bad})
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "flags",
    [
        ["--rank", "2", "--members", "2", "--centre", "0.01", "--length-correction", "remove"],
        ["--rank", "2", "--members", "2", "--ensemble", "adapters", "--flip-rate", "0.1", "--noise", "mixture"],
        ["--rank", "0", "--ties", "davidson", "--ridge", "0.1"],
    ],
)
def test_train_validate_and_score(
    model: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    run = tmp_path / "run"
    arguments = ["--model", model, "--run", str(run), "--device", "cpu", "--learning-rate", "0.01", *flags]
    assert reward(["train", str(data), *arguments]) == 0
    said = capsys.readouterr().out
    assert "accuracy" in said
    kept = (run / "artifacts" / "heldout.jsonl").read_text().splitlines()
    assert 8 <= len(kept) <= 16
    measured = json.loads((run / "artifacts" / "measures.json").read_text())
    assert reward(["train", str(data), *arguments]) == 0  # the same command again finds everything done
    assert capsys.readouterr().out == said
    out = tmp_path / "measures.json"
    assert reward(["validate", str(run), "--out", str(out), "--device", "cpu"]) == 0
    again = json.loads(out.read_text())
    assert again["accuracy"] == measured["accuracy"]
    assert again["loss"]["estimate"] == pytest.approx(measured["loss"]["estimate"], abs=1e-5)
    capsys.readouterr()
    assert reward(["score", str(run), "--prompt", "hi", "--response", "aeiou", "bcdfg", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["aeiou", "bcdfg"]
    assert ("±" in lines[0]) == ("--members" in flags)
    answers, scored = tmp_path / "answers.jsonl", tmp_path / "scored.jsonl"
    row = {"id": 7, "prompt": [{"role": "user", "content": "hi"}], "response": "aeiou"}
    answers.write_text(json.dumps(row) + "\n")
    assert reward(["score", str(run), "--data", str(answers), "--out", str(scored), "--device", "cpu"]) == 0
    got = json.loads(scored.read_text())
    assert {**got, **row} == got
    assert f"{got['reward']:+.3f}" == lines[0].split()[0]


def test_pretraining_on_other_comparisons_comes_first(model: str, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "exchange.json"
    exchange = {"question": "how?", "response_j": "aaaa", "response_k": "bbbb"}
    other.write_text(json.dumps([exchange] * 4))
    run = tmp_path / "run"
    flags = ["--model", model, "--rank", "2", "--pretrain", str(other), "--language-weight", "1", "--device", "cpu"]
    assert reward(["train", str(data), "--validation", str(data), "--run", str(run), *flags]) == 0
    names = {
        name.partition("/")[0] for row in (run / "metrics.jsonl").read_text().splitlines() for name in json.loads(row)
    }
    assert {"pretraining_0", "reward_model"} <= names


def test_bad_input(model: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown action 'trian'"):
        reward(["trian"])
    with pytest.raises(DataError, match="is no file"):
        reward(["train", str(tmp_path / "absent"), "--run", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="ensemble is 'adapters'"):
        reward(["train", str(data), "--ensemble", "adapters"])
    with pytest.raises(ModelError, match="holds no reward model"):
        reward(["validate", str(tmp_path)])
    with pytest.raises(ConfigError, match="give either --data FILE"):
        reward(["score", str(tmp_path), "--prompt", "hi"])
    (tmp_path / "reward.json").write_text('{"format": "other"}')
    with pytest.raises(ModelError, match="not the record of a reward model"):
        load_reward(tmp_path)
    (tmp_path / "lines.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"lines\.jsonl, line 1: response is missing"):
        reward(["score", str(tmp_path), "--data", str(tmp_path / "lines.jsonl")])


def test_help_is_light() -> None:
    code = "import sys; from alignlab.align.reward.cli import reward; reward(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: alignlab reward ACTION" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"
