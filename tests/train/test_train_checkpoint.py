"""Checkpoints that are damaged, of another model, or cannot be written."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from alignlab.core.errors import TrainingError
from alignlab.train.checkpoint import Checkpoint, list_checkpoints, read_checkpoint, write_checkpoint
from alignlab.train.config import TrainConfig
from alignlab.train.resume import first_difference
from alignlab.train.trainer import Batch, Metrics, Trainer

CONFIG = TrainConfig(steps=4, checkpoint_every=1, schedule="constant")


@dataclass(frozen=True)
class NetConfig:
    width: int = 3
    activation: str = "relu"


class Net(nn.Module):
    def __init__(self, config: NetConfig | None = None, frozen: float = 0.5) -> None:
        super().__init__()
        self.config = config or NetConfig()
        self.frozen = nn.Parameter(torch.full((self.config.width,), frozen), requires_grad=False)
        self.weight = nn.Parameter(torch.ones(2, self.config.width))


def loss_fn(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
    return ((model.weight * model.frozen).sum() - batch["y"]).square(), {}  # type: ignore[operator, union-attr]


def fit(directory: Path, model: nn.Module | None = None, config: TrainConfig = CONFIG) -> nn.Module:
    model = model or Net()
    Trainer(model, loss_fn, config, checkpoint_dir=directory).fit(lambda i: {"y": torch.tensor(float(i))})
    return model


def checkpoint(step: int, n: int = 4) -> Checkpoint:
    return Checkpoint(step, {"w": torch.arange(float(n))}, {"step.w": torch.tensor(1.0)}, {"history": []})


def test_round_trip_and_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        write_checkpoint(tmp_path, checkpoint(step))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000002", "step_00000010"]
    got = read_checkpoint(tmp_path / "step_00000010")
    assert got.step == 10
    assert torch.equal(got.weights["w"], torch.arange(4.0))
    assert got.state == {"history": []}
    assert subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "step_00000010", check=True, text=True,
                          capture_output=True).stdout.count("OK") == 3  # fmt: skip


def test_views_of_one_storage_are_saved_apart(tmp_path: Path) -> None:
    both = torch.arange(6.0)
    write_checkpoint(tmp_path, Checkpoint(1, {"a": both[:3], "b": both[3:]}, {}, {}))
    assert torch.equal(read_checkpoint(tmp_path / "step_00000001").weights["b"], torch.tensor([3.0, 4.0, 5.0]))


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "garbage"])
def test_damage_is_refused_and_the_previous_one_remains(tmp_path: Path, name: str, damage: str) -> None:
    fit(tmp_path)
    path = tmp_path / "step_00000004" / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes({"truncate": content[: len(content) // 2], "garbage": b"\xff\x00" * 40}.get(damage, content))
    if damage == "delete":
        path.unlink()
    with pytest.raises(TrainingError, match=r"step_00000004 is damaged: .*; delete it to go on from step 3") as caught:
        fit(tmp_path)
    assert "\n" not in str(caught.value)
    assert read_checkpoint(tmp_path / "step_00000003").step == 3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Net(NetConfig(width=4)), "config.width is 3 there and 4 here"),
        (Net(NetConfig(activation="gelu")), "config.activation is relu there and gelu here"),
        (Net(frozen=0.25), "frozen weights is "),
        (nn.Linear(2, 2), "class is Net there and Linear here"),
        (Net().double(), "trainable.weight is float32.2, 3. there and float64.2, 3. here"),
    ],
)
def test_another_models_checkpoint_is_refused(tmp_path: Path, model: nn.Module, message: str) -> None:
    fit(tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TrainingError, match=f"step_00000004 is of another model: {message}"):
        fit(tmp_path, model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_configuration_is_refused_but_intervals_may_change(tmp_path: Path) -> None:
    fit(tmp_path)
    with pytest.raises(TrainingError, match=r"another training configuration: learning_rate is 0.0001 there and 0.1"):
        fit(tmp_path, config=replace(CONFIG, learning_rate=0.1))
    fit(tmp_path, config=replace(CONFIG, checkpoint_every=3, log_every=2))


def test_first_difference_sees_missing_and_extra_keys() -> None:
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}) == "a.c is absent there and 2 here"
    assert first_difference({"a": {"b": 1}, "d": 3}, {"a": {"b": 1}}) == "d is 3 there and absent here"


FULL_DISK = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1])
import test_train_checkpoint as t
directory = t.Path(sys.argv[2])
t.write_checkpoint(directory, t.checkpoint(1))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), -1))
try:
    t.write_checkpoint(directory, t.checkpoint(2, n=100_000))
except t.TrainingError as error:
    print(error)
"""


def test_no_room_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(Path(__file__).parent), str(tmp_path), "20000"]
    said = subprocess.run(command, check=True, text=True, capture_output=True).stdout
    assert said.strip().endswith("step_00000002: File too large; the checkpoint of step 1 is intact")
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert read_checkpoint(tmp_path / "step_00000001").step == 1


def test_full_disk_while_the_json_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, checkpoint(1))

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(TrainingError, match="step_00000002: No space left on device; the checkpoint of step 1 is int"):
        write_checkpoint(tmp_path, checkpoint(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".writing_step_00000007").mkdir(parents=True)
    (tmp_path / ".writing_step_00000007" / "weights.safetensors").write_bytes(b"half")
    assert list_checkpoints(tmp_path) == []
    write_checkpoint(tmp_path, checkpoint(8))
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000008"]


def test_nothing_is_pickled(tmp_path: Path) -> None:
    fit(tmp_path)
    files = sorted(path.name for path in (tmp_path / "step_00000004").iterdir())
    assert files == ["SHA256SUMS", "optimizer.safetensors", "state.json", "weights.safetensors"]
    state = json.loads((tmp_path / "step_00000004" / "state.json").read_text())
    assert state["config"]["steps"] == 4
    assert state["model"]["config"] == {"width": 3, "activation": "relu"}
