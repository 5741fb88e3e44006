"""Layer statistics: exact numbers by hand, free between measured updates, nothing left on the model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from alignlab.core.errors import ConfigError
from alignlab.core.rng import derive_seed, torch_generator
from alignlab.lm.config import GPTConfig
from alignlab.lm.model import GPTModel
from alignlab.train.config import TrainConfig
from alignlab.train.language import language_model_loss
from alignlab.train.layer_statistics import LayerStatistics, layer_modules, layer_of, tensor_norms
from alignlab.train.trainer import Batch, Metrics, Trainer


def small(seed: int = 0) -> GPTModel:
    return GPTModel(GPTConfig(vocab_size=32, n_ctx=8, d_model=16, n_layers=2, n_heads=2, d_mlp=32), seed=seed)


def tokens_at(i: int) -> Batch:
    return {"tokens": torch.randint(32, (3, 8), generator=torch_generator(derive_seed(1, i)))}


def test_layers_of_parameters() -> None:
    assert layer_of("blocks.3.attn.q.weight") == "blocks.3.attn"
    assert layer_of("blocks.3.norm1.weight") == "blocks.3.norm1"
    assert layer_of("0.weight") == "0"
    assert layer_of("embed.weight") == "embed"
    assert layer_of("theta") == "theta"


def test_watched_modules() -> None:
    assert list(layer_modules(small())) == [
        "blocks.0.attn", "blocks.0.mlp", "blocks.0", "blocks.1.attn", "blocks.1.mlp", "blocks.1",
    ]  # fmt: skip
    assert list(layer_modules(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))) == ["0", "1"]

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core, self.head = nn.LSTM(2, 3), nn.Linear(3, 1)

    assert list(layer_modules(Plain())) == ["core", "head"]


def test_norms_in_one_go() -> None:
    tensors = [torch.tensor([3.0, 4.0]), torch.full((2, 2), 2.0, dtype=torch.bfloat16), torch.tensor(-1.5)]
    assert tensor_norms(tensors) == [5.0, 4.0, 1.5]
    assert tensor_norms([]) == []
    many = torch.full((1 << 20,), 0.001, dtype=torch.bfloat16)  # a sum in bfloat16 would stall
    assert tensor_norms([many])[0] == pytest.approx(float(many[0]) * 1024, rel=1e-3)


def squares(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
    return model(batch["x"]).square().sum(), {}


def test_numbers_by_hand() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[1].weight.fill_(3.0)
    config = TrainConfig(steps=1, learning_rate=0.5, schedule="constant", grad_clip=1.0)
    with LayerStatistics(model, every=1, by="parameter") as statistics:
        (row,) = (
            Trainer(model, squares, config, observers=[statistics])
            .fit(lambda i: {"x": torch.tensor([[1.0], [-1.0]])})
            .history
        )
    # y = w0 w1 x, loss = 2 w0² w1²: gradients 4 w0 w1² = 72 and 4 w0² w1 = 48, unclipped.
    assert row["layers/0.weight/gradient_norm"] == pytest.approx(72.0)
    assert row["layers/1.weight/gradient_norm"] == pytest.approx(48.0)
    assert row["layers/0.weight/weight_norm"] == 2.0
    # AdamW's first step is the learning rate, whatever the gradient.
    assert row["layers/0.weight/update_ratio"] == pytest.approx(0.5 / 2.0, rel=1e-4)
    assert row["layers/1.weight/update_ratio"] == pytest.approx(0.5 / 3.0, rel=1e-4)
    assert row["layers/0/activation_rms"] == pytest.approx(row["layers/0/activation_max"]) == pytest.approx(2.0)
    assert row["layers/1/activation_rms"] == pytest.approx(6.0)


def test_activations_are_those_that_the_taps_see() -> None:
    from alignlab.lm.taps import listen

    model, seen = small(), {}
    with LayerStatistics(model, every=1) as statistics:
        config = TrainConfig(steps=1, learning_rate=0.0, accumulate=2)
        (row,) = Trainer(model, language_model_loss, config, observers=[statistics]).fit(tokens_at).history
    names = {"blocks.1.hook_resid_post": "blocks.1", "blocks.0.hook_mlp_out": "blocks.0.mlp"}
    with listen(model, {tap: lambda x, name: seen.setdefault(name, []).append(x.detach()) for tap in names}):
        for i in range(2):
            model(tokens_at(i)["tokens"])
    for tap, layer in names.items():
        values = torch.cat([x.flatten() for x in seen[tap]])
        assert row[f"layers/{layer}/activation_rms"] == pytest.approx(float(values.square().mean().sqrt()), rel=1e-5)
        assert row[f"layers/{layer}/activation_max"] == pytest.approx(float(values.abs().max()), rel=1e-5)


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_hooks_are_there_only_for_measured_updates() -> None:
    model = small()
    there = []

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        there.append(hooks_of(model) > 0)
        return language_model_loss(model, batch)

    statistics = LayerStatistics(model, every=3)
    history = Trainer(model, loss, TrainConfig(steps=7), observers=[statistics]).fit(tokens_at).history
    assert there == [step % 3 == 0 for step in range(1, 8)]
    assert [row["step"] for row in history if "layers/blocks.0/activation_rms" in row] == [3, 6]
    assert [row["step"] for row in history if "layers/blocks.0.attn/update_ratio" in row] == [3, 6]
    assert hooks_of(model) == 0


def test_all_layers_add_up_to_the_gradient_norm() -> None:
    model = small()
    with LayerStatistics(model, every=1, activations=False) as statistics:
        (row,) = (
            Trainer(model, language_model_loss, TrainConfig(steps=1), observers=[statistics]).fit(tokens_at).history
        )
    parts = [value for key, value in row.items() if key.endswith("/gradient_norm")]
    assert math.sqrt(sum(part**2 for part in parts)) == pytest.approx(row["grad_norm"], rel=1e-5)
    assert not any("activation" in key for key in row)
    assert hooks_of(model) == 0


def test_the_observer_changes_no_bit() -> None:
    def trained(observe: bool) -> GPTModel:
        model = small()
        observers = [LayerStatistics(model, every=2)] if observe else []
        Trainer(model, language_model_loss, TrainConfig(steps=4, learning_rate=1e-3), observers=observers).fit(
            tokens_at
        )
        return model

    pairs = zip(trained(True).parameters(), trained(False).parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_evaluations_do_not_count() -> None:
    model = small()
    statistics = LayerStatistics(model, every=1)
    model.eval()
    model(tokens_at(0)["tokens"])
    assert not statistics._seen
    statistics.close()
    assert hooks_of(model) == 0


def test_a_model_that_calls_no_hook_is_named() -> None:
    model = small()

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        return sum(p.square().sum() for p in model.parameters()), {}  # type: ignore[return-value]

    with LayerStatistics(model, every=1) as statistics:
        trainer = Trainer(model, loss, TrainConfig(steps=1), observers=[statistics])
        with pytest.raises(ConfigError, match=r"saw no activation at update 1.*activations=False"):
            trainer.fit(tokens_at)


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="every is 0"):
        LayerStatistics(small(), every=0)
    with pytest.raises(ConfigError, match="by is 'block', allowed: layer, parameter"):
        LayerStatistics(small(), by="block")  # type: ignore[arg-type]
