"""llama2.c checkpoints: the `.bin` of karpathy/llama2.c (its first, unversioned format) and its tokenizer file.

A checkpoint is seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len; a negative vocab_size
means an unshared classifier) and float32 weights in a fixed order. A tokenizer file is the longest token's length and,
for each token, a float32 score, an int32 length and the bytes.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import tokenizers
import torch

from alignlab.core.errors import ConfigError, ModelError
from alignlab.lm.config import GPTConfig
from alignlab.lm.gguf_tokenizer import BYTE, CONTROL, UNKNOWN, sentencepiece_core
from alignlab.lm.model import GPTModel
from alignlab.lm.tokenizer import SpecialTokens, Tokenizer
from alignlab.lm.weights import load_weights

_HEADER = struct.Struct("<7i")


class Llama2cFile:
    """A checkpoint as a source of tensors under the names of llama.cpp's Llama, whose rotary layout it shares."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            size = self.path.stat().st_size
            with self.path.open("rb") as file:
                header = file.read(_HEADER.size)
        except OSError as error:
            raise ModelError(f"{self.path}: cannot be opened: {error.strerror or error}") from None
        if len(header) < _HEADER.size:
            raise ModelError(f"{self.path}: not a llama2.c checkpoint: {size} bytes are too few for its header")
        dim, hidden, n_layers, n_heads, n_kv, vocab, n_ctx = _HEADER.unpack(header)
        self.shared = vocab > 0
        vocab = abs(vocab)
        numbers = (dim, hidden, n_layers, n_heads, n_kv, vocab, n_ctx)
        if min(numbers) <= 0 or n_layers > 1000 or dim % (2 * n_heads) or n_heads % n_kv:
            raise ModelError(f"{self.path}: not a llama2.c checkpoint: its header says {numbers}")
        self.config = GPTConfig(
            vocab_size=vocab, n_ctx=n_ctx, d_model=dim, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv,
            d_mlp=hidden, norm_eps=1e-5, rope_theta=10_000.0, tie_embeddings=self.shared, architecture="llama",
        )  # fmt: skip
        self._places = self._layout(size)
        self._data = np.memmap(self.path, dtype="<f4", mode="r", offset=_HEADER.size)

    def _layout(self, size: int) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Name → (position in floats, shape), in file order."""
        c = self.config
        kv = c.n_kv_heads * c.d_head
        per_layer: list[tuple[str, tuple[int, ...]]] = [
            ("attn_norm", (c.d_model,)),
            ("attn_q", (c.d_model, c.d_model)),
            ("attn_k", (kv, c.d_model)),
            ("attn_v", (kv, c.d_model)),
            ("attn_output", (c.d_model, c.d_model)),
            ("ffn_norm", (c.d_model,)),
            ("ffn_gate", (c.d_mlp, c.d_model)),
            ("ffn_down", (c.d_model, c.d_mlp)),
            ("ffn_up", (c.d_mlp, c.d_model)),
        ]
        order: list[tuple[str, tuple[int, ...]]] = [("token_embd", (c.vocab_size, c.d_model))]
        order += [(f"blk.{i}.{name}", shape) for name, shape in per_layer for i in range(c.n_layers)]
        order += [("output_norm", (c.d_model,)), ("", (c.n_ctx * c.d_head,))]  # two rotary tables nobody reads
        order += [] if self.shared else [("output", (c.vocab_size, c.d_model))]
        places, position = {}, 0
        for name, shape in order:
            if name:
                places[f"{name}.weight"] = (position, shape)
            position += math.prod(shape)
        if size != _HEADER.size + 4 * position:
            raise ModelError(
                f"{self.path}: damaged llama2.c checkpoint: {size} bytes, "
                f"its header needs {_HEADER.size + 4 * position}"
            )
        return places

    def names(self) -> set[str]:
        return set(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name][1]

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        start, shape = self._places[name]
        values = np.array(self._data[start : start + math.prod(shape)])
        return torch.from_numpy(values).reshape(shape).to(dtype)


def load_llama2c(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> GPTModel:
    """The model in a llama2.c checkpoint. Raises `ModelError` when it is not one or its size is wrong."""
    try:
        source = Llama2cFile(path)
    except ConfigError as error:
        raise ModelError(f"{path}: not a llama2.c checkpoint: {error}") from None
    return load_weights(source.config, source, "gguf", dtype=dtype, device=device)


def load_llama2c_tokenizer(path: str | Path, vocab_size: int) -> Tokenizer:
    """The tokenizer file that belongs to a checkpoint with `vocab_size` tokens."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be opened: {error.strerror or error}") from None
    tokens: list[str] = []
    scores: list[float] = []
    position = 4
    for i in range(vocab_size):
        if position + 8 > len(data):
            raise ModelError(f"{path}: the tokenizer holds {i} tokens, the model has {vocab_size}")
        score, length = struct.unpack_from("<fi", data, position)
        position += 8
        if not 0 <= length <= len(data) - position or not math.isfinite(score):
            raise ModelError(f"{path}: damaged llama2.c tokenizer: token {i} claims {length} bytes and score {score}")
        try:
            tokens.append(data[position : position + length].decode("utf-8").replace(" ", "▁"))
        except UnicodeDecodeError:
            raise ModelError(f"{path}: damaged llama2.c tokenizer: token {i} is not valid UTF-8") from None
        scores.append(score)
        position += length
    if position != len(data):
        raise ModelError(f"{path}: the tokenizer holds more than the model's {vocab_size} tokens")
    if vocab_size < 259 or len(set(tokens)) != vocab_size:
        raise ModelError(f"{path}: not a llama2.c tokenizer: it needs 259 or more tokens, all different")
    # The trainer's export wraps the control tokens in newlines; here they get their usual names.
    tokens[:3] = ["<unk>", "<s>", "</s>"]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [1] * (vocab_size - 259)
    core = sentencepiece_core(tokens, scores, types, space_prefix=True)
    core.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in tokens[:3]])
    # A new story starts with the beginning token, so drawing it ends the one before.
    return Tokenizer(core, SpecialTokens(bos=1, eos=2, unk=0, add_bos=True, ends=frozenset({1})))
