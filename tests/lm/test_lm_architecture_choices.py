"""Dropout happens at GPT-2's places and never in generation; taps of the newer choices; the fast paths of bf16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from alignlab.lm import attention
from alignlab.lm.attention import Extra, MultiHeadAttention
from alignlab.lm.block import activate
from alignlab.lm.config import GPTConfig
from alignlab.lm.model import GPTModel
from alignlab.lm.taps import listen, tap_names

MakeModel = Callable[..., GPTModel]
UNGATED = {"gated_mlp": False}


def ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 300, shape, generator=torch.Generator().manual_seed(seed))


# Dropout --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_dropout_only_while_training(make_model: MakeModel) -> None:
    plain, model = make_model(), make_model(dropout=0.3)
    assert torch.equal(model.eval()(ids(2, 12)), plain(ids(2, 12)))
    model.train()
    torch.manual_seed(0)
    first, second = model(ids(2, 12)), model(ids(2, 12))
    torch.manual_seed(0)
    assert torch.equal(model(ids(2, 12)), first)
    assert (first - second).abs().max() > 0.1
    assert torch.equal(plain.train()(ids(2, 12)), plain.eval()(ids(2, 12)))


@torch.no_grad()
def test_dropout_at_gpt2s_places(make_model: MakeModel) -> None:
    """Embeddings, what attention adds and what the MLP adds: a share p is zero, the rest is larger by 1 / (1 - p).

    2 x 40 x 32 numbers: the share's deviation is 0.009, so 0.05 away has a chance below 1e-7.
    """
    model = make_model("gpt2", dropout=0.3).train()
    seen: dict[str, Tensor] = {}
    names = [
        "hook_embed",
        "hook_pos_embed",
        "blocks.0.hook_resid_pre",
        "blocks.0.hook_attn_out",
        "blocks.1.hook_mlp_out",
    ]
    torch.manual_seed(1)
    with listen(model, dict.fromkeys(names, lambda x, name: seen.update({name: x}))):
        model(ids(2, 40))
    for name in names[2:]:
        assert float((seen[name] == 0).float().mean()) == pytest.approx(0.3, abs=0.05), name
    whole = (seen["hook_embed"] + seen["hook_pos_embed"]) / 0.7
    kept = seen["blocks.0.hook_resid_pre"] != 0
    assert torch.allclose(seen["blocks.0.hook_resid_pre"][kept], whole[kept])


@pytest.mark.parametrize("path", ["sdpa", "explicit"])
@torch.no_grad()
def test_dropout_of_the_attention_pattern(path: str) -> None:
    """Values that are the identity show the pattern itself: dropped, or larger by 1 / (1 - p)."""
    config = GPTConfig(d_model=64, n_heads=2, n_kv_heads=1, attn_dropout=0.4, attention=path)  # type: ignore[arg-type]
    module = MultiHeadAttention(config, 0)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(8, 2, 32, 32, generator=generator), torch.randn(8, 1, 32, 32, generator=generator)
    v = torch.eye(32).expand(8, 1, -1, -1)
    torch.manual_seed(0)
    dropped = module.attend(q, k, v, None, None, Extra(attn_dropout=0.4))
    pattern = module.attend(q, k, v, None)
    causal = pattern > 0
    assert int(causal.sum()) == 8 * 2 * 32 * 33 // 2
    kept = dropped != 0
    assert not kept[~causal].any()
    assert float(kept[causal].float().mean()) == pytest.approx(0.6, abs=0.04)  # deviation 0.005
    assert torch.allclose(dropped[kept], pattern[kept] / 0.6, atol=1e-6)


def test_dropout_masks_belong_to_the_backward_pass_too(make_model: MakeModel) -> None:
    """What was dropped gets no gradient: a token whose whole embedding were dropped would get none."""
    model = make_model(n_layers=1, dropout=0.5).train()
    seen: list[Tensor] = []
    torch.manual_seed(3)
    with listen(model, {"hook_embed": lambda x, name: (x.retain_grad(), seen.append(x))[0],
                        "blocks.0.hook_resid_pre": lambda x, name: seen.append(x)}):  # fmt: skip
        model(ids(1, 20)).square().sum().backward()
    embedded, stream = seen
    assert embedded.grad is not None
    assert (embedded.grad[stream == 0] == 0).all()
    assert (embedded.grad[stream != 0] != 0).all()


# Activations and taps -------------------------------------------------------------------------------------------------


def test_activations_by_hand() -> None:
    x = torch.tensor([[-1.0, 0.0, 2.0]])
    assert activate(x, "relu2").tolist() == [[0.0, 0.0, 4.0]]
    # softmax(-1, 0, 2) = (e^-1, 1, e^2) / 8.75694
    assert activate(x, "solu")[0].tolist() == pytest.approx([-0.0420101, 0.0, 1.6875891], abs=1e-6)
    # One number far above the others passes as it is, equal ones are divided by their number (Elhage et al. 2022).
    assert activate(torch.tensor([30.0, 0.0, 0.0]), "solu").tolist() == pytest.approx([30.0, 0.0, 0.0], abs=1e-5)
    assert activate(torch.full((4,), 2.0), "solu").tolist() == pytest.approx([0.5] * 4)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("gpt2", {"activation": "solu", "n_layers": 1}),
        ("gpt2", {"norm_position": "post", "n_layers": 1}),
        ("gpt2", {"positions": "sinusoidal", "n_layers": 1}),
        ("llama", {"positions": "alibi", "n_layers": 1, "window": 4}),
        ("llama", {"positions": "none", "norm_position": "post", "activation": "solu", "n_layers": 1} | UNGATED),
    ],
)
@torch.no_grad()
def test_each_tap_fires_once_in_order(family: str, fields: dict[str, Any], make_model: MakeModel) -> None:
    model = make_model(family, **fields)
    names = tap_names(model.config)
    seen: list[str] = []
    before = model(ids(2, 9))
    with listen(model, dict.fromkeys(names, lambda x, name: seen.append(name))):
        watched = model(ids(2, 9))
    assert seen == names
    assert (watched - before).abs().max() <= 1e-5
    solu = {"blocks.0.mlp.hook_mid", "blocks.0.mlp.ln.hook_scale", "blocks.0.mlp.ln.hook_normalized"}
    assert (solu <= set(names)) == (fields.get("activation") == "solu")


# The fast paths of bf16 on the CPU ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "fast"),
    [({}, True), ({"window": 4}, True), ({"qk_norm": True, "dropout": 0.0}, True), ({"norm_position": "post"}, True),
     ({"positions": "alibi"}, False), ({"dropout": 0.1}, True), ({"attn_dropout": 0.1}, False),
     ({"attention": "explicit"}, False)],
)  # fmt: skip
def test_plain_choices_keep_the_fast_backward_pass(
    fields: dict[str, Any], fast: bool, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(**fields).to(torch.bfloat16).train()
    calls: list[int] = []
    plain = attention.attend_for_training
    monkeypatch.setattr(attention, "trains_faster", lambda q: True)  # whatever this processor has
    monkeypatch.setattr(attention, "attend_for_training", lambda *a: (calls.append(1), plain(*a))[1])
    model(ids(2, 12)).float().square().mean().backward()
    assert len(calls) == (2 if fast else 0)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@torch.no_grad()
def test_plain_passes_carry_nothing_extra(make_model: MakeModel) -> None:
    """The hot path's only cost of the newer choices is a look at None."""
    for fields in (
        {},
        {"positions": "learned"},
        {"positions": "none"},
        {"positions": "sinusoidal"},
        {"dropout": 0.1, "attn_dropout": 0.1},
    ):
        model = make_model("gpt2", **fields).eval()
        positions = torch.arange(6).expand(2, -1)
        for context in model.contexts(positions, 6, None, None, torch.float32).values():
            assert context.extra is None
            assert context.mask is None


@pytest.mark.parametrize("fields", [{"positions": "alibi"}, {"positions": "sinusoidal"}, {"norm_position": "post"}])
@torch.no_grad()
def test_bf16_is_near_float32(fields: dict[str, Any], make_model: MakeModel) -> None:
    model, tokens = make_model(**fields), ids(2, 30)
    expected = model(tokens)
    narrow = model.to(torch.bfloat16)(tokens)
    assert narrow.dtype is torch.bfloat16
    assert float((narrow.float() - expected).abs().mean() / expected.abs().mean()) < 0.05
