"""Schedules at hand-computed points, and which parameters decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alignlab.core.errors import ConfigError, TrainingError
from alignlab.train.config import TrainConfig
from alignlab.train.optim import make_adamw, parameter_groups, trainable_parameters
from alignlab.train.schedule import Schedule, learning_rate_at


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [  # peak 8, floor 2, 2 warm-up steps, 6 steps: t = 0, 1/4, 1/2, 3/4
        ("constant", [4, 8, 8, 8, 8, 8]),
        ("linear", [4, 8, 8, 6.5, 5, 3.5]),
        ("cosine", [4, 8, 8, 5 + 3 * 2**-0.5, 5, 5 - 3 * 2**-0.5]),
    ],
)
def test_schedule_by_hand(schedule: Schedule, expected: list[float]) -> None:
    got = [
        learning_rate_at(step, peak=8, steps=6, warmup_steps=2, schedule=schedule, min_lr_ratio=0.25)
        for step in range(6)
    ]
    assert got == pytest.approx(expected)


def test_schedule_ends_at_the_floor_and_stays_there() -> None:
    for step in (10, 20):
        assert learning_rate_at(step, peak=1, steps=10, warmup_steps=0, schedule="cosine", min_lr_ratio=0.1) == 0.1
    assert learning_rate_at(0, peak=1, steps=1, warmup_steps=5, schedule="linear") == pytest.approx(0.2)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 5)
        self.out.weight = self.embed.weight  # tied: one parameter under two names
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def test_norms_and_biases_do_not_decay_and_shared_parameters_appear_once() -> None:
    model = Small()
    assert list(trainable_parameters(model)) == ["embed.weight", "norm.weight", "norm.bias", "out.bias"]
    decayed, plain = parameter_groups(model, 0.1)
    assert decayed["params"] == [model.embed.weight]
    assert decayed["weight_decay"] == 0.1
    assert [p.ndim for p in plain["params"]] == [1, 1, 1]
    assert plain["weight_decay"] == 0.0


def test_adamw_step_equals_the_paper() -> None:
    # Algorithm 2 of Loshchilov & Hutter 2019, written out for two steps.
    layer = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    theta, m, v = layer.weight.detach().clone(), torch.zeros(2, 3).double(), torch.zeros(2, 3).double()
    optimizer = make_adamw(layer, learning_rate=0.1, weight_decay=0.3, beta1=0.8, beta2=0.9)
    for t in (1, 2):
        gradient = torch.arange(6.0, dtype=torch.float64).reshape(2, 3) - t
        layer.weight.grad = gradient.clone()
        optimizer.step()
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        m_hat, v_hat = m / (1 - 0.8**t), v / (1 - 0.9**t)
        theta = theta - 0.1 * 0.3 * theta - 0.1 * m_hat / (v_hat.sqrt() + 1e-8)
    torch.testing.assert_close(layer.weight.detach(), theta, rtol=1e-12, atol=1e-12)


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(TrainingError, match="Linear has no trainable parameter"):
        make_adamw(nn.Linear(2, 2).requires_grad_(False), learning_rate=1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("learning_rate", -1.0), ("learning_rate", float("nan")), ("beta1", 1.0), ("min_lr_ratio", 2.0),
     ("schedule", "step"), ("precision", "fp8"), ("accumulate", 0), ("warmup_steps", -1)],
)  # fmt: skip
def test_config_names_the_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{field} is"):
        TrainConfig(**{field: value})  # type: ignore[arg-type]
