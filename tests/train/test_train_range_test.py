"""The range test finds where a quadratic stops converging, and leaves the model as it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from alignlab.core.errors import ConfigError, TrainingError
from alignlab.core.rng import derive_seed, torch_generator
from alignlab.train.range_test import RangeTestConfig, learning_rate_range_test, read_ramp
from alignlab.train.trainer import Batch, Metrics


class Bowl(nn.Module):
    """½ c |θ|², and what must come back: a running mean, dropout, a frozen weight."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(10))
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.3)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


def bowl_loss(curvature: float):
    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        extra = model.dropout(model.norm(batch["x"])).sum() * 0
        return 0.5 * curvature * model.theta.square().sum() + extra, {}

    return loss


def batch_at(i: int) -> Batch:
    return {"x": torch.randn(8, 4, generator=torch_generator(derive_seed(1, i)))}


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)


@pytest.mark.parametrize("curvature", [0.5, 5.0, 200.0])
def test_gradient_descent_turns_at_two_over_the_curvature(curvature: float) -> None:
    """Descent on ½ c θ² multiplies θ by 1 - lr·c: it shrinks up to lr = 2/c and grows above."""
    config = RangeTestConfig(lowest=1e-5 / curvature, highest=100 / curvature, steps=300, smoothing=0.0)
    found = learning_rate_range_test(Bowl(), bowl_loss(curvature), batch_at, config, make_optimizer=sgd)
    factor = found.rates[1] / found.rates[0]
    assert found.blew_up
    assert found.turning_point is not None
    assert found.turning_point == pytest.approx(2 / curvature, rel=2 * (factor - 1))
    assert found.suggested == pytest.approx(0.2 / curvature, rel=2 * (factor - 1))
    assert found.steepest is not None
    assert found.steepest < found.turning_point
    assert len(found.rates) == len(found.losses) < 300
    assert all(b / a == pytest.approx(factor) for a, b in zip(found.rates, found.rates[1:]))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_it_was(fails: bool) -> None:
    model = Bowl().eval()
    model.norm.train()
    model.theta.grad = torch.full((10,), 7.0)
    before = state_of(model)
    random = torch.random.get_rng_state()
    calls = 0

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        nonlocal calls
        calls += 1
        if fails and calls == 5:
            raise KeyError("in the loss")
        return bowl_loss(1.0)(model, batch)

    config = RangeTestConfig(lowest=1e-3, highest=10.0, steps=20)
    if fails:
        with pytest.raises(KeyError):
            learning_rate_range_test(model, loss, batch_at, config)
    else:
        learning_rate_range_test(model, loss, batch_at, config)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model.theta.grad, torch.full((10,), 7.0))
    assert (model.training, model.norm.training, model.dropout.training) == (False, True, False)
    assert torch.equal(torch.random.get_rng_state(), random)


def test_same_seed_same_ramp() -> None:
    def noisy(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        return (model.dropout(model.theta) * batch["x"].mean()).square().sum(), {}

    config = RangeTestConfig(steps=12, seed=3)
    first, again = (learning_rate_range_test(Bowl(), noisy, batch_at, config) for _ in range(2))
    assert first == again


def test_a_loss_that_never_falls_suggests_nothing() -> None:
    def uphill(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        return -model.theta.square().sum() + 100, {}

    def ascend(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD([model.theta], lr=1.0, maximize=True)

    found = learning_rate_range_test(Bowl(), uphill, batch_at, RangeTestConfig(steps=20), make_optimizer=ascend)
    assert (found.turning_point, found.suggested) == (None, None)
    assert read_ramp([1e-3, 1e-2, 1e-1], [1.0, 2.0, 3.0]) == (None, None)


def test_a_loss_that_is_not_finite_ends_the_ramp() -> None:
    def cliff(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        theta = model.theta
        return theta.square().sum() if float(theta.detach()[0]) > 0.5 else (theta * math.nan).sum(), {}

    found = learning_rate_range_test(Bowl(), cliff, batch_at, RangeTestConfig(highest=1.0, steps=100))
    assert found.blew_up
    assert math.isnan(found.losses[-1])
    assert len(found.smoothed) == len(found.losses) - 1
    with pytest.raises(TrainingError, match="before the first update"):
        learning_rate_range_test(Bowl(), lambda m, b: ((m.theta * math.inf).sum(), {}), batch_at)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lowest": 0.0}, "lowest is 0.0"),
        ({"highest": 1e-8}, "highest is 1e-08, allowed: a number above lowest"),
        ({"steps": 3}, "steps is 3"),
        ({"smoothing": 1.0}, "smoothing is 1.0"),
        ({"blow_up": 0.0}, "blow_up is 0.0"),
        ({"precision": "fp8"}, "precision is 'fp8', allowed: fp32, bf16"),
    ],
)
def test_bad_configuration(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RangeTestConfig(**values)  # type: ignore[arg-type]


def test_a_loss_without_parameters_is_refused() -> None:
    with pytest.raises(TrainingError, match="scalar that depends on a trainable parameter"):
        learning_rate_range_test(Bowl(), lambda m, b: (torch.tensor(1.0), {}), batch_at)
