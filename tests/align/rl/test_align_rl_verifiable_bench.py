"""bench/verifiable_reward.py end to end on a random model of a few thousand weights, in parts and interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_run
import verifiable_reward

from alignlab.core.errors import ConfigError

ROOT = Path(__file__).parents[3]
WORDS = ["--gsm8k", "6", "--gsm8k-held", "4", "--gsm8k-tokens", "8", "--gsm8k-batch", "16"]


@pytest.mark.slow
def test_the_experiment_in_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = verifiable_reward
    model, out = str(tiny_run.build_model(tmp_path / "model")), tmp_path / "out"
    flags = ["--model", model, "--out", str(out), "--dtype", "float32", *WORDS]
    (out / "jobs").mkdir(parents=True)
    options = bench.arguments(flags)
    jobs = bench.planned(["sums", "gsm8k"], options)
    assert len(jobs) == 2 * (1 + 2 * 3) + 1
    assert jobs["gsm8k-ppo-0"] == "gsm8k-warm"
    for name in jobs:  # in this process, which is quicker than one for each
        bench.run_job(name, options)
    bench.main([*flags, "--part", "table"])
    results = json.loads((out / "results.json").read_text())
    assert set(results["jobs"]) == set(jobs)
    assert set(results["compared"]["gsm8k"]) == {
        "ppo, greedy", "ppo, sampled", "grpo, greedy", "grpo, sampled", "grpo against ppo, greedy",
    }  # fmt: skip
    assert results["jobs"]["gsm8k-ppo-1"]["task"] == "word problems"  # no file was given, and the table says so
    assert results["compared"]["sums"]["ppo, greedy"]["seeds"] == 3
    table = (out / "table.txt").read_text()
    assert "grpo seed 2: 2 steps" in table
    assert "word problems: 6 questions to learn from, 4 held out" in table

    # A measurement that was lost is made again, by a process, from the training's last checkpoint.
    first = json.loads((out / "jobs" / "sums-grpo-1.json").read_text())
    (out / "jobs" / "sums-grpo-1.json").unlink()
    assert bench.main([*flags, "--part", "arithmetic"]) == 0
    again = json.loads((out / "jobs" / "sums-grpo-1.json").read_text())
    assert {name: again[name] for name in ("greedy", "sampled", "steps")} == {
        name: first[name] for name in ("greedy", "sampled", "steps")
    }
    with pytest.raises(ConfigError, match="other settings"):
        bench.main([*flags, "--rank", "4"])
    capsys.readouterr()

    # What fails is named with its reason, and nobody waits for it.
    (out / "jobs" / "gsm8k-warm.json").unlink()
    (out / "settings.json").unlink()
    lost = ["--gsm8k-train", "no.jsonl", "--gsm8k-test", "no.jsonl"]
    (out / "jobs" / "gsm8k-ppo-0.json").unlink()
    assert bench.main([*flags, *lost, "--part", "gsm8k"]) == 1
    said = capsys.readouterr().out
    assert "gsm8k-warm failed" in said
    assert "no.jsonl" in said
    assert "gsm8k-ppo-0 failed: what it needs failed" in said


def test_the_settings_of_the_gpu_run() -> None:
    bench = verifiable_reward
    with pytest.raises(ConfigError, match="go together"):
        bench.arguments(["--gsm8k-train", "a"])
    options = bench.arguments(["--device", "cuda"])
    assert (options.sums_held, options.gsm8k, options.gsm8k_held, options.seeds) == (600, None, None, 3)
    settings = bench.shared_settings("gsm8k", bench.word_task(4, 2), options)
    assert settings["minibatch_size"] == options.gsm8k_batch // 2
    assert settings["max_mismatch"] == 0.3
