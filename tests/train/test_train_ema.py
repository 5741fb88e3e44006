"""The moving average of the weights: its definition, its place in checkpoints, evaluating with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from alignlab.core.errors import TrainingError
from alignlab.train.config import TrainConfig
from alignlab.train.ema import WeightAverage, ema_weights, read_average
from alignlab.train.trainer import Batch, Metrics, Trainer

DECAY = 0.8
CONFIG = TrainConfig(steps=6, learning_rate=0.1, ema_decay=DECAY, checkpoint_every=2)


def loss_fn(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
    return (model(batch["x"]) - 1).square().mean(), {}


def batch_at(i: int) -> Batch:
    return {"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(i))}


def linear() -> nn.Linear:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.fill_(0.3)
        layer.bias.zero_()
    return layer


def test_is_the_weighted_mean_of_all_weights_after_updates() -> None:
    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameter = nn.Parameter(torch.full((3,), 1e6, dtype=torch.float64))  # where it starts must not matter
    average = WeightAverage({"p": parameter}, DECAY)
    for t, value in enumerate(values, start=1):
        parameter.data = value.clone()
        average.update(t)
        weights = torch.tensor([DECAY ** (t - i) for i in range(1, t + 1)], dtype=torch.float64)
        torch.testing.assert_close(average.tensors["p"], (weights[:, None] * values[:t]).sum(0) / weights.sum())


def test_narrow_weights_are_averaged_in_float32() -> None:
    parameter = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    average = WeightAverage({"p": parameter}, 0.999)
    average.update(1)
    with torch.no_grad():
        parameter.fill_(1.0078125)
    average.update(2)
    assert average.tensors["p"].dtype == torch.float32
    assert 1.0038 < float(average.tensors["p"][0]) < 1.0040


def test_training_averages_what_it_trained(tmp_path: Path) -> None:
    weights: list[Tensor] = []

    def watched(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        weights.append(model.weight.detach().clone())  # type: ignore[operator, union-attr]
        return loss_fn(model, batch)

    model = linear()
    trainer = Trainer(model, watched, CONFIG, checkpoint_dir=tmp_path)
    trainer.fit(batch_at)
    after = torch.stack([*weights[1:], model.weight.detach()])
    factors = torch.tensor([DECAY ** (6 - i) for i in range(1, 7)])
    expected = (factors[:, None, None] * after).sum(0) / factors.sum()
    own = model.weight.detach().clone()
    assert trainer.average is not None
    for source in (trainer.average, tmp_path, tmp_path / "step_00000006", str(tmp_path)):
        with ema_weights(model, source) as averaged:
            torch.testing.assert_close(averaged.weight.detach(), expected)
        assert torch.equal(model.weight, own)


def test_weights_come_back_after_an_error() -> None:
    model = linear()
    average = {"weight": torch.zeros(2, 3)}
    with pytest.raises(RuntimeError, match="inside"), ema_weights(model, average):
        assert float(model.weight.detach().abs().sum()) == 0
        raise RuntimeError("inside")
    assert torch.equal(model.weight, linear().weight)


def test_validation_sees_both(tmp_path: Path) -> None:
    def validate(model: nn.Module) -> Metrics:
        assert not model.training
        assert not torch.is_grad_enabled()
        return {"weight": float(model.weight.sum())}  # type: ignore[operator, union-attr, arg-type]

    model = linear()
    config = replace(CONFIG, validate_every=4)
    trainer = Trainer(model, loss_fn, config, validate=validate)
    history = trainer.fit(batch_at).history
    assert [row["step"] for row in history if "weight" in row] == [4, 6]
    assert history[-1]["weight"] == float(model.weight.detach().sum())
    assert trainer.average is not None
    assert history[-1]["ema_weight"] == float(trainer.average.tensors["weight"].sum())


def test_bad_sources_are_refused(tmp_path: Path) -> None:
    model = linear()
    with pytest.raises(TrainingError, match="no checkpoint to take averaged weights from"):
        read_average(tmp_path)
    Trainer(model, loss_fn, replace(CONFIG, ema_decay=0.0), checkpoint_dir=tmp_path).fit(batch_at)
    with pytest.raises(TrainingError, match="has no averaged weights; train with ema_decay above 0"):
        read_average(tmp_path)
    with (
        pytest.raises(TrainingError, match=r"the average has weight \(2, 2\), which Linear has not"),
        ema_weights(model, {"weight": torch.zeros(2, 2)}),
    ):
        pass
