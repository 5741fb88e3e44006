"""GGUF: weights of every family equal the originals, dequantisation is exact, tokenizers equal transformers'."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers as hf
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from alignlab.core.errors import ModelError
from alignlab.data.prompts import load_prompts
from alignlab.lm import catalogue
from alignlab.lm.generate import decode
from alignlab.lm.gguf_config import config_from_gguf
from alignlab.lm.gguf_reader import GGUFFile
from alignlab.lm.gguf_tokenizer import PRE_TOKENIZERS, from_gguf
from alignlab.lm.language_model import load as load_lm
from alignlab.lm.model import GPTModel
from alignlab.lm.types import SamplingParams
from alignlab.lm.weights import load_weights

VOCAB = 96
GQA = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
GEMMA = GQA | {"head_dim": 8}
CASES: dict[str, tuple[str, type, dict[str, Any]]] = {
    "llama": ("llama", hf.LlamaConfig, GQA),
    "llama-tied": ("llama", hf.LlamaConfig, GQA | {"tie_word_embeddings": True}),
    "llama3-rope": ("llama", hf.LlamaConfig, GQA | {"rope_parameters": LLAMA3}),
    "qwen2": ("qwen2", hf.Qwen2Config, GQA),
    "qwen3": ("qwen3", hf.Qwen3Config, GQA | {"head_dim": 16}),
    "gpt2": ("gpt2", hf.GPT2Config, GPT2),
    "pythia": ("gptneox", hf.GPTNeoXConfig, {k: v for k, v in GQA.items() if k != "num_key_value_heads"}),
    "gemma": ("gemma", hf.GemmaConfig, GEMMA),
    "gemma2": ("gemma2", hf.Gemma2Config, GEMMA | {"sliding_window": 8, "query_pre_attn_scalar": 8}),
    "gemma3": (
        "gemma3", hf.Gemma3TextConfig,
        GEMMA | {"sliding_window": 8, "query_pre_attn_scalar": 8, "num_hidden_layers": 7},
    ),
}  # fmt: skip


def reference(cls: type, fields: dict[str, Any]) -> Any:
    config = cls(**fields)
    config._attn_implementation = "eager"
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def metadata(writer: gguf.GGUFWriter, config: Any) -> None:
    get = config.to_dict().get
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(get("num_hidden_layers") or get("n_layer"))
    writer.add_feed_forward_length(get("intermediate_size") or 4 * 32)
    writer.add_head_count(4)
    if get("num_key_value_heads"):
        writer.add_head_count_kv(get("num_key_value_heads"))
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(1e-5)
    if get("head_dim"):
        writer.add_key_length(config.head_dim)
    if config.model_type == "gpt_neox":
        writer.add_rope_dimension_count(2)
        writer.add_parallel_residual(True)
    rope = get("rope_parameters") or {}
    theta = rope.get("full_attention", rope).get("rope_theta")
    if theta:
        writer.add_rope_freq_base(theta)
    if rope.get("rope_type") == "llama3":
        writer.add_rope_scaling_orig_ctx_len(16)
        writer.add_tensor("rope_freqs.weight", llama3_divisors(rope))
    if get("sliding_window"):
        writer.add_sliding_window(config.sliding_window)
    if get("final_logit_softcapping"):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def llama3_divisors(rope: dict[str, Any]) -> np.ndarray:
    """llama.cpp's conversion, one frequency at a time."""
    divisors = []
    for i in range(4):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (2 * i / 8)
        if wavelength < 16 / 4:
            divisors.append(1.0)
        elif wavelength > 16 / 1:
            divisors.append(8.0)
        else:
            smooth = (16 / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / 8 + smooth))
    return np.array(divisors, dtype=np.float32)


def pair_rotary(weight: np.ndarray, heads: int) -> np.ndarray:
    """Row i of a head goes to 2i, row i + half to 2i + 1: llama.cpp's order, element by element."""
    out = np.empty_like(weight)
    size = len(weight) // heads
    for head in range(heads):
        for i in range(size // 2):
            out[head * size + 2 * i] = weight[head * size + i]
            out[head * size + 2 * i + 1] = weight[head * size + i + size // 2]
    return out


def convert(name: str, value: np.ndarray, family: str) -> np.ndarray:
    if family == "gpt2" and value.ndim == 2 and ".h." in name:
        return value.T
    if family == "llama" and "q_proj" in name:
        return pair_rotary(value, 4)
    if family == "llama" and "k_proj" in name:
        return pair_rotary(value, 2)
    if family == "gptneox" and "query_key_value" in name:
        heads = [value[24 * h : 24 * (h + 1)] for h in range(4)]
        return np.concatenate([head[8 * part : 8 * (part + 1)] for part in range(3) for head in heads])
    if family.startswith("gemma") and "norm" in name:
        return value + 1
    return value


def write_model(path: Path, family: str, model: Any) -> None:
    """Convert as llama.cpp does; names come from the gguf library's own table."""
    writer = gguf.GGUFWriter(path, family)
    metadata(writer, model.config)
    architecture = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(architecture, 8)
    tied = model.config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        writer.add_tensor(stored, np.ascontiguousarray(convert(name, tensor.numpy(), family)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(path: Path) -> GPTModel:
    file = GGUFFile(path)
    return load_weights(config_from_gguf(file), file, "gguf")


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_equal_the_model_that_was_converted(case: str, tmp_path: Path) -> None:
    family, cls, fields = CASES[case]
    theirs = reference(cls, fields)
    write_model(tmp_path / "m.gguf", family, theirs)
    ids = torch.randint(0, VOCAB, (2, 40), generator=torch.Generator().manual_seed(1))
    assert (load(tmp_path / "m.gguf")(ids) - theirs(ids).logits).abs().max() <= 1e-4


def test_every_type_is_dequantised_as_the_library_does_it_row_by_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    read = 0
    for kind in GGMLQuantizationType:
        block, block_bytes = GGML_QUANT_SIZES[kind]
        raw = rng.integers(0, 60, (3, 4 * block_bytes), dtype=np.uint8)
        try:
            expected = gguf.quants.dequantize(raw, kind)
        except NotImplementedError:
            expected = None
        writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
        writer.add_tensor("t", raw, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        file = GGUFFile(tmp_path / "t.gguf")
        assert file.shape("t") == (3, 4 * block)
        if expected is not None:
            read += 1
            assert np.array_equal(file.read("t", torch.float32).numpy(), expected.reshape(3, -1), equal_nan=True)
            continue
        if kind.name == "F64":
            assert np.array_equal(file.read("t", torch.float64).numpy(), raw.view("<f8").astype(np.float32))
            continue
        with pytest.raises(ModelError, match=f"type {kind.name}, which cannot be dequantised"):
            file.read("t", torch.float32)
    assert read >= 24


TEXTS = [
    "Hello world", " leading", "trailing ", "two  spaces\n\nlines\r\n\ttab", "it's we'll I'M",
    "12345 6 78,9.0",
    "naïve Zoë Ünïcödé", "日本語のテキスト", "🎉🦊 emoji\u200d",
    "a_b-c/d\\e<|f|>", "", "  ", "e\u0301 combining", "мир",
]  # fmt: skip


def byte_level_vocabulary() -> tuple[list[str], list[str]]:
    """A small byte-level BPE learned from a few sentences: (tokens, merges)."""
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    core.train_from_iterator([*TEXTS, "the quick brown fox jumps over the lazy dog it's 123 1234"] * 3, trainer)
    import json

    model = json.loads(core.to_str())["model"]
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    return sorted(model["vocab"], key=model["vocab"].get), merges


def write_tokenizer(path: Path, **overrides: Any) -> Path:
    tokens, merges = byte_level_vocabulary()
    fields: dict[str, Any] = {
        "model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": merges, "types": [3, 3] + [1] * (len(tokens) - 2),
        "arch": "qwen2", "scores": None, "eos": 0, "bos": None, "add_bos": None,
    }  # fmt: skip
    fields |= overrides
    writer = gguf.GGUFWriter(path, fields["arch"])
    writer.add_block_count(1)
    writer.add_tokenizer_model(fields["model"])
    if fields["pre"] is not None:
        writer.add_tokenizer_pre(fields["pre"])
    writer.add_token_list(fields["tokens"])
    writer.add_token_types(fields["types"])
    if fields["merges"] is not None:
        writer.add_token_merges(fields["merges"])
    if fields["scores"] is not None:
        writer.add_token_scores(fields["scores"])
    if fields["eos"] is not None:
        writer.add_eos_token_id(fields["eos"])
    if fields["bos"] is not None:
        writer.add_bos_token_id(fields["bos"])
    if fields["add_bos"] is not None:
        writer.add_add_bos_token(fields["add_bos"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2"])
def test_byte_level_ids_equal_transformers(pre: str, tmp_path: Path) -> None:
    ours = from_gguf(GGUFFile(write_tokenizer(tmp_path / "t.gguf", pre=pre)))
    theirs = hf.AutoTokenizer.from_pretrained(tmp_path, gguf_file="t.gguf")
    for text in TEXTS:
        if "\u0301" in text and pre == "qwen2":
            continue  # we compose like the original Qwen2 tokenizer; a GGUF-made one in transformers does not
        assert ours.encode(text, parse_special=True) == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ours.encode(text)) == text
    assert ours.encode("e\u0301") == (ours.encode("é") if pre == "qwen2" else ours.encode("e") + ours.encode("\u0301"))


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_known_pre_tokenizer_loses_nothing(pre: str, tmp_path: Path) -> None:
    ours = from_gguf(GGUFFile(write_tokenizer(tmp_path / "t.gguf", pre=pre)))
    for text in TEXTS:
        if "\u0301" not in text:
            assert ours.decode(ours.encode(text)) == text
    digits = [ours.decode([i]) for i in ours.encode("123 1234")]
    single = PRE_TOKENIZERS[pre] in ("digits", "qwen2")
    assert all(len(d.strip()) <= 1 for d in digits) == single or PRE_TOKENIZERS[pre] == "default"


SENTENCEPIECE = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
PIECES = [
    "▁", "a", "b", "c", "e", "h", "l", "o", "r", "t", "w", "d", "'", "s", "▁t", "he", "▁the", "ll", "llo", "▁he",
    "▁hello", "or", "▁w", "▁wor", "ld", "▁world", "▁▁", "▁▁▁▁", "\n", "\n\n",
]  # fmt: skip
SP_TYPES = [2, 3, 3] + [6] * 256 + [1] * len(PIECES)
SP_TEXTS = ["hello world", " the hello", "the  world    there", "Zoë 🎉", "a\n\nb", "", "the's", "held wall"]


def sentencepiece_gguf(path: Path, arch: str, **overrides: Any) -> Path:
    tokens = SENTENCEPIECE + PIECES
    scores = [0.0] * 259 + [-float(i) for i in range(len(PIECES))]
    if arch == "llama":  # longer pieces first, so that the score and not the position decides
        scores[259:] = [-100.0 + 10 * len(piece) - 0.01 * i for i, piece in enumerate(PIECES)]
    fields = {"model": "llama", "pre": None, "tokens": tokens, "merges": None, "types": SP_TYPES, "arch": arch}
    return write_tokenizer(path, **fields, scores=scores, bos=1, eos=2, **overrides)


def naive_sentencepiece(text: str, tokens: list[str], scores: list[float], prefix: bool) -> list[int]:
    """The definition: join the best-scoring neighbours until none can be joined; unknown characters become bytes."""
    ids = {token: i for i, token in enumerate(tokens)}
    text = ("▁" if prefix and text else "") + text.replace(" ", "▁")
    parts = list(text)
    while True:
        joins = [(scores[ids[a + b]], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not joins:
            break
        at = -max(joins)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [i for part in parts for i in ([ids[part]] if part in ids else [3 + b for b in part.encode()])]


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_sentencepiece_ids_equal_the_definition_and_transformers(arch: str, tmp_path: Path) -> None:
    file = GGUFFile(sentencepiece_gguf(tmp_path / "t.gguf", arch))
    ours = from_gguf(file)
    theirs = hf.AutoTokenizer.from_pretrained(tmp_path, gguf_file="t.gguf")
    tokens, scores = file.metadata["tokenizer.ggml.tokens"], file.metadata["tokenizer.ggml.scores"].tolist()
    for text in SP_TEXTS:
        ids = ours.encode(text)
        assert ids == naive_sentencepiece(text, tokens, scores, prefix=arch == "llama"), text
        if not (arch == "llama" and text.startswith(" ")):  # where the definition and transformers disagree
            assert ids == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ids) == text
    assert ours.special.add_bos
    assert ours.encode_prompt("the") == [1, *ours.encode("the")]
    assert ours.eos_ids == {2}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model": "t5"}, "tokenizer 't5' is not supported, allowed: gpt2, llama"),
        ({"pre": "tekken"}, "pre-tokenizer 'tekken' is not supported, allowed: default"),
        ({"merges": ["x"]}, "merge 'x' does not name two tokens"),
        ({"merges": ["q qqqq"]}, "does not name two tokens"),
        ({"merges": None}, "'tokenizer.ggml.merges' is missing"),
        ({"types": [1]}, "must be [0-9]+ numbers, one for each token"),
        ({"eos": 10**6}, "eos token 1000000 is outside the vocabulary"),
    ],
)
def test_bad_vocabularies_are_one_sentence(overrides: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = GGUFFile(write_tokenizer(tmp_path / "t.gguf", **overrides))
    with pytest.raises(ModelError, match=message):
        from_gguf(file)


def test_unknown_architecture_and_absurd_shapes_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown architecture 'rwkv6', known: gpt2, gptneox, llama"):
        config_from_gguf(GGUFFile(write_tokenizer(tmp_path / "t.gguf", arch="rwkv6")))
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    for name, value in {"block_count": 10**9, "attention.head_count": 4, "embedding_length": 8}.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="1000000000 layers, 4 heads and width 8 do not fit its 1 tensors"):
        config_from_gguf(GGUFFile(tmp_path / "a.gguf"))


def real_model() -> Path:
    """SmolLM2-135M-Instruct, if this machine has it; a test never downloads."""
    named = os.environ.get("ALIGNLAB_TEST_GGUF")
    path = Path(named) if named else catalogue.locate(catalogue.DEFAULT_MODEL)
    if path is None or not path.is_file():
        pytest.skip(f"{catalogue.DEFAULT_MODEL} is not on this machine: `alignlab models pull` fetches it")
    return path


@pytest.mark.slow
@torch.no_grad()
def test_the_real_model_equals_transformers() -> None:
    path = real_model()
    file = GGUFFile(path)
    ours, tokenizer = load_weights(config_from_gguf(file), file, "gguf"), from_gguf(file)
    theirs = hf.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    their_tokenizer = hf.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in TEXTS:
        assert tokenizer.encode(text, parse_special=True) == their_tokenizer.encode(text, add_special_tokens=False)
    chat = [{"role": "user", "content": "Why is the sky blue?"}]
    ids = tokenizer.encode_prompt(chat)
    assert ids == their_tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    batch = torch.tensor([ids])
    assert (ours(batch) - theirs(batch).logits).abs().max() <= 1e-3


@pytest.mark.slow
def test_the_real_model_writes_the_tokens_that_transformers_writes() -> None:
    """64 greedy steps on 20 prompts, fp32: the same tokens."""
    path = real_model()
    ours = load_lm(str(path), dtype="float32", device="cpu")
    theirs = hf.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    questions = [record.prompt for record in load_prompts("helpful", "heldout")[:20]]
    prompts = [ours.tokenizer.encode_prompt([{"role": "user", "content": question}]) for question in questions]
    written: dict[int, list[int]] = {}
    for moved in decode(ours.model, prompts, SamplingParams(max_tokens=64, temperature=0.0), frozenset()):
        written |= {row.index: row.tokens for row in moved}
    for index, prompt in enumerate(prompts):
        tokens = torch.tensor([prompt])
        with torch.no_grad():
            peer = theirs.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=64,
                min_new_tokens=64,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        assert written[index] == peer[0, len(prompt) :].tolist(), questions[index]
