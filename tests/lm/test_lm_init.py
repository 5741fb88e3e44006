"""Initialisation: a seed draws the same again, sizes are GPT-2's, and under muP they do not feel the width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alignlab.lm.config import GPTConfig
from alignlab.lm.init import initialise, learning_rate_scales
from alignlab.lm.model import GPTModel
from alignlab.lm.taps import listen

WIDTHS = (32, 64, 128, 256)
STREAM, SCORES = "blocks.1.hook_resid_post", "blocks.1.attn.hook_attn_scores"


def build(width: int, init: str, seed: int = 0, **fields: Any) -> GPTModel:
    """Four heads of growing width, so that the scale of the scores matters; not tied, so that all tensors differ."""
    shape = {"vocab_size": 64, "n_ctx": 32, "n_layers": 2, "n_heads": 4, "d_model": width, "d_mlp": 4 * width}
    chosen = shape | {"init": init, "mup_base_width": 32, "tie_embeddings": False} | fields
    return GPTModel(GPTConfig(**chosen), seed=seed)


def test_the_same_seed_draws_the_same_again() -> None:
    model, other = build(32, "mup", seed=1), build(32, "mup", seed=2)
    assert not torch.equal(model.embed.weight, other.embed.weight)
    initialise(other, 1)
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_mup_draws_smaller_matrices_inside_the_blocks() -> None:
    """At four times the base width: half the deviation inside, the same outside; at the base width GPT-2's numbers.

    A deviation estimated from n numbers is off by 1/sqrt(2n): under 1 % for the smallest matrix here.
    """
    wide = {name: float(p.detach().std()) for name, p in build(128, "mup").named_parameters() if p.dim() == 2}
    assert wide["embed.weight"] == pytest.approx(0.02, rel=0.05)
    assert wide["head.weight"] == pytest.approx(0.02, rel=0.05)
    for name in ("attn.q", "attn.k", "attn.v", "mlp.gate", "mlp.up"):
        assert wide[f"blocks.1.{name}.weight"] == pytest.approx(0.01, rel=0.05), name
    for name in ("attn.o", "mlp.down"):
        assert wide[f"blocks.1.{name}.weight"] == pytest.approx(0.01 / 2, rel=0.05), name
    for ours, theirs in zip(build(32, "mup").parameters(), build(32, "gpt2").parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_mup_scales_learning_rates_scores_and_logits() -> None:
    model = build(128, "mup", qkv_bias=True, positions="learned")
    scales = learning_rate_scales(model)
    assert scales.keys() == dict(model.named_parameters()).keys()
    inside = {name for name, scale in scales.items() if scale == 0.25}
    kinds = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")
    assert inside == {f"blocks.{i}.{kind}.weight" for i in range(2) for kind in kinds}
    assert {scales[name] for name in scales.keys() - inside} == {1.0}
    assert (model.config.score_scale, model.config.output_multiplier) == (1 / 32, 0.25)
    assert build(128, "mup", attn_scale=0.5).config.score_scale == 0.5
    plain = build(128, "gpt2")
    assert set(learning_rate_scales(plain).values()) == {1.0}
    assert (plain.config.score_scale, plain.config.output_multiplier) == (32**-0.5, 1.0)


def changes(width: int, init: str, **fields: Any) -> dict[str, float]:
    """The coordinate check (Yang et al. 2022, appendix D.1): how far some steps of Adam move the activations.

    Root mean square of the change in the residual stream, in the scores and in the logits, on texts that repeat
    themselves, so that there is something for attention to learn.
    """
    model = build(width, init, **fields)
    scales = learning_rate_scales(model)
    optimizer = torch.optim.Adam([{"params": [p], "lr": 0.02 * scales[name]} for name, p in model.named_parameters()])
    half = torch.randint(0, 64, (4, 8), generator=torch.Generator().manual_seed(0))
    tokens = torch.cat([half, half, half[:, :1]], 1)

    @torch.no_grad()
    def activations() -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        with listen(model, dict.fromkeys((STREAM, SCORES), lambda x, name: seen.update({name: x}))):
            seen["logits"] = model(tokens[:, :-1])
        return seen | {SCORES: seen[SCORES][torch.isfinite(seen[SCORES])]}

    before = activations()
    for _ in range(6):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = activations()
    return {name: float((after[name] - before[name]).square().mean().sqrt()) for name in before}


def growth(init: str, widths: Sequence[int] = WIDTHS, **fields: Any) -> dict[str, float]:
    """Power of the width with which each change grows: the slope of its logarithm over that of the width."""
    found = [changes(width, init, **fields) for width in widths]
    x = torch.tensor([math.log(width) for width in widths])
    x = x - x.mean()
    return {
        name: float((x * torch.tensor([math.log(sizes[name]) for sizes in found])).sum() / x.square().sum())
        for name in found[0]
    }


@pytest.mark.parametrize("tied", [False, True])
def test_coordinate_check(tied: bool) -> None:
    """Under muP the size of every change is flat in the width; under the standard scaling it grows.

    Scores may fall: what of their change is still random falls as the root of the width, what is learned is flat.
    """
    mup, standard = growth("mup", tie_embeddings=tied), growth("gpt2", (32, 128), tie_embeddings=tied)
    assert abs(mup[STREAM]) < 0.15
    assert abs(mup["logits"]) < 0.15
    assert -0.5 < mup[SCORES] < 0.05
    assert standard[STREAM] > 1
    assert standard[SCORES] > 1
    assert standard["logits"] > 0.25


def test_each_part_of_mup_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check notices when one of its three parts is missing: of the scores, the logits, or the learning rates."""
    grown = {width: changes(width, "mup", attn_scale=(width / 4) ** -0.5) for width in WIDTHS[::3]}
    assert grown[256][SCORES] > 1.1 * grown[32][SCORES]
    with monkeypatch.context() as patched:
        patched.setattr(GPTConfig, "output_multiplier", 1.0)
        assert changes(256, "mup")["logits"] > 1.5 * changes(32, "mup")["logits"]
    monkeypatch.setitem(globals(), "learning_rate_scales", lambda model: {n: 1.0 for n, _ in model.named_parameters()})
    assert changes(256, "mup")[STREAM] > 3 * changes(32, "mup")[STREAM]
