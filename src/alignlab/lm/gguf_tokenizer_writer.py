"""The metadata of a GGUF file that describe a tokenizer: the way back of `gguf_tokenizer`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from alignlab.core.errors import ModelError
from alignlab.lm import gguf_tokenizer as reader
from alignlab.lm.tokenizer import Tokenizer

NORMAL = 1
PROBE = (
    "Hello  world!\n\n\tI'LL pay $1234567.89, won't I?  'tis naïve—東京 2024年, ﬁne… e\u0301 x=y+z;\r\n   def f(a_b):\n"
    "        return a_b**2 # ok \U0001f600\U0001f680 Ünïcödé ١٢٣ \u00a0 end "
)
"""A text on which the known ways of splitting differ."""
# (way of splitting, whether text is normalised) -> a name that llama.cpp knows it by
_NAMES = {
    ("digits", False): "smollm",
    ("gpt2", False): "gpt-2",
    ("gpt2", True): "olmo",
    ("llama3", False): "llama-bpe",
    ("qwen2", True): "qwen2",
    ("qwen2", False): "deepseek-r1-qwen",
    ("default", False): "default",
}


def tokenizer_to_gguf(tokenizer: Tokenizer, n_rows: int) -> dict[str, Any]:
    """Metadata from which llama.cpp and `gguf_tokenizer.from_gguf` make this tokenizer; `n_rows` of the embedding.

    Raises `ModelError` for a kind, normaliser or pre-tokenizer that the format has no name for.
    """
    spec = json.loads(tokenizer.core.to_str())
    model = spec["model"]
    if model["type"] != "BPE":
        raise ModelError(f"the tokenizer is {model['type']}, a GGUF file holds byte-pair encodings")
    byte_level = _mentions(spec["pre_tokenizer"], "ByteLevel")
    tokens, types = _vocabulary(tokenizer, spec, n_rows, spelled_bytes=not byte_level)
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    made: dict[str, Any] = {"tokenizer.ggml.model": "gpt2" if byte_level else "llama"}
    if byte_level:
        made["tokenizer.ggml.pre"] = _splitter(tokenizer, spec)
        made["tokenizer.ggml.merges"] = [" ".join(merge) for merge in merges]
    else:
        made["tokenizer.ggml.scores"] = _scores(tokens, merges)
    space = _mentions(spec["normalizer"], "Prepend") or _prepends(spec["pre_tokenizer"])
    made |= {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_space_prefix": space,
        "tokenizer.ggml.add_bos_token": tokenizer.special.add_bos,
        "tokenizer.ggml.add_eos_token": False,
    }
    return made | _special(tokenizer)


def _vocabulary(
    tokenizer: Tokenizer, spec: dict[str, Any], n_rows: int, *, spelled_bytes: bool
) -> tuple[list[str], np.ndarray]:
    """Spelling and kind of each row; rows without a token get one that no text contains."""
    tokens = [f"[PAD{i}]" for i in range(n_rows)]
    types = np.full(n_rows, reader.UNUSED, dtype=np.int32)
    for token, i in tokenizer.core.get_vocab(with_added_tokens=True).items():
        tokens[i] = token
        is_byte = spelled_bytes and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        types[i] = reader.BYTE if is_byte else NORMAL
    for added in spec["added_tokens"]:
        types[added["id"]] = reader.CONTROL if added["special"] else reader.USER_DEFINED
    unknown = tokenizer.special.unk
    if unknown is not None and spelled_bytes:
        types[unknown] = reader.UNKNOWN
    return tokens, types


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> np.ndarray:
    """Scores that rank unions as the merges do: the first merge that makes a token gives it its rank."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge), rank)
    never = len(merges)
    return np.array([-float(ranks.get(token, never)) for token in tokens], dtype=np.float32)


def _splitter(tokenizer: Tokenizer, spec: dict[str, Any]) -> str:
    """The name of the pre-tokenizer, found by what it does."""
    normaliser = spec["normalizer"]
    if normaliser is not None and normaliser["type"] != "NFC":
        raise ModelError(f"the tokenizer's normaliser is {normaliser['type']}, a GGUF file has none but NFC")
    found = tokenizer.core.pre_tokenizer.pre_tokenize_str(PROBE)
    for (way, normalised), name in _NAMES.items():
        if normalised == (normaliser is not None) and reader._SPLITS[way]().pre_tokenize_str(PROBE) == found:
            return name
    raise ModelError(f"the tokenizer splits text in a way that no GGUF name says; known: {', '.join(_NAMES.values())}")


def _special(tokenizer: Tokenizer) -> dict[str, Any]:
    special = tokenizer.special
    ids = {"bos": special.bos, "eos": special.eos, "unknown": special.unk, "padding": special.pad}
    others = sorted(tokenizer.eos_ids - {special.eos})
    ids |= dict(zip(("eot", "eom"), others, strict=False))
    made: dict[str, Any] = {f"tokenizer.ggml.{role}_token_id": i for role, i in ids.items() if i is not None}
    if tokenizer.chat_template is not None:
        made["tokenizer.chat_template"] = tokenizer.chat_template
    return made


def _mentions(part: Any, kind: str) -> bool:
    """Whether a component of this kind is anywhere in `part`."""
    if isinstance(part, list):
        return any(_mentions(item, kind) for item in part)
    return isinstance(part, dict) and (part.get("type") == kind or any(_mentions(v, kind) for v in part.values()))


def _prepends(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "Metaspace" and part.get("prepend_scheme") != "never"
