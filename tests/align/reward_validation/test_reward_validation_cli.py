"""`alignlab reward validate` with everything it can do, on a tiny model and comparisons with planted traits."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import tiny_run

from alignlab.align.reward.cli import reward
from alignlab.core.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model, a file of comparisons, and two reward models trained on them."""
    folder = tmp_path_factory.mktemp("world")
    rng, rows = random.Random(0), []
    for i in range(40):
        good, bad = (
            " ".join(rng.choices(words, k=rng.randint(2, 5))) + "." for words in (["aei", "iou"], ["bcd", "dfg"])
        )
        rows.append({"prompt": f"question {i}", "chosen": good, "rejected": bad, "subset": "ab"[i % 2], "tie": i == 7})
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = str(tiny_run.build_model(folder / "model"))
    for name, rank in (("gold", "2"), ("proxy", "0")):
        flags = ["--model", model, "--run", str(folder / name), "--rank", rank, "--ridge", "0.1", "--device", "cpu"]
        assert reward(["train", str(data), "--validation", str(data), "--learning-rate", "0.01", *flags]) == 0
    return {"model": model, "data": str(data), "gold": str(folder / "gold"), "proxy": str(folder / "proxy")}


def test_slices_and_edits(world: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, html = tmp_path / "report.json", tmp_path / "report.html"
    flags = ["--data", world["data"], "--slice-by", "subset", "--robustness", "--robustness-pairs", "20"]
    assert reward(["validate", world["proxy"], *flags, "--out", str(out), "--html", str(html), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "39 comparisons of 39 dialogues" in said  # the tie is left out
    assert "by subset" in said
    assert "padding that adds nothing" in said
    record = json.loads(out.read_text())
    assert {group["name"]: sorted(group["slices"]) for group in record["groups"]}["subset"] == ["a", "b"]
    assert record["robustness"]["pairs"] == 20
    assert record["overoptimisation"] is None
    assert "Robustness" in html.read_text()


@pytest.mark.slow
def test_best_of_n_against_a_gold_reward(
    world: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    points = [
        {"step": step, "kl": [step / 2, step], "proxy": [1.0 + step, step], "gold": [1.0, 2.0]} for step in (0, 1, 2)
    ]
    rl = tmp_path / "rl.jsonl"
    rl.write_text("".join(json.dumps(point) + "\n" for point in points))
    flags = ["--overoptimise", "--policy", world["model"], "--gold", world["gold"], "--samples", "8", "--prompts", "6"]
    flags += ["--max-tokens", "6", "--device", "cpu", "--rl-points", str(rl)]
    flags += ["--robustness", "--robustness-pairs", "4", "--paraphraser", world["model"]]
    assert reward(["validate", world["proxy"], "--data", world["data"], *flags, "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    curves = record["overoptimisation"]["curves"]
    assert [point["at"] for point in curves["best of n, this reward"]["points"]] == [1, 2, 4, 8]
    assert [point["at"] for point in curves["RL"]["points"]] == [0, 1, 2]
    proxy = [point["proxy"]["estimate"] for point in curves["best of n, this reward"]["points"]]
    assert proxy == sorted(proxy)
    assert any(effect["name"].startswith("paraphrased by") for effect in record["robustness"]["effects"])
    assert "this reward and gold order a pair of answers alike" in capsys.readouterr().out


def test_what_is_refused(world: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs --policy MODEL and --gold RUN"):
        reward(["validate", world["proxy"], "--overoptimise"])
    with pytest.raises(ConfigError, match="belong to --overoptimise"):
        reward(["validate", world["proxy"], "--policy", "x"])
    with pytest.raises(ConfigError, match="4 and 2 are the least"):
        reward(["validate", "x", "--overoptimise", "--policy", "x", "--gold", "y", "--samples", "2"])
    ties = tmp_path / "ties.jsonl"
    ties.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c", "tie": True}) + "\n")
    with pytest.raises(DataError, match="are ties"):
        reward(["validate", world["proxy"], "--data", str(ties), "--device", "cpu"])
    with pytest.raises(DataError, match="has a column 'sett'"):
        reward(["validate", world["proxy"], "--data", world["data"], "--slice-by", "sett", "--device", "cpu"])
