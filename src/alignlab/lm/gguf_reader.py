"""GGUF files, read lazily and distrustfully.

The header is checked completely before anything is believed: every count and length must fit into the bytes that are
left, every tensor must lie inside the file, and no two may overlap. Tensor data are memory-mapped and dequantised a
block of rows at a time, so opening a file costs its metadata and reading a tensor costs that tensor.

Format: the GGUF specification of the ggml project (docs/gguf.md), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from alignlab.core.errors import ModelError

MAX_METADATA_BYTES = 512 * 2**20
MAX_ARRAY_ITEMS = 8 * 2**20
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 256
MAX_ENTRIES = 1_000_000
CHUNK_ELEMENTS = 4 * 2**20

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", _BOOL: "<B", 10: "<Q", 11: "<q", 12: "<d"}
_UNPACK = {kind: struct.Struct(code) for kind, code in _SCALARS.items()}
_U32, _U64 = 4, 10


@dataclass(frozen=True)
class GGUFTensor:
    """Where one tensor lies: `shape` is in PyTorch order (rows first), `start` is a byte position in the file."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    n_bytes: int


class _Cursor:
    """Reads little-endian values and refuses to step over the end."""

    def __init__(self, data: np.ndarray, path: Path) -> None:
        self.data, self.path, self.position = memoryview(data.data), path, 0
        self.limit = min(len(data), MAX_METADATA_BYTES)

    def fail(self, problem: str) -> ModelError:
        return ModelError(f"{self.path}: damaged GGUF file: {problem}")

    def take(self, n_bytes: int, what: str) -> memoryview:
        if n_bytes > self.limit - self.position:
            raise self.fail(f"{what} at byte {self.position} needs {n_bytes} bytes, beyond the end of the header")
        start, self.position = self.position, self.position + n_bytes
        return self.data[start : self.position]

    def number(self, kind: int, what: str) -> Any:
        unpack = _UNPACK[kind]
        value = unpack.unpack(self.take(unpack.size, what))[0]
        if kind != _BOOL:
            return value
        if value > 1:
            raise self.fail(f"{what} is {value}, a boolean is 0 or 1")
        return bool(value)

    def text(self, what: str, longest: int | None = None) -> str:
        n_bytes = self.number(_U64, what)
        if longest is not None and n_bytes > longest:
            raise self.fail(f"{what} at byte {self.position} is {n_bytes} bytes long, allowed: {longest}")
        raw = bytes(self.take(n_bytes, what))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} at byte {self.position - n_bytes} is not valid UTF-8") from None

    def value(self, kind: int, key: str) -> Any:
        what = f"value of {key!r}"
        if kind in _SCALARS:
            return self.number(kind, what)
        if kind == _STRING:
            return self.text(what)
        if kind != _ARRAY:
            raise self.fail(f"{what} has unknown type {kind}")
        item_kind, count = self.number(_U32, what), self.number(_U64, what)
        if count > MAX_ARRAY_ITEMS:
            raise self.fail(f"{what} claims {count} items, allowed: {MAX_ARRAY_ITEMS}")
        if item_kind == _STRING:
            if count * 8 > self.limit - self.position:
                raise self.fail(f"{what} claims {count} strings, more than the file can hold")
            item = f"an item of {key!r}"
            return [self.text(item) for _ in range(count)]
        if item_kind not in _SCALARS:
            raise self.fail(f"{what} is an array of type {item_kind}; arrays hold numbers, booleans or strings")
        dtype = np.dtype(_SCALARS[item_kind])
        items = np.frombuffer(self.take(count * dtype.itemsize, what), dtype).copy()
        return items.astype(bool) if item_kind == _BOOL else items


class GGUFFile:
    """An opened GGUF file: `metadata` (key → value) and `tensors` (name → `GGUFTensor`).

    Raises `ModelError` when the file is missing, is not GGUF, or is damaged anywhere in its header.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            size = self.path.stat().st_size
            if size < 24:
                raise ModelError(f"{self.path}: not a GGUF file: {size} bytes are too few for a header")
            self._data: np.ndarray = np.memmap(self.path, dtype=np.uint8, mode="r")
        except OSError as error:
            raise ModelError(f"{self.path}: cannot be opened: {error.strerror or error}") from None
        cursor = _Cursor(self._data, self.path)
        n_tensors, n_entries = self._read_preamble(cursor)
        self.metadata: dict[str, Any] = self._read_metadata(cursor, n_entries)
        self.tensors: dict[str, GGUFTensor] = self._read_tensor_table(cursor, n_tensors)

    def _read_preamble(self, cursor: _Cursor) -> tuple[int, int]:
        magic = bytes(cursor.take(4, "magic"))
        if magic != b"GGUF":
            raise ModelError(f"{self.path}: not a GGUF file: it starts with {magic!r} instead of b'GGUF'")
        version = cursor.number(_U32, "version")
        if version not in (2, 3):
            if struct.unpack(">I", struct.pack("<I", version))[0] in (2, 3):
                raise ModelError(f"{self.path}: big-endian GGUF files are not supported; convert it to little-endian")
            raise ModelError(f"{self.path}: GGUF version {version} is not supported, allowed: 2, 3")
        n_tensors, n_entries = cursor.number(_U64, "tensor count"), cursor.number(_U64, "metadata count")
        for count, what in ((n_tensors, "tensors"), (n_entries, "metadata entries")):
            if count > min(MAX_ENTRIES, len(self._data) // 12):
                raise cursor.fail(f"the header claims {count} {what}, more than a file of its size can hold")
        return n_tensors, n_entries

    def _read_metadata(self, cursor: _Cursor, n_entries: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for index in range(n_entries):
            key = cursor.text(f"key of metadata entry {index}", MAX_KEY_BYTES)
            if key in metadata:
                raise cursor.fail(f"metadata key {key!r} appears twice")
            metadata[key] = cursor.value(cursor.number(_U32, f"type of {key!r}"), key)
        if metadata.get("split.count", 1) not in (0, 1):
            raise ModelError(f"{self.path}: one part of a split GGUF; merge the parts with llama-gguf-split first")
        return metadata

    def _read_tensor_table(self, cursor: _Cursor, n_tensors: int) -> dict[str, GGUFTensor]:
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 65_536 or alignment % 8:
            raise cursor.fail(f"general.alignment is {alignment!r}, allowed: a multiple of 8 up to 65536")
        relative: dict[str, GGUFTensor] = {}
        for index in range(n_tensors):
            tensor = self._read_tensor_entry(cursor, index, alignment)
            if tensor.name in relative:
                raise cursor.fail(f"tensor {tensor.name!r} appears twice")
            relative[tensor.name] = tensor
        base = -(-cursor.position // alignment) * alignment
        previous_end, previous_name = 0, ""
        for tensor in sorted(relative.values(), key=lambda t: t.start):
            if base + tensor.start + tensor.n_bytes > len(self._data):
                raise cursor.fail(
                    f"tensor {tensor.name!r} ends beyond the end of the file; the download may be cut off"
                )
            if tensor.start < previous_end:
                raise cursor.fail(f"tensors {previous_name!r} and {tensor.name!r} overlap")
            previous_end, previous_name = tensor.start + tensor.n_bytes, tensor.name
        return {t.name: GGUFTensor(t.name, t.shape, t.kind, base + t.start, t.n_bytes) for t in relative.values()}

    def _read_tensor_entry(self, cursor: _Cursor, index: int, alignment: int) -> GGUFTensor:
        name = cursor.text(f"name of tensor {index}", MAX_NAME_BYTES)
        n_dims = cursor.number(_U32, f"dimensions of {name!r}")
        if not 1 <= n_dims <= 4:
            raise cursor.fail(f"tensor {name!r} has {n_dims} dimensions, allowed: 1 to 4")
        dims = [cursor.number(_U64, f"shape of {name!r}") for _ in range(n_dims)]
        code, offset = cursor.number(_U32, f"type of {name!r}"), cursor.number(_U64, f"offset of {name!r}")
        try:
            kind = GGMLQuantizationType(code)
        except ValueError:
            raise cursor.fail(f"tensor {name!r} has unknown type {code}") from None
        block, block_bytes = GGML_QUANT_SIZES[kind]
        # Python integers do not overflow, so the product of absurd dimensions is just a number that is too big.
        n_elements = math.prod(dims)
        if n_elements == 0 or dims[0] % block:
            raise cursor.fail(f"tensor {name!r} has shape {dims}, its first number must be a multiple of {block}")
        n_bytes = n_elements // block * block_bytes
        if n_bytes > len(self._data):
            raise cursor.fail(f"tensor {name!r} of shape {dims} is bigger than the file")
        if offset % alignment or offset > len(self._data):
            raise cursor.fail(f"tensor {name!r} starts at {offset}, allowed: multiples of {alignment} in the file")
        return GGUFTensor(name, tuple(reversed(dims)), kind, offset, n_bytes)

    def names(self) -> set[str]:
        return set(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """The tensor, dequantised. Peak memory is the result plus one block of rows in float32."""
        tensor = self.tensors[name]
        out = torch.empty(tensor.shape, dtype=dtype)
        flat = out.view(-1)
        position = 0
        for values in self._float_chunks(tensor):
            flat[position : position + len(values)] = torch.from_numpy(values)
            position += len(values)
        return out

    def _float_chunks(self, tensor: GGUFTensor) -> Iterator[np.ndarray]:
        raw = self._data[tensor.start : tensor.start + tensor.n_bytes]
        block, block_bytes = GGML_QUANT_SIZES[tensor.kind]
        step = max(1, CHUNK_ELEMENTS // block) * block_bytes
        for start in range(0, tensor.n_bytes, step):
            # A copy: the mapped bytes are read-only, and may be unaligned for the element type.
            chunk = np.array(raw[start : start + step])
            if tensor.kind == GGMLQuantizationType.F64:
                yield chunk.view("<f8").astype(np.float32)
                continue
            try:
                # Blocks are independent, so a chunk is one long row; the library loops in Python over groups of rows.
                yield dequantize(chunk.reshape(1, -1), tensor.kind).reshape(-1)
            except NotImplementedError:
                raise ModelError(
                    f"{self.path}: tensor {tensor.name!r} has type {tensor.kind.name}, which cannot be dequantised"
                ) from None
