"""Attention: the fused path equals the written-out one, masks follow their definition, rotation is relative."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch

from alignlab.lm.attention import Context, MultiHeadAttention, causal_mask
from alignlab.lm.config import GPTConfig, RopeScaling
from alignlab.lm.model import GPTModel
from alignlab.lm.rotary import RotaryTable, frequencies, rotate
from alignlab.lm.taps import listen


def attention(n_heads: int = 6, n_kv_heads: int = 2, **fields: float) -> MultiHeadAttention:
    return MultiHeadAttention(GPTConfig(d_model=48, n_heads=n_heads, n_kv_heads=n_kv_heads, **fields), 0)  # type: ignore[arg-type]


def heads(n_query: int, n_key: int, n_kv_heads: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n_query + 100 * n_key)
    return tuple(
        torch.randn(3, h, n, 8, generator=generator) * 2
        for h, n in ((6, n_query), (n_kv_heads, n_key), (n_kv_heads, n_key))
    )  # type: ignore[return-value]


@pytest.mark.parametrize("n_kv_heads", [1, 2, 6])
@pytest.mark.parametrize(("n_query", "n_key"), [(7, 7), (1, 7), (3, 7), (1, 1)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [None, 0.4])
@torch.no_grad()
def test_fused_equals_explicit(n_kv_heads: int, n_query: int, n_key: int, masked: bool, scale: float | None) -> None:
    if not masked and 1 < n_query < n_key:
        masked = True  # None stands for plain causal attention only where queries and keys are the same tokens
    module = attention(n_kv_heads=n_kv_heads, **({} if scale is None else {"attn_scale": scale}))
    q, k, v = heads(n_query, n_key, n_kv_heads)
    mask = torch.rand(3, 1, n_query, n_key, generator=torch.Generator().manual_seed(4)) < 0.5
    mask[..., 0] = True
    used = mask if masked else None
    fused, explicit = module.attend(q, k, v, used), module.attend_explicitly(q, k, v, used).transpose(1, 2)
    assert fused.shape == (3, n_query, 6, 8)
    assert (fused - explicit).abs().max() < 1e-5


@torch.no_grad()
def test_equal_scores_average_the_values_seen_so_far() -> None:
    _, k, v = heads(5, 5)
    z = attention().attend(torch.zeros(3, 6, 5, 8), k, v, None)
    for i, head in product(range(5), range(6)):
        assert torch.allclose(z[:, i, head], v[:, head // 3, : i + 1].mean(1), atol=1e-6)


@torch.no_grad()
def test_soft_cap_bounds_the_odds() -> None:
    """With scores capped at ±c, no key can be more than exp(2c) times as heavy as another."""
    module = attention(attn_softcap=0.7)
    q, k, v = heads(6, 6)
    seen: list[torch.Tensor] = []
    module.taps["blocks.0.attn.hook_pattern"] = (lambda x, name: seen.append(x),)
    module.attend(100 * q, k, v, None)
    last = seen[0][:, :, -1]
    assert (last.amax(-1) / last.amin(-1)).max() == pytest.approx(math.exp(1.4), rel=1e-3)


@pytest.mark.parametrize("window", [None, 1, 3])
def test_mask_follows_its_definition(window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randint(-1, 9, (2, 6), generator=generator)
    keys = torch.randint(-1, 9, (2, 11), generator=generator)
    same = torch.rand(2, 6, 11, generator=generator) < 0.6
    mask = causal_mask(queries, keys, window, same)
    assert mask.shape == (2, 1, 6, 11)
    for b, i, j in product(range(2), range(6), range(11)):
        q, k = int(queries[b, i]), int(keys[b, j])
        inside = window is None or q - k < window
        expected = q < 0 or (0 <= k <= q and inside and bool(same[b, i, j]))
        assert bool(mask[b, 0, i, j]) == expected


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "linear", "gemma3"])
@torch.no_grad()
def test_watched_model_equals_the_fused_one(name: str, make_model: Callable[..., GPTModel]) -> None:
    model = make_model(name)
    tokens = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[1] * 9 + [2] * 8 + [0] * 3, [1] * 20])
    watch = {f"blocks.{i}.attn.hook_pattern": lambda x, name: None for i in range(2)}
    for used in (None, segments):
        fused = model(tokens, segments=used)
        with listen(model, watch):
            explicit = model(tokens, segments=used)
        assert (fused - explicit).abs().max() < 2e-5


@pytest.mark.parametrize("rotary_dim", [4, 16])
def test_rotation_keeps_length_and_sees_only_distances(rotary_dim: int) -> None:
    config = GPTConfig(d_model=16, n_heads=1, rotary_dim=rotary_dim)
    table = RotaryTable(config)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 1, 1, 16, generator=generator), torch.randn(1, 1, 1, 16, generator=generator)

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        return rotate(x, table(torch.tensor([[position]]), position + 1, torch.float32)).flatten()

    assert torch.equal(turned(q, 0), q.flatten())
    assert turned(q, 37).norm() == pytest.approx(float(q.norm()), rel=1e-5)
    assert torch.equal(turned(q, 37)[rotary_dim:], q.flatten()[rotary_dim:])
    near, far = turned(q, 5) @ turned(k, 2), turned(q, 305) @ turned(k, 302)
    assert float(near) == pytest.approx(float(far), abs=1e-3)
    assert abs(float(near - turned(q, 5) @ turned(k, 4))) > 0.05


def test_rotation_tables_grow_and_stay_the_same() -> None:
    table = RotaryTable(GPTConfig())
    positions = torch.arange(10)[None]
    before = table(positions, 10, torch.float32)
    table(torch.tensor([[5000]]), 5001, torch.float32)
    after = table(positions, 10, torch.float32)
    assert torch.equal(before.cos, after.cos)
    assert torch.equal(before.sin, after.sin)


def test_scaled_frequencies_by_hand() -> None:
    """dim 4, base 100: frequencies 1 and 0.1, wavelengths 6.28 and 62.8."""
    assert frequencies(4, 100.0, None).tolist() == pytest.approx([1.0, 0.1])
    assert frequencies(4, 100.0, RopeScaling("linear", 4.0)).tolist() == pytest.approx([0.25, 0.025])
    # Waves shorter than 64/4 stay, longer than 64/2 are stretched by 4.
    apart = RopeScaling("llama3", 4.0, low_freq_factor=2.0, high_freq_factor=4.0, original_n_ctx=64)
    assert frequencies(4, 100.0, apart).tolist() == pytest.approx([1.0, 0.025])
    # Between: share = (64 / 62.83 - 1) / (4 - 1) of the frequency stays, the rest is divided.
    between = RopeScaling("llama3", 4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_n_ctx=64)
    share = (64 / (20 * math.pi) - 1) / 3
    assert frequencies(4, 100.0, between).tolist() == pytest.approx([1.0, 0.1 * (share + (1 - share) / 4)])


@torch.no_grad()
def test_attention_module_stands_alone() -> None:
    module = attention()
    x = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0))
    rotation = RotaryTable(module.config)(torch.arange(5).expand(2, -1), 5, torch.float32)
    out = module(x, Context(None, rotation, None))
    assert out.shape == x.shape
    assert not torch.allclose(out, module(x, Context(None, None, None)))
