"""The tokenizer inside a GGUF file: byte-level BPE ("gpt2") and SentencePiece BPE ("llama").

A GGUF stores vocabulary, merges or scores, and the *name* of a pre-tokenizer; what a name means is llama.cpp's
(src/llama-vocab.cpp). A name we do not know is an error: a wrong split would give wrong ids without a sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers

from alignlab.core.errors import ModelError
from alignlab.lm.gguf_reader import GGUFFile
from alignlab.lm.tokenizer import SpecialTokens, Tokenizer

CONTROL, USER_DEFINED, UNKNOWN, UNUSED, BYTE = 3, 4, 2, 5, 6
MAX_TOKEN_CHARS = 1024

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _split(*patterns: str) -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, _BYTES])


def _digits_then_gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2])


_SPLITS = {
    "gpt2": lambda: _GPT2,
    "digits": _digits_then_gpt2,
    "llama3": lambda: _split(_LLAMA3),
    "qwen2": lambda: _split(_QWEN2),
    "default": lambda: _split(*_DEFAULT),
}
PRE_TOKENIZERS = {
    "default": "default",
    **dict.fromkeys(("gpt-2", "gpt2", "phi-2", "olmo", "mpt", "jais", "trillion", "gpt-neox"), "gpt2"),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), "digits"),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"), "llama3"),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"), "qwen2"),
}
"""Pre-tokenizer name in the file → way of splitting."""


def from_gguf(file: GGUFFile) -> Tokenizer:
    """The tokenizer that the file's metadata describe.

    Raises `ModelError` for an unknown kind or pre-tokenizer and for a vocabulary that contradicts itself.
    """
    metadata = file.metadata
    kind = metadata.get("tokenizer.ggml.model")
    tokens = _tokens(file)
    types = _numbers(file, "tokenizer.ggml.token_type", len(tokens), 1)
    if kind == "gpt2":
        core = _byte_level(file, tokens)
    elif kind == "llama":
        scores = _numbers(file, "tokenizer.ggml.scores", len(tokens), 0)
        gemma = str(metadata.get("general.architecture", "")).startswith("gemma")
        if gemma:
            # Gemma's vocabulary is in merge order; its scores are not. Runs of spaces are spelled as such.
            tokens = _distinct(["▁" * len(t) if t and not t.strip(" ") else t for t in tokens])
            scores = -np.arange(len(tokens), dtype=np.float32)
        prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", not gemma))
        core = sentencepiece_core(tokens, scores.tolist(), types.tolist(), space_prefix=prefix)
    else:
        raise ModelError(f"{file.path}: tokenizer {kind!r} is not supported, allowed: gpt2, llama")
    _add_special(core, tokens, types)
    template = metadata.get("tokenizer.chat_template")
    return Tokenizer(core, _special(file, len(tokens), kind), template if isinstance(template, str) else None)


def _tokens(file: GGUFFile) -> list[str]:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ModelError(f"{file.path}: the vocabulary 'tokenizer.ggml.tokens' is missing or not a list of strings")
    longest = max(map(len, tokens))
    if longest > MAX_TOKEN_CHARS:
        raise ModelError(f"{file.path}: a token of {longest} characters is longer than {MAX_TOKEN_CHARS}")
    return _distinct(tokens)


def _distinct(tokens: Sequence[str]) -> list[str]:
    """A spelling that appears again gets one of its own, so that every id keeps its place."""
    seen: set[str] = set()
    result = []
    for i, token in enumerate(tokens):
        name = token if token not in seen else f"[DUPLICATE{i}]"
        seen.add(name)
        result.append(name)
    return result


def _numbers(file: GGUFFile, key: str, count: int, default: int) -> np.ndarray:
    values = file.metadata.get(key)
    if values is None:
        return np.full(count, default)
    if not isinstance(values, np.ndarray) or len(values) != count:
        raise ModelError(f"{file.path}: {key!r} must be {count} numbers, one for each token")
    return values


def _byte_level(file: GGUFFile, tokens: list[str]) -> tokenizers.Tokenizer:
    name = file.metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        raise ModelError(f"{file.path}: pre-tokenizer {name!r} is not supported, allowed: {', '.join(PRE_TOKENIZERS)}")
    raw = file.metadata.get("tokenizer.ggml.merges")
    if not isinstance(raw, list):
        raise ModelError(f"{file.path}: 'tokenizer.ggml.merges' is missing or not a list of strings")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in raw]
    for merge in merges:
        if len(merge) != 2 or any(part not in vocabulary for part in (*merge, "".join(merge))):
            raise ModelError(f"{file.path}: merge {' '.join(merge)!r:.100} does not name two tokens and their union")
    way = PRE_TOKENIZERS[name]
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges, ignore_merges=way == "llama3"))
    core.pre_tokenizer = _SPLITS[way]()
    core.decoder = decoders.ByteLevel()
    if name in ("qwen2", "gpt-neox", "olmo"):  # these normalise; a GGUF does not record it
        core.normalizer = normalizers.NFC()
    return core


def sentencepiece_core(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], *, space_prefix: bool
) -> tokenizers.Tokenizer:
    """SentencePiece BPE with byte fallback: of all neighbours, join those whose union scores highest.

    The library ranks merges instead of scoring unions; every way to cut a token in two becomes a merge, ranked by the
    token's score (Kudo & Richardson 2018; HF's conversion of Llama does the same).
    """
    vocabulary = {token: i for i, token in enumerate(tokens)}
    ranked: list[tuple[float, int, int, str, str]] = []
    for i, token in enumerate(tokens):
        if types[i] in (CONTROL, UNKNOWN, UNUSED, BYTE):
            continue
        for cut in range(1, len(token)):
            left, right = vocabulary.get(token[:cut]), vocabulary.get(token[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[i], left, right, token[:cut], token[cut:]))
    ranked.sort()
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    all_bytes = all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    model = tokenizers.models.BPE(
        vocab=vocabulary,
        merges=[(left, right) for *_, left, right in ranked],
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=all_bytes,
    )
    core = tokenizers.Tokenizer(model)
    spaces = [normalizers.Prepend("▁")] if space_prefix else []
    core.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if space_prefix else []
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return core


def _add_special(core: tokenizers.Tokenizer, tokens: Sequence[str], types: np.ndarray) -> None:
    control = [tokens[i] for i in np.flatnonzero((types == CONTROL) | (types == UNKNOWN)).tolist() if tokens[i]]
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    ours = [tokens[i] for i in np.flatnonzero(types == USER_DEFINED).tolist() if tokens[i]]
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in ours])


def _special(file: GGUFFile, n_tokens: int, kind: str) -> SpecialTokens:
    metadata: Mapping[str, Any] = file.metadata

    def token(name: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is None or value in (-1, 2**32 - 1):
            return None
        if type(value) is not int or not 0 <= value < n_tokens:
            raise ModelError(f"{file.path}: {name} token {value!r} is outside the vocabulary of {n_tokens}")
        return value

    bos = token("bos")
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", kind == "llama")) and bos is not None
    ends = frozenset(i for i in (token("eot"), token("eom")) if i is not None)
    return SpecialTokens(bos, token("eos"), token("padding"), token("unknown"), add_bos, ends)
