"""safetensors files and directories, checked before the library touches them.

A header of the format is eight bytes of length, that many bytes of JSON (name → dtype, shape, data_offsets) and the
data. Everything it says is compared with the file first, so a damaged or hostile file is one clear `ModelError`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from alignlab.core.errors import ModelError

MAX_HEADER_BYTES = 100_000_000
MAX_INDEX_BYTES = 100_000_000
_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
_FLOATS = {"F64", "F32", "F16", "BF16"}


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Check the header of one file; returns name → (dtype code, shape). Raises `ModelError` for every inconsistency."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
                raise ModelError(
                    f"{path}: damaged safetensors file: the header claims {length} bytes in a file of {size}"
                )
            raw = file.read(length)
    except OSError as error:
        raise ModelError(f"{path}: cannot be opened: {error.strerror or error}") from None
    return _check_header(path, _parse_json_object(path, raw), size - 8 - length)


def _parse_json_object(path: Path, raw: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a name appears twice")
        return result

    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: damaged file: its header is not valid JSON ({error})") from None
    if not isinstance(parsed, dict):
        raise ModelError(f"{path}: damaged file: its header is a JSON {type(parsed).__name__} instead of an object")
    return parsed


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _check_header(path: Path, header: dict[str, Any], n_data: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        where = f"{path}: damaged safetensors file: tensor {name!r}"
        if not isinstance(entry, dict):
            raise ModelError(f"{where} is described by a {type(entry).__name__} instead of an object")
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
            raise ModelError(f"{where} has unknown dtype {dtype!r}, allowed: {', '.join(_ITEM_BYTES)}")
        if not isinstance(shape, list) or len(shape) > 8 or not all(_is_count(n) for n in shape):
            raise ModelError(f"{where} has shape {shape!r}, allowed: a list of up to 8 whole numbers")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(n) for n in offsets):
            raise ModelError(f"{where} has data_offsets {offsets!r}, allowed: two whole numbers")
        start, end = offsets
        if not start <= end <= n_data or end - start != math.prod(shape) * _ITEM_BYTES[dtype]:
            raise ModelError(f"{where} has data_offsets {offsets}, which do not fit its shape {shape} and the file")
        tensors[name] = (dtype, tuple(shape))
        spans.append((start, end, name))
    position = 0
    for start, end, name in sorted(spans):
        if start != position:
            raise ModelError(f"{path}: damaged safetensors file: tensor {name!r} leaves a gap or overlaps another")
        position = end
    if position != n_data:
        raise ModelError(f"{path}: damaged safetensors file: {n_data - position} bytes of data belong to no tensor")
    return tensors


class SafetensorsDir:
    """All tensors of a model directory: `model.safetensors`, or the shards that `model.safetensors.index.json` names.

    Raises `ModelError` for a missing shard, a shard outside the directory, and every inconsistency of a header.
    """

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory)
        self._file_of: dict[str, Path] = {}
        self._info: dict[str, tuple[str, tuple[int, ...]]] = {}
        index = self.path / "model.safetensors.index.json"
        single = self.path / "model.safetensors"
        if index.is_file():
            self._open_shards(index)
        elif single.is_file():
            self._add(single, read_header(single))
        else:
            raise ModelError(f"{self.path}: no model.safetensors and no model.safetensors.index.json in this directory")

    def _add(self, path: Path, header: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        for name, info in header.items():
            if name in self._info:
                raise ModelError(f"{path}: tensor {name!r} is also in {self._file_of[name].name}")
            self._file_of[name], self._info[name] = path, info

    def _open_shards(self, index: Path) -> None:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise ModelError(f"{index}: {index.stat().st_size} bytes are too many for an index")
        weight_map = _parse_json_object(index, index.read_bytes()).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise ModelError(f"{index}: 'weight_map' must be an object from tensor names to file names")
        for shard in sorted(set(weight_map.values())):
            if "/" in shard or "\\" in shard or "\0" in shard or not shard.endswith(".safetensors"):
                raise ModelError(f"{index}: shard {shard!r} must be the name of a .safetensors file in this directory")
            path = self.path / shard
            if not path.is_file():
                raise ModelError(f"{index}: shard {shard!r} is missing from {self.path}")
            self._add(path, read_header(path))
        for name, shard in weight_map.items():
            if self._file_of.get(name) != self.path / shard:
                raise ModelError(f"{index}: tensor {name!r} is not in {shard!r} as the index says")

    def names(self) -> set[str]:
        return set(self._info)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._info[name][1]

    def kind(self, name: str) -> str:
        return self._info[name][0]

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """The tensor in `dtype`; only this tensor's bytes are read."""
        code = self._info[name][0]
        if code not in _FLOATS:
            raise ModelError(
                f"{self._file_of[name]}: tensor {name!r} has dtype {code}, allowed: {', '.join(sorted(_FLOATS))}"
            )
        try:
            with safe_open(self._file_of[name], framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{self._file_of[name]}: tensor {name!r} cannot be read: {error}") from None
        # A copy even where the type fits: a view would pin the mapping of the whole file.
        return tensor.to(dtype, copy=True)
