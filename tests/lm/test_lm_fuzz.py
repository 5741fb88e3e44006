"""Damaged files: whatever byte is wrong, the answer is a `ModelError` or a file that reads, in bounded memory."""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from alignlab.core.errors import ModelError
from alignlab.lm.gguf_config import config_from_gguf
from alignlab.lm.gguf_reader import GGUFFile
from alignlab.lm.gguf_tokenizer import from_gguf
from alignlab.lm.language_model import load
from alignlab.lm.llama2c import load_llama2c, load_llama2c_tokenizer
from alignlab.lm.models_cli import describe
from alignlab.lm.safetensors_reader import SafetensorsDir, read_header
from alignlab.lm.tokenizer import Tokenizer
from alignlab.lm.weights import load_weights

N_EXAMPLES = 200
MAX_BYTES = 16 * 2**20


def small_gguf(path: Path) -> bytes:
    """A complete llama with a vocabulary: every kind of metadata value occurs in it."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {
        "context_length": 16, "embedding_length": 8, "block_count": 1, "feed_forward_length": 8,
        "attention.head_count": 2, "attention.head_count_kv": 2, "rope.dimension_count": 4,
    }.items():  # fmt: skip
        writer.add_uint32(f"llama.{name}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(8)), "▁", "a", "▁a"]
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([2, 3, 3] + [6] * 8 + [1] * 3)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_float64("x.double", 1.5)
    writer.add_int64("x.long", -3)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    shapes = {"token_embd": (14, 8), "output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.ffn_norm": (8,)}
    shapes |= {
        f"blk.0.{n}": (8, 8) for n in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def read_everything(path: Path) -> None:
    file = GGUFFile(path)
    config = config_from_gguf(file)
    from_gguf(file).encode("a a")
    load_weights(config, file, "gguf")


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return small_gguf(tmp_path_factory.mktemp("gguf") / "ok.gguf")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def survives(read: Any, path: Path) -> None:
    """Reading raises `ModelError` with one sentence, or works; and Python allocates no more than `MAX_BYTES`."""
    said = ""
    tracemalloc.start()
    try:
        read(path)
    except ModelError as error:
        said = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MAX_BYTES
    assert "\n" not in said
    assert len(said) < 1000


def header_end(data: bytes) -> int:
    return len(data) - 4 * (14 * 8 + 3 * 8 + 7 * 64)


def test_the_intact_file_reads(gguf_bytes: bytes, scratch: Path) -> None:
    (scratch / "ok.gguf").write_bytes(gguf_bytes)
    read_everything(scratch / "ok.gguf")
    lm = load(str(scratch / "ok.gguf"), device="cpu", dtype="float32")
    assert (lm.name, lm.tokenizer.encode("a a"), lm.model.config.n_layers) == ("ok", [10 + 3, 10 + 3], 1)
    facts = describe(str(scratch / "ok.gguf"))
    assert (facts["architecture"], facts["tensor types"], facts["ends with"]) == ("llama", "F32 × 11", "</s>")


# An entry "x.double" (float64) and the key of the entry that follows it.
TWICE = struct.pack("<Q8sId", 8, b"x.double", 12, 0.0) + b"\6\0\0\0\0\0\0\0x.long"
BAD_NUMBERS = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


@given(data=st.data())
@settings(max_examples=N_EXAMPLES, deadline=None)
@pytest.mark.no_cover
def test_gguf_with_a_changed_range_of_its_header(data: st.DataObject, gguf_bytes: bytes, scratch: Path) -> None:
    at = data.draw(st.integers(0, header_end(gguf_bytes) - 1))
    patch = data.draw(
        st.one_of(
            st.binary(min_size=1, max_size=16),
            st.sampled_from(BAD_NUMBERS).map(lambda n: struct.pack("<Q", n)),
            st.sampled_from(BAD_NUMBERS[:5]).map(lambda n: struct.pack("<I", n)),
        )
    )
    damaged = gguf_bytes[:at] + patch + gguf_bytes[at + len(patch) :]
    (scratch / "changed.gguf").write_bytes(damaged)
    survives(read_everything, scratch / "changed.gguf")


@pytest.mark.no_cover
def test_gguf_with_every_single_byte_of_its_header_changed(gguf_bytes: bytes, scratch: Path) -> None:
    for at in range(header_end(gguf_bytes)):
        damaged = bytearray(gguf_bytes)
        damaged[at] ^= 0xFF
        (scratch / "byte.gguf").write_bytes(damaged)
        with contextlib.suppress(ModelError):
            file = GGUFFile(scratch / "byte.gguf")
            config_from_gguf(file)
            from_gguf(file)


@pytest.mark.no_cover
def test_gguf_cut_off_anywhere(gguf_bytes: bytes, scratch: Path) -> None:
    for length in range(0, len(gguf_bytes) - 1, 5):
        (scratch / "cut.gguf").write_bytes(gguf_bytes[:length])
        with pytest.raises(ModelError):
            GGUFFile(scratch / "cut.gguf")


@given(noise=st.binary(max_size=400))
@settings(max_examples=100, deadline=None)
def test_gguf_of_noise_after_a_plausible_start(noise: bytes, scratch: Path) -> None:
    (scratch / "noise.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2, 2) + noise)
    survives(read_everything, scratch / "noise.gguf")


def test_gguf_mistakes_are_named(gguf_bytes: bytes, scratch: Path) -> None:
    path = scratch / "named.gguf"

    def complaint(data: bytes) -> str:
        path.write_bytes(data)
        with pytest.raises(ModelError) as caught:
            GGUFFile(path)
        return str(caught.value)

    assert "starts with b'PK" in complaint(b"PK\3\4" + gguf_bytes[4:])
    assert "version 9 is not supported" in complaint(gguf_bytes[:4] + struct.pack("<I", 9) + gguf_bytes[8:])
    assert "big-endian" in complaint(gguf_bytes[:4] + struct.pack(">I", 3) + gguf_bytes[8:])
    assert "claims 18446744073709551615 tensors" in complaint(gguf_bytes[:8] + b"\xff" * 8 + gguf_bytes[16:])
    assert "beyond the end of the file" in complaint(gguf_bytes[:-1600])
    assert "appears twice" in complaint(gguf_bytes.replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight"))
    assert "not valid UTF-8" in complaint(gguf_bytes.replace(b"x.double", b"\xff.double"))
    assert "metadata key 'x.double' appears twice" in complaint(gguf_bytes.replace(b"\6\0\0\0\0\0\0\0x.long", TWICE))
    with pytest.raises(ModelError, match="cannot be opened"):
        GGUFFile(scratch / "absent.gguf")


def test_gguf_with_overlapping_tensors(scratch: Path, gguf_bytes: bytes) -> None:
    at = gguf_bytes.index(b"blk.0.attn_norm.weight") + len(b"blk.0.attn_norm.weight") + 4 + 8 + 4
    (scratch / "lap.gguf").write_bytes(gguf_bytes[:at] + struct.pack("<Q", 32) + gguf_bytes[at + 8 :])
    with pytest.raises(ModelError, match="overlap"):
        GGUFFile(scratch / "lap.gguf")


def test_a_header_that_claims_terabytes_reads_in_a_process_with_little_memory(gguf_bytes: bytes, scratch: Path) -> None:
    path = scratch / "huge.gguf"
    spot = gguf_bytes.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 8
    path.write_bytes(gguf_bytes[:spot] + struct.pack("<Q", 2**40) + gguf_bytes[spot + 8 :])
    # The limit is set after the libraries have loaded: only the parser's own appetite counts.
    program = (
        "import resource, sys, torch\n"
        "from alignlab.core.errors import ModelError\n"
        "from alignlab.lm.gguf_reader import GGUFFile\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20,) * 2)\n"
        "try:\n    GGUFFile(sys.argv[1])\nexcept ModelError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "claims 1099511627776 items" in done.stdout


def small_safetensors(directory: Path) -> bytes:
    directory.mkdir(exist_ok=True)
    save_file({"a": torch.ones(3, 2), "b.c": torch.zeros(4, dtype=torch.bfloat16)}, directory / "model.safetensors")
    return (directory / "model.safetensors").read_bytes()


def read_tensors(path: Path) -> None:
    source = SafetensorsDir(path.parent)
    for name in source.names():
        source.read(name, torch.float32)


@given(data=st.data())
@settings(max_examples=N_EXAMPLES, deadline=None)
@pytest.mark.no_cover
def test_safetensors_with_a_changed_range_of_its_header(data: st.DataObject, scratch: Path) -> None:
    intact = small_safetensors(scratch / "st")
    end = 8 + int.from_bytes(intact[:8], "little")
    at = data.draw(st.integers(0, end - 1))
    patch = data.draw(
        st.one_of(st.binary(min_size=1, max_size=12), st.from_regex(rb"[0-9\[\]{}\",:]{1,6}", fullmatch=True))
    )
    path = scratch / "st" / "model.safetensors"
    path.write_bytes(intact[:at] + patch + intact[at + len(patch) :])
    survives(read_tensors, path)


def test_safetensors_cut_off_anywhere(scratch: Path) -> None:
    intact = small_safetensors(scratch / "st")
    path = scratch / "st" / "model.safetensors"
    read_tensors(path)
    for length in range(len(intact)):
        path.write_bytes(intact[:length])
        with pytest.raises(ModelError):
            read_header(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}, "unknown dtype 'F99'"),
        ({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, "unknown dtype"),
        ({"a": {"dtype": "F32", "shape": [2, -1], "data_offsets": [0, 8]}}, r"has shape \[2, -1\]"),
        ({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 8]}}, "do not fit its shape"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}}, "do not fit its shape"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, "do not fit its shape"),
        ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "has shape"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "4 bytes of data belong to no tensor"),
        ({n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"}, "gap or overlaps"),
        ({"a": 3}, "described by a int"),
        ([], "a JSON list instead of an object"),
    ],
)
def test_safetensors_mistakes_are_named(header: Any, message: str, tmp_path: Path) -> None:
    raw = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(8))
    with pytest.raises(ModelError, match=message):
        SafetensorsDir(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../model-1.safetensors"}}, "must be the name of a .safetensors file in this directory"),
        ({"weight_map": {"a": "/etc/passwd"}}, "must be the name of a .safetensors file"),
        ({"weight_map": {"a": "gone.safetensors"}}, r"shard 'gone\.safetensors' is missing"),
        ({"weight_map": {"zz": "one.safetensors"}}, "tensor 'zz' is not in 'one.safetensors'"),
        ({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}, "is also in"),
        ({"weight_map": {"a": 3}}, "'weight_map' must be an object"),
        ({}, "'weight_map' must be an object"),
    ],
)
def test_bad_shard_indices_are_refused(index: Any, message: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"a": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=message):
        SafetensorsDir(tmp_path)


@given(data=st.binary(max_size=80))
@settings(max_examples=100, deadline=None)
def test_llama2c_of_noise(data: bytes, scratch: Path) -> None:
    path = scratch / "noise.bin"
    path.write_bytes(data)
    with pytest.raises(ModelError):
        load_llama2c(path)
    with pytest.raises(ModelError):
        load_llama2c_tokenizer(path, 300)


@given(at=st.integers(0, 5000), patch=st.binary(min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_damaged_tokenizer_json(at: int, patch: bytes, scratch: Path) -> None:
    import tokenizers

    directory = scratch / "tok"
    directory.mkdir(exist_ok=True)
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens(["<s>"])
    raw = core.to_str().encode()
    at %= len(raw)
    (directory / "tokenizer.json").write_bytes(raw[:at] + patch + raw[at + len(patch) :])
    survives(lambda path: Tokenizer.from_hf(path).encode("ab"), directory)
