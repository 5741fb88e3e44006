"""GGUF files, written: metadata and tensors in, one file out that appears only when it is whole.

Format: the GGUF specification of the ggml project (docs/gguf.md), version 3, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from alignlab.core.errors import ModelError

ALIGNMENT = 32
VERSION = 3
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY, _U64 = 4, 5, 6, 7, 8, 9, 10
_ARRAY_KINDS = {np.dtype(np.int32): _I32, np.dtype(np.float32): _F32, np.dtype(np.uint32): _U32, np.dtype(bool): _BOOL}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor to be written; its bytes are made when their turn comes."""

    name: str
    shape: tuple[int, ...]
    """In PyTorch order, rows first."""
    kind: GGMLQuantizationType
    make: Callable[[], bytes]

    @property
    def n_bytes(self) -> int:
        """Size of its bytes."""
        block, block_bytes = GGML_QUANT_SIZES[self.kind]
        n = 1
        for length in self.shape:
            n *= length
        return n // block * block_bytes


def write_gguf(path: str | Path, metadata: Mapping[str, Any], tensors: Sequence[StoredTensor]) -> Path:
    """Write the file; returns its path. Values are bool, int (32 bits unsigned, else 64), float (32 bits), str, list of
    str, or numpy arrays of int32, uint32, float32 or bool.

    Memory is one tensor. Raises `ModelError` where the file cannot be written or a tensor cannot be encoded; what was
    there before then stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(_header(metadata, tensors))
            for tensor in tensors:
                _pad(stream)
                _write_tensor(stream, tensor)
            _pad(stream)
        temporary.replace(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _write_tensor(stream: BinaryIO, tensor: StoredTensor) -> None:
    try:
        raw = tensor.make()
    except ModelError as error:
        raise ModelError(f"tensor {tensor.name!r}: {error}") from None
    if len(raw) != tensor.n_bytes:
        raise ModelError(f"tensor {tensor.name!r} has {len(raw)} bytes where {tensor.n_bytes} were announced")
    stream.write(raw)


def _header(metadata: Mapping[str, Any], tensors: Sequence[StoredTensor]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), _value(key, value)]
    offset = 0
    for tensor in tensors:
        dims = tuple(reversed(tensor.shape))
        parts += [_text(tensor.name), struct.pack(f"<I{len(dims)}Q", len(dims), *dims)]
        parts.append(struct.pack("<IQ", int(tensor.kind), offset))
        offset += -(-tensor.n_bytes // ALIGNMENT) * ALIGNMENT
    return b"".join(parts)


def _value(key: str, value: Any) -> bytes:
    """Type and value of one entry."""
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, int):
        wide = not 0 <= value < 2**32
        return struct.pack("<IQ" if wide else "<II", _U64 if wide else _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))
    if isinstance(value, np.ndarray) and value.dtype in _ARRAY_KINDS:
        kind = _ARRAY_KINDS[value.dtype]
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + np.ascontiguousarray(value).tobytes()
    raise ModelError(f"metadata {key!r} is a {type(value).__name__}, which a GGUF file does not hold")


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw


def _pad(stream: BinaryIO) -> None:
    stream.write(b"\0" * (-stream.tell() % ALIGNMENT))
