"""Token shards: documents as memory-mapped files of token ids, with a manifest that tells whether they are whole.

`write_shards` streams documents to disk; `TokenShards` reads any positions of them without loading the rest.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from jaxtyping import Int

from alignlab.core.errors import DataError
from alignlab.core.files import atomic_write, sha256_file, writing
from alignlab.data.manifest import (
    DTYPES,
    MANIFEST_FILE,
    VERSION,
    IndexInfo,
    Manifest,
    ShardInfo,
    TokenizerInfo,
    require_tokenizer,
)

__all__ = ["Manifest", "ShardInfo", "TokenShards", "TokenizerInfo", "require_tokenizer", "write_shards"]

INDEX_FILE = "documents.idx"
HASHED_BYTES = 1 << 28
"""Up to this size of all files together, `check="auto"` reads them all: a third of a second."""
_SCAN = 1 << 22


def write_shards(
    documents: Iterable[tuple[Sequence[int] | np.ndarray, int]],
    path: str | Path,
    *,
    tokenizer: TokenizerInfo,
    separator: int,
    shard_tokens: int = 100_000_000,
    source: str = "",
) -> Manifest:
    """Write documents, each a pair of token ids and the UTF-8 bytes of its text, to the new directory `path`.

    Every document is ended by `separator`. A shard is closed once it has `shard_tokens` ids, never inside a document.
    The directory appears whole or not at all; memory holds one document at a time. Documents without tokens are left
    out.

    Raises:
        DataError: `path` exists, no document has tokens, or an id is outside the vocabulary or is the separator.
        RunError: the disk is full; nothing is left behind.
    """
    path = Path(path)
    if path.exists():
        raise DataError(f"{path} already exists; name another directory, or remove it first")
    if shard_tokens < 1:
        raise DataError(f"shard_tokens is {shard_tokens}, allowed: a positive whole number")
    if not 0 <= separator < tokenizer.vocab_size:
        raise DataError(f"separator is {separator}, allowed: an id below the vocabulary of {tokenizer.vocab_size}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with writing(path), _Writer(temporary, tokenizer.vocab_size, separator, shard_tokens) as writer:
            for ids, n_bytes in documents:
                writer.add(ids, n_bytes)
        manifest = writer.manifest(tokenizer, source or "unnamed")
        atomic_write(temporary / MANIFEST_FILE, manifest.to_json())
        with writing(path):
            temporary.chmod(0o755)  # mkdtemp makes private directories
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return manifest


class _Writer:
    """The files of one directory while they are written."""

    def __init__(self, directory: Path, vocab_size: int, separator: int, shard_tokens: int) -> None:
        self.directory, self.vocab_size, self.separator, self.shard_tokens = (
            directory, vocab_size, separator, shard_tokens,
        )  # fmt: skip
        self.dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
        self.shards: list[ShardInfo] = []
        self.tokens = self.documents = self.bytes = 0
        self._index = (directory / INDEX_FILE).open("wb")
        self._index_digest = hashlib.sha256()
        self._open_shard()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._shard_tokens:
                self._close_shard()
        finally:
            self._file.close()
            self._index.close()

    def _open_shard(self) -> None:
        self._name = self.directory / f"shard-{len(self.shards):05d}.bin"
        self._file = self._name.open("wb")
        self._digest = hashlib.sha256()
        self._shard_tokens = self._shard_documents = 0

    def _close_shard(self) -> None:
        self._file.close()
        digest = self._digest.hexdigest()
        self.shards.append(ShardInfo(self._name.name, self._shard_tokens, self._shard_documents, digest))
        self._shard_tokens = 0

    def add(self, ids: Sequence[int] | np.ndarray, n_bytes: int) -> None:
        values = np.asarray(ids, dtype=np.int64)
        if not len(values):
            return
        if values.min() < 0 or values.max() >= self.vocab_size:
            wrong = int(values[(values < 0) | (values >= self.vocab_size)][0])
            raise DataError(f"document {self.documents} has token {wrong}, outside the vocabulary of {self.vocab_size}")
        if (values == self.separator).any():
            raise DataError(f"document {self.documents} has the separator {self.separator} among its tokens")
        if self._shard_tokens >= self.shard_tokens:
            self._close_shard()
            self._open_shard()
        payload = np.append(values, self.separator).astype(f"<u{DTYPES[self.dtype]}").tobytes()
        start = np.array([self.tokens], dtype="<u8").tobytes()
        for stream, digest, data in (
            (self._file, self._digest, payload),
            (self._index, self._index_digest, start),
        ):
            stream.write(data)
            digest.update(data)
        n_tokens = len(values) + 1
        self._shard_tokens += n_tokens
        self._shard_documents += 1
        self.tokens += n_tokens
        self.documents += 1
        self.bytes += n_bytes

    def manifest(self, tokenizer: TokenizerInfo, source: str) -> Manifest:
        if not self.documents:
            raise DataError(f"{source}: the corpus is empty, no document has any text; at least one is needed")
        index = IndexInfo(INDEX_FILE, self._index_digest.hexdigest())
        return Manifest(
            VERSION, self.dtype, tokenizer, self.separator, self.documents, self.tokens, self.bytes,
            tuple(self.shards), index, source,
        )  # fmt: skip


class TokenShards:
    """The ids of a directory of shards as one long sequence, read by memory map. Make one with `open`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        dtype = f"<u{DTYPES[manifest.dtype]}"
        self._maps = [np.asarray(np.memmap(path / shard.file, dtype=dtype, mode="r")) for shard in manifest.shards]
        self._offsets = np.cumsum([0, *(shard.tokens for shard in manifest.shards)])
        self._starts = np.asarray(np.memmap(path / manifest.index.file, dtype="<u8", mode="r")).view("<i8")

    @classmethod
    def open(cls, path: str | Path, *, check: Literal["size", "hash", "auto"] = "size") -> TokenShards:
        """The shards in the directory `path`.

        Args:
            check: "size" compares the files' sizes with the manifest; "hash" reads them all and compares their
                SHA-256, and that ids lie in the vocabulary; "auto" is "hash" for corpora of up to `HASHED_BYTES`.

        Raises:
            DataError: no manifest or a wrong one, a file that is missing, or one whose size or hash is wrong.
        """
        path = Path(path)
        manifest = Manifest.read(path)
        width = DTYPES[manifest.dtype]
        hashed = check == "hash" or (
            check == "auto" and manifest.tokens * width + manifest.documents * 8 <= HASHED_BYTES
        )
        for entry in manifest.shards:
            _check_file(path / entry.file, entry.tokens * width, entry.sha256, hashed=hashed)
        index = manifest.index
        _check_file(path / index.file, manifest.documents * 8, index.sha256, hashed=hashed)
        shards = cls(path, manifest)
        if hashed:
            shards._check_ids()
        return shards

    def _check_ids(self) -> None:
        limit = self.manifest.tokenizer.vocab_size
        for shard, ids in zip(self.manifest.shards, self._maps, strict=True):
            for at in range(0, len(ids), _SCAN):
                largest = int(ids[at : at + _SCAN].max())
                if largest >= limit:
                    raise DataError(f"{self.path / shard.file} has token {largest}, outside the vocabulary of {limit}")

    def __reduce__(self) -> tuple[object, tuple[str]]:
        # A worker process opens the files again; a copy of a memory map would carry all its bytes.
        return TokenShards.open, (str(self.path),)

    def __len__(self) -> int:
        return int(self._offsets[-1])

    @property
    def document_starts(self) -> Int[np.ndarray, " documents"]:
        """Position of the first token of each document, int64; a memory map of 8 bytes a document."""
        return self._starts

    def slice(self, start: int, stop: int) -> Int[np.ndarray, " pos"]:
        """Ids at positions `start` to `stop` (exclusive) as int64.

        Raises:
            DataError: a position outside of the shards, or an id outside of the vocabulary.
        """
        if not 0 <= start <= stop <= len(self):
            raise DataError(f"positions {start} to {stop} were asked for, but {self.path} has {len(self)} tokens")
        parts: list[np.ndarray] = []
        first = int(np.searchsorted(self._offsets, start, side="right")) - 1
        for ids, offset in zip(self._maps[first:], self._offsets[first:]):
            if offset >= stop and parts:
                break
            parts.append(ids[max(start - offset, 0) : max(stop - offset, 0)])
        return self._known(np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64))

    def take(self, positions: Int[np.ndarray, " *shape"]) -> Int[np.ndarray, " *shape"]:
        """Ids at any positions, as int64 of the same shape. Raises as `slice` does."""
        if positions.size and not (positions.min() >= 0 and positions.max() < len(self)):
            raise DataError(f"a position outside of the {len(self)} tokens of {self.path} was asked for")
        if len(self._maps) == 1:
            return self._known(self._maps[0][positions].astype(np.int64))
        ids = np.empty(positions.shape, dtype=np.int64)
        shard = np.searchsorted(self._offsets, positions, side="right") - 1
        for i in np.unique(shard):
            here = shard == i
            ids[here] = self._maps[i][positions[here] - self._offsets[i]]
        return self._known(ids)

    def _known(self, ids: np.ndarray) -> np.ndarray:
        """`ids`, unless a damaged shard has one that no embedding has a row for."""
        limit = self.manifest.tokenizer.vocab_size
        if ids.size and ids.max() >= limit:
            raise DataError(
                f"{self.path} has token {ids.max()}, outside the vocabulary of {limit}: a shard is damaged; "
                f"`alignlab data show {self.path}` says which"
            )
        return ids


def _check_file(path: Path, n_bytes: int, sha256: str, *, hashed: bool) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing, though the manifest names it; copy it there or tokenize the text again")
    found = path.stat().st_size
    if found != n_bytes:
        raise DataError(
            f"{path} has {found} bytes, but the manifest says {n_bytes}; it is cut, or of another corpus: "
            "copy it again or tokenize the text again"
        )
    if hashed and sha256_file(path) != sha256:
        raise DataError(
            f"{path} has another SHA-256 than the manifest says; it is damaged, or of another corpus: "
            "copy it again or tokenize the text again"
        )
