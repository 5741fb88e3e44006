"""Tiny models of every family with weights large enough to matter, a byte tokenizer, and a model that recites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from wire_server import Server, running

from alignlab.lm.config import GPTConfig, RopeScaling
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.model import GPTModel
from alignlab.lm.tokenizer import SpecialTokens, Tokenizer

SMALL: dict[str, Any] = {
    "vocab_size": 300, "n_ctx": 64, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_mlp": 48, "tie_embeddings": False,
}  # fmt: skip
BIASES = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
UNGATED = {"gated_mlp": False, "norm": "layernorm"}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": SMALL | UNGATED | BIASES | {"activation": "gelu_tanh", "positions": "learned", "tie_embeddings": True},
    "neox": SMALL | UNGATED | BIASES | {"activation": "gelu", "rotary_dim": 4, "parallel_block": True},
    "llama": SMALL | {"n_kv_heads": 2, "rope_scaling": RopeScaling("llama3", 8.0, original_n_ctx=16)},
    "linear": SMALL | {"n_kv_heads": 1, "rope_scaling": RopeScaling("linear", 3.0), "activation": "relu", "window": 5},
    "gemma2": SMALL | {
        "n_kv_heads": 2, "d_head": 12, "activation": "gelu_tanh", "norm_offset": True, "post_norm": True,
        "attn_scale": 0.21, "attn_softcap": 3.0, "logit_softcap": 4.0, "window": 6, "window_layers": (True, False),
        "embed_scale": 32**0.5, "tie_embeddings": True,
    },
    "gemma3": SMALL | {
        "n_kv_heads": 2, "qk_norm": True, "norm_offset": True, "window": 4, "window_layers": (False, True),
        "rope_theta": 1e5, "rope_local_theta": 1e3, "rope_scaling": RopeScaling("linear", 2.0),
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def families() -> dict[str, dict[str, Any]]:
    """Fields of a small `GPTConfig` by family."""
    return FAMILIES


@pytest.fixture(scope="session")
def make_model() -> Callable[..., GPTModel]:
    """The same model for the same arguments; norms and biases are random too, so that none can be forgotten."""

    def make(family: str = "llama", seed: int = 0, **fields: Any) -> GPTModel:
        model = GPTModel(GPTConfig(**(FAMILIES[family] | fields))).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if name.endswith("embed.weight"):
                    parameter.copy_(noise)
                elif parameter.ndim == 2:
                    parameter.copy_(noise * parameter.shape[1] ** -0.5)
                else:
                    parameter.add_(0.2 * noise)
        return model

    return make


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """256 bytes, some letters and pairs of them, `</s>` (0) and another control token (1); no beginning token."""
    words = ["</s>", "<|ctl|>", *(f"<0x{i:02X}>" for i in range(256)), *"abcdefgh ", "ab", "cd", "abcd"]
    core = tokenizers.Tokenizer(
        models.BPE(
            {word: i for i, word in enumerate(words)}, [("a", "b"), ("c", "d"), ("ab", "cd")], byte_fallback=True
        )
    )
    core.add_special_tokens(["</s>", "<|ctl|>"])
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return Tokenizer(core, SpecialTokens(eos=0))


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> Tokenizer:
    """GPT-2's spelling of the 256 bytes, `</s>` (0) and another control token (1)."""
    words = ["</s>", "<|ctl|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    core.add_special_tokens(["</s>", "<|ctl|>"])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return Tokenizer(core, SpecialTokens(eos=0))


@pytest.fixture(scope="session")
def make_lm(make_model: Callable[..., GPTModel], byte_tokenizer: Tokenizer) -> Callable[..., LanguageModel]:
    """A random model of a family, with the byte tokenizer where no other is given."""

    def make(
        family: str = "llama", seed: int = 0, tokenizer: Tokenizer = byte_tokenizer, **fields: Any
    ) -> LanguageModel:
        return LanguageModel(make_model(family, seed, **fields), tokenizer, "tiny", "test")

    return make


@pytest.fixture(scope="session")
def make_reciter(byte_tokenizer: Tokenizer) -> Callable[[Sequence[int]], LanguageModel]:
    """A model that answers any prompt of one token with the given ids: its blocks add nothing to one-hot positions."""

    def make(script: Sequence[int]) -> LanguageModel:
        n_ctx = len(script) + 1
        config = GPTConfig(
            vocab_size=300, n_ctx=n_ctx, d_model=n_ctx, n_layers=1, n_heads=1, positions="learned", tie_embeddings=False
        )
        model = GPTModel(config)
        with torch.no_grad():
            for parameter in (model.embed.weight, model.blocks[0].attn.o.weight, model.blocks[0].mlp.down.weight):
                parameter.zero_()
            model.pos_embed.weight.copy_(torch.eye(n_ctx))
            model.head.weight.zero_()
            for position, token in enumerate(script):
                model.head.weight[token, position] = 100.0
        return LanguageModel(model, byte_tokenizer, "reciter", "test")

    return make


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on this machine that answers as a test says; nobody's key is in the environment."""
    for name in ("ALIGNLAB_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with running() as found:
        yield found
