"""The manifest of a directory of token shards: what is in it, by which tokenizer, and how to tell that it is whole."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from alignlab.core.errors import DataError
from alignlab.core.files import read_json

VERSION = 1
MANIFEST_FILE = "manifest.json"
DTYPES = {"uint16": 2, "uint32": 4}
"""Bytes of a token id by the name of its type; ids are little-endian."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
T = TypeVar("T")


@dataclass(frozen=True)
class TokenizerInfo:
    """What identifies the tokenizer that made the ids."""

    name: str
    """For people: "bpe", "character", "byte", or where it was read from."""
    sha256: str
    """Digest of everything that decides which ids a text gets."""
    vocab_size: int
    """One more than the largest id."""


@dataclass(frozen=True)
class ShardInfo:
    """One file of token ids."""

    file: str
    tokens: int
    documents: int
    sha256: str


@dataclass(frozen=True)
class IndexInfo:
    """The file of document starts: one little-endian uint64 a document."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says; `Manifest.read` checks that its parts agree."""

    version: int
    dtype: str
    tokenizer: TokenizerInfo
    separator: int
    """The id that ends every document."""
    documents: int
    tokens: int
    """Ids in all shards, separators included."""
    bytes: int
    """UTF-8 bytes of the text that the ids stand for: what bits per byte divide by."""
    shards: tuple[ShardInfo, ...]
    index: IndexInfo
    source: str
    """Where the text came from."""

    @property
    def digest(self) -> str:
        """Identifies the ids and their order: SHA-256 over type, separator, tokenizer and every shard's digest."""
        parts = (self.dtype, self.separator, self.tokenizer.sha256, *(shard.sha256 for shard in self.shards))
        return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """The manifest of `directory`.

        Raises:
            DataError: there is none, it is damaged, of another version, lacks a key, or contradicts itself.
        """
        path = directory / MANIFEST_FILE
        if not path.is_file():
            raise DataError(
                f"{directory} holds no {MANIFEST_FILE}, so it is no directory of token shards; "
                "`alignlab tokenize` writes one (in the folders train and validation of its output)"
            )
        raw = read_json(path)
        version = raw.get("version") if isinstance(raw, dict) else None
        if isinstance(raw, dict) and "version" in raw and version != VERSION:
            raise DataError(f"{path}: version is {version!r}, allowed: {VERSION}; tokenize the text again")
        manifest = _read(cls, raw, str(path))
        _check(manifest, str(path))
        return manifest


def _read(cls: type[T], raw: Any, where: str) -> T:
    """`raw` as the dataclass `cls`; keys that it does not know are left alone, so that notes may be added by hand."""
    if not isinstance(raw, Mapping):
        raise DataError(f"{where} is {type(raw).__name__}, allowed: a JSON object")
    missing = [field.name for field in fields(cls) if field.name not in raw]  # type: ignore[arg-type]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}; it is not a manifest of token shards, or it was damaged")
    values: dict[str, Any] = {}
    for field in fields(cls):  # type: ignore[arg-type]
        value, name = raw[field.name], f"{where}: {field.name}"
        if field.type == "TokenizerInfo":
            value = _read(TokenizerInfo, value, name)
        elif field.type == "IndexInfo":
            value = _read(IndexInfo, value, name)
        elif field.name == "shards":
            if not isinstance(value, list):
                raise DataError(f"{name} is {value!r}, allowed: a list")
            value = tuple(_read(ShardInfo, item, f"{name}[{i}]") for i, item in enumerate(value))
        elif field.type == "int" and (type(value) is not int or value < 0):
            raise DataError(f"{name} is {value!r}, allowed: a whole number of at least 0")
        elif field.type == "str" and not isinstance(value, str):
            raise DataError(f"{name} is {value!r}, allowed: text")
        values[field.name] = value
    return cls(**values)


def _check(manifest: Manifest, where: str) -> None:
    if manifest.dtype not in DTYPES:
        raise DataError(f"{where}: dtype is {manifest.dtype!r}, allowed: {' or '.join(DTYPES)}")
    if manifest.separator >= manifest.tokenizer.vocab_size:
        raise DataError(
            f"{where}: separator is {manifest.separator}, but the vocabulary has {manifest.tokenizer.vocab_size} tokens"
        )
    if not manifest.shards or not all(shard.tokens and shard.documents for shard in manifest.shards):
        raise DataError(f"{where}: a shard without tokens or documents, or no shards; at least one of each is needed")
    for name in ("tokens", "documents"):
        stated, found = getattr(manifest, name), sum(getattr(shard, name) for shard in manifest.shards)
        if stated != found:
            raise DataError(f"{where}: {name} is {stated}, but those of the shards sum to {found}")
    files: list[ShardInfo | IndexInfo] = [*manifest.shards, manifest.index]
    for entry in files:
        # A name from a foreign manifest must not lead out of its directory.
        if not entry.file or Path(entry.file).name != entry.file:
            raise DataError(f"{where}: {entry.file!r} is not the plain name of a file beside the manifest")
        if not _DIGEST.fullmatch(entry.sha256):
            raise DataError(f"{where}: the sha256 of {entry.file} is {entry.sha256!r}, allowed: 64 hexadecimal digits")


def require_tokenizer(manifest: Manifest, tokenizer: TokenizerInfo) -> None:
    """Raise DataError unless `tokenizer` is the one that made the ids which `manifest` describes."""
    made = manifest.tokenizer
    if made.sha256 == tokenizer.sha256:
        return
    sizes = (
        f" ({made.vocab_size} tokens then, {tokenizer.vocab_size} now)"
        if made.vocab_size != tokenizer.vocab_size
        else ""
    )
    raise DataError(
        f"the shards were made by the tokenizer {made.name!r} (SHA-256 {made.sha256[:12]}…), but this one is "
        f"{tokenizer.name!r} ({tokenizer.sha256[:12]}…){sizes}; tokenize the text again or use the tokenizer beside "
        "the shards"
    )
