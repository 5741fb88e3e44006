"""The pipeline under kill -9: whatever the moments, what comes out equals what an undisturbed run gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run

from alignlab.core.files import user_dir

SCRIPT = Path(__file__).with_name("tiny_run.py")


def killed_run(folder: Path, kills: int, seed: int) -> str:
    """Make folder/whole and folder/killed; returns what the program printed."""
    model = tiny_run.build_model(folder / "model")
    (folder / "home").mkdir()
    (folder / "home" / "kernels").symlink_to(user_dir("kernels"))  # compiled once for all tests
    done = subprocess.run(
        [sys.executable, SCRIPT, "crash", model, folder, str(kills), str(seed)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ALIGNLAB_HOME": str(folder / "home")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def assert_equal_results(folder: Path) -> None:
    whole, killed = tiny_run.results(folder / "whole"), tiny_run.results(folder / "killed")
    assert whole.keys() == killed.keys()
    assert [name for name in whole if whole[name] != killed[name]] == []
    # What the comparison rests on is there: preferences, losses of every training, numbers of every stage.
    assert whole["artifacts/preferences.jsonl"]
    logged = {key for row in whole["metrics"] for key in row}
    assert {"supervised/loss", "preference_model/loss", "ppo/reward", "ppo/policy_loss"} <= logged
    assert {"stage baseline", "stage sl-cai", "stage rl-cai", "stage export"} <= whole.keys()


@pytest.mark.slow  # fast beside it: a failed stage made good, PPO killed and resumed, runs and trainings under kill -9
def test_three_kills_leave_no_trace(tmp_path: Path) -> None:
    assert int(killed_run(tmp_path, 3, seed=4).split()[1].rstrip(":")) >= 2
    assert_equal_results(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_ten_kills_leave_no_trace(tmp_path: Path, seed: int) -> None:
    said = killed_run(tmp_path, 10, seed)
    # Two moments that fall close together may both pass in one attempt; then there is one kill less.
    count = int(said.split()[1].rstrip(":"))
    assert count >= 8, said
    attempts = [record.attempts for record in tiny_run.Run.read(tmp_path / "killed").stages().values()]
    assert sum(attempts) >= len(attempts) + 5, "most kills fall into the middle of a stage"
    assert_equal_results(tmp_path)
