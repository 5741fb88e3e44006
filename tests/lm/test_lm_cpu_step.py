"""The compiled pass against the model itself: families, caches, prompts and steps, float32 and bfloat16."""

from __future__ import annotations

import copy
import platform
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from alignlab.lm.cache import KVCache
from alignlab.lm.config import GPTConfig
from alignlab.lm.cpu_step.program import program
from alignlab.lm.cpu_step.step import SOURCE, CpuStep, open_step
from alignlab.lm.model import GPTModel
from alignlab.lm.quant.apply import quantise

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or shutil.which("g++") is None, reason="the program needs Linux and g++"
)

SMALL: dict[str, Any] = {"vocab_size": 100, "n_ctx": 64, "d_model": 64, "n_layers": 2, "n_heads": 4, "d_mlp": 144}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"n_kv_heads": 2},
    "gpt2": {
        "positions": "learned", "norm": "layernorm", "activation": "gelu_tanh", "gated_mlp": False,
        "qkv_bias": True, "out_bias": True, "mlp_bias": True,
    },
    "neox": {
        "parallel_block": True, "rotary_dim": 8, "norm": "layernorm", "activation": "gelu", "gated_mlp": False,
        "qkv_bias": True, "out_bias": True, "mlp_bias": True, "tie_embeddings": False,
    },
    "qwen3": {"n_kv_heads": 1, "qk_norm": True, "d_head": 32, "tie_embeddings": False},
    "gemma3": {
        "n_kv_heads": 2, "post_norm": True, "norm_offset": True, "qk_norm": True, "activation": "gelu_tanh",
        "embed_scale": 8.0, "window": 5, "window_layers": (True, False), "rope_local_theta": 1000.0,
        "attn_softcap": 20.0, "logit_softcap": 10.0, "vocab_size": 101,
    },
    "no positions": {"positions": "none", "activation": "relu2", "d_model": 80, "d_head": 16, "n_heads": 3},
    "sinusoidal": {"positions": "sinusoidal", "activation": "relu", "window": 4},
    "wide heads": {"n_heads": 2, "d_head": 96, "n_kv_heads": 1, "window": 7},
}  # fmt: skip


def made(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> GPTModel:
    """A model with weights large enough that every part of it shows in the output."""
    model = GPTModel(GPTConfig(**{**SMALL, **FAMILIES[family]}), seed=seed).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    return model.to(dtype)


def in_float32(model: GPTModel) -> GPTModel:
    """A float32 model with the same numbers."""
    wide = GPTModel(model.config).eval().requires_grad_(False)
    wide.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    return wide


def empty_cache(model: GPTModel, rows: int) -> KVCache:
    return KVCache(model.config, rows, 48, device=torch.device("cpu"), dtype=model.embed.weight.dtype)


def opened(model: GPTModel) -> CpuStep:
    step = open_step(model)
    assert step is not None
    return step


def a_generation(model: GPTModel, step: CpuStep | None) -> list[Tensor]:
    """Hidden states and logits of prompts of different lengths behind a shared beginning, of steps, and of a choice of
    rows: everything that happens to a cache in one generation."""
    generator = torch.Generator().manual_seed(5)
    vocab = model.config.vocab_size
    cache, seen = empty_cache(model, 1), []

    def read(tokens: Tensor, real: Tensor | None) -> None:
        if step is None:
            hidden = model.hidden_states(tokens, cache=cache, segments=real)
        else:
            assert step.serves(cache)
            hidden = step.hidden_states(tokens, cache, real)
        seen.append(hidden if real is None else hidden[real.bool()])

    def go_on(rows: int) -> None:
        for _ in range(2):
            tokens = torch.randint(0, vocab, (rows,), generator=generator)
            if step is None:
                seen.append(model(tokens[:, None], cache=cache)[:, -1])
            else:
                seen.append(step.read(tokens, cache).logits.clone())

    read(torch.randint(0, vocab, (1, 11), generator=generator), None)
    cache.spread(5)
    real = torch.ones(5, 9, dtype=torch.long)
    real[1, :4], real[2, :1], real[4, :8] = 0, 0, 0
    read(torch.randint(0, vocab, (5, 9), generator=generator), real)
    go_on(5)
    cache.select(torch.tensor([4, 1, 1]))
    go_on(3)
    real = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])  # padding between tokens
    read(torch.randint(0, vocab, (3, 4), generator=generator), real)
    go_on(3)
    return seen


def gap(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [float((a.float() - b.float()).abs().max()) for a, b in zip(found, expected, strict=True)]


def test_the_program_compiles() -> None:
    assert program(SOURCE) is not None


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_pass_is_the_models(family: str) -> None:
    model = made(family)
    expected = a_generation(model, None)
    scale = max(float(x.abs().max()) for x in expected)
    assert max(gap(a_generation(model, opened(model)), expected)) < 1e-5 * max(scale, 1)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_pass_is_nearer_to_float32_than_torchs(family: str) -> None:
    model = made(family, torch.bfloat16)
    exact = a_generation(in_float32(model), None)
    torchs, ours = (gap(a_generation(model, step), exact) for step in (None, opened(model)))
    assert sum(ours) < sum(torchs)
    assert max(ours) < 0.03 * max(float(x.abs().max()) for x in exact)


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["int4", "int8", "nf4"])
@pytest.mark.parametrize("group_size", [16, 32, 64])
def test_codes_are_multiplied_as_what_they_stand_for(scheme: str, group_size: int) -> None:
    config = GPTConfig(**{**SMALL, "d_model": 128, "d_mlp": 192, "n_kv_heads": 2})
    model = GPTModel(config, seed=1).eval()
    quantise(model, scheme, group_size=group_size)
    assert max(gap(a_generation(model, opened(model)), a_generation(model, None))) < 1e-5
    half = GPTModel(config, seed=1).eval().to(torch.bfloat16)
    quantise(half, scheme, group_size=group_size)
    exact = a_generation(copy.deepcopy(half).float(), None)
    torchs, ours = (gap(a_generation(half, step), exact) for step in (None, opened(half)))
    assert sum(ours) < sum(torchs)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", [None, "int4"])
def test_many_rows_are_what_they_are_alone(dtype: torch.dtype, scheme: str | None) -> None:
    model = made("llama", dtype)
    if scheme is not None:
        quantise(model, scheme, group_size=32)
    step = opened(model)
    prompts = torch.randint(0, 100, (150, 7), generator=torch.Generator().manual_seed(2))

    def read(rows: Tensor) -> tuple[Tensor, Tensor]:
        cache = empty_cache(model, len(rows))
        hidden = step.hidden_states(rows, cache)
        return hidden, step.read(rows[:, 0], cache).logits.clone()

    together = read(prompts)
    for some in ([0], [149], [3, 77, 78, 140, 141], list(range(33))):
        for whole, part in zip(together, read(prompts[some]), strict=True):
            if dtype is torch.float32:
                assert torch.equal(whole[some], part)
            else:  # a few rows are multiplied by codes, many by what they stand for
                assert float((whole[some].float() - part.float()).abs().max()) < 0.05


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    model, before = made("llama", dtype), torch.get_num_threads()
    step, found = opened(model), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(a_generation(model, step))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("vocab", [16, 100, 1000])
def test_best_and_total_are_those_of_the_logits(vocab: int) -> None:
    model = GPTModel(GPTConfig(**{**SMALL, "vocab_size": vocab, "tie_embeddings": False})).eval()
    assert model.head is not None
    model.head.weight *= 50
    model.head.weight[vocab // 2] = model.head.weight[vocab - 1]  # a tie
    hidden = torch.randn(37, 64, generator=torch.Generator().manual_seed(0))
    hidden[5] = model.head.weight[vocab - 1] * 3
    hidden[6] = 0
    reading = opened(model).unembed(hidden)
    logits = hidden @ model.head.weight.T
    assert reading.best is not None
    assert reading.total is not None
    assert float((reading.logits - logits).abs().max()) < 1e-4
    assert reading.best[5] == vocab // 2
    assert reading.best[6] == 0
    assert torch.equal(reading.logits.gather(1, reading.best[:, None])[:, 0], reading.logits.amax(1))
    assert float((reading.total - reading.logits.logsumexp(-1)).abs().max()) < 1e-5
    hidden[:, 3] = torch.tensor([float("nan"), float("inf"), -float("inf"), *[0.0] * 34])
    total = opened(model).unembed(hidden).total
    assert total is not None
    assert total.isfinite().tolist() == [False] * 3 + [True] * 34
