"""Tokenizers of our own: byte-level BPE trained on a corpus, and vocabularies of characters and of bytes.

All three are ordinary `Tokenizer` objects: `save` writes files that `Tokenizer.from_hf` and `transformers` read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from alignlab.core.errors import DataError
from alignlab.lm.tokenizer import SpecialTokens, Tokenizer, byte_level_core

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (END_OF_TEXT, "<|im_start|>", "<|im_end|>")
"""Ends a document, and opens and closes a turn of a conversation, so that a model trained here can learn to chat."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The chat template that these tokenizers carry where their special tokens allow it."""

UNKNOWN = "<|unknown|>"
"""Not in a character vocabulary: the library then refuses a character it does not know instead of dropping it."""
_BATCH = 256


def byte_alphabet() -> list[str]:
    """The character by which byte-level tokenizers spell each of the 256 bytes (GPT-2's table, Radford et al. 2019).

    Bytes that print in Latin-1 stand for themselves, the other 68 are spelled by the characters from U+0100 on.
    """
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in prints else chr(next(others)) for byte in range(256)]


def train_bpe(
    documents: Iterable[str],
    vocab_size: int,
    *,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    min_frequency: int = 2,
) -> Tokenizer:
    """A byte-level BPE tokenizer (Sennrich et al. 2016 on bytes, with GPT-2's splitting into words).

    Ids: special tokens, the 256 bytes, then merges in the order in which they were found. Every text round-trips,
    because what was never merged is spelled in bytes. The vocabulary is smaller than `vocab_size` where the corpus has
    fewer pairs that occur `min_frequency` times. The same corpus gives the same tokenizer.

    Raises:
        DataError: no text, a vocabulary below the bytes and special tokens, or wrong special tokens.
    """
    _check_special(special_tokens)
    least = 256 + len(special_tokens)
    if vocab_size < least:
        raise DataError(
            f"vocab_size is {vocab_size}, allowed: at least {least} (256 bytes, {len(special_tokens)} special tokens)"
        )
    core = byte_level_core(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in special_tokens],
        initial_alphabet=byte_alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_batches(_not_empty(documents)), trainer)
    return _with_roles(core, special_tokens)


def character_vocabulary(documents: Iterable[str], *, special_tokens: Sequence[str] = SPECIAL_TOKENS) -> Tokenizer:
    """One token for each character that occurs in `documents`, in the order of code points, then the special tokens.

    A character that does not occur has no token: `encode` then raises a DataError that names it.

    Raises:
        DataError: no text, or wrong special tokens.
    """
    _check_special(special_tokens)
    characters: set[str] = set()
    for document in _not_empty(documents):
        characters.update(clean(document))
    return _flat(sorted(characters), None, special_tokens)


def byte_vocabulary(*, special_tokens: Sequence[str] = SPECIAL_TOKENS) -> Tokenizer:
    """One token for each byte of UTF-8: id b is byte b, special tokens follow from 256 on. Every text round-trips.

    Raises:
        DataError: wrong special tokens.
    """
    _check_special(special_tokens)
    return _flat(byte_alphabet(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), special_tokens)


def _flat(symbols: list[str], split: pre_tokenizers.PreTokenizer | None, special_tokens: Sequence[str]) -> Tokenizer:
    """A BPE without merges, which is a lookup of symbols."""
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    core = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=None if split else UNKNOWN))
    if split is not None:
        core.pre_tokenizer = split
    core.decoder = decoders.Fuse() if split is None else decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special_tokens])
    return _with_roles(core, special_tokens)


def _with_roles(core: tokenizers.Tokenizer, special_tokens: Sequence[str]) -> Tokenizer:
    """The first special token ends a text, and so begins the next; with ChatML's tokens there is a chat template."""
    end = core.token_to_id(special_tokens[0])
    chats = {"<|im_start|>", "<|im_end|>"} <= set(special_tokens)
    made = CharacterTokenizer if is_character_core(core) else Tokenizer
    return made(core, SpecialTokens(bos=end, eos=end, pad=end), CHATML if chats else None)


def _check_special(tokens: Sequence[str]) -> None:
    if isinstance(tokens, str) or not tokens:
        raise DataError(f"special_tokens is {tokens!r}, allowed: a list whose first token ends a text")
    if len(set(tokens)) != len(tokens):
        raise DataError(f"special_tokens has a token twice: {', '.join(tokens)}")
    short = [token for token in tokens if len(token) < 2]
    if short:
        raise DataError(f"special token {short[0]!r} is too short, allowed: at least 2 characters")


def _not_empty(documents: Iterable[str]) -> Iterator[str]:
    """The documents, or DataError where there is no text at all."""
    texts = (text for text in documents if text)
    head = next(texts, None)
    if head is None:
        raise DataError("the corpus is empty: there is no text to make a vocabulary of")
    return chain([head], texts)


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    """Documents by the hundred, long ones in pieces: the library counts the words of a batch in parallel."""
    pieces = (piece for document in documents for piece in split_long(clean(document)))
    while batch := list(islice(pieces, _BATCH)):
        yield batch


def clean(text: str) -> str:
    """Half a surrogate pair has no UTF-8 form; it becomes a question mark, as `Tokenizer.encode` has it."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def split_long(text: str, length: int = 1 << 16) -> Iterator[str]:
    """Pieces of at least `length` characters that end where GPT-2's splitting always ends a word.

    That is after a line break with text directly on both sides of it: the tokens of the pieces are those of the whole.
    """
    start = 0
    while len(text) - start > length:
        at = start + length
        while (at := text.find("\n", at)) >= 0:
            if at + 1 < len(text) and not text[at - 1].isspace() and not text[at + 1].isspace():
                break
            at += 1
        if at < 0:
            break
        yield text[start : at + 1]
        start = at + 1
    yield text[start:]


def is_character_core(core: tokenizers.Tokenizer) -> bool:
    """Whether this is a vocabulary as `character_vocabulary` makes it."""
    model = core.model
    return isinstance(model, models.BPE) and model.unk_token == UNKNOWN and core.pre_tokenizer is None


class CharacterTokenizer(Tokenizer):
    """A tokenizer whose vocabulary is characters; `encode` raises DataError naming a character that it lacks."""

    def _ids(self, text: str) -> list[int]:
        try:
            return super()._ids(text)
        except Exception:  # all that the library raises; what it says names no character
            literal = text if self.core.encode_special_tokens else self.control_pattern().sub("", text)
            known = self.core.get_vocab(with_added_tokens=False)
            wrong = next((character for character in literal if character not in known), None)
            if wrong is None:
                raise
            raise DataError(describe_unknown(wrong)) from None


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """A tokenizer saved by `Tokenizer.save`; a vocabulary of characters comes back as a `CharacterTokenizer`.

    Raises ModelError when there is no vocabulary or a file is damaged.
    """
    read = Tokenizer.from_hf(directory)
    made = CharacterTokenizer if is_character_core(read.core) else Tokenizer
    return made(read.core, read.special, read.chat_template)


class CharacterTable:
    """Ids of characters by lookup in an array: what a character vocabulary does, without a loop over characters."""

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        vocabulary = core.get_vocab(with_added_tokens=False)
        self._ids = np.full(1 + max(map(ord, vocabulary)), -1, dtype=np.int64)
        for character, i in vocabulary.items():
            self._ids[ord(character)] = i

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text` as int64. Raises DataError naming the first character that has none."""
        points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        inside = points < len(self._ids)
        ids = np.where(inside, self._ids[np.where(inside, points, 0)], -1)
        wrong = np.flatnonzero(ids < 0)
        if len(wrong):
            raise DataError(describe_unknown(chr(points[wrong[0]])))
        return ids


def describe_unknown(character: str) -> str:
    """The sentence for a character that a character vocabulary lacks."""
    return (
        f"the character {character!r} (U+{ord(character):04X}) is not in the character vocabulary; make the vocabulary "
        "from text that has it, or use a bpe or byte vocabulary, which know every character"
    )
