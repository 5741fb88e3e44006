"""How several processes find each other, and what is said when they cannot."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from alignlab.core.errors import ConfigError, RunError, TrainingError
from alignlab.train.fsdp import FullyShardedParallel
from alignlab.train.parallel import Parallel, parallel_from_env
from alignlab.train.process_group import agree_on_start, check_backends

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_torchrun_there_is_one_process(environment: pytest.MonkeyPatch) -> None:
    assert type(parallel_from_env()) is Parallel
    with pytest.raises(ConfigError, match=r"'fsdp' needs several processes; start it with torchrun"):
        parallel_from_env("fsdp")
    with pytest.raises(ConfigError, match=r"parallel is 'zero'"):
        parallel_from_env("zero")  # type: ignore[arg-type]


def test_half_set_variables_are_named(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("RANK", "0")
    environment.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"RANK, WORLD_SIZE set but LOCAL_RANK, MASTER_ADDR, MASTER_PORT not"):
        parallel_from_env()


@pytest.mark.parametrize(
    ("rank", "message"), [("2", r"RANK is 2 and WORLD_SIZE 2; ranks go from 0"), ("first", r"RANK is 'first'")]
)
def test_variables_that_make_no_sense_are_refused(environment: pytest.MonkeyPatch, rank: str, message: str) -> None:
    for name, value in zip(VARIABLES, (rank, "2", "0", "127.0.0.1", "1"), strict=True):
        environment.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        parallel_from_env()


def test_a_rank_that_finds_nobody_says_where_it_looked(environment: pytest.MonkeyPatch) -> None:
    port = str(free_port())
    for name, value in zip(VARIABLES, ("1", "2", "1", "127.0.0.1", port), strict=True):
        environment.setenv(name, value)
    with pytest.raises(RunError, match=rf"rank 1 of 2 cannot join the others at 127\.0\.0\.1:{port}"):
        parallel_from_env("ddp", timeout_seconds=1)


def test_a_missing_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    check_backends("cpu")
    with pytest.raises(ConfigError, match=r"no nccl backend"):
        check_backends("cuda")


def test_each_start_has_a_name_of_its_own_whatever_the_store_remembers() -> None:
    store, starts = dist.HashStore(), []
    for _ in range(3):
        with ThreadPoolExecutor(3) as pool:
            starts.append(set(pool.map(lambda rank: agree_on_start(store, rank, 3, 20.0), (1, 2, 0))))
    assert [len(names) for names in starts] == [1, 1, 1]
    assert len(set.union(*starts)) == 3


def test_a_start_says_who_is_missing() -> None:
    store = dist.HashStore()
    with pytest.raises(RuntimeError, match=r"no word from rank 1, 2 in 0\.1 s"):
        agree_on_start(store, 0, 3, 0.1)
    with pytest.raises(RuntimeError, match=r"no word from rank 0"):
        agree_on_start(store, 2, 3, 0.1)


def test_a_torch_that_cannot_shard_is_named_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(Parallel):
        world = 2

    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    assert Parallel().load(tmp_path, model, optimizer) is None
    monkeypatch.delattr("torch.distributed.checkpoint.HuggingFaceStorageWriter")
    assert Parallel().load(tmp_path, model, optimizer) is None  # one process does without
    with pytest.raises(TrainingError, match=r"sharded checkpoints need torch 2\.9 or newer, this is"):
        Two().load(tmp_path, model, optimizer)
    monkeypatch.delattr("torch.distributed.fsdp.FSDPModule.set_force_sum_reduction_for_comms")
    alone = FullyShardedParallel.__new__(FullyShardedParallel)
    alone.device = torch.device("cpu")
    with pytest.raises(ConfigError, match=r"shards on the CPU need torch 2\.9 or newer, this is"):
        alone.prepare(model, lambda model, batch: (model(batch["x"]).sum(), {}))
