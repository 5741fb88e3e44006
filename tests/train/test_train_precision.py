"""The loss scale against torch's GradScaler, and float16 training: skipped updates, small gradients, resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from alignlab.core.errors import TrainingError
from alignlab.train import precision
from alignlab.train.config import TrainConfig
from alignlab.train.precision import LossScale
from alignlab.train.trainer import Batch, Metrics, Trainer

CONFIG = TrainConfig(steps=8, learning_rate=0.05, precision="fp16", grad_clip=0, schedule="constant")


def test_equals_grad_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "INTERVAL", 3)
    theirs = torch.amp.GradScaler("cpu", init_scale=precision.START, growth_interval=3)
    ours = LossScale(torch.device("cpu"))
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    for bad in (0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0):
        theirs.scale(parameter.sum()).backward()
        parameter.grad = torch.full_like(parameter, float("inf") if bad else 1.0)
        theirs.step(optimizer)
        theirs.update()
        ours.update(torch.tensor(bool(bad)))
        assert ours.state() == {"scale": theirs.get_scale(), "good": theirs.state_dict()["_growth_tracker"]}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.inner, self.out = nn.Linear(4, 8), nn.Linear(8, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=g)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(torch.tanh(self.inner(x)))
        return out.squeeze(-1)


def batch_at(i: int) -> Batch:
    g = torch.Generator().manual_seed(50 + i)
    return {"x": torch.randn(5, 4, generator=g), "y": torch.randn(5, generator=g)}


def loss_fn(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
    return 0.01 * (model(batch["x"]).float() - batch["y"]).square().mean(), {}


def test_a_gradient_too_small_for_float16_still_arrives() -> None:
    def tiny(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        loss, metrics = loss_fn(model, batch)
        return loss * 1e-5, metrics

    norms = {}
    for scaled in (True, False):
        model = Net()
        if scaled:
            norms[scaled] = Trainer(model, tiny, replace(CONFIG, steps=1)).fit(batch_at).history[0]["grad_norm"]
        else:
            with torch.autocast("cpu", torch.float16):
                loss, _ = tiny(model, batch_at(0))
            loss.backward()
            norms[scaled] = float(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    exact = Net()
    tiny(exact, batch_at(0))[0].backward()
    expected = float(nn.utils.get_total_norm([p.grad for p in exact.parameters() if p.grad is not None]))
    assert norms[True] == pytest.approx(expected, rel=0.02)
    assert abs(norms[False] - expected) > 0.05 * expected


def overflowing(*steps: int):  # type: ignore[no-untyped-def]
    """A loss whose gradient (not its value) is infinite in some batches."""

    def batch(i: int) -> Batch:
        return {**batch_at(i), "bad": torch.tensor(float(i in steps))}

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        value, metrics = loss_fn(model, batch)
        weight: Tensor = model.out.weight  # type: ignore[assignment, union-attr]
        return value + torch.sqrt((weight * 0).sum() + (1 - batch["bad"])) - (1 - batch["bad"]), metrics

    return loss, batch


def test_an_overflow_skips_the_update_and_halves_the_scale() -> None:
    loss, batches = overflowing(2)
    model = Net()
    history = Trainer(model, loss, CONFIG).fit(batches).history
    assert [row["update_skipped"] for row in history] == [0, 0, 1, 0, 0, 0, 0, 0]
    assert [row["loss_scale"] for row in history] == [2.0**16] * 3 + [2.0**15] * 5
    other = Net()  # the same without that batch
    skipping = replace(CONFIG, steps=7)
    expected = Trainer(other, loss, skipping).fit(lambda i: batches(i if i < 2 else i + 1)).history
    assert [row["loss"] for row in history if not row["update_skipped"]] == [row["loss"] for row in expected]


def test_always_overflowing_ends_in_an_error() -> None:
    loss, batches = overflowing(*range(100))
    with pytest.raises(TrainingError, match=r"train/grad_norm is (nan|inf) at step 27"):
        Trainer(Net(), loss, replace(CONFIG, steps=50)).fit(batches)


def test_scale_is_part_of_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "INTERVAL", 2)
    loss, batches = overflowing(1, 5)
    config = replace(CONFIG, checkpoint_every=1, ema_decay=0.5)
    straight, resumed = Net(), Net()
    expected = Trainer(straight, loss, config, checkpoint_dir=tmp_path / "a").fit(batches)

    def stopping(i: int) -> Batch:
        if i == 3:
            raise KeyboardInterrupt
        return batches(i)  # type: ignore[no-any-return]

    with pytest.raises(KeyboardInterrupt):
        Trainer(Net(), loss, config, checkpoint_dir=tmp_path / "b").fit(stopping)
    got = Trainer(resumed, loss, config, checkpoint_dir=tmp_path / "b").fit(batches)
    assert got == expected
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    assert len({row["loss_scale"] for row in got.history}) > 1
