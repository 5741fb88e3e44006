"""On a GPU: the paged cache's kernel against its definition, recorded and compiled steps against `LocalSampler`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from alignlab.lm.config import GPTConfig
from alignlab.lm.engine import Engine, EngineSampler
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler
from alignlab.lm.lora import ALL_LINEAR, LoraConfig, add_lora
from alignlab.lm.model import GPTModel
from alignlab.lm.rotary import Rotation, rotate
from alignlab.lm.samplers import sampler_of
from alignlab.lm.tokenizer import SpecialTokens, Tokenizer
from alignlab.lm.types import SamplingParams

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA device is needed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's compiler uses what torch deprecates
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]
GREEDY = SamplingParams(max_tokens=21, temperature=0)
DRAWN = SamplingParams(max_tokens=21, temperature=0.9, top_p=0.95, seed=3)
FAMILIES: dict[str, dict[str, Any]] = {
    "neox": {"norm": "layernorm", "activation": "gelu", "gated_mlp": False, "rotary_dim": 8, "parallel_block": True},
    "llama": {"n_heads": 6, "n_kv_heads": 2},
    "gpt2": {
        "positions": "learned", "norm": "layernorm", "activation": "gelu", "gated_mlp": False, "qkv_bias": True,
        "out_bias": True, "mlp_bias": True,
    },
    "windowed": {
        "n_heads": 6, "n_kv_heads": 3, "attn_softcap": 20.0, "window": 10, "window_layers": (True, False, True),
    },
    "alibi": {"positions": "alibi"},
}  # fmt: skip


def definition(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float, window: int) -> Tensor:
    """Attention of one row's last token (head, d_head) over its keys (key, kv_head, d_head), in float64."""
    q, k, v = (t.double() for t in (q, k, v))
    groups = q.shape[0] // k.shape[1]
    scores = torch.einsum("hd,nhd->hn", q, k.repeat_interleave(groups, 1)) * scale
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    if window:
        scores[:, : max(0, len(k) - window)] = float("-inf")
    return torch.einsum("hn,nhd->hd", scores.softmax(-1), v.repeat_interleave(groups, 1))


@pytest.mark.parametrize("turned", [0, 32, 48])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "softcap", "window", "keys_a_program"),
    [(6, 2, 64, 0.0, 0, 512), (4, 4, 48, 0.0, 20, 64), (9, 3, 64, 5.0, 0, 64), (8, 1, 128, 0.0, 100, 32)],
)
def test_the_kernel_is_attention(
    heads: int, kv_heads: int, width: int, softcap: float, window: int, keys_a_program: int, dtype: torch.dtype,
    turned: int, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    paged_kernel = pytest.importorskip("alignlab.lm.engine.paged_kernel")
    monkeypatch.setattr(paged_kernel, "KEYS_A_PROGRAM", keys_a_program)
    torch.manual_seed(0)
    size, n_blocks, positions = 16, 20, [0, 150, 317]
    memory = torch.randn(2, 3 * n_blocks, size, kv_heads, width, device="cuda").to(dtype)
    table = torch.randperm(3 * n_blocks, device="cuda").view(3, n_blocks)
    row = torch.randn(3, heads + 2 * kv_heads, width, device="cuda").to(dtype)
    q, k, v = row.split([heads, kv_heads, kv_heads], 1)
    keys, values = memory.clone()
    places = torch.tensor(positions, device="cuda")
    angles = torch.outer(places.float(), 1e4 ** -torch.linspace(0, 1, turned // 2, device="cuda")) if turned else None
    turn = None
    if angles is not None:
        turn = torch.cat([angles.cos()] * 2, -1).to(dtype), torch.cat([-angles.sin(), angles.sin()], -1).to(dtype)
    cached = paged_kernel.CachedRows(keys, values, table, places)
    found = paged_kernel.attend_paged(q, k, v, cached, scale=0.2, softcap=softcap, window=window, rotation=turn)
    if turn is not None:
        rotation = Rotation(*(t[None, :, None] for t in turn))
        q, k = (rotate(t[None].float(), rotation)[0].to(dtype) for t in (q, k))
    for i, position in enumerate(positions):
        own = [t[table[i]].flatten(0, 1)[: position + 1].clone() for t in memory]
        own[0][position], own[1][position] = k[i], v[i]
        expected = definition(q[i], own[0], own[1], 0.2, softcap, window)
        assert (found[i] - expected).abs().max() < (5e-6 if dtype is torch.float32 else 2e-2)
        assert torch.allclose(keys[table[i, position // size], position % size], k[i], atol=1e-6, rtol=1e-2)
        assert torch.equal(values[table[i, position // size], position % size], v[i])
    written = (keys != memory[0]).flatten(2).any(-1).sum()
    assert written == len(positions)  # nothing else


def language_model(family: str) -> LanguageModel:
    shape = {"vocab_size": 300, "n_ctx": 128, "d_model": 96, "n_layers": 3, "n_heads": 4, "d_mlp": 128}
    model = GPTModel(GPTConfig(**{**shape, **FAMILIES[family]}), seed=1).to("cuda").eval()  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.data.mul_(3)  # far from uniform, so that nothing is a near-tie
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(["</s>", *alphabet])}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return LanguageModel(model, Tokenizer(core, SpecialTokens(eos=0)), name="tiny", source="random weights")


PROMPTS = ["The sea is", "a b c d e", "Once upon a time", "The sea is", "zzzzzzzzzz", "0123456789", "b b b b b b"]


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, replace(DRAWN, stop=("e", "9"))], ids=["greedy", "drawn", "stop"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_steps_give_the_answers_of_the_local_sampler(
    family: str, compiled: bool, sampling: SamplingParams
) -> None:
    lm = language_model(family)
    expected = LocalSampler(lm).generate(PROMPTS, sampling)
    engine = Engine(lm, blocks=64, compiled=compiled)
    for _ in range(2):
        found = EngineSampler(engine).generate(PROMPTS, sampling)
        assert [one.tokens for one in found] == [one.tokens for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-3)
    graphs = engine.runner.graphs
    assert graphs is not None
    assert graphs.decode.greedy_steps if sampling is GREEDY and family != "alibi" else graphs.decode.steps
    assert graphs.prompts.steps
    assert graphs.decode.compiled is compiled
    assert engine.stats().blocks_used == 0


@pytest.mark.parametrize("moved", [False, True])
def test_weights_that_change_are_noticed(moved: bool) -> None:
    lm = language_model("llama")
    engine = Engine(lm, blocks=64, compiled=False)
    before = EngineSampler(engine).generate(PROMPTS, GREEDY)
    other = language_model("llama").model
    with torch.no_grad():
        for parameter, source in zip(lm.model.parameters(), other.parameters(), strict=True):
            if moved:
                parameter.data = source.flip(0).contiguous()
            else:
                parameter.copy_(source.flip(0))
    after = EngineSampler(engine).generate(PROMPTS, GREEDY)
    assert [one.tokens for one in after] == [one.tokens for one in LocalSampler(lm).generate(PROMPTS, GREEDY)]
    assert [one.tokens for one in after] != [one.tokens for one in before]


@pytest.mark.parametrize("compiled", [False, True])
def test_adapters_that_are_trained_are_noticed(compiled: bool) -> None:
    """Unmerged adapters in recorded steps: switched, changed in place, and switched off."""
    lm = language_model("llama")
    add_lora(lm.model, LoraConfig(rank=4, alpha=16.0, targets=(ALL_LINEAR,)))
    engine = Engine(lm, blocks=64, compiled=compiled)
    seen = []
    for change in (0.0, 0.3, 0.6):
        with torch.no_grad():
            for name, parameter in lm.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(change * torch.cos(torch.arange(parameter.numel()).view_as(parameter) + len(name)))
        found = EngineSampler(engine).generate(PROMPTS, GREEDY)
        assert [one.tokens for one in found] == [o.tokens for o in LocalSampler(lm).generate(PROMPTS, GREEDY)]
        seen.append([one.tokens for one in found])
    assert seen[0] != seen[1] != seen[2]


def test_the_sampler_of_a_model_on_a_gpu_is_its_engine() -> None:
    lm = language_model("llama")
    sampler = sampler_of(lm, batch_size=4)
    assert isinstance(sampler, EngineSampler)
    assert sampler_of(lm, batch_size=2).engine is sampler.engine  # type: ignore[union-attr]
    assert sampler_of(lm, batch_size=8).engine is not sampler.engine  # type: ignore[union-attr]
    found, expected = (s.generate(PROMPTS, DRAWN) for s in (sampler, LocalSampler(lm)))
    assert [one.tokens for one in found] == [one.tokens for one in expected]
