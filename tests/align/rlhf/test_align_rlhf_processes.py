"""`alignlab rlhf` under torchrun: one process has the run, all of them train the policy, and it is the same policy."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest
import safetensors.torch
import torch

from alignlab.align.rlhf.config import RLHFConfig
from alignlab.align.rlhf.models import RLHFModels, assist
from alignlab.core.config import save_yaml
from alignlab.core.errors import RunError
from alignlab.core.progress import Progress
from alignlab.core.runs import Run
from alignlab.train.parallel import Parallel


def start(config: RLHFConfig, folder: Path, seconds: float = 300) -> list[tuple[int, str]]:
    """Exit code and output of the command's two processes, with the environment that torchrun gives them."""
    save_yaml(config, folder / "recipe.yaml")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "alignlab", "rlhf", "--config", str(folder / "recipe.yaml"), "--run"]
    with ExitStack() as stack:
        processes = []
        for rank in range(2):
            numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ALIGNLAB_HOME": str(folder / "home")}
            log = stack.enter_context(open(folder / f"output-{rank}.txt", "w+"))
            process = subprocess.Popen(
                [*command, str(folder / "run")], env=os.environ | numbers | place, stdout=log, stderr=log
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        codes = [process.wait(timeout=seconds) for process in processes]
    return [(code, (folder / f"output-{rank}.txt").read_text()) for rank, code in enumerate(codes)]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_two_processes_end_with_the_policy_of_one(
    tiny: ModuleType, model: Path, pairs: Path, tmp_path: Path, method: str
) -> None:
    config = tiny.tiny_config(model, pairs, method=method)
    alone = tiny.run_pipeline(config, tmp_path / "alone")
    for code, said in start(config, tmp_path):
        assert code == 0, said
    shared = Run.read(tmp_path / "run")
    assert shared.state == "finished"
    assert list(shared.stages()) == list(alone.stages())
    policies = [
        safetensors.torch.load_file(run.path / "artifacts" / "adapter-rl" / "adapter_model.safetensors")
        for run in (alone, shared)
    ]
    assert policies[0].keys() == policies[1].keys()
    for name, weights in policies[0].items():
        torch.testing.assert_close(weights, policies[1][name], rtol=1e-3, atol=1e-6)
    assert (tmp_path / "output-1.txt").read_text().strip() == ""  # one process speaks

    # The finished run is shown again, and nobody waits for anybody.
    for code, said in start(config, tmp_path):
        assert code == 0, said
    assert "already done" in (tmp_path / "output-0.txt").read_text()


@pytest.mark.slow
def test_what_is_wrong_ends_every_process(tiny: ModuleType, model: Path, rewards: Path, tmp_path: Path) -> None:
    """A reward that raises in training is named by both: rank 1 waited for its answer."""
    asked = tmp_path / "asked.txt"
    asked.write_text("\n".join(f"question {i}" for i in range(20)))
    config = tiny.tiny_config(model, None, prompts=asked, reward=(f"{rewards}:broken",))
    for code, said in start(config, tmp_path):
        assert code != 0
        assert "reward broken raised KeyError" in said


def test_the_other_processes_have_nothing_to_do_where_the_policy_is_there(tiny: ModuleType, model: Path) -> None:
    class Told(Parallel):
        rank, world = 1, 2

        def broadcast(self, value: object) -> None:  # type: ignore[override]
            return None

    assert assist(tiny.tiny_config(model, None), Told()) is None


@pytest.mark.slow
def test_an_error_before_the_training_ends_every_process(tiny: ModuleType, model: Path, tmp_path: Path) -> None:
    config = tiny.tiny_config(model, tmp_path / "no-such-file.jsonl")
    (first, said), (second, other) = start(config, tmp_path)
    assert first != 0
    assert "no-such-file.jsonl is no file" in said
    assert second != 0
    assert other.startswith("alignlab: the process that has the run ended")


def test_a_run_that_has_not_begun_has_no_models(tiny: ModuleType, model: Path, tmp_path: Path) -> None:
    config = tiny.tiny_config(model, None)
    Run.create(config, name="rlhf", path=tmp_path / "run").close()
    with pytest.raises(RunError, match="has not begun"):
        RLHFModels(config, Run.read(tmp_path / "run"), Progress.silent())
