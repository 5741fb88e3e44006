"""The language-modelling loss on packed rows, and LoRA training through the whole stack."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from alignlab.core.errors import TrainingError
from alignlab.data.packing import Example, Row, batches, collate, pack
from alignlab.lm.config import GPTConfig
from alignlab.lm.lora import LoraConfig, add_lora, lora_disabled, lora_parameters
from alignlab.lm.model import GPTModel
from alignlab.train.config import TrainConfig
from alignlab.train.language import language_model_loss
from alignlab.train.trainer import Trainer

SMALL = GPTConfig(vocab_size=29, n_ctx=16, d_model=16, n_layers=2, n_heads=2, d_mlp=24)


def examples() -> list[Example]:
    g = torch.Generator().manual_seed(0)
    lengths = (5, 9, 4, 7, 3)
    return [Example(torch.randint(29, (n,), generator=g).tolist(), [i >= n // 3 for i in range(n)]) for n in lengths]


@pytest.mark.parametrize("softcap", [None, 0.5])
def test_packed_rows_cost_what_their_examples_cost_one_by_one(softcap: float | None) -> None:
    model = GPTModel(GPTConfig(**vars(SMALL) | {"logit_softcap": softcap}), seed=1)
    total, count = torch.zeros(()), 0
    for example in examples():
        tokens, mask = torch.tensor([example.tokens]), torch.tensor(example.loss_mask)[1:]
        nll = F.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:], reduction="none")
        total, count = total + nll[mask].sum(), count + int(mask.sum())
    expected = torch.autograd.grad(total / count, list(model.parameters()))
    loss, metrics = language_model_loss(model, collate(pack(examples(), 16)))
    assert metrics == {"tokens": count}
    torch.testing.assert_close(loss, total / count)
    torch.testing.assert_close(torch.autograd.grad(loss, list(model.parameters())), expected, rtol=1e-4, atol=1e-6)


def test_one_example_a_row_needs_no_segments() -> None:
    model, rows = GPTModel(SMALL), [pack([example], 12)[0] for example in examples()]
    batch = collate(rows)
    with_pairs = collate([*rows, pack([examples()[4], examples()[2]], 12)[0]])
    alone, _ = language_model_loss(model, batch)
    weights = [int(((row["segments"] > 0) & row["loss_mask"]).sum()) for row in rows]
    kept = {key: value[:-1] for key, value in with_pairs.items()}
    torch.testing.assert_close(language_model_loss(model, kept)[0], alone)
    assert sum(weights) == language_model_loss(model, batch)[1]["tokens"]


def test_nothing_to_learn_is_refused() -> None:
    only_first = pack([Example([1, 2, 3], [True, False, False])], 4)
    with pytest.raises(TrainingError, match="nothing to learn from"):
        language_model_loss(GPTModel(SMALL), collate(only_first))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_lora_learns_over_a_frozen_bfloat16_base(precision: str, dropout: float, tmp_path: Path) -> None:
    def fresh() -> GPTModel:
        model = GPTModel(SMALL, seed=1)
        with torch.no_grad():
            model.embed.weight.mul_(20)  # tied and frozen: as small as it is drawn, no adapter could move the logits
        model.bfloat16()
        add_lora(model, LoraConfig(4, targets=("all-linear",), dropout=dropout))
        return model

    rows: list[Row] = pack(examples(), 16)
    config = TrainConfig(steps=40, learning_rate=0.02, warmup_steps=4, precision=precision)  # type: ignore[arg-type]
    model = fresh()
    with torch.no_grad(), lora_disabled(model):
        before = model(torch.tensor([[1, 2, 3]]))
    result = Trainer(model, language_model_loss, config, checkpoint_dir=tmp_path).fit(batches(rows, 2))
    assert result.final_loss < 0.8 * result.history[0]["loss"]
    assert {p.dtype for p in lora_parameters(model)} == {torch.float32}
    with torch.no_grad(), lora_disabled(model):
        assert torch.equal(model(torch.tensor([[1, 2, 3]])), before)
    resumed = fresh()
    assert Trainer(resumed, language_model_loss, config, checkpoint_dir=tmp_path).fit(batches(rows, 2)) == result
    assert all(torch.equal(a, b) for a, b in zip(lora_parameters(model), lora_parameters(resumed), strict=True))


def test_pretraining_rows_with_targets_equal_rows_that_imply_them() -> None:
    model = GPTModel(SMALL, seed=1)
    tokens = torch.randint(29, (3, 13), generator=torch.Generator().manual_seed(3))
    implied, metrics = language_model_loss(model, {"tokens": tokens})
    shifted = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    given, same = language_model_loss(model, shifted)
    torch.testing.assert_close(given, implied)
    assert metrics == same == {"tokens": 36.0}
    keep = torch.rand(3, 12, generator=torch.Generator().manual_seed(4)) < 0.5
    nll = F.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none")
    masked, count = language_model_loss(model, {**shifted, "loss_mask": keep})
    torch.testing.assert_close(masked, nll[keep].mean())
    assert count == {"tokens": float(keep.sum())}


def test_targets_of_packed_documents_count_within_their_document() -> None:
    model, batch = GPTModel(SMALL, seed=1), collate(pack(examples(), 16))
    tokens, segments = batch["tokens"], batch["segments"]
    expected, count = language_model_loss(model, {"tokens": tokens, "segments": segments})
    targets = torch.cat([tokens[:, 1:], torch.zeros_like(tokens[:, :1])], 1)
    mask = torch.cat([torch.ones_like(segments[:, 1:]), torch.zeros_like(segments[:, :1])], 1).bool()
    mask[:, :-1] &= (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    given, same = language_model_loss(
        model, {"tokens": tokens, "targets": targets, "segments": segments, "loss_mask": mask}
    )
    torch.testing.assert_close(given, expected)
    assert same == count
    # Without a mask: all targets in their own document; the last column's target is taken to be there too.
    loose, counted = language_model_loss(model, {"tokens": tokens, "targets": targets, "segments": segments})
    assert counted["tokens"] == count["tokens"] + float((segments[:, -1] > 0).sum())
    assert loose != expected
