"""llama2.c: stories260K tells exactly its story, and a damaged checkpoint is one sentence."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from alignlab.core.errors import ModelError
from alignlab.lm.language_model import load
from alignlab.lm.llama2c import Llama2cFile, load_llama2c, load_llama2c_tokenizer


def stories() -> Path:
    named = os.environ.get("ALIGNLAB_TEST_DATA")
    root = Path(named) if named else Path(__file__).parents[3] / "shared" / "data"
    path = root / "lm" / "stories260K"
    if not (path / "stories260K.bin").is_file():
        pytest.skip("stories260K is not here; set ALIGNLAB_TEST_DATA to the directory that holds lm/stories260K")
    return path


@torch.no_grad()
def test_greedy_text_is_exactly_the_published_one() -> None:
    lm = load(str(stories() / "stories260K.bin"), device="cpu", dtype="float32")
    ids = lm.tokenizer.encode("", bos=True)
    for _ in range(200):
        ids.append(int(lm.model(torch.tensor([ids]))[0, -1].argmax()))
    expected = (stories() / "expected_greedy_200.txt").read_text()
    assert lm.tokenizer.decode(ids).strip() == expected.strip()
    assert lm.name == "stories260K"


def naive_encode(text: str, tokens: list[bytes], scores: list[float]) -> list[int]:
    """run.c's encoder, transcribed in idea: dummy space, characters or bytes, then the best pair again and again."""
    ids = {token: i for i, token in reversed(list(enumerate(tokens)))}
    found = [ids[b" "]] if text else []
    for character in text:
        raw = character.encode()
        found += [ids[raw]] if raw in ids else [byte + 3 for byte in raw]
    while True:
        best = None
        for i in range(len(found) - 1):
            joined = ids.get(tokens[found[i]] + tokens[found[i + 1]])
            if joined is not None and (best is None or scores[joined] > best[0]):
                best = (scores[joined], i, joined)
        if best is None:
            return found
        found[best[1] : best[1] + 2] = [best[2]]


def test_tokenizer_equals_the_naive_encoder() -> None:
    data = (stories() / "tok512.bin").read_bytes()
    tokens, scores, position = [], [], 4
    for _ in range(512):
        score, length = struct.unpack_from("<fi", data, position)
        tokens.append(data[position + 8 : position + 8 + length])
        scores.append(score)
        position += 8 + length
    tokenizer = load_llama2c_tokenizer(stories() / "tok512.bin", 512)
    for text in [
        "Once upon a time",
        "  two spaces",
        'Lily\'s mom said, "Zoë 🎉"\n\n',
        "xylophone 123",
        "",
        "aaaaaa the the",
    ]:
        assert tokenizer.encode(text) == naive_encode(text, tokens, scores)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_prompt("a")[0] == 1
    assert tokenizer.eos_ids == {1, 2}


def write_checkpoint(path: Path, vocab: int = 300, *, shared: bool = True, extra: int = 0) -> None:
    dim, hidden, layers, heads, kv, ctx = 8, 12, 2, 2, 1, 16
    size = vocab * dim + layers * (dim + dim * dim * 2 + 2 * 4 * dim + dim + 3 * dim * hidden) + dim + ctx * 4
    size += (0 if shared else vocab * dim) + extra
    weights = np.random.default_rng(0).standard_normal(size).astype("<f4")
    header = struct.pack("<7i", dim, hidden, layers, heads, kv, vocab if shared else -vocab, ctx)
    path.write_bytes(header + weights.tobytes())


@pytest.mark.parametrize("shared", [True, False])
def test_layout_fills_the_file_exactly_and_the_classifier_is_shared_or_not(shared: bool, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m.bin", shared=shared)
    model = load_llama2c(tmp_path / "m.bin")
    weights = np.frombuffer((tmp_path / "m.bin").read_bytes()[28:], "<f4")
    assert np.array_equal(model.embed.weight.detach().numpy().ravel(), weights[: 300 * 8])
    assert model.config.tie_embeddings == shared
    if not shared:
        assert np.array_equal(model.head_weight.detach().numpy().ravel(), weights[-300 * 8 :])
    # In file order the last matrix before the final norm is the second layer's `up`.
    source = Llama2cFile(tmp_path / "m.bin")
    end = len(weights) - (0 if shared else 2400) - 16 * 4 - 8
    up = source.read("blk.1.ffn_up.weight", torch.float32).numpy().ravel()
    assert np.array_equal(up, weights[end - 96 : end])


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    write_checkpoint(path, extra=1)
    with pytest.raises(ModelError, match="its header needs"):
        load_llama2c(path)
    path.write_bytes(b"\0" * 28)
    with pytest.raises(ModelError, match="its header says"):
        load_llama2c(path)
    path.write_bytes(struct.pack("<7i", 8, 8, 1, 3, 1, 300, 8))
    with pytest.raises(ModelError, match="not a llama2"):
        load_llama2c(path)
    write_checkpoint(path)
    with pytest.raises(ModelError, match="its tokenizer is missing"):
        load(str(path))
    (tmp_path / "tokenizer.bin").write_bytes(struct.pack("<ifi", 3, 0.0, 1) + b"a")
    with pytest.raises(ModelError, match="holds 1 tokens, the model has 300"):
        load(str(path))
    (tmp_path / "tokenizer.bin").write_bytes(struct.pack("<ifi", 3, 0.0, 10**9) + b"a")
    with pytest.raises(ModelError, match="token 0 claims 1000000000 bytes"):
        load(str(path))
