"""A tokenised corpus: a directory with token shards for training and validation, and the tokenizer that made them.

DIRECTORY/train/        manifest.json, shard-00000.bin, documents.idx
DIRECTORY/validation/   the same
DIRECTORY/tokenizer/    tokenizer.json and its companions, as Hugging Face has them
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

from alignlab.core.errors import DataError
from alignlab.core.files import sync_directory, writing
from alignlab.core.progress import SILENT, Progress, ProgressTask
from alignlab.data.shards import Manifest, TokenizerInfo, TokenShards, require_tokenizer, write_shards
from alignlab.lm.tokenizer import Tokenizer
from alignlab.lm.tokenizer_training import (
    CharacterTable,
    byte_alphabet,
    clean,
    is_character_core,
    load_tokenizer,
    split_long,
)

SPLITS = ("train", "validation")
BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class TokenizedCorpus:
    """An opened directory; made by `open_tokenized`."""

    path: Path
    train: TokenShards
    validation: TokenShards
    tokenizer: Tokenizer


def tokenizer_info(tokenizer: Tokenizer, name: str = "") -> TokenizerInfo:
    """What identifies `tokenizer`: the digest covers what decides which ids a text gets.

    That is vocabulary, merges, added tokens and the rules of normalising and splitting. Saving and loading do not
    change it, nor does a chat template.
    """
    state = json.loads(tokenizer.core.to_str())
    rules = {key: state.get(key) for key in ("model", "added_tokens", "normalizer", "pre_tokenizer")}
    digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
    return TokenizerInfo(name or type(tokenizer.core.model).__name__.lower(), digest, tokenizer.vocab_size)


def check_tokenizer(manifest: Manifest, tokenizer: Tokenizer) -> None:
    """Raise DataError unless `tokenizer` is the one that made the shards which `manifest` describes."""
    require_tokenizer(manifest, tokenizer_info(tokenizer, "the given one"))


def separator_id(tokenizer: Tokenizer) -> int:
    """The id that ends documents: the end-of-text token. Raises DataError when the tokenizer has none."""
    if tokenizer.eos_id is None:
        raise DataError("the tokenizer has no end-of-text token, which has to part the documents")
    return tokenizer.eos_id


def encode_documents(documents: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, int]]:
    """Each document's ids (int64) and its UTF-8 bytes, in order; control tokens spelled out in a text stay text.

    Documents are encoded in batches of about a million characters, in parallel where TOKENIZERS_PARALLELISM allows.

    Raises:
        DataError: a character that a character vocabulary lacks; names the document.
    """
    encode = _BatchEncoder(tokenizer)
    number = 0
    for texts in _groups(map(clean, documents)):
        for text, ids in zip(texts, encode(texts, number), strict=True):
            yield ids, len(text.encode())
        number += len(texts)


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in groups of about BATCH_CHARACTERS characters."""
    group: list[str] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


class _BatchEncoder:
    """Ids of the texts of a batch, by the fastest way that a tokenizer has."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        # A copy of the library's object: its setting for control tokens must not be shared with other threads.
        self.core = tokenizers.Tokenizer.from_str(tokenizer.core.to_str())
        self.core.encode_special_tokens = True
        split = self.core.pre_tokenizer
        vocabulary = self.core.get_vocab(with_added_tokens=False)
        self.table = CharacterTable(self.core) if is_character_core(self.core) else None
        by_bytes = isinstance(split, pre_tokenizers.ByteLevel) and self.core.normalizer is None
        self.is_bytes = by_bytes and _spells_bytes(vocabulary)
        self.may_split = by_bytes and split.use_regex and not split.add_prefix_space

    def __call__(self, texts: list[str], number: int) -> list[np.ndarray]:
        """Ids of each text; `number` is that of the first, for messages."""
        if self.table is not None:
            return [_by_table(self.table, text, number + i) for i, text in enumerate(texts)]
        if self.is_bytes:
            return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) for text in texts]
        pieces = [list(split_long(text)) if self.may_split else [text] for text in texts]
        ids = iter(
            np.asarray(encoding.ids, dtype=np.int64)
            for group in _groups(piece for parts in pieces for piece in parts)
            for encoding in self.core.encode_batch_fast(group, add_special_tokens=False)
        )
        return [np.concatenate([next(ids) for _ in parts]) for parts in pieces]


def _by_table(table: CharacterTable, text: str, number: int) -> np.ndarray:
    try:
        return table.encode(text)
    except DataError as error:
        raise DataError(f"document {number}: {error}") from None


def _spells_bytes(vocabulary: dict[str, int]) -> bool:
    return len(vocabulary) == 256 and all(vocabulary.get(symbol) == i for i, symbol in enumerate(byte_alphabet()))


def write_tokenized(
    path: str | Path,
    tokenizer: Tokenizer,
    train: Iterable[str],
    validation: Iterable[str],
    *,
    name: str = "",
    source: str = "",
    shard_tokens: int = 100_000_000,
    progress: Progress = SILENT,
) -> TokenizedCorpus:
    """Encode two corpora into the new directory `path`, which appears whole or not at all.

    Raises:
        DataError: `path` exists, a part has no text, or a character has no token.
        RunError: the disk is full; nothing is left behind.
    """
    path = Path(path)
    if path.exists():
        raise DataError(f"{path} already exists; name another directory, or remove it first")
    info, separator = tokenizer_info(tokenizer, name), separator_id(tokenizer)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for split, documents in zip(SPLITS, (train, validation), strict=True):
            with progress.task(f"tokenizing {split}", None, "documents") as task:
                write_shards(
                    _counted(encode_documents(documents, tokenizer), task),
                    temporary / split,
                    tokenizer=info,
                    separator=separator,
                    shard_tokens=shard_tokens,
                    source=f"{source or 'unnamed'} ({split})",
                )
        tokenizer.save(temporary / "tokenizer")
        with writing(path):
            temporary.chmod(0o755)  # mkdtemp makes private directories
            os.rename(temporary, path)
            sync_directory(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return open_tokenized(path)


def _counted(encoded: Iterable[tuple[np.ndarray, int]], task: ProgressTask) -> Iterator[tuple[np.ndarray, int]]:
    for ids, n_bytes in encoded:
        task.advance(1, tokens=len(ids))
        yield ids, n_bytes


def open_tokenized(path: str | Path, *, check: Literal["size", "hash", "auto"] = "auto") -> TokenizedCorpus:
    """The corpus in `path`, its shards checked against their manifests and its tokenizer against theirs.

    `check` is that of `TokenShards.open`: by default the files of all but large corpora are hashed.

    Raises:
        DataError: something is missing or damaged, or the tokenizer is not the one that made the shards.
        ModelError: the tokenizer's files are missing or damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path} is no directory; `alignlab tokenize` makes one with tokens")
    train, validation = (TokenShards.open(path / split, check=check) for split in SPLITS)
    tokenizer = load_tokenizer(path / "tokenizer")
    for shards in (train, validation):
        check_tokenizer(shards.manifest, tokenizer)
        if shards.manifest.separator != tokenizer.eos_id:
            raise DataError(
                f"the documents in {shards.path} end with token {shards.manifest.separator}, but the end-of-text token "
                f"of {path / 'tokenizer'} is {tokenizer.eos_id}; tokenize the text again or put the tokenizer back"
            )
    return TokenizedCorpus(path, train, validation, tokenizer)
