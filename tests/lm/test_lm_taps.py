"""Taps: TransformerLens's names, each fired once with its shape; listening changes nothing unless it replaces."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from alignlab.core.errors import ModelError
from alignlab.lm.model import GPTModel
from alignlab.lm.taps import listen, tap_names

MakeModel = Callable[..., GPTModel]
BATCH, POS = 2, 9

# What TransformerLens documents as the keys of the cache of GPT-2 and of a Llama model with one layer, in its order.
GPT2_NAMES = [
    "hook_embed",
    "hook_pos_embed",
    "blocks.0.hook_resid_pre",
    "blocks.0.ln1.hook_scale",
    "blocks.0.ln1.hook_normalized",
    "blocks.0.attn.hook_q",
    "blocks.0.attn.hook_k",
    "blocks.0.attn.hook_v",
    "blocks.0.attn.hook_attn_scores",
    "blocks.0.attn.hook_pattern",
    "blocks.0.attn.hook_z",
    "blocks.0.hook_attn_out",
    "blocks.0.hook_resid_mid",
    "blocks.0.ln2.hook_scale",
    "blocks.0.ln2.hook_normalized",
    "blocks.0.mlp.hook_pre",
    "blocks.0.mlp.hook_post",
    "blocks.0.hook_mlp_out",
    "blocks.0.hook_resid_post",
    "ln_final.hook_scale",
    "ln_final.hook_normalized",
]
LLAMA_NAMES = [
    "hook_embed",
    "blocks.0.hook_resid_pre",
    "blocks.0.ln1.hook_scale",
    "blocks.0.ln1.hook_normalized",
    "blocks.0.attn.hook_q",
    "blocks.0.attn.hook_k",
    "blocks.0.attn.hook_v",
    "blocks.0.attn.hook_rot_q",
    "blocks.0.attn.hook_rot_k",
    "blocks.0.attn.hook_attn_scores",
    "blocks.0.attn.hook_pattern",
    "blocks.0.attn.hook_z",
    "blocks.0.hook_attn_out",
    "blocks.0.hook_resid_mid",
    "blocks.0.ln2.hook_scale",
    "blocks.0.ln2.hook_normalized",
    "blocks.0.mlp.hook_pre",
    "blocks.0.mlp.hook_pre_linear",
    "blocks.0.mlp.hook_post",
    "blocks.0.hook_mlp_out",
    "blocks.0.hook_resid_post",
    "ln_final.hook_scale",
    "ln_final.hook_normalized",
]


def ids(seed: int = 0) -> Tensor:
    return torch.randint(0, 300, (BATCH, POS), generator=torch.Generator().manual_seed(seed))


def recorder(into: dict[str, list[Tensor]]) -> Callable[[Tensor, str], None]:
    return lambda value, name: into.setdefault(name, []).append(value)


def test_names_are_transformer_lenss(make_model: MakeModel) -> None:
    assert tap_names(make_model("gpt2", n_layers=1).config) == GPT2_NAMES
    assert tap_names(make_model("llama", n_layers=1).config) == LLAMA_NAMES
    neox, gemma = set(tap_names(make_model("neox").config)), set(tap_names(make_model("gemma2").config))
    assert not any("resid_mid" in name or "pos_embed" in name for name in neox)
    assert {"blocks.1.ln1_post.hook_normalized", "blocks.1.ln2_post.hook_scale"} <= gemma


def expected_shape(name: str, model: GPTModel) -> tuple[int, ...]:
    """The shape that `tap_names` documents."""
    config, short = model.config, name.rpartition("hook_")[2]
    if short in ("q", "rot_q", "z"):
        return (BATCH, POS, config.n_heads, config.d_head)
    if short in ("k", "v", "rot_k"):
        return (BATCH, POS, config.n_kv_heads, config.d_head)
    if short in ("attn_scores", "pattern"):
        return (BATCH, config.n_heads, POS, POS)
    if short in ("pre", "pre_linear", "post"):
        return (BATCH, POS, config.d_mlp)
    return (BATCH, POS, 1) if short == "scale" else (BATCH, POS, config.d_model)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "gemma2", "gemma3"])
@torch.no_grad()
def test_each_tap_fires_once_in_order_with_its_shape(name: str, make_model: MakeModel) -> None:
    model = make_model(name)
    names = tap_names(model.config)
    assert len(set(names)) == len(names)
    before = model(ids())
    seen: dict[str, list[Tensor]] = {}
    with listen(model, dict.fromkeys(names, recorder(seen))):
        watched = model(ids())
    assert (watched - before).abs().max() <= 1e-5
    assert set(seen) == set(names)
    for tap, values in seen.items():
        assert [tuple(v.shape) for v in values] == [expected_shape(tap, model)], tap
    if name in ("gpt2", "llama"):  # parallel blocks and post-norms interleave differently; there only the set counts
        assert list(seen) == names
    assert not model.taps
    assert torch.equal(model(ids()), before)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "gemma2"])
@torch.no_grad()
def test_listening_to_any_one_tap_changes_nothing(name: str, make_model: MakeModel) -> None:
    model = make_model(name)
    before = model(ids())
    for tap in tap_names(model.config):
        fired: dict[str, list[Tensor]] = {}
        with listen(model, {tap: recorder(fired)}):
            assert (model(ids()) - before).abs().max() <= 1e-5, tap
        assert list(fired) == [tap]


@torch.no_grad()
def test_values_are_what_their_names_say(make_model: MakeModel) -> None:
    """Identities between taps of one pass, for a model with all kinds of sub-layers in sequence."""
    model = make_model("gpt2")
    seen: dict[str, list[Tensor]] = {}
    with listen(model, dict.fromkeys(tap_names(model.config), recorder(seen))):
        logits = model(ids())
    at = {name: values[0] for name, values in seen.items()}
    close = lambda a, b: torch.allclose(a, b, atol=1e-5)  # noqa: E731
    assert close(at["blocks.0.hook_resid_pre"], at["hook_embed"] + at["hook_pos_embed"])
    for i in range(2):
        p = f"blocks.{i}."
        assert close(at[p + "hook_resid_mid"], at[p + "hook_resid_pre"] + at[p + "hook_attn_out"])
        assert close(at[p + "hook_resid_post"], at[p + "hook_resid_mid"] + at[p + "hook_mlp_out"])
        assert close(at[p + "attn.hook_pattern"].sum(-1), torch.ones(BATCH, 4, POS))
        assert close(at[p + "attn.hook_attn_scores"].softmax(-1), at[p + "attn.hook_pattern"])
        mixed = torch.einsum("bhqk,bkhd->bqhd", at[p + "attn.hook_pattern"], at[p + "attn.hook_v"])
        assert close(mixed, at[p + "attn.hook_z"])
        centred = at[p + "hook_resid_pre"] - at[p + "hook_resid_pre"].mean(-1, keepdim=True)
        assert close(at[p + "ln1.hook_scale"], centred.square().mean(-1, keepdim=True).add(1e-5).sqrt())
    assert close(at["blocks.1.hook_resid_pre"], at["blocks.0.hook_resid_post"])
    assert close(model.unembed(at["ln_final.hook_normalized"]), logits)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "gemma2"])
@torch.no_grad()
def test_a_listener_can_replace_any_value(name: str, make_model: MakeModel) -> None:
    model = make_model(name)
    before = model(ids())
    for tap in tap_names(model.config):
        with listen(model, {tap: lambda value, _: value * torch.linspace(0.25, 1, value.shape[-1])}):
            assert (model(ids()) - before).abs().max() > 1e-4, tap


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
@torch.no_grad()
def test_without_a_residual_stream_the_logits_are_constant(name: str, make_model: MakeModel) -> None:
    model = make_model(name)
    with listen(model, {"blocks.1.hook_resid_post": lambda value, _: torch.zeros_like(value)}):
        logits = model(ids())
    assert torch.equal(logits, logits[:1, :1].expand_as(logits))
    if name != "gpt2":  # no bias in the norm: nothing at all is left
        assert (logits == 0).all()


@torch.no_grad()
def test_patching_the_stream_gives_the_other_inputs_answer(make_model: MakeModel) -> None:
    model = make_model("llama")
    kept: dict[str, list[Tensor]] = {}
    with listen(model, {"blocks.0.hook_resid_post": recorder(kept)}):
        other = model(ids(1))
    with listen(model, {"blocks.0.hook_resid_post": lambda value, name: kept[name][0]}):
        assert torch.equal(model(ids(0)), other)


@torch.no_grad()
def test_nested_listeners_run_in_order_and_are_restored(make_model: MakeModel) -> None:
    model, tap, order = make_model(), "hook_embed", []
    before = model(ids())

    def note(label: str) -> Callable[[Tensor, str], None]:
        return lambda value, name: order.append(label)

    with listen(model, {tap: note("outer")}):
        with listen(model, {tap: lambda value, name: value * 2, "blocks.0.hook_resid_pre": note("inner")}):
            doubled = model(ids())
        assert order == ["outer", "inner"]
        assert not torch.allclose(doubled, before)
        model(ids())
        assert order == ["outer", "inner", "outer"]
    assert not model.taps
    assert torch.equal(model(ids()), before)


@torch.no_grad()
def test_a_failing_listener_leaves_no_trace(make_model: MakeModel) -> None:
    model = make_model()

    def fail(value: Tensor, name: str) -> None:
        raise ValueError(name)

    with pytest.raises(ValueError, match="hook_embed"), listen(model, {"hook_embed": fail}):
        model(ids())
    assert not model.taps


@pytest.mark.parametrize("name", ["hook_embeds", "blocks.2.hook_resid_pre", "hook_pos_embed", "blocks.0.hook_resid"])
def test_an_unknown_tap_is_refused_before_anything_is_attached(name: str, make_model: MakeModel) -> None:
    model = make_model("llama")
    sentence = re.escape(f"there is no tap named {name!r}")
    with pytest.raises(ModelError, match=sentence), listen(model, {"hook_embed": lambda v, n: None, name: print}):
        pass  # pragma: no cover
    assert not model.taps


@torch.no_grad()
def test_nobody_listening_calls_nothing(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("gemma2")
    assert not model.taps

    def unwanted(self: object, name: str, value: Tensor) -> Tensor:
        raise AssertionError(f"tap {name} was called")

    monkeypatch.setattr(type(model.taps), "__call__", unwanted)
    model(ids())
    with pytest.raises(AssertionError), listen(model, {"hook_embed": lambda v, n: None}):
        model(ids())


def test_gradients_reach_a_tap(make_model: MakeModel) -> None:
    model = make_model()
    seen: dict[str, list[Tensor]] = {}
    with listen(model, {"blocks.0.attn.hook_z": recorder(seen)}):
        loss = model(ids()).logsumexp(-1).sum()
    (z,) = seen["blocks.0.attn.hook_z"]
    (grad,) = torch.autograd.grad(loss, z)
    assert grad.shape == z.shape
    assert grad.abs().max() > 0
