"""Updates as a GPU runs them, numbers read one update late, tried on the CPU: same results, same refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alignlab.core.errors import TrainingError
from alignlab.lm.config import GPTConfig
from alignlab.lm.model import GPTModel
from alignlab.train.checkpoint import list_checkpoints
from alignlab.train.config import TrainConfig
from alignlab.train.language import language_model_loss
from alignlab.train.parallel import Parallel
from alignlab.train.readout import Readout, mean_of
from alignlab.train.trainer import Batch, Trainer, TrainResult
from alignlab.train.update import Updater

SMALL = GPTConfig(vocab_size=13, n_ctx=8, d_model=8, n_layers=2, n_heads=2, d_mlp=16)
CONFIG = TrainConfig(steps=30, learning_rate=0.01, accumulate=2, checkpoint_every=7, weight_decay=0.1)


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    make = Updater.__init__

    def make_lazy(self: Updater, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        self.lazy = True

    monkeypatch.setattr(Updater, "__init__", make_lazy)
    return monkeypatch


def batch_at(i: int) -> Batch:
    start = int(torch.randint(13, (), generator=torch.Generator().manual_seed(i)))
    tokens = (start + torch.arange(3)[:, None] + 2 * torch.arange(9)) % 13
    given, targets = tokens[:, :-1], tokens[:, 1:]
    return {"tokens": given, "targets": targets, "loss_mask": targets != i % 5, "i": torch.tensor(i)}


def loss_fn(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, float | Tensor]]:
    loss, metrics = language_model_loss(model, batch)
    tokens = metrics["tokens"]
    return loss * (100.0 if int(batch["i"]) // 2 == 20 else 1.0), {"tokens": torch.as_tensor(tokens), "half": loss / 2}


def train(config: TrainConfig, loss: Any = loss_fn, directory: Path | None = None) -> tuple[GPTModel, TrainResult]:
    model = GPTModel(SMALL, seed=0)
    return model, Trainer(model, loss, config, checkpoint_dir=directory).fit(batch_at)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "muon", "ema_decay": 0.9},
        {"precision": "fp16", "accumulate": 1},
        {"spike_factor": 8.0, "optimizer": "muon"},
        {"spike_factor": 8.0, "log_every": 4},
    ],
)
def test_same_numbers_same_weights_same_checkpoints(
    options: dict[str, Any], tmp_path: Path, lazy: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, **options)
    late, got = train(config, directory=tmp_path / "late")
    lazy.undo()
    model, expected = train(config, directory=tmp_path / "at once")
    assert [row["step"] for row in got.history] == [row["step"] for row in expected.history]
    for a, b in zip(got.history, expected.history, strict=True):
        assert a == pytest.approx(b, rel=1e-5)  # tokens and means are float32 there and Python's numbers here
    torch.testing.assert_close(late.state_dict(), model.state_dict(), rtol=1e-5, atol=1e-6)
    names = [[path.name for path in list_checkpoints(tmp_path / d)] for d in ("late", "at once")]
    assert names[0] == names[1]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_bad_update_is_named_and_left_out_though_it_is_read_late(
    optimizer: str, poison: str, lazy: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, optimizer=optimizer, steps=12, schedule="constant", checkpoint_every=0)

    def poisoned(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, float | Tensor]]:
        loss, metrics = loss_fn(model, batch)
        if int(batch["i"]) == 9:  # in update 5
            weight: Tensor = model.final_norm.weight  # type: ignore[assignment, union-attr]
            loss = loss * math.nan if poison == "loss" else loss + torch.sqrt((weight * 0).sum())
        return loss, metrics

    poisoned_model, clean = GPTModel(SMALL, seed=0), GPTModel(SMALL, seed=0)
    what = "loss" if poison == "loss" else "grad_norm"
    with pytest.raises(TrainingError, match=rf"train/{what} is nan at step 5, it must be finite"):
        Trainer(poisoned_model, poisoned, config).fit(batch_at)
    Trainer(clean, loss_fn, replace(config, steps=4)).fit(batch_at)
    torch.testing.assert_close(poisoned_model.state_dict(), clean.state_dict(), rtol=0, atol=0)


def test_readout_keeps_what_it_was_given() -> None:
    readout = Readout(3, {"loss": torch.tensor(0.1, dtype=torch.float64), "tokens": 5})
    readout.add({"extra": 2.0})
    assert readout.read() == {"loss": 0.1, "tokens": 5.0, "extra": 2.0}
    readout.add({"later": 1.0})
    assert readout.read()["later"] == 1.0
    with pytest.raises(TrainingError, match="two sources report a metric 'loss'"):
        readout.add({"loss": 0.0})


def test_means_of_tensors_and_of_numbers_agree() -> None:
    parts = [{"loss": 1.0, "tokens": 3.0}, {"loss": 2.0, "tokens": 5.0}]
    means, total = mean_of(parts)
    tensors, tensor_total = mean_of([{key: torch.tensor(value) for key, value in part.items()} for part in parts])
    assert means == {"loss": 13 / 8, "tokens": 8.0}
    assert total == 8.0
    assert {key: float(value) for key, value in tensors.items()} == means
    assert float(tensor_total) == total


@pytest.mark.parametrize("late", [False, True])
def test_a_rank_writes_down_what_it_saw_of_a_refused_update(late: bool, request: pytest.FixtureRequest) -> None:
    if late:
        request.getfixturevalue("lazy")
    seen: list[tuple[int, float]] = []

    class OneOfTwo(Parallel):
        world = 2

        def log_local(self, step: int, metrics: dict[str, float]) -> None:
            seen.append((step, metrics["loss"]))

    def breaks(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, float | Tensor]]:
        loss, metrics = language_model_loss(model, batch)
        return loss * (math.nan if int(batch["i"]) == 2 else 1.0), metrics

    config = replace(CONFIG, accumulate=1)
    with pytest.raises(TrainingError, match="at step 3"):
        Trainer(GPTModel(SMALL, seed=0), breaks, config, parallel=OneOfTwo()).fit(batch_at)
    assert [step for step, _ in seen] == [1, 2, 3]
    assert [math.isnan(loss) for _, loss in seen] == [False, False, True]
