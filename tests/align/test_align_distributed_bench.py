"""bench/distributed_ppo.py in two CPU processes on a random model of a few thousand weights, in two goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_experiment_ends_in_a_table(tmp_path: Path) -> None:
    model, out = str(tiny_run.build_model(tmp_path / "model")), tmp_path / "out"
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, str(ROOT / "bench" / "distributed_ppo.py"), "--model", model, "--out", str(out)]

    def bench(*flags: str) -> str:
        done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=500, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    said = bench("--steps", "3", "--seeds", "3")
    assert "PPO in 2 processes (fsdp) against one, 3 seeds each" in said
    assert "weak scaling (2 times the batch)" in said
    found = json.loads((out / "distributed_ppo.json").read_text())
    assert found["reward, whole run"]["n"] == 3
    assert found["strong speed-up"] > 0
    first = json.loads((out / "shared-0.json").read_text())["history"][0]
    alone = json.loads((out / "alone-0.json").read_text())["history"][0]
    assert first.keys() == alone.keys()
    (out / "alone-2.json").unlink()  # as if it had been interrupted there
    assert "ready" in bench("--steps", "3", "--seeds", "3")
    again = json.loads((out / "distributed_ppo.json").read_text())
    assert again["reward, whole run"] == found["reward, whole run"]  # what was missing came out the same
    assert "3 seeds each" in bench("--part", "table")
    other = subprocess.run([*command, "--steps", "4"], capture_output=True, text=True, timeout=100, env=environment)
    assert "holds an experiment with other settings" in other.stderr
