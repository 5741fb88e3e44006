"""The per-example noise scale: against all gradients at once, planted values, and the two-batch estimate on a model."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.core.errors import ConfigError, DataError, TrainingError
from alignlab.core.rng import derive_seed, torch_generator
from alignlab.lm.config import GPTConfig
from alignlab.lm.model import GPTModel
from alignlab.train.config import TrainConfig
from alignlab.train.language import language_model_loss
from alignlab.train.noise_scale import GradientNoiseScale, noise_moments
from alignlab.train.per_example import jackknife_covariance, per_example_noise_scale
from alignlab.train.trainer import Batch, Metrics, Trainer


class Net(nn.Module):
    """Two layers, one of them frozen, and one that the loss does not reach."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch_generator(4)
        self.frozen = nn.Linear(6, 8).requires_grad_(False)
        self.out = nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.tanh(self.frozen(x)))
        return logits


def weighted_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
    """Mean over the tokens of all rows, rows of unequal size."""
    losses = F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
    tokens = batch["size"].sum()
    return (losses * batch["size"]).sum() / tokens, {"tokens": tokens}  # type: ignore[dict-item]


def data(rows: int, seed: int = 0) -> Batch:
    generator = torch_generator(derive_seed(seed, "data"))
    return {
        "x": torch.randn(rows, 6, generator=generator),
        "y": torch.randint(3, (rows,), generator=generator),
        "size": torch.randint(1, 6, (rows,), generator=generator).float(),
    }


def all_gradients(model: nn.Module, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Every row's gradient, (rows, parameters), and its tokens: what the library never holds."""
    wanted = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("unused")]
    found = []
    for i in range(len(batch["x"])):
        loss, _ = weighted_loss(model, {key: value[i : i + 1] for key, value in batch.items()})
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, wanted)]).double().numpy())
    return np.stack(found), batch["size"].double().numpy()


def naive_moments(gradients: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    total = sizes @ gradients / sizes.sum()
    return noise_moments((gradients**2).sum(1).tolist(), sizes.tolist(), float(total @ total))


@pytest.mark.parametrize(("method", "chunk"), [("loop", 8), ("vmap", 5), ("vmap", 64)])
def test_equals_all_gradients_at_once(method: str, chunk: int) -> None:
    model, batch = Net(), data(23)
    gradients, sizes = all_gradients(model, batch)
    parts = [{k: v[:9] for k, v in batch.items()}, {k: v[9:] for k, v in batch.items()}]
    found = per_example_noise_scale(model, weighted_loss, parts, method=method, chunk=chunk)  # type: ignore[arg-type]
    square, variance = naive_moments(gradients, sizes)
    assert found.gradient_square == pytest.approx(square, rel=1e-5)
    assert found.variance == pytest.approx(variance, rel=1e-5)
    assert found.scale.estimate == pytest.approx(variance / square, rel=1e-5)
    assert (found.scale.n, found.unit) == (23, "tokens")
    assert all(parameter.grad is None for parameter in model.parameters())


def test_jackknife_equals_leaving_each_out() -> None:
    gradients, sizes = all_gradients(Net(), data(17))
    total = sizes @ gradients / sizes.sum()
    square_norms, dots = (gradients**2).sum(1), gradients @ total
    found = jackknife_covariance(square_norms, sizes, dots, float(total @ total))
    left_out = np.array([naive_moments(np.delete(gradients, i, 0), np.delete(sizes, i)) for i in range(17)])[:, ::-1]
    expected = (left_out - left_out.mean(0)).T @ (left_out - left_out.mean(0)) * 16 / 17
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_planted_noise_scale_is_recovered() -> None:
    theta, deviation = torch.linspace(-1.0, 1.5, 30), torch.linspace(0.5, 2.0, 30)
    model = nn.Linear(30, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(theta)

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        weight = model.weight  # gradient: 2 θ + noise
        return weight.square().sum() + (batch["noise"] @ weight.flatten()).mean(), {}

    noise = deviation * torch.randn(1500, 30, generator=torch_generator(8))
    found = per_example_noise_scale(model, loss, [{"noise": noise}], method="vmap", chunk=256)
    truth = float(deviation.square().sum()) / float(4 * theta.square().sum())
    assert found.scale.estimate == pytest.approx(truth, rel=0.1)
    assert found.scale.low < truth < found.scale.high
    assert found.scale.high - found.scale.low < 0.3 * truth
    assert found.unit == "examples"


# On a language model and real prose

LENGTH = 32


def prose() -> Tensor:
    """Packaged prose as letters and spaces. A byte that is hardly ever seen would keep a tiny embedding, which the norm
    behind it blows up: one such row in a thousand has a gradient that decides the whole variance."""
    folder = files("alignlab.data") / "heldout"
    paths = sorted((path for path in folder.iterdir() if path.name.endswith(".txt")), key=str)
    text = " ".join(path.read_text(encoding="utf-8") for path in paths).lower()
    return torch.tensor([ord(c) - 96 if "a" <= c <= "z" else 0 for c in text])


def windows(text: Tensor, rows: int, *names: str | int) -> Batch:
    """Random windows of the text: independent draws of one distribution."""
    generator = torch_generator(derive_seed(3, *names))
    starts = torch.randint(len(text) - LENGTH - 1, (rows,), generator=generator)
    at = starts[:, None] + torch.arange(LENGTH + 1)
    return {"tokens": text[at[:, :-1]], "targets": text[at[:, 1:]]}


@pytest.fixture(scope="module")
def trained() -> GPTModel:
    """A character model that has learned something, so that the gradient is not much larger than its noise."""
    model = GPTModel(GPTConfig(vocab_size=27, n_ctx=LENGTH, d_model=32, n_layers=2, n_heads=2, d_mlp=64), seed=1)
    text = prose()
    config = TrainConfig(steps=60, learning_rate=5e-3)
    Trainer(model, language_model_loss, config).fit(lambda i: windows(text, 16, "train", i))
    return model


def two_batch(model: GPTModel, *, steps: int, accumulate: int, rows: int) -> GradientNoiseScale:
    """The observer's estimate at fixed weights."""
    text, observer = prose(), GradientNoiseScale(decay=0.999)
    config = TrainConfig(steps=steps, learning_rate=0.0, accumulate=accumulate)
    Trainer(model, language_model_loss, config, observers=[observer]).fit(lambda i: windows(text, rows, "two", i))
    return observer


def test_estimators_are_equal_on_the_same_rows(trained: GPTModel) -> None:
    during = two_batch(trained, steps=1, accumulate=12, rows=1).moments.estimate()
    rows = [windows(prose(), 1, "two", i) for i in range(12)]
    single = per_example_noise_scale(trained, language_model_loss, rows)
    assert single.gradient_square == pytest.approx(during.gradient_square, rel=1e-3)
    assert single.variance == pytest.approx(during.variance, rel=1e-4)


@pytest.mark.slow
def test_estimators_agree_on_a_model_and_real_text(trained: GPTModel) -> None:
    during = two_batch(trained, steps=40, accumulate=6, rows=4).moments.estimate().scale
    single = per_example_noise_scale(trained, language_model_loss, [windows(prose(), 240, "single")]).scale
    # Both intervals are narrow enough to say something, and the difference is within the two together.
    for each in (during, single):
        assert each.high < 2 * each.low
    halves = [(each.high - each.low) / 2 for each in (during, single)]
    assert abs(during.estimate - single.estimate) < float(np.hypot(*halves)) * 1.5
    assert single.estimate == pytest.approx(during.estimate, rel=0.35)


# What it leaves alone, and what it refuses


def test_dropout_is_seeded_and_modes_and_gradients_stay() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))
    model[1].weight.grad = torch.ones(3, 6)

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        return F.cross_entropy(model(batch["x"]), batch["y"]), {}

    first, again, other = (per_example_noise_scale(model, loss, [data(9)], seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.variance != other.variance
    assert model.training
    assert torch.equal(model[1].weight.grad, torch.ones(3, 6))


def test_losses_that_vmap_cannot_take_are_named(trained: GPTModel) -> None:
    with pytest.raises(ConfigError, match=r"cannot be taken for many examples at once .* use 'loop'"):
        per_example_noise_scale(trained, language_model_loss, [windows(prose(), 4, "x")], method="vmap")


def test_bad_input() -> None:
    model, batch = Net(), data(5)
    with pytest.raises(ConfigError, match="there are 2 examples"):
        per_example_noise_scale(model, weighted_loss, [data(2)])
    with pytest.raises(ConfigError, match="method is 'fast', allowed: loop, vmap"):
        per_example_noise_scale(model, weighted_loss, [batch], method="fast")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="batch 1 has rows"):
        per_example_noise_scale(model, weighted_loss, [batch, {**batch, "y": batch["y"][:3]}])
    batch["x"][3] = float("nan")
    with pytest.raises(TrainingError, match="not finite"):
        per_example_noise_scale(model, weighted_loss, [batch])
