"""`alignlab pareto`: from files, sweeps and runs to the account, and one clear sentence for what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignlab.__main__ import main
from alignlab.align.objectives.points import point_set, record_of
from alignlab.align.objectives.recording import append_point, measure_objectives, objectives_record, record_objectives
from alignlab.align.objectives.sources import read_points
from alignlab.align.objectives.tradeoffs import Tradeoffs
from alignlab.core.errors import ConfigError, DataError
from alignlab.core.runs import Run
from alignlab.lm.scripted import ScriptedSampler
from alignlab.lm.types import SamplingParams

MEANS = {"kind": (0.0, 2.0), "even": (1.5, 1.5), "blunt": (2.0, 0.0), "poor": (0.4, 0.4)}


def plant(file: Path, *, seeds: int = 1, items: int = 40) -> Path:
    """Three points on a front and one behind it."""
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=(items, 2))
    for name, mean in MEANS.items():
        for seed in range(seeds):
            values = np.array(mean) + difficulty + 0.3 * rng.normal(size=(items, 2))
            columns = {"helpful": values[:, 0], "harmless": values[:, 1]}
            append_point(file, objectives_record(name, columns, seed=seed, items=[f"p{i}" for i in range(items)]))
    return file


def plant_runs(root: Path) -> Path:
    """Two settings from three seeds: one with objectives item by item, all with metrics."""
    for weight in (0.2, 0.8):
        for seed in range(3):
            config = {"weight": weight, "seed": seed, "train": {"seed": seed}}
            with Run.create(config, name="rl", seed=seed, path=root / f"w{weight}-{seed}") as run:
                for step in range(1, 11):
                    kl = 0.1 * step * (1 + 4 * weight) + 0.05 * seed
                    run.log(step, {"rl/reward": weight * step + 0.2 * seed, "rl/kl": kl})
                values = {"helpful": [weight + 0.1 * seed, weight], "harmless": [1 - weight, 1 - weight + 0.1 * seed]}
                record_objectives(run, objectives_record("", values, items=["a", "b"]))
    return root


def test_the_command_from_points_to_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page, out = plant(tmp_path / "points.jsonl"), tmp_path / "page.html", tmp_path / "out.json"
    line = ["pareto", str(file), "--reference", "helpful=-1", "harmless=-1", "--bound", "harmless=1",
            "--weights", "helpful=1", "harmless=1", "--html", str(page), "--out", str(out)]  # fmt: skip
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "4 points, 1 training each, 40 items; intervals hold for new items, not for new trainings" in said
    assert "front: kind, even, blunt" in said
    assert "poor is beaten beyond noise by even" in said
    assert "even: met" in said
    assert "poor: broken" in said
    assert "best for helpful=1 harmless=1: even, in 100% of resamples" in said
    numbers = json.loads(out.read_text())
    assert numbers["points"]["poor"]["beaten_by"] == ["even"]
    assert numbers["hypervolume"]["interval"]["low"] < 7.25 < numbers["hypervolume"]["interval"]["high"]
    html = page.read_text()
    assert "Choices by weight" in html
    assert "https://" not in html.replace("https://plotly", "").split("<script>")[0]


def test_less_can_be_better(tmp_path: Path) -> None:
    file = plant(tmp_path / "points.jsonl")
    account = Tradeoffs(read_points([file], minimise=["harmless"]), bounds={"harmless": 1.0})
    assert account.front == ["blunt"]
    assert account.intervals["blunt"]["harmless"].estimate == pytest.approx(
        Tradeoffs(read_points([file])).intervals["blunt"]["harmless"].estimate
    )
    assert [one.name for one in account.held() if one.met] == ["blunt", "poor"]
    assert any("harmless at most 1, by helpful" in line for line in account.bound_lines())


def test_three_trainings_make_claims_about_new_ones(tmp_path: Path) -> None:
    account = Tradeoffs(read_points([plant(tmp_path / "points.jsonl", seeds=3)]))
    assert "3 trainings each, 40 items; intervals hold for new trainings and new items" in account.scope
    assert account.beaten == {"poor": ["even"]}


def test_a_point_of_one_training_does_not_hide_the_others(tmp_path: Path) -> None:
    file = plant(tmp_path / "points.jsonl", seeds=3)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    kept = [row for row in rows if row["point"] != "poor" or row["seed"] == 0]
    file.write_text("".join(json.dumps(row) + "\n" for row in kept))
    account = Tradeoffs(read_points([file]))
    assert "1 to 3 trainings each" in account.scope
    assert account.scope.endswith("for new items, and for new trainings of points with three or more")
    assert account.intervals["kind"]["helpful"].method == "crossed t"
    assert account.intervals["poor"]["helpful"].method != "crossed t"


def test_runs_that_differ_in_their_seed_are_one_point(tmp_path: Path) -> None:
    points = read_points([plant_runs(tmp_path / "runs")])
    assert points.table.names == ("weight=0.2", "weight=0.8")
    assert points.table.values["weight=0.8"].shape == (3, 2, 2)
    assert points.table.of("weight=0.2")[2, 0, 0] == pytest.approx(0.4)
    assert points.settings["weight=0.2"] == {"weight": 0.2}


def test_runs_without_items_bring_their_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = plant_runs(tmp_path / "runs")
    for file in root.glob("*/artifacts/objectives.json"):
        file.unlink()
    line = ["pareto", str(root), "--objectives", "rl/reward", "rl/kl", "--minimise", "rl/kl"]
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "2 points, 3 trainings each, 1 item; intervals hold for new trainings" in said
    assert "rl/kl (less is better) 1.76 [" in said  # mean of the last two steps, over the seeds
    assert main(["pareto", str(root)]) == 2
    assert "has no artifacts/objectives.json; name metrics" in capsys.readouterr().err
    assert main(["pareto", str(root), "--objectives", "rl/reward", "nothing"]) == 2
    assert "has no metric 'nothing', only rl/kl, rl/reward" in capsys.readouterr().err


def test_a_sweep_is_read_from_its_points(tmp_path: Path) -> None:
    rows = [
        {"point": f"rate={rate}", "seed": seed, "item": "all", "settings": {"rate": rate},
         "objectives": {"reward": rate + seed, "kl": rate, "length": 1.0, "ended": 1.0, "entropy": 2.0}}
        for rate in (1.0, 2.0) for seed in range(3)
    ]  # fmt: skip
    (tmp_path / "points.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=r"the points have 5 numbers .*choose the objectives"):
        read_points([tmp_path])
    points = read_points([tmp_path], ["reward", "kl"], ["kl"])
    assert points.table.values["rate=2.0"].shape == (3, 1, 2)
    assert points.seeds["rate=1.0"] == (0, 1, 2)


def test_lines_of_single_items_are_put_together() -> None:
    rows: list[dict[str, Any]] = [
        {"point": name, "item": i, "objectives": {"x": i + shift, "y": 1.0}} for name, shift in (("a", 0), ("b", 1))
        for i in range(3)
    ]  # fmt: skip
    table = point_set(record_of(row, f"line {i}") for i, row in enumerate(rows)).table
    assert table.of("b")[0, :, 0].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no point"),
        ('{"objectives": {"a": [1]}}', "has point None, right is the name of a point"),
        ('{"point": "x", "objectives": {}}', "has objectives {}"),
        ('{"point": "x", "seed": "one", "objectives": {"a": [1]}}', "has seed 'one'"),
        ('{"point": "x", "objectives": {"a": [1, null], "b": [1, 2]}}', "a of item 1 is None"),
        ('{"point": "x", "objectives": {"a": [NaN], "b": [1]}}', "a of item 0 is nan"),
        ('{"point": "x", "items": ["p"], "objectives": {"a": [1, 2]}}', "as many different ids"),
        ('{"point": "x", "objectives": {"a": [1]}}', "at least two"),
        (
            '{"point": "x", "objectives": {"a": [1], "b": [1]}}\n{"point": "x", "objectives": {"a": [2], "b": [1]}}',
            "has a of item 0 from seed 0 twice",
        ),
        (
            '{"point": "x", "objectives": {"a": [1, 2], "b": [1, 2]}}\n{"point": "y", "objectives": '
            '{"a": [2], "b": [1]}}',
            "point 'y' lacks a of item 1",
        ),
        (
            '{"point": "x", "objectives": {"a": [1], "b": [1]}}\n{"point": "y", "objectives": {"a": [2]}}',
            "point 'y' has no b, only a",
        ),
    ],
)
def test_files_that_are_none(text: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "points.jsonl"
    file.write_text(text)
    assert main(["pareto", str(file)]) == 2
    assert sentence in capsys.readouterr().err


def test_commands_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(plant(tmp_path / "points.jsonl"))
    for line, sentence in (
        ([], "points"),
        ([str(tmp_path / "no")], "neither a file of points nor a folder of runs"),
        ([str(tmp_path), "--objectives", "kindness", "helpful"], "unknown objective 'kindness'"),
        ([file, "--reference", "helpful=-1"], "right is one number for each of helpful, harmless"),
        ([file, "--reference", "helpful"], "right is OBJECTIVE=NUMBER"),
        ([file, "--bound", "helpful=0", "harmless=0"], "every objective has a bound"),
        ([file, "--bound", "kind=0"], "objective is 'kind'"),
        ([file, "--weights", "helpful=-1"], "numbers from 0 up"),
        ([file, "--confidence", "2"], "confidence is 2"),
    ):
        assert main(["pareto", *line]) == 2
        assert sentence in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no runs and no points.jsonl"):
        read_points([tmp_path / "empty"])


def test_one_number_a_training_says_that_noise_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "points.jsonl"
    for name, (x, y) in MEANS.items():
        append_point(file, objectives_record(name, {"x": [x], "y": [y]}))
    assert main(["pareto", str(file), "--html", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    assert "nothing says how noisy it is" in said
    assert "hypervolume" not in said
    assert "no point is beaten beyond noise" in said


def test_measuring_a_policy() -> None:
    sampler = ScriptedSampler(lambda prompt: "a" * len(str(prompt)))
    rewards = {"length": lambda p, r: [float(len(text)) for text in r], "vowels": lambda p, r: [1.0] * len(r)}
    values, answers = measure_objectives(sampler, ["xx", "xxx"], rewards, SamplingParams(max_tokens=8))  # type: ignore[arg-type]
    assert values == {"length": [2.0, 3.0], "vowels": [1.0, 1.0]}
    assert answers == [["aa"], ["aaa"]]
    with pytest.raises(DataError, match="objectives of different lengths"):
        objectives_record("x", {"a": [1.0], "b": [1.0, 2.0]})
