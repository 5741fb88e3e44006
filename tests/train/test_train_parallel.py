"""Two processes (gloo) do what one does: curves, checkpoints at another world size, synchronisation, bad input.

The processes are started once and do everything in one go (tests/train/parallel_worker.py); the tests read what they
wrote down.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import parallel_worker as worker
import pytest
import torch

from alignlab.core.errors import TrainingError
from alignlab.train.ema import ema_weights, read_average
from alignlab.train.fsdp import repeated_blocks
from alignlab.train.parallel import Parallel

WORKER = Path(__file__).with_name("parallel_worker.py")
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(scenario: str, directory: Path, ranks: int = 2) -> list[dict[str, Any]]:
    """What each rank wrote down. When one fails, the others are not waited for."""
    port = str(free_port())
    with ExitStack() as stack:
        processes = []
        for rank in range(ranks):
            numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
            environment = os.environ | numbers | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            command = [sys.executable, str(WORKER), scenario, str(directory)]
            log = stack.enter_context(open(directory / f"output-{rank}.txt", "w+"))
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        while any(process.poll() is None for process in processes) and not any(process.poll() for process in processes):
            time.sleep(0.05)
    said = "\n".join((directory / f"output-{rank}.txt").read_text() for rank in range(ranks))
    assert [process.returncode for process in processes] == [0] * ranks, said
    return [json.loads((directory / f"result-{rank}.json").read_text()) for rank in range(ranks)]


def assert_same_curve(got: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert [row.keys() for row in got] == [row.keys() for row in expected]
    for one, other in zip(got, expected, strict=True):
        for key in other:
            assert one[key] == pytest.approx(other[key], abs=1e-5), (key, one, other)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture(scope="module")
def reference(directory: Path) -> list[dict[str, float]]:
    """The curve of one process, with a checkpoint of its own half-way."""
    worker.train(Parallel(), save_to=directory / "single", steps=worker.SAVED_AT)
    history: list[dict[str, float]] = worker.train(Parallel())
    return history


@pytest.fixture(scope="module")
def results(directory: Path, reference: list[dict[str, float]]) -> list[dict[str, Any]]:
    return start("both", directory)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_give_the_curve_of_one(
    kind: str, results: list[dict[str, Any]], reference: list[dict[str, float]]
) -> None:
    for rank in results:
        assert_same_curve(rank[kind][: worker.SAVED_AT], reference[: worker.SAVED_AT])
    # The case means something: the ranks learn from very different numbers of tokens, and clipping acts.
    assert reference[0]["grad_norm"] > worker.CLIP
    assert reference[0]["loss"] - reference[-2]["loss"] > 0.1


@pytest.mark.parametrize(
    "how",
    ["ddp resumed", "fsdp resumed", "fsdp from ddp", "ddp from fsdp", "ddp from single", "fsdp from single"],
)
def test_a_checkpoint_continues_the_curve_under_every_kind(
    how: str, results: list[dict[str, Any]], reference: list[dict[str, float]]
) -> None:
    for rank in results:
        assert_same_curve(rank[how], reference)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_one_process_continues_what_two_saved(
    kind: str, directory: Path, results: list[dict[str, Any]], reference: list[dict[str, float]]
) -> None:
    assert_same_curve(worker.train(Parallel(), directory / kind), reference)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_averaged_weights_are_read_from_what_two_saved(
    kind: str, directory: Path, results: list[dict[str, Any]], tmp_path: Path
) -> None:
    worker.through_trainer(Parallel(), "adamw", tmp_path)
    expected, found = read_average(tmp_path), read_average(directory / f"{kind} average")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=0)
    norms = sum(float(tensor.norm()) for tensor in found.values())
    assert results[0][f"{kind} average"] == pytest.approx(norms, rel=1e-6)
    model = worker.GPTModel(worker.CONFIG)
    with ema_weights(model, directory / f"{kind} average" / "step_00000004"):
        assert torch.equal(model.embed.weight, found["embed.weight"])


def test_a_checkpoint_of_two_without_an_average_or_with_damage_is_refused(
    directory: Path, results: list[dict[str, Any]]
) -> None:
    with pytest.raises(TrainingError, match="step_00000003 has no averaged weights; train with ema_decay above 0"):
        read_average(directory / "fsdp")
    with pytest.raises(TrainingError, match=r"step_00000006 is damaged: .*shard-00002"):
        read_average(directory / "kept")


def test_gradients_meet_once_an_update(results: list[dict[str, Any]]) -> None:
    for rank in results:
        assert rank["ddp synchronisations"] == worker.SAVED_AT  # the model fits into one bucket
        assert rank["fsdp synchronisations"] == worker.SAVED_AT * (worker.CONFIG.n_layers + 1)


def test_ranks_know_each_other(results: list[dict[str, Any]]) -> None:
    for rank in results:
        assert rank["ddp ranks"] == [[0, 2, True], [1, 2, False]]
        assert rank["told"] == "from 0"


def test_each_rank_logs_its_own_part(directory: Path, results: list[dict[str, Any]]) -> None:
    rows = [json.loads(line) for line in (directory / "metrics-rank-1.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows[: worker.SAVED_AT]] == [1, 2, 3]
    batches = [worker.batch_at(i)["loss_mask"][2:, 1:] for i in range(worker.ACCUMULATE)]
    assert rows[0]["tokens"] == sum(int(mask.sum()) for mask in batches)
    assert not (directory / "metrics-rank-0.jsonl").exists()


def test_the_newest_two_checkpoints_are_kept(results: list[dict[str, Any]]) -> None:
    assert results[0]["kept"] == ["step_00000005", "step_00000006"]


def test_a_damaged_shard_is_named_on_every_rank(results: list[dict[str, Any]]) -> None:
    for rank in results:
        assert rank["damaged"].startswith("TrainingError: checkpoint ")
        assert "shard-00002" in rank["damaged"]
        assert "delete it to go on from step_00000005" in rank["damaged"]


def test_a_place_that_cannot_be_written_stops_every_rank(results: list[dict[str, Any]]) -> None:
    for rank in results:
        assert rank["unwritable"].startswith("TrainingError: cannot write checkpoint ")
        assert rank["unwritable"].endswith("(rank 0); there is no earlier checkpoint")


def test_a_world_size_that_does_not_divide_the_batch_is_refused(results: list[dict[str, Any]]) -> None:
    for rank in results:
        assert rank["rows"] == (
            "ConfigError: 2 processes cannot share a batch of 3 rows evenly; start 1, 3 of them, "
            "or take a batch size that 2 divides"
        )


def test_a_checkpoint_of_another_model_changes_nothing(directory: Path, results: list[dict[str, Any]]) -> None:
    model = torch.nn.Linear(2, 2)
    before = model.weight.detach().clone()
    with pytest.raises(TrainingError, match=r"of another model: .* absent there"):
        Parallel().load(directory / "fsdp", model, torch.optim.AdamW(model.parameters()))
    assert torch.equal(model.weight, before)


def test_what_check_refuses_is_not_loaded(directory: Path, results: list[dict[str, Any]]) -> None:
    def check(extra: dict[str, Any], where: str) -> None:
        raise TrainingError(f"{where} has {len(extra['history'])} rows")

    model = torch.nn.Linear(2, 2)
    with pytest.raises(TrainingError, match=r"step_00000003 has 3 rows"):
        Parallel().load(directory / "ddp", model, torch.optim.AdamW(model.parameters()), check=check)


@pytest.mark.slow
def test_the_trainer_gives_the_curve_of_one_process_and_goes_on_after_an_interruption(tmp_path: Path) -> None:
    expected = {optimizer: worker.through_trainer(Parallel(), optimizer) for optimizer in ("adamw", "muon")}
    assert {"loss", "validation", "ema_validation", "grad_norm"} <= expected["adamw"][-1].keys()
    for rank in start("trainer", tmp_path):
        for kind in ("ddp", "fsdp"):
            assert_same_curve(rank[f"{kind} continued"], expected["adamw"])
            for optimizer, curve in expected.items():
                assert_same_curve(rank[f"{kind} {optimizer}"], curve)
                assert_same_curve(rank[f"{kind} {optimizer} read late"], curve)


# One process


def test_alone_everything_is_the_identity(tmp_path: Path) -> None:
    alone = Parallel()
    assert alone.mean({"loss": 2.0, "tokens": 5.0}, 5.0) == ({"loss": 2.0, "tokens": 5.0}, 5.0)
    batch = {"tokens": torch.arange(3)}
    assert torch.equal(alone.rows(batch)["tokens"], batch["tokens"])
    assert (alone.broadcast("x"), alone.collect("x"), alone.is_main) == ("x", ["x"], True)
    alone.open_log(tmp_path)
    alone.log_local(1, {"loss": 1.0})
    alone.barrier()
    alone.close()
    assert list(tmp_path.iterdir()) == []


def test_optimiser_state_and_other_tensors_survive_in_one_process(tmp_path: Path) -> None:
    reference = worker.train(Parallel())
    worker.train(Parallel(), save_to=tmp_path, steps=worker.SAVED_AT)
    assert worker.train(Parallel(), tmp_path) == reference  # bit for bit


def test_blocks_are_found_wherever_a_list_holds_them() -> None:
    model = torch.nn.ModuleDict({"inner": torch.nn.ModuleDict({"blocks": torch.nn.ModuleList()})})
    blocks = [torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)]
    model["inner"]["blocks"].extend([*blocks, torch.nn.ReLU()])  # type: ignore[index, operator]
    assert repeated_blocks(model) == blocks


# Losing a rank


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_killed_rank_restarts_all_and_the_curve_is_unbroken(kind: str, tmp_path: Path) -> None:
    place = tmp_path / kind
    place.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES} | {"OMP_NUM_THREADS": "1"}
    with (
        open(tmp_path / "output.txt", "w+") as log,
        subprocess.Popen(
            [*torchrun, str(WORKER), "lost_rank", str(place)], env=environment, stdout=log, stderr=log
        ) as run,
    ):
        try:
            assert run.wait(timeout=180) == 0, (tmp_path / "output.txt").read_text()
        finally:
            run.terminate()  # takes its workers along
    expected = worker.train(Parallel(), steps=8)
    for rank in range(2):
        result = json.loads((place / f"result-{rank}.json").read_text())
        assert result["restarts"] == 1
        assert_same_curve(result["history"], expected)
