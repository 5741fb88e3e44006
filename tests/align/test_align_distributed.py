"""RL in two processes (gloo) gives the curve of one; checkpoints, errors and deaths of a rank are everybody's.

The processes are started once and do everything in one go (tests/align/distributed_worker.py).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import distributed_worker as worker
import pytest
import torch
from torch import nn

from alignlab.align.rl.rewards import Combined, Guarded
from alignlab.align.shared_work import SharedWork, keeps_account
from alignlab.core.errors import ConfigError, RunError, TrainingError
from alignlab.lm.types import Completion, SamplingParams
from alignlab.train.parallel import Parallel

WORKER = Path(__file__).with_name("distributed_worker.py")


def start(scenario: str, directory: Path, seconds: float = 900) -> list[tuple[int, str]]:
    """Exit code and output of two ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with ExitStack() as stack:
        processes, logs = [], []
        for rank in range(2):
            numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
            environment = os.environ | numbers | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            logs.append(stack.enter_context(open(directory / f"output-{rank}.txt", "w+")))
            command = [sys.executable, str(WORKER), scenario, str(directory)]
            process = subprocess.Popen(command, env=environment, stdout=logs[-1], stderr=logs[-1])
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        codes = [process.wait(timeout=seconds) for process in processes]
    return [(code, (directory / f"output-{rank}.txt").read_text()) for rank, code in enumerate(codes)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def results(directory: Path) -> list[dict[str, Any]]:
    for code, said in start("curves", directory):
        assert code == 0, said
    return [json.loads((directory / f"result-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    return {method: worker.train(method, Parallel()) for method in worker.EVERYTHING}


def assert_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert len(got["history"]) == len(expected["history"]) == worker.STEPS
    for one, other in zip(got["history"], expected["history"], strict=True):
        assert one.keys() == other.keys()
        for key in other:
            assert one[key] == pytest.approx(other[key], abs=1e-5, rel=1e-5), (key, one, other)
    assert got["weights"] == pytest.approx(expected["weights"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", worker.EVERYTHING)
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_give_the_curve_of_one(
    kind: str, method: str, results: list[dict[str, Any]], alone: dict[str, dict[str, Any]]
) -> None:
    """Shares are unequal (7 prompts, groups left out), clipping acts and updates are dropped for going too far."""
    for rank in results:
        assert_same(rank[f"{kind} {method}"], alone[method])
    if method.startswith("ppo"):
        history = alone[method]["history"]
        assert any(row["grad_norm"] > worker.PPO["grad_clip"] for row in history)
        assert method == "ppo" or any(row["updates"] < 4 for row in history)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ppo", "grpo"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_an_interrupted_training_goes_on_in_any_number_of_processes(
    kind: str, method: str, directory: Path, results: list[dict[str, Any]], alone: dict[str, dict[str, Any]]
) -> None:
    for rank in results:
        assert rank[f"{kind} {method} stopped"] == "TrainingError: KeyError: 'stop' (rank 0 of 2)"
        assert_same(rank[f"{kind} {method} continued"], alone[method])
        assert_same(rank["ddp from fsdp"], alone["ppo"])
    if (kind, method) != ("fsdp", "ppo"):  # that one has been continued by two
        assert_same(worker.train(method, Parallel(), directory / f"{kind} {method} alone"), alone[method])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["narrow", "rounded"])
def test_ranks_agree_in_bfloat16(how: str, results: list[dict[str, Any]]) -> None:
    """float32 adapters over frozen bfloat16 weights in one shard; float32 weights under autocast."""
    first, second = (rank[how] for rank in results)
    assert first == second
    assert len(first["history"]) == worker.STEPS


@pytest.mark.slow
def test_a_reward_that_raises_on_one_rank_stops_all_with_its_sentence(results: list[dict[str, Any]]) -> None:
    for rank in results:
        assert "reward raises raised ValueError: no such thing" in rank["raises"]
        assert rank["raises"].endswith("(rank 1 of 2)")


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_with_one_sentence(tmp_path: Path) -> None:
    (left, said), (killed, _) = start("dies", tmp_path, seconds=120)
    assert (left, killed) == (2, -9)
    lines = [line for line in said.splitlines() if line.startswith("alignlab: ")]
    assert len(lines) == 1, said
    assert lines[0].startswith("alignlab: rank 0 of 2 has lost another process after 0 rollout batches: it died")
    assert "Traceback" not in said


# One process


class Several(Parallel):
    """Rank `rank` of `world`, which answers for itself where others would be asked."""

    device = torch.device("cpu")

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def collect(self, value: Any) -> list[Any]:
        return [value] * self.world


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_every_row_is_done_once_and_all_ranks_pass_equally_often(world: int, count: int) -> None:
    rows, lengths = torch.randperm(count + 3)[:count], torch.arange(2, count + 5)
    works = [SharedWork(nn.Linear(1, 1), Several(rank, world)) for rank in range(world)]
    parts = [list(work.parts(rows, lengths, 2)) for work in works]
    assert len({len(part) for part in parts}) == 1
    done = [int(row) for part in parts for chosen, _, weight, _ in part if weight for row in chosen]
    assert sorted(done) == sorted(rows.tolist())
    for part in parts:
        assert [last for *_, last in part] == [False] * (len(part) - 1) + [True]
        assert all(width == int(lengths[chosen].max()) and len(chosen) <= 2 for chosen, width, _, _ in part)
    shares = [range(count)[work.mine(count)] for work in works]
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


class Recorder:
    """A sampler that notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[Any], int]] = []

    def generate(self, prompts: Any, sampling: SamplingParams) -> list[Completion]:
        self.asked.append((list(prompts), sampling.seed))
        return [Completion(str(prompt), (3,), (0.0,), "length") for prompt in prompts]

    def logprobs(self, prompts: Any, completions: Any) -> list[torch.Tensor]:
        raise AssertionError


def test_a_prompt_that_falls_to_two_ranks_is_answered_from_other_streams() -> None:
    asked = []
    for rank in range(2):
        sampler = Recorder()
        SharedWork(nn.Linear(1, 1), Several(rank, 2)).speak(sampler, ["a", "b", "b", "c"], SamplingParams(seed=5))
        SharedWork(nn.Linear(1, 1), Several(rank, 2)).speak(sampler, ["a", "b", "c", "c"], SamplingParams(seed=5))
        asked.append(sampler.asked)
    assert asked[0] == [(["a", "b"], 5), (["a", "b"], 5)]
    assert asked[1][0][0] == ["b", "c"]
    assert asked[1][0][1] != 5
    assert asked[1][1] == (["c", "c"], 5)


def test_an_error_names_its_rank_and_keeps_its_cause() -> None:
    work = SharedWork(nn.Linear(1, 1), Several(1, 2))

    def fails() -> list[int]:
        raise ConfigError("steps is 0,\n allowed: more")

    with pytest.raises(TrainingError, match=r"^steps is 0, allowed: more \(rank 1 of 2\)$"):
        work.joined(fails)
    with pytest.raises(ConfigError):  # alone, errors are what they are
        SharedWork(nn.Linear(1, 1)).joined(fails)


def test_only_a_lost_connection_is_called_one() -> None:
    work = SharedWork(nn.Linear(1, 1), Several(1, 2))
    sentence = r"rank 1 of 2 has lost another process after 3 .*\(\[gloo\] Connection closed"
    with pytest.raises(RunError, match=sentence), work.company(lambda: 3):
        raise RuntimeError("[gloo] Connection closed by peer\nmore")
    with pytest.raises(RuntimeError, match="shape"), work.company(lambda: 3):
        raise RuntimeError("shape mismatch")


def test_rewards_with_a_memory_are_asked_by_one() -> None:
    assert keeps_account(Guarded(Combined({"length": worker.lengths})))
    assert not keeps_account(Guarded(worker.vowels))
