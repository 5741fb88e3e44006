"""The loop against a hand-written one, its refusals, and resume to the same bits."""

from __future__ import annotations

import io
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from alignlab.core.errors import TrainingError
from alignlab.core.progress import Progress
from alignlab.core.runs import Run
from alignlab.train.checkpoint import list_checkpoints
from alignlab.train.config import TrainConfig
from alignlab.train.schedule import learning_rate_at
from alignlab.train.trainer import Batch, Metrics, Trainer

CONFIG = TrainConfig(steps=8, learning_rate=0.05, warmup_steps=2, weight_decay=0.1, grad_clip=0.5, seed=3)


class Net(nn.Module):
    """Has all that a resume must carry: dropout, a running mean, frozen weights."""

    def __init__(self, seed: int = 0, dropout: float = 0.0, width: int = 6) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.frozen = nn.Linear(4, width).requires_grad_(False)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.BatchNorm1d(width)
        self.out = nn.Linear(width, 1)
        with torch.no_grad():
            for parameter in (*self.frozen.parameters(), *self.out.parameters()):
                parameter.normal_(generator=g)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.dropout(torch.tanh(self.norm(self.frozen(x)))))
        return out.squeeze(-1)


def batch_at(i: int) -> Batch:
    g = torch.Generator().manual_seed(1000 + i)
    n = 3 + i % 4
    return {"x": torch.randn(n, 4, generator=g), "y": torch.randn(n, generator=g)}


def squared_error(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
    error = F.mse_loss(model(batch["x"]), batch["y"])
    return error, {"tokens": float(len(batch["y"])), "twice": 2 * float(error.detach())}


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def test_equals_a_hand_written_loop() -> None:
    model, reference = Net(), Net()
    result = Trainer(model, squared_error, CONFIG).fit(batch_at)
    reference.train()
    matrices, rest = [reference.out.weight], [reference.norm.weight, reference.norm.bias, reference.out.bias]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0}])
    losses = []
    for step in range(8):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, peak=0.05, steps=8, warmup_steps=2, schedule="cosine")
        optimizer.zero_grad()
        loss, _ = squared_error(reference, batch_at(step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*matrices, *rest], 0.5)
        optimizer.step()
        losses.append(float(loss.detach()))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name], rtol=1e-5, atol=1e-6)
    assert [row["loss"] for row in result.history] == pytest.approx(losses, rel=1e-5)
    assert result.steps == 8
    assert result.final_loss == result.history[-1]["loss"]
    assert result.history[0]["twice"] == pytest.approx(2 * losses[0])


def test_accumulated_batches_equal_one_large_batch() -> None:
    # Without batch norm the mean over all tokens of four unequal micro-batches is the mean over their union.
    def plain(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        error = F.mse_loss(model(batch["x"]).squeeze(-1), batch["y"])
        return error, {"tokens": float(len(batch["y"]))}

    def whole(i: int) -> Batch:
        parts = [batch_at(4 * i + j) for j in range(4)]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    one, many = nn.Linear(4, 1), nn.Linear(4, 1)
    many.load_state_dict(one.state_dict())
    a = Trainer(one, plain, CONFIG).fit(whole)
    b = Trainer(many, plain, replace(CONFIG, accumulate=4)).fit(batch_at)
    torch.testing.assert_close(many.weight, one.weight, rtol=1e-5, atol=1e-6)
    for x, y in zip(a.history, b.history, strict=True):
        assert x == pytest.approx(y, rel=1e-4)
        assert y["tokens"] == sum(3 + j % 4 for j in range(4))


def test_without_tokens_micro_batches_count_the_same() -> None:
    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        return (model.weight * batch["g"]).sum(), {}  # type: ignore[operator]

    layer = nn.Linear(1, 1, bias=False)
    config = TrainConfig(steps=1, accumulate=2, grad_clip=0)
    history = Trainer(layer, loss, config).fit(lambda i: {"g": torch.tensor([1.0, 3.0][i])}).history
    assert history[0]["grad_norm"] == pytest.approx(2.0)


def test_global_generator_and_modes_are_left_alone() -> None:
    model = Net(dropout=0.5)
    model.eval()
    model.out.train()
    before = torch.get_rng_state()
    Trainer(model, squared_error, CONFIG).fit(batch_at)
    assert torch.equal(before, torch.get_rng_state())
    assert not model.training
    assert model.out.training
    assert not model.dropout.training


def test_dropout_depends_on_the_seed() -> None:
    losses = [
        Trainer(Net(dropout=0.5), squared_error, replace(CONFIG, seed=seed)).fit(batch_at).final_loss
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_bf16_computes_products_in_bfloat16_and_keeps_float32_weights() -> None:
    seen = []

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        out = model(batch["x"])
        seen.append(out.dtype)
        return F.mse_loss(out.float(), batch["y"]), {}

    model = Net()
    Trainer(model, loss, replace(CONFIG, precision="bf16")).fit(batch_at)
    assert set(seen) == {torch.bfloat16}
    assert model.out.weight.dtype == torch.float32


# --- resume ---


class Stop(Exception):
    pass


def stopping_at(index: int):  # type: ignore[no-untyped-def]
    def wrapped(i: int) -> Batch:
        if i == index:
            raise Stop
        return batch_at(i)

    return wrapped


@pytest.mark.parametrize("stop", [1, 5, 12, 15])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, stop: int) -> None:
    config = replace(CONFIG, accumulate=2, checkpoint_every=2)
    straight = Net(dropout=0.3)
    expected = Trainer(straight, squared_error, config, checkpoint_dir=tmp_path / "a").fit(batch_at)
    with pytest.raises(Stop):
        Trainer(Net(dropout=0.3), squared_error, config, checkpoint_dir=tmp_path / "b").fit(stopping_at(stop))
    resumed = Net(dropout=0.3)
    result = Trainer(resumed, squared_error, config, checkpoint_dir=tmp_path / "b").fit(batch_at)
    assert same_weights(straight, resumed)
    assert result == expected
    for name in ("weights.safetensors", "optimizer.safetensors", "state.json"):
        last = "step_00000008"
        assert (tmp_path / "a" / last / name).read_bytes() == (tmp_path / "b" / last / name).read_bytes()


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first = Net()
    expected = Trainer(first, squared_error, CONFIG, checkpoint_dir=tmp_path).fit(batch_at)
    again = Net()
    assert Trainer(again, squared_error, CONFIG, checkpoint_dir=tmp_path).fit(stopping_at(0)) == expected
    assert same_weights(first, again)


SCRIPT = """
import sys, time
sys.path.insert(0, sys.argv[1])
import test_train_trainer as t
def slow(model, batch):
    time.sleep(0.01)
    return t.squared_error(model, batch)
config = t.replace(t.CONFIG, steps=60, checkpoint_every=1)
t.Trainer(t.Net(dropout=0.3), slow, config, checkpoint_dir=sys.argv[2]).fit(t.batch_at)
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_then_resume(tmp_path: Path) -> None:
    # The undisturbed run has a process of its own too: threads and flags that other tests leave here round otherwise.
    command, undisturbed = (
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path / name)]
        for name in ("killed", "straight")
    )
    for reach in (1, 17, 40):
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if any(path.name >= f"step_{reach:08d}" for path in list_checkpoints(tmp_path / "killed")):
                break
            time.sleep(0.003)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    for one in (command, undisturbed):
        subprocess.run(one, check=True)
    for name in ("weights.safetensors", "optimizer.safetensors", "state.json"):
        killed, straight = (tmp_path / d / "step_00000060" / name for d in ("killed", "straight"))
        assert killed.read_bytes() == straight.read_bytes()


# --- refusals ---


def test_non_finite_loss_names_step_and_metric_and_spares_the_weights(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        value, metrics = squared_error(model, batch)
        return (value * math.nan if len(batch["y"]) == 5 else value), metrics

    model, reference = Net(), Net()
    with pytest.raises(
        TrainingError, match=r"sft/loss is nan at step 3, it must be finite; the last checkpoint is .*2"
    ):
        Trainer(model, loss, replace(CONFIG, checkpoint_every=1), name="sft", checkpoint_dir=tmp_path).fit(batch_at)
    with pytest.raises(Stop):
        Trainer(reference, squared_error, CONFIG).fit(stopping_at(2))
    assert torch.equal(model.out.weight, reference.out.weight)
    assert list_checkpoints(tmp_path)[-1].name == "step_00000002"


def test_non_finite_metric_and_gradient_are_refused() -> None:
    def metric(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        return squared_error(model, batch)[0], {"accuracy": math.inf}

    def gradient(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        zero = squared_error(model, batch)[0] * 0
        return torch.sqrt(zero), {}

    with pytest.raises(TrainingError, match="train/accuracy is inf at step 1"):
        Trainer(Net(), metric, CONFIG).fit(batch_at)
    with pytest.raises(TrainingError, match="train/grad_norm is nan at step 1"):
        Trainer(Net(), gradient, CONFIG).fit(batch_at)


def test_empty_mask_is_refused() -> None:
    def masked(i: int) -> Batch:
        return {**batch_at(i), "loss_mask": torch.tensor([[i < 2, False]])}

    with pytest.raises(TrainingError, match="train at step 3: loss_mask selects none of the batch's 2 positions"):
        Trainer(Net(), squared_error, CONFIG).fit(masked)


def test_a_loss_without_gradient_is_refused() -> None:
    with pytest.raises(TrainingError, match="must be a scalar that depends on a trainable parameter"):
        Trainer(Net(), lambda model, batch: (torch.tensor(1.0), {}), CONFIG).fit(batch_at)
    with pytest.raises(TrainingError, match=r"shape \(3,\)"):
        Trainer(Net(), lambda model, batch: (model(batch["x"]), {}), CONFIG).fit(batch_at)


def test_micro_batches_must_agree_on_metrics() -> None:
    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        return squared_error(model, batch)[0], {f"n{len(batch['y'])}": 1.0}

    with pytest.raises(TrainingError, match="same metrics"):
        Trainer(Net(), loss, replace(CONFIG, accumulate=2)).fit(batch_at)


def test_metrics_reach_the_run_and_checkpoints_its_directory(tmp_path: Path) -> None:
    config = replace(CONFIG, log_every=3)
    with Run.create(config, name="trial", root=tmp_path) as run:
        result = Trainer(Net(), squared_error, config, run=run, name="sft").fit(batch_at)
        logged, saved = run.metrics(), list_checkpoints(run.checkpoints / "sft")
    assert [row["step"] for row in logged] == [3, 6, 8]
    keys = {"sft/loss", "sft/twice", "sft/tokens", "sft/grad_norm", "sft/learning_rate"}
    assert keys <= set(logged[0])
    assert [row["sft/loss"] for row in logged] == [row["loss"] for row in result.history]
    assert [path.name for path in saved] == ["step_00000008"]


def test_progress_counts_updates_and_tokens() -> None:
    lines = io.StringIO()
    progress = Progress(Console(file=lines, width=200))
    Trainer(Net(), squared_error, CONFIG, name="sft", progress=progress).fit(batch_at)
    assert "sft: started (8 steps)" in lines.getvalue()
    assert "sft: 8/8 steps" in lines.getvalue()
