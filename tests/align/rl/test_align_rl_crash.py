"""RL under kill -9: whatever the moments, the policy that comes out is the undisturbed run's, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow  # fast beside it: every method interrupted once and resumed
@pytest.mark.parametrize("method", ["ppo", "grpo", "rloo", "reinforce", "lagrangian"])
def test_ten_kills_leave_no_trace(tmp_path: Path, method: str) -> None:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("tiny_rl.py"), method, tmp_path, "10", "1"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # A killed run that is done sooner than its moment is not killed any more.
    assert int(done.stdout.split()[0]) >= 6, done.stdout
    assert done.stdout.count("True") == 3, done.stdout
