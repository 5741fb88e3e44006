"""The model equals its definition written naively in float64; packing, caching and padding change nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignlab.core.errors import ConfigError, ModelError
from alignlab.lm.cache import KVCache
from alignlab.lm.config import GPTConfig, RopeScaling
from alignlab.lm.model import GPTModel

MakeModel = Callable[..., GPTModel]

CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "alibi": ("llama", {"positions": "alibi"}),
    "alibi-capped-window": (
        "llama",
        {"positions": "alibi", "n_heads": 6, "n_kv_heads": 3, "d_head": 6, "window": 5, "attn_softcap": 3.0},
    ),
    "sinusoidal": ("gpt2", {"positions": "sinusoidal"}),
    "no-positions-relu2": ("llama", {"positions": "none", "activation": "relu2", "gated_mlp": False}),
    "post-norm": ("gpt2", {"norm_position": "post"}),
    "post-rmsnorm-window": ("llama", {"norm_position": "post", "window": 6, "window_layers": (True, False)}),
    "solu": ("gpt2", {"activation": "solu"}),
    "geglu-mqa-qk-layernorm": ("llama", {"activation": "gelu", "n_kv_heads": 1, "qk_norm": True, "norm": "layernorm"}),
    "mup": ("llama", {"init": "mup", "mup_base_width": 16}),
}
"""Names of configurations beyond the families: the family they start from, and what differs."""
NAMES = ["gpt2", "neox", "llama", "linear", "gemma2", "gemma3", *CHOICES]


def build(make_model: MakeModel, name: str) -> GPTModel:
    family, fields = CHOICES.get(name, (name, {}))
    return make_model(family, **fields)


def ids(*shape: int, seed: int = 1, vocab: int = 300) -> Tensor:
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))


# The definition, one number after another -----------------------------------------------------------------------------


def naive_frequency(i: int, config: GPTConfig, local: bool) -> float:
    """Angular frequency of pair `i`; Llama 3.1's stretching is written by wavelength."""
    theta = config.rope_local_theta if local and config.rope_local_theta else config.rope_theta
    freq = theta ** (-2 * i / config.rotary_dim)
    scaling = None if local and config.rope_local_theta else config.rope_scaling
    if scaling is None:
        return freq
    if scaling.kind == "linear":
        return freq / scaling.factor
    wavelength = 2 * math.pi / freq
    if wavelength < scaling.original_n_ctx / scaling.high_freq_factor:
        return freq
    if wavelength > scaling.original_n_ctx / scaling.low_freq_factor:
        return freq / scaling.factor
    share = (scaling.original_n_ctx / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    return (1 - share) * freq / scaling.factor + share * freq


def naive_rotate(vector: Tensor, position: int, config: GPTConfig, local: bool) -> Tensor:
    """Pairs (i, i + rotary_dim / 2) turn in their plane as complex numbers."""
    out, half = vector.clone(), config.rotary_dim // 2
    for i in range(half):
        angle = position * naive_frequency(i, config, local)
        turned = complex(vector[i], vector[i + half]) * complex(math.cos(angle), math.sin(angle))
        out[i], out[i + half] = turned.real, turned.imag
    return out


def naive_norm(x: Tensor, layer: Any, config: GPTConfig, centred: bool) -> Tensor:
    weight = layer.weight.double() + (1 if config.norm_offset else 0)
    if centred:
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * weight
    return x + layer.bias.double() if centred else x


def naive_linear(layer: Any, x: Tensor) -> Tensor:
    y = x @ layer.weight.double().T
    return y if layer.bias is None else y + layer.bias.double()


ALIBI_EXPONENTS = {4: [2, 4, 6, 8], 6: [2, 4, 6, 8, 1, 3]}
"""Slopes are 2 to the minus these: for 6 heads those of 4, then the first and third of 8."""


def naive_attention(model: GPTModel, index: int, x: Tensor) -> Tensor:
    config, attn = model.config, model.blocks[index].attn
    length, per_group, windowed = len(x), config.n_heads // config.n_kv_heads, config.is_windowed(index)
    q = naive_linear(attn.q, x).view(length, config.n_heads, config.d_head)
    k, v = (naive_linear(m, x).view(length, config.n_kv_heads, config.d_head) for m in (attn.k, attn.v))
    if config.qk_norm:
        centred = config.norm == "layernorm"
        q, k = naive_norm(q, attn.q_norm, config, centred), naive_norm(k, attn.k_norm, config, centred)
    if config.positions == "rotary":
        q, k = (
            torch.stack([torch.stack([naive_rotate(h, p, config, windowed) for h in row]) for p, row in enumerate(t)])
            for t in (q, k)
        )
    scale = 1 / config.d_head if config.init == "mup" else config.d_head**-0.5
    scale = scale if config.attn_scale is None else config.attn_scale
    z = torch.zeros(length, config.n_heads, config.d_head, dtype=torch.float64)
    for i in range(length):
        for head in range(config.n_heads):
            seen = [j for j in range(i + 1) if not windowed or i - j < (config.window or 0)]
            scores = [float(q[i, head] @ k[j, head // per_group]) * scale for j in seen]
            if config.attn_softcap is not None:
                scores = [config.attn_softcap * math.tanh(s / config.attn_softcap) for s in scores]
            if config.positions == "alibi":
                slope = 2.0 ** -ALIBI_EXPONENTS[config.n_heads][head]
                scores = [s - slope * (i - j) for s, j in zip(scores, seen, strict=True)]
            total = sum(math.exp(s) for s in scores)
            for j, score in zip(seen, scores, strict=True):
                z[i, head] += math.exp(score) / total * v[j, head // per_group]
    return naive_linear(attn.o, z.view(length, -1))


def naive_activation(x: Tensor, kind: str) -> Tensor:
    if kind == "silu":
        return x / (1 + (-x).exp())
    if kind == "relu":
        return x.clamp(min=0)
    if kind == "relu2":
        return torch.where(x > 0, x * x, 0)
    if kind == "solu":
        return x * (x.exp() / x.exp().sum(-1, keepdim=True))
    if kind == "gelu":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def naive_sinusoid(position: int, width: int) -> list[float]:
    angles = [position / 10_000 ** (2 * (d // 2) / width) for d in range(width)]
    return [math.cos(a) if d % 2 else math.sin(a) for d, a in enumerate(angles)]


def naive_mlp(block: Any, h: Tensor, config: GPTConfig) -> Tensor:
    inner = naive_activation(naive_linear(block.mlp.gate if config.gated_mlp else block.mlp.up, h), config.activation)
    if config.activation == "solu":
        inner = naive_norm(inner, block.mlp.norm, config, True)
    return naive_linear(block.mlp.down, inner * naive_linear(block.mlp.up, h) if config.gated_mlp else inner)


@torch.no_grad()
def naive_logits(model: GPTModel, tokens: list[int]) -> Tensor:
    config, centred = model.config, model.config.norm == "layernorm"
    x = model.embed.weight.double()[tokens] * config.embed_scale
    if config.positions == "learned":
        x = x + model.pos_embed.weight.double()[: len(tokens)]
    if config.positions == "sinusoidal":
        x = x + torch.tensor([naive_sinusoid(p, config.d_model) for p in range(len(tokens))], dtype=torch.float64)
    for i, block in enumerate(model.blocks):
        if config.norm_position == "post":
            x = naive_norm(x + naive_attention(model, i, x), block.norm1, config, centred)
            x = naive_norm(x + naive_mlp(block, x, config), block.norm2, config, centred)
            continue
        attn = naive_attention(model, i, naive_norm(x, block.norm1, config, centred))
        attn = naive_norm(attn, block.post_attn_norm, config, centred) if config.post_norm else attn
        out = naive_mlp(
            block, naive_norm(x if config.parallel_block else x + attn, block.norm2, config, centred), config
        )
        x = x + attn + (naive_norm(out, block.post_mlp_norm, config, centred) if config.post_norm else out)
    x = x if config.norm_position == "post" else naive_norm(x, model.final_norm, config, centred)
    x = x * (config.mup_base_width / config.d_model if config.init == "mup" else 1)
    logits = x @ model.head_weight.double().T
    cap = config.logit_softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_logits_equal_the_definition(name: str, make_model: MakeModel) -> None:
    model, tokens = build(make_model, name), ids(2, 18)
    expected = torch.stack([naive_logits(model, row) for row in tokens.tolist()])
    assert expected.std() > 0.5
    assert (model(tokens) - expected).abs().max() < 1e-4


@torch.no_grad()
def test_each_choice_of_the_definition_matters(make_model: MakeModel) -> None:
    """The comparison above would notice if one of these fields were ignored."""
    tokens = ids(1, 18).tolist()[0]
    for name, change in [
        ("llama", {"rope_scaling": None}), ("llama", {"rope_scaling": RopeScaling("linear", 8.0)}),
        ("llama", {"window": 7}), ("neox", {"rotary_dim": 8}), ("gemma2", {"attn_softcap": None}),
        ("gemma2", {"window_layers": (False, True)}), ("gemma3", {"rope_local_theta": None}),
        ("linear", {"n_kv_heads": 1, "window": 6}), ("gemma2", {"attn_scale": None}),
        ("alibi", {"positions": "none"}), ("sinusoidal", {"positions": "none"}), ("mup", {"mup_base_width": 32}),
        ("post-norm", {"activation": "relu2"}), ("alibi-capped-window", {"attn_softcap": None}),
    ]:  # fmt: skip
        model = build(make_model, name)
        before = naive_logits(model, tokens)
        model.config = replace(model.config, **change)  # type: ignore[arg-type]
        assert (naive_logits(model, tokens) - before).abs().max() > 1e-2, (name, change)


# Packed rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_packed_documents_equal_separate_ones(name: str, make_model: MakeModel) -> None:
    model = build(make_model, name)
    lengths = [[7, 1, 12, 4], [20], [3, 15]]
    documents = [[ids(n, seed=10 * r + i) for i, n in enumerate(row)] for r, row in enumerate(lengths)]
    tokens, segments = ids(3, 26, seed=99), torch.zeros(3, 26, dtype=torch.long)  # padding holds arbitrary tokens
    for r, row in enumerate(documents):
        tokens[r, : sum(lengths[r])] = torch.cat(row)
        segments[r, : sum(lengths[r])] = torch.cat([torch.full((len(d),), i + 1) for i, d in enumerate(row)])
    packed = model(tokens, segments=segments)
    assert torch.isfinite(packed).all()
    for r, row in enumerate(documents):
        start = 0
        for document in row:
            alone = model(document[None])[0]
            assert (packed[r, start : start + len(document)] - alone).abs().max() < 2e-5
            start += len(document)


@torch.no_grad()
def test_no_document_sees_another(make_model: MakeModel) -> None:
    model, tokens = make_model(), ids(1, 20)
    segments = torch.tensor([[1] * 8 + [2] * 8 + [0] * 4])
    before = model(tokens, segments=segments)
    changed = tokens.clone()
    changed[0, 3], changed[0, 18] = (tokens[0, 3] + 1) % 300, (tokens[0, 18] + 1) % 300
    after = model(changed, segments=segments)
    assert torch.equal(before[0, 8:16], after[0, 8:16])
    assert torch.equal(before[0, :3], after[0, :3])
    assert not torch.equal(before[0, 3:8], after[0, 3:8])


# The cache ------------------------------------------------------------------------------------------------------------


def new_cache(model: GPTModel, batch: int, capacity: int) -> KVCache:
    return KVCache(model.config, batch, capacity, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pieces", [[20], [1] * 20, [7, 1, 1, 8, 3], [19, 1]])
@torch.no_grad()
def test_reading_in_pieces_equals_reading_at_once(name: str, pieces: list[int], make_model: MakeModel) -> None:
    model, tokens = build(make_model, name), ids(2, 20)
    cache = new_cache(model, 2, 23)
    steps = [model(piece, cache=cache) for piece in tokens.split(pieces, dim=1)]
    assert (torch.cat(steps, 1) - model(tokens)).abs().max() < 2e-5
    assert cache.length == 20
    assert cache.next_position.tolist() == [20, 20]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["left", "right", "between"])
@torch.no_grad()
def test_padding_in_the_cache_changes_nothing(name: str, side: str, make_model: MakeModel) -> None:
    """Rows of 12, 5 and 1 tokens share a batch, then each goes on for 6 tokens, one or several at a time."""
    model, lengths, rest = build(make_model, name), [12, 5, 1], 6
    rows = [ids(n + rest, seed=n) for n in lengths]
    tokens, real = ids(3, 12, seed=5), torch.zeros(3, 12, dtype=torch.long)
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        columns = list(range(12))[-n:] if side == "left" else list(range(12))[:n]
        if side == "between":  # the first token, then padding, then the others
            columns = [0, *range(13 - n, 12)]
        tokens[i, columns], real[i, columns] = row[:n], 1
    cache = new_cache(model, 3, 12 + rest)
    read = model(tokens, cache=cache, segments=real)
    later = torch.stack([row[-rest:] for row in rows])
    steps = torch.cat([model(piece, cache=cache) for piece in later.split([1, 3, 1, 1], dim=1)], 1)
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        alone = model(row[None])[0]
        assert (read[i][real[i] > 0] - alone[:n]).abs().max() < 2e-5
        assert (steps[i] - alone[n:]).abs().max() < 2e-5


@pytest.mark.parametrize("held_once", [True, False])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_shared_prefix_is_spread_and_rows_are_selected(name: str, held_once: bool, make_model: MakeModel) -> None:
    """Whether the prefix is held once for all rows or copied into each, every row reads it in full."""
    model, prefix, own = build(make_model, name), ids(1, 9), ids(3, 6, seed=2)
    cache = new_cache(model, 1, 16)
    model(prefix, cache=cache)
    if held_once:
        cache.spread(3)
        assert cache.keys.shape[3] == 16 - 9
    else:
        cache.select(torch.tensor([0, 0, 0]))
    first = model(own[:, :4], cache=cache)
    cache.select(torch.tensor([2, 0]))
    second = model(own[[2, 0], 4:], cache=cache)
    whole = model(torch.cat([prefix.expand(3, -1), own], 1))
    assert (first - whole[:, 9:13]).abs().max() < 2e-5
    assert (second - whole[[2, 0], 13:]).abs().max() < 2e-5


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@torch.no_grad()
def test_the_context_and_the_cache_are_bounded(name: str, make_model: MakeModel) -> None:
    model = make_model(name, n_ctx=10)
    assert model(ids(1, 10)).shape == (1, 10, 300)
    with pytest.raises(ModelError, match=r"has 11 tokens, the model reads at most 10"):
        model(ids(1, 11))
    cache = new_cache(model, 1, 12)
    model(ids(1, 10), cache=cache)
    with pytest.raises(ModelError, match="reads at most 10"):
        model(ids(1, 1), cache=cache)
    with pytest.raises(ModelError, match="the cache holds 4 tokens, 5 are needed"):
        model(ids(1, 5), cache=new_cache(model, 1, 4))
    # Columns may exceed the context where some are padding.
    padded = new_cache(model, 1, 14)
    real = torch.tensor([[0] * 6 + [1] * 5])
    model(ids(1, 11), cache=padded, segments=real)
    assert model(ids(1, 3), cache=padded).shape == (1, 3, 300)


# Configuration and initialisation -------------------------------------------------------------------------------------


def test_initialisation_is_gpt2s_and_seeded() -> None:
    config = GPTConfig(d_model=128, n_layers=8, d_mlp=512, qkv_bias=True, norm="layernorm")
    model, again, other = GPTModel(config, seed=3), GPTModel(config, seed=3), GPTModel(config, seed=4)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert all(torch.equal(weights[n], p) for n, p in again.named_parameters())
    assert not torch.equal(weights["embed.weight"], other.embed.weight)
    # The deviation of n normal numbers has a relative error of about 1/sqrt(2n): under 0.6 % for 16 384 of them.
    assert float(weights["blocks.1.attn.q.weight"].std()) == pytest.approx(0.02, rel=0.03)
    assert float(weights["blocks.1.attn.o.weight"].std()) == pytest.approx(0.02 / 4, rel=0.03)
    assert float(weights["blocks.1.mlp.down.weight"].std()) == pytest.approx(0.02 / 4, rel=0.03)
    assert (weights["blocks.0.norm1.weight"] == 1).all()
    assert (weights["blocks.0.attn.q.bias"] == 0).all()


def test_a_model_on_the_meta_device_has_no_numbers() -> None:
    with torch.device("meta"):
        model = GPTModel(GPTConfig(vocab_size=1_000_000, d_model=4096, n_heads=32))
    assert model.head_weight is model.embed.weight
    assert model.embed.weight.is_meta


def test_zeros_in_the_configuration_are_resolved() -> None:
    config = GPTConfig(d_model=48, n_heads=6, window=4, n_layers=2, window_layers=[True, False])  # type: ignore[arg-type]
    assert (config.n_kv_heads, config.d_head, config.rotary_dim) == (6, 8, 8)
    assert [config.is_windowed(i) for i in range(2)] == [True, False]
    assert GPTConfig(window=4).is_windowed(1)
    assert not GPTConfig().is_windowed(0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"n_layers": -1}, "n_layers is -1"),
        ({"n_heads": 5}, "n_heads is 5"),
        ({"n_kv_heads": 3}, "n_kv_heads is 3"),
        ({"rotary_dim": 5}, "rotary_dim is 5"),
        ({"rotary_dim": 18}, "rotary_dim is 18"),
        ({"d_model": 12, "n_heads": 4}, "rotary_dim is 3"),
        ({"norm_eps": 0}, "norm_eps is 0"),
        ({"window": 0}, "window is 0"),
        ({"window_layers": (True,)}, "window_layers"),
        ({"positions": "relative"}, "positions is 'relative', allowed: rotary, learned, sinusoidal, alibi, none"),
        ({"activation": "swish"}, "activation is 'swish'"),
        ({"norm_position": "middle"}, "norm_position is 'middle'"),
        ({"attention": "flash"}, "attention is 'flash', allowed: auto, explicit, sdpa, flex"),
        ({"init": "xavier"}, "init is 'xavier'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"attn_softcap": 0.0}, "attn_softcap is 0.0"),
        ({"positions": "sinusoidal", "d_model": 9, "n_heads": 3}, "d_model is 9, allowed: an even number"),
        ({"norm_position": "post", "post_norm": True}, "post_norm is True"),
        ({"norm_position": "post", "parallel_block": True}, "parallel_block is True"),
        ({"activation": "solu"}, "gated_mlp is True, allowed: false where activation is solu"),
        ({"attention": "sdpa", "attn_softcap": 5.0}, "attn_softcap is 5.0, allowed: none where attention is sdpa"),
        ({"attn_dropout": 1.0}, "attn_dropout is 1.0"),
        ({"attention": "flex", "attn_dropout": 0.1}, "attn_dropout is 0.1, allowed: 0 where attention is flex"),
        ({"mup_base_width": 0}, "mup_base_width is 0"),
    ],
)
def test_impossible_configurations_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GPTConfig(**fields)


def test_impossible_scaling_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rope_scaling\.factor is 0\.5"):
        RopeScaling("linear", 0.5)
    with pytest.raises(ConfigError, match="high_freq_factor"):
        RopeScaling("llama3", 8.0, low_freq_factor=4.0, high_freq_factor=4.0)
