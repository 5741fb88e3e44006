"""The written-out LSTM against PyTorch's, packed documents against separate ones, and training by the one trainer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from alignlab.core.errors import ConfigError, ModelError
from alignlab.lm.lstm import LSTMConfig, LSTMModel, lstm_cell, sample
from alignlab.train.config import TrainConfig
from alignlab.train.language import language_model_loss
from alignlab.train.trainer import Trainer

SMALL = {"vocab_size": 11, "d_model": 12, "n_layers": 2}


def tokens(batch: int = 3, length: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(seed))


def pair(**fields: object) -> tuple[LSTMModel, LSTMModel]:
    """The same weights behind the fused kernel and the written-out cell."""
    options = {**SMALL, **fields}
    fused = LSTMModel(LSTMConfig(**options), seed=4)  # type: ignore[arg-type]
    explicit = LSTMModel(LSTMConfig(**options, kernel="explicit"), seed=4)  # type: ignore[arg-type]
    return fused, explicit


def test_one_step_by_hand() -> None:
    gates = torch.tensor([[0.5, -1.0, 2.0, 0.25]])
    h, c = torch.tensor([[0.4]]), torch.tensor([[-0.6]])
    weight = torch.tensor([[1.0], [2.0], [-1.0], [0.5]])
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    after = sigmoid(-1.0 + 0.8) * -0.6 + sigmoid(0.5 + 0.4) * math.tanh(2.0 - 0.4)
    out = sigmoid(0.25 + 0.2) * math.tanh(after)
    found_h, found_c = lstm_cell(gates, h, c, weight)
    assert float(found_c) == pytest.approx(after)
    assert float(found_h) == pytest.approx(out)


def test_the_cell_equals_pytorchs_forward_and_backward() -> None:
    g = torch.Generator().manual_seed(1)
    reference = nn.LSTMCell(5, 7)
    x, h, c = (torch.randn(4, n, generator=g, requires_grad=True) for n in (5, 7, 7))
    weights = [reference.weight_ih, reference.weight_hh, reference.bias_ih, reference.bias_hh]
    expected = reference(x, (h, c))
    found = lstm_cell(x @ weights[0].T + weights[2] + weights[3], h, c, weights[1])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    inputs = [x, h, c, *weights]
    ours = torch.autograd.grad(found[0].square().sum() + found[1].sum(), inputs)
    theirs = torch.autograd.grad(expected[0].square().sum() + expected[1].sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("fields", [{}, {"n_layers": 1}, {"n_layers": 3, "tie_embeddings": False}])
def test_the_fused_kernel_equals_the_cell(fields: dict) -> None:
    fused, explicit = pair(**fields)
    assert {n: p.shape for n, p in fused.named_parameters()} == {n: p.shape for n, p in explicit.named_parameters()}
    batch = {"tokens": tokens()}
    grads = []
    for model in (fused, explicit):
        loss, _ = language_model_loss(model, batch)
        grads.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(fused(batch["tokens"]), explicit(batch["tokens"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kernel", ["fused", "explicit"])
def test_packed_documents_give_what_they_give_alone(kernel: str) -> None:
    model = LSTMModel(LSTMConfig(**SMALL, kernel=kernel), seed=2)  # type: ignore[arg-type]
    row = tokens(2, 10, seed=3)
    segments = torch.tensor([[1] * 4 + [2] * 5 + [0], [1] + [2] * 2 + [3] * 7])
    packed = model(row, segments=segments)
    for i, start, stop in ((0, 0, 4), (0, 4, 9), (1, 0, 1), (1, 1, 3), (1, 3, 10)):
        alone = model(row[i : i + 1, start:stop])[0]
        torch.testing.assert_close(packed[i, start:stop], alone, atol=1e-6, rtol=0)
    assert not torch.allclose(packed[0, 4:9], model(row)[0, 4:9])  # the boundary matters


def test_reading_on_from_a_state_is_reading_at_once() -> None:
    model = LSTMModel(LSTMConfig(**SMALL))
    row = tokens(2, 8)
    whole, end = model.run(row)
    first, state = model.run(row[:, :3])
    second, last = model.run(row[:, 3:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, atol=1e-6, rtol=0)
    for a, b in zip(last, end, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_later_tokens_change_nothing_before_them() -> None:
    model = LSTMModel(LSTMConfig(**SMALL))
    row = tokens(1, 8)
    changed = row.clone()
    changed[0, 5] = (row[0, 5] + 1) % 11
    before, after = model(row), model(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_seeds_and_forget_bias() -> None:
    a, b, c = (LSTMModel(LSTMConfig(**SMALL), seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.embed.weight, c.embed.weight)
    assert a.lstm.bias_ih_l0.tolist() == [0.0] * 12 + [1.0] * 12 + [0.0] * 24
    assert not a.lstm.bias_hh_l0.any()


def test_softcap_is_in_the_logits_and_in_the_loss() -> None:
    model = LSTMModel(LSTMConfig(**SMALL, logit_softcap=0.1))
    row = tokens()
    logits = model(row)
    assert float(logits.detach().abs().max()) < 0.1
    loss, _ = language_model_loss(model, {"tokens": row})
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), row[:, 1:].flatten())
    torch.testing.assert_close(loss, expected)


def test_the_trainer_teaches_it_what_a_memory_is_needed_for() -> None:
    """Of two kinds of rows, 0 … 0 and 1 … 1 with noise between, the end is known only from the beginning."""
    model = LSTMModel(LSTMConfig(vocab_size=6, d_model=24, n_layers=1), seed=0)

    def batch_at(i: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(i)
        kind = torch.randint(2, (32, 1), generator=g)
        noise = torch.randint(2, 6, (32, 6), generator=g)
        mask = torch.zeros(32, 8, dtype=torch.bool)
        mask[:, -1] = True
        return {"tokens": torch.cat([kind, noise, kind], 1), "loss_mask": mask}

    config = TrainConfig(steps=150, learning_rate=0.02, warmup_steps=5)
    result = Trainer(model, language_model_loss, config).fit(batch_at)
    assert result.history[0]["loss"] > 1.0
    assert result.final_loss < 0.05


def test_dropout_acts_in_training_only() -> None:
    model = LSTMModel(LSTMConfig(**SMALL, dropout=0.5))
    row = tokens()
    model.train()
    assert not torch.equal(model(row), model(row))
    model.eval()
    assert torch.equal(model(row), model(row))


def test_sampling() -> None:
    model = LSTMModel(LSTMConfig(**SMALL), seed=5)
    prompts = tokens(3, 4)
    drawn = sample(model, prompts, 6, seed=1)
    assert drawn.shape == (3, 6)
    assert torch.equal(drawn, sample(model, prompts, 6, seed=1))
    assert not torch.equal(drawn, sample(model, prompts, 6, seed=2))
    greedy = sample(model, prompts, 5, seed=0, temperature=0)
    whole = torch.cat([prompts, greedy], 1)
    assert torch.equal(model(whole)[:, 3:-1].argmax(-1), greedy)
    assert sample(model, prompts, 0, seed=0).shape == (3, 0)
    # The frequencies of one drawn token against the model's own probabilities, five deviations wide.
    n = 4_000
    p = model(prompts[:1])[0, -1].softmax(-1).detach()
    counts = torch.bincount(sample(model, prompts[:1].repeat(n, 1), 1, seed=9)[:, 0], minlength=11) / n
    assert bool(((counts - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all())


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="d_model is 0"):
        LSTMConfig(d_model=0)
    with pytest.raises(ConfigError, match=r"dropout is 1\.0"):
        LSTMConfig(dropout=1.0)
    with pytest.raises(ConfigError, match="kernel is 'slow'"):
        LSTMConfig(kernel="slow")  # type: ignore[arg-type]
    model = LSTMModel(LSTMConfig(**SMALL))
    with pytest.raises(ModelError, match="they must agree"):
        model.hidden_states(tokens(), segments=torch.ones(3, 4, dtype=torch.int64))
    with pytest.raises(ModelError, match="at least one token"):
        sample(model, torch.zeros(2, 0, dtype=torch.int64), 3, seed=0)
