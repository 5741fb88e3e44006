"""Interrupted and resumed training is bit for bit the uninterrupted one, under every option that has state."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import exact_resume as tiny
import pytest
import torch

from alignlab.train.checkpoint import list_checkpoints
from alignlab.train.trainer import Batch

PROGRAM = Path(__file__).parent / "exact_resume.py"


class Killed(BaseException):
    """Stands for the death of the process."""


def assert_same_end(a: Path, b: Path) -> None:
    for name in tiny.FILES:
        assert (list_checkpoints(a)[-1] / name).read_bytes() == (list_checkpoints(b)[-1] / name).read_bytes(), name


@pytest.mark.parametrize(
    ("name", "deaths"),
    [("everything", 8), *(pytest.param(name, 20, marks=pytest.mark.slow) for name in tiny.OPTIONS)],
)
def test_killed_at_random_points(tmp_path: Path, name: str, deaths: int) -> None:
    config = tiny.settings(name)
    straight, expected = tiny.train(name, tmp_path / "straight")
    draw = random.Random(name)
    batches, asked = tiny.batch_at(config), 0
    # One training dies at random requests for a batch, each counted from the last death.
    for _ in range(deaths):
        left = draw.randrange(1, 10 * config.accumulate)

        def dying(i: int) -> Batch:
            nonlocal left, asked
            asked += 1
            left -= 1
            if left < 0:
                raise Killed
            return batches(i)  # type: ignore[no-any-return]

        try:
            tiny.train(name, tmp_path / "killed", dying)
            break
        except Killed:
            pass
    resumed, result = tiny.train(name, tmp_path / "killed")
    assert asked > 0
    assert result == expected
    for key, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert_same_end(tmp_path / "straight", tmp_path / "killed")
    state = json.loads((list_checkpoints(tmp_path / "killed")[-1] / "state.json").read_text())
    assert state["skipped"] == ([21] if config.spike_factor else [])
    if config.accumulate > 1:
        assert "noise_scale/variance" in result.history[-1]
        measured = [row["step"] for row in result.history if "layers/blocks.0/activation_rms" in row]
        assert measured == [5, 10, 15, 20, 25, 30]  # also where the checkpoint was of the update before


@pytest.mark.parametrize("death", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1, 2, 4, 5))])
def test_killed_while_a_checkpoint_is_written(tmp_path: Path, death: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import alignlab.train.checkpoint as files

    tiny.train("everything", tmp_path / "straight")
    calls, real = 0, files.sha256_file

    def dying(path: Path) -> str:
        nonlocal calls
        calls += 1
        if calls == 1 + 5 * death:
            raise Killed
        return str(real(path))

    monkeypatch.setattr(files, "sha256_file", dying)
    with pytest.raises(Killed):
        tiny.train("everything", tmp_path / "killed")
    monkeypatch.setattr(files, "sha256_file", real)
    tiny.train("everything", tmp_path / "killed")
    assert_same_end(tmp_path / "straight", tmp_path / "killed")


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    straight = tmp_path / "straight"
    tiny.train("everything", straight)
    draw, kills, trainings = random.Random(9), 0, [tmp_path / "killed0"]
    while kills < 20:
        command = [sys.executable, str(PROGRAM), "everything", str(trainings[-1]), "0.01"]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "training\n"
        try:
            process.wait(timeout=draw.uniform(0.0, 0.5))  # within some steps, or while a checkpoint is written
            trainings.append(tmp_path / f"killed{len(trainings)}")  # over before its time: kill another one
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            kills += 1
        process.stdout.close()
    for directory in trainings:
        tiny.train("everything", directory)
        assert_same_end(straight, directory)
