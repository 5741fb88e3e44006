"""GGUF out: encoders against the decoders of the `gguf` package, whole files against both readers, llama.cpp (slow)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from gguf.quants import quantize as their_quantize

from alignlab.core.errors import ConfigError, ModelError
from alignlab.lm.ggml_blocks import encode
from alignlab.lm.gguf_export import KINDS, _kind_of, export_gguf
from alignlab.lm.gguf_reader import GGUFFile
from alignlab.lm.gguf_writer import StoredTensor, write_gguf
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.model import GPTModel
from alignlab.lm.quant.apply import dequantise, memory, quantise
from alignlab.lm.quant.gguf_packed import read_blocks
from alignlab.lm.quant.layers import QuantEmbedding, QuantLinear, QuantMatrix
from alignlab.lm.quant_cli import GGUF, IN_MEMORY
from alignlab.lm.quant_cli import quantise as command
from alignlab.lm.tokenizer import Tokenizer

WIDE: dict[str, Any] = {"d_model": 64, "d_mlp": 256, "n_heads": 4, "d_head": 16, "n_kv_heads": 2}
BLOCKED = [Kind.Q8_0, Kind.Q4_0, Kind.Q5_0, Kind.Q4_K]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def weights(n: int = 64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(n, 512, generator=generator) * 10.0 ** torch.randint(-3, 1, (n, 1), generator=generator)
    whole[0] = 0
    whole[1, :300] = 0.25
    whole[2] = whole[2].abs()
    return whole


def decoded(raw: bytes, kind: Kind, shape: torch.Size) -> torch.Tensor:
    rows = np.frombuffer(raw, dtype=np.uint8).reshape(shape[0], -1)
    return torch.from_numpy(np.array(dequantize(rows, kind))).view(shape)


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q5_0])
def test_what_the_reference_encoder_writes_is_not_nearer(kind: Kind) -> None:
    """Same bytes a block as `gguf`'s encoder, and an error that is not larger (beyond rounding of equal choices)."""
    weight = weights()
    raw = encode(weight, kind)
    theirs = their_quantize(weight.numpy(), kind)
    assert len(raw) == theirs.nbytes
    ours, reference = decoded(raw, kind, weight.shape), torch.from_numpy(dequantize(theirs, kind))
    assert float((ours - weight).norm()) <= float((reference - weight).norm()) * 1.001
    assert torch.allclose(ours[0], torch.zeros(512))


@pytest.mark.parametrize("kind", BLOCKED)
def test_a_decoded_tensor_encodes_to_itself(kind: Kind) -> None:
    """Planted: numbers that the format can express come back (to rounding of the scales)."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    once = decoded(encode(weights(), kind), kind, weights().shape)
    again = decoded(encode(once, kind), kind, once.shape)
    assert float((again - once).norm() / once.norm()) < (2e-3 if kind is not Kind.Q4_K else 0.04)
    assert len(encode(once, kind)) == once.numel() // block * block_bytes


def test_q4_k_is_nearer_than_an_unsearched_range_and_than_q4_0() -> None:
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    error = {k: float((decoded(encode(weight, k), k, weight.shape) - weight).norm() / weight.norm()) for k in BLOCKED}
    assert error[Kind.Q8_0] < 0.01 < error[Kind.Q5_0] < error[Kind.Q4_K] < error[Kind.Q4_0] < 0.11
    groups = weight.view(-1, 32)
    low, step = groups.amin(1, True), (groups.amax(1, True) - groups.amin(1, True)) / 15
    plain = (((groups - low) / step).round() * step + low).view_as(weight)
    assert error[Kind.Q4_K] < float((plain - weight).norm() / weight.norm()) * 1.03


@pytest.mark.parametrize(
    ("weight", "kind", "message"),
    [
        (torch.full((1, 32), float("inf")), Kind.Q8_0, "not finite"),
        (torch.full((1, 32), 1e5), Kind.F16, "beyond the range of float16"),
        (torch.ones(1, 48), Kind.Q4_0, "blocks of 32 numbers"),
    ],
)
def test_what_cannot_be_encoded(weight: torch.Tensor, kind: Kind, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        encode(weight, kind)


def test_metadata_of_every_type_and_tensors_come_back(tmp_path: Path) -> None:
    metadata = {
        "general.architecture": "x", "a.flag": True, "a.count": 7, "a.big": 2**40, "a.real": 0.5, "a.text": "ü\n▁",
        "a.texts": ["", "b"], "a.ints": np.array([-1, 2], dtype=np.int32), "a.reals": np.array([0.5], dtype=np.float32),
        "a.flags": np.array([True, False]),
    }  # fmt: skip
    values = torch.arange(6.0).view(2, 3)
    stored = [StoredTensor(n, (2, 3), Kind.F32, lambda: encode(values, Kind.F32)) for n in ("one", "two")]
    path = write_gguf(tmp_path / "deep" / "x.gguf", metadata, stored)
    back = GGUFFile(path)
    for key, value in metadata.items():
        assert np.array_equal(back.metadata[key], value)
    assert torch.equal(back.read("two", torch.float32), values)
    theirs = GGUFReader(path)
    assert [t.name for t in theirs.tensors] == ["one", "two"]
    assert theirs.fields["a.text"].contents() == "ü\n▁"
    with pytest.raises(ModelError, match="'a' is a set"):
        write_gguf(path, {"a": {1}}, stored)
    with pytest.raises(ModelError, match="24 were announced"):
        write_gguf(path, {}, [StoredTensor("one", (2, 3), Kind.F32, lambda: b"")])
    assert GGUFFile(path).metadata["a.count"] == 7  # what was there stays
    assert [p.name for p in path.parent.iterdir()] == ["x.gguf"]


@pytest.fixture
def spelled(byte_level_tokenizer: Tokenizer) -> Tokenizer:
    return Tokenizer(byte_level_tokenizer.core, byte_level_tokenizer.special, TEMPLATE)


FAMILIES = ["gpt2", "neox", "llama", "gemma2", "gemma3"]


@pytest.mark.parametrize("family", FAMILIES)
def test_f32_files_give_the_same_model(
    make_model: Callable[..., GPTModel], spelled: Tokenizer, tmp_path: Path, family: str
) -> None:
    fields: dict[str, Any] = {"gemma2": {"attn_softcap": 50.0, "embed_scale": 32**0.5}}.get(family, {})
    if family == "gemma3":
        fields = {
            "post_norm": True, "activation": "gelu_tanh", "embed_scale": 32**0.5, "tie_embeddings": True,
            "rope_scaling": None,
        }  # fmt: skip
    lm = LanguageModel(make_model(family, **fields), spelled, "tiny", "test")
    if family == "gemma2":  # GGUF files of Gemma say neither this
        lm = LanguageModel(make_model(family, **fields, attn_scale=12**-0.5, d_head=12), spelled, "tiny", "test")
    back = load(str(export_gguf(lm, tmp_path / "m.gguf", "f32")), dtype="float32", device="cpu")
    tokens = torch.randint(0, 250, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(back.model(tokens), lm.model(tokens), atol=1e-5)
    text = "Ünïcode, 12 tokens?\n\n  abc"
    assert back.tokenizer.encode(text) == lm.tokenizer.encode(text)
    assert back.tokenizer.eos_ids == lm.tokenizer.eos_ids
    assert back.tokenizer.control == lm.tokenizer.control
    assert back.tokenizer.chat_template == TEMPLATE


@pytest.mark.parametrize("kind", KINDS)
def test_both_readers_give_the_same_numbers(
    make_model: Callable[..., GPTModel], spelled: Tokenizer, tmp_path: Path, kind: Any
) -> None:
    lm = LanguageModel(make_model("llama", **WIDE), spelled, "tiny", "test")
    path = export_gguf(lm, tmp_path / "m.gguf", kind)
    ours = GGUFFile(path)
    kinds = set()
    for tensor in GGUFReader(path).tensors:
        assert ours.tensors[tensor.name].kind == tensor.tensor_type
        kinds.add(tensor.tensor_type)
        theirs = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type)))
        assert torch.equal(ours.read(tensor.name, torch.float32), theirs.view(ours.shape(tensor.name)))
    expected = {"f32": set(), "f16": {Kind.F16}, "q8_0": {Kind.Q8_0}, "q4_0": {Kind.Q4_0, Kind.Q8_0}}
    assert kinds == expected.get(kind, {Kind.Q4_K, Kind.Q5_0, Kind.Q8_0}) | {Kind.F32}
    back = load(str(path), dtype="float32", device="cpu").model
    tolerance = {"f32": 0, "f16": 1e-3, "q8_0": 0.01, "q4_0": 0.13, "q4_k": 0.1}[kind]
    for (name, a), (_, b) in zip(lm.model.named_parameters(), back.named_parameters(), strict=True):
        assert float((a - b).detach().norm()) <= tolerance * float(a.detach().norm()), name


def test_matrices_that_blocks_do_not_fill_get_more_bits() -> None:
    chosen = [_kind_of("blk.0.ffn_up.weight", shape, "q4_k") for shape in ((8, 512), (8, 96), (8, 40), (8,))]
    assert chosen == [Kind.Q4_K, Kind.Q5_0, Kind.F16, Kind.F32]
    assert _kind_of("token_embd.weight", (8, 512), "q4_k") is Kind.Q8_0


def test_sentencepiece_tokenizers_keep_their_ids(make_model: Callable[..., GPTModel], tmp_path: Path) -> None:
    from alignlab.lm.gguf_tokenizer import sentencepiece_core
    from alignlab.lm.tokenizer import SpecialTokens

    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces = {"▁": 0, "a": 0, "b": 0, "c": 0, "ab": -1, "▁a": -2, "bc": -3, "abc": -4, "▁ab": -5}
    tokens = [*words, *pieces]
    types = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
    core = sentencepiece_core(tokens, [0.0] * len(words) + list(map(float, pieces.values())), types, space_prefix=True)
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer = Tokenizer(core, SpecialTokens(bos=1, eos=2, unk=0, add_bos=True))
    lm = LanguageModel(make_model("llama"), tokenizer, "tiny", "test")
    back = load(str(export_gguf(lm, tmp_path / "m.gguf", "f32")), dtype="float32", device="cpu").tokenizer
    for text in ("abc ab", "a bcab", "zé", "  ab\nabc"):
        assert back.encode(text) == tokenizer.encode(text)
    assert back.special.add_bos
    assert (back.bos_id, back.eos_id) == (1, 2)


def test_what_the_format_cannot_express(
    make_model: Callable[..., GPTModel], spelled: Tokenizer, byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    lm = LanguageModel(make_model("llama", window=5), spelled, "tiny", "test")
    with pytest.raises(ModelError, match="window is 5, which GGUF files of architecture"):
        export_gguf(lm, tmp_path / "m.gguf")
    with pytest.raises(ConfigError, match="kind of GGUF is 'q3', allowed: f32, f16"):
        export_gguf(lm, tmp_path / "m.gguf", "q3")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_quantised_models_and_adapters_are_written_as_what_they_compute(
    make_model: Callable[..., GPTModel], spelled: Tokenizer, tmp_path: Path
) -> None:
    model = make_model("llama", **WIDE)
    quantise(model, "nf4", 32, embeddings=True)
    lm = LanguageModel(model, spelled, "tiny", "test")
    back = load(str(export_gguf(lm, tmp_path / "m.gguf", "f32")), dtype="float32", device="cpu").model
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.allclose(back(tokens), dequantise(model)(tokens), atol=1e-5)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_files_kept_packed_are_the_dequantised_model(
    make_model: Callable[..., GPTModel], spelled: Tokenizer, tmp_path: Path, family: str, kind: Any
) -> None:
    fields = WIDE if family == "llama" else {"d_model": 64, "d_mlp": 256}
    lm = LanguageModel(make_model(family, **fields), spelled, "tiny", "test")
    path = str(export_gguf(lm, tmp_path / "m.gguf", kind))
    plain, packed = (load(path, dtype="float32", device="cpu", packed=p) for p in (False, True))
    assert isinstance(packed.model.get_submodule("embed"), QuantEmbedding)
    assert isinstance(packed.model.get_submodule("blocks.0.attn.q"), QuantLinear)
    assert memory(packed.model) < 0.6 * memory(plain.model)
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.allclose(packed.model(tokens), plain.model(tokens), atol=2e-4)
    again = dequantise(packed.model).state_dict()
    assert again.keys() == plain.model.state_dict().keys()
    assert all(torch.equal(again[name], value) for name, value in plain.model.state_dict().items())


def test_q4_1_blocks_are_read_as_the_reference_does(tmp_path: Path) -> None:
    raw = their_quantize(weights(32).numpy(), Kind.Q4_1)
    path = write_gguf(tmp_path / "m.gguf", {}, [StoredTensor("w", (32, 512), Kind.Q4_1, raw.tobytes)])
    matrix = QuantMatrix(read_blocks(GGUFFile(path), "w"), torch.float32)
    assert torch.equal(matrix.dequantise(), torch.from_numpy(dequantize(raw, Kind.Q4_1)))


def test_command(
    make_model: Callable[..., GPTModel], spelled: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (*GGUF,) == KINDS
    model = str(export_gguf(LanguageModel(make_model("llama", **WIDE), spelled, "t", "t"), tmp_path / "m.gguf", "f32"))
    for scheme in IN_MEMORY:
        command([model, "--scheme", scheme, "--tokens", "40", "--json", "--device", "cpu"])
        facts = json.loads(capsys.readouterr().out)
        assert len(facts["layers"]) == facts["matrices"] == 14
        assert facts["bytes after"] < facts["bytes before"]
        assert facts["perplexity after"] > 0
    command([model, "--scheme", "int4", "--layers", "--embeddings", "--tokens", "0", "--device", "cpu"])
    shown = capsys.readouterr().out
    assert "blocks.1.mlp.down  64x256" in shown
    assert "perplexity" not in shown
    out = tmp_path / "out.gguf"
    command([model, "--scheme", "q4_k", "--output", str(out), "--tokens", "40", "--device", "cpu"])
    assert "perplexity change" in capsys.readouterr().out
    assert out.stat().st_size < os.path.getsize(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheme", "q4_0"], "--output says where"),
        (["--scheme", "q4_0", "--output", "x.bin"], "must end in .gguf"),
        (["--scheme", "int4", "--output", "x.gguf"], "writes a directory; for GGUF files"),
        (["--scheme", "int4", "--name", "x"], "--name registers the directory"),
        (["--scheme", "q4_0", "--output", "x.gguf", "--embeddings"], "not for GGUF files"),
        (["--scheme", "int4", "--tokens", "1"], "--tokens is 1"),
        (["--scheme", "q9"], "invalid choice"),
    ],
)
def test_wrong_flags(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        command(["model", *arguments])


def test_help_imports_no_torch() -> None:
    code = "import sys; from alignlab.lm.quant_cli import _parser; _parser(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
