"""bench/helpful_harmless.py end to end on a random model of a few thousand weights, in parts and interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import helpful_harmless
import pytest
import tiny_run

from alignlab.align.reward.examples import RewardPair
from alignlab.core.errors import ConfigError

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_the_experiment_in_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = helpful_harmless
    model, out = str(tiny_run.build_model(tmp_path / "model")), tmp_path / "out"
    flags = ["--model", model, "--out", str(out), "--dtype", "float32", "--weights", "0", "1", "--bounds", "-5"]
    (out / "jobs").mkdir(parents=True)
    options = bench.arguments(flags)
    jobs = bench.planned(options)
    assert jobs == ["weight 0, 0", "weight 1, 0", "bound -5, 0", "strict order, 0", "untrained, 0"]
    for name in ["rewards", *jobs]:  # in this process, which is quicker than one for each
        bench.run_job(name, options)
    parts, _ = bench.comparisons(bench.load(options.model, dtype="float32"), options)
    dialogues = [{bench.dialogue_of(pair.prompt) for pair in part} for part in parts]
    assert all(len(dialogues[i]) > 1 and not dialogues[i] & dialogues[i - 1] for i in range(3))
    asked = json.loads((out / "prompts.json").read_text())
    for part, name in ((1, "learn"), (2, "held")):
        assert {bench.dialogue_of(prompt) for prompt in asked[name]} <= dialogues[part]
    bench.main([*flags, "--part", "table"])
    results = json.loads((out / "results.json").read_text())
    assert [job["point"] for job in results["jobs"]] == [name.rpartition(", ")[0] for name in jobs]
    assert results["rewards"]["pairs"] == {"helpful": 24, "harmless": 24}
    assert results["held"]["bound -5"][0]["met"]
    assert set(results["held"]["bound -5"][0]["against"]) == {"weight 0", "weight 1"}
    table = (out / "table.txt").read_text()
    assert "5 points, 1 training each, 6 items; intervals hold for new items, not for new trainings" in table
    assert "made from the same texts" in table
    assert "bound -5, seed 0: 2 steps" in table
    assert (out / "tradeoffs.html").stat().st_size > 1e6
    assert len((out / "points.jsonl").read_text().splitlines()) == 5

    # A measurement that was lost is made again, by a process, from the training's last checkpoint.
    lost = out / "jobs" / "bound--5-0.json"
    first = json.loads(lost.read_text())
    lost.unlink()
    assert bench.main([*flags, "--part", "points"]) == 0
    assert json.loads(lost.read_text())["values"] == first["values"]
    with pytest.raises(ConfigError, match="other settings"):
        bench.main([*flags, "--rank", "4"])
    capsys.readouterr()

    # What fails is named with its reason.
    (out / "jobs" / "rewards.json").unlink()
    (out / "settings.json").unlink()
    assert bench.main([*flags, "--data", "no.jsonl", "--part", "rewards"]) == 1
    said = capsys.readouterr().out
    assert "rewards failed" in said
    assert "no.jsonl is no file" in said


def test_answers_of_other_dialogues_are_of_the_same_length_and_part() -> None:
    bench = helpful_harmless
    pairs = [RewardPair(f"prompt {i}", "a" * (i + 40) + str(i), "b" * (i + 40) + str(i)) for i in range(60)]
    made = bench.own_answers(pairs, 0)
    assert len(made) == 60
    owner = {side: pair.prompt for pair in pairs for side in (pair.chosen, pair.rejected)}
    assert all(owner[pair.chosen] == pair.prompt != owner[pair.rejected] for pair in made)
    assert max(abs(len(pair.chosen) - len(pair.rejected)) for pair in made) <= 22
    assert {pair.objective for pair in made} == {"helpful"}


def test_the_settings_of_the_gpu_run() -> None:
    bench = helpful_harmless
    with pytest.raises(ConfigError, match="numbers from 0 to 1"):
        bench.arguments(["--weights", "2"])
    options = bench.arguments(["--device", "cuda"])
    assert (options.steps, options.groups, options.group) == (28, 16, 8)
    assert len(bench.combinations(options)) == 8
