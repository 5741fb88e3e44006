"""Token shards: what is written comes back, and every kind of damage is named."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignlab.core.errors import DataError, RunError
from alignlab.data.shards import TokenizerInfo, TokenShards, require_tokenizer, write_shards

INFO = TokenizerInfo("toy", "a" * 64, 1000)
Make = Callable[..., TokenShards]
DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12], [13, 14]]


@given(
    documents=st.lists(st.lists(st.integers(1, 999), max_size=9), min_size=1, max_size=20).filter(any),
    shard_tokens=st.integers(1, 40),
    data=st.data(),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_slice_is_that_of_the_plain_list(
    documents: list[list[int]], shard_tokens: int, data: st.DataObject, corpus: Make
) -> None:
    shards = corpus(documents, shard_tokens)
    stream = [token for ids in documents if ids for token in [*ids, 0]]
    assert shards.slice(0, len(shards)).tolist() == stream
    start = data.draw(st.integers(0, len(stream)))
    stop = data.draw(st.integers(start, len(stream)))
    assert shards.slice(start, stop).tolist() == stream[start:stop]
    positions = np.array(data.draw(st.lists(st.integers(0, len(stream) - 1), max_size=12)), dtype=np.int64)
    taken = shards.take(positions.reshape(1, -1))
    assert (taken.dtype, taken.tolist()) == (np.int64, [[stream[i] for i in positions]])
    begins = [i for i in range(len(stream)) if i == 0 or stream[i - 1] == 0]
    assert shards.document_starts.tolist() == begins


def test_the_manifest_counts_what_is_there(corpus: Make) -> None:
    shards = corpus([*DOCUMENTS, []], shard_tokens=6)
    manifest = shards.manifest
    assert (manifest.documents, manifest.tokens, manifest.bytes) == (4, 14, 20)
    assert [(s.tokens, s.documents) for s in manifest.shards] == [(6, 2), (8, 2)]
    assert (manifest.dtype, manifest.separator, manifest.source) == ("uint16", 0, "toy")
    raw = json.loads((shards.path / "manifest.json").read_text())
    assert raw["tokenizer"] == {"name": "toy", "sha256": "a" * 64, "vocab_size": 1000}
    assert {"file", "tokens", "documents", "sha256"} == set(raw["shards"][0])
    # The files are what the manifest says, readable by anything: little-endian ids one after another.
    parts = [np.fromfile(shards.path / s["file"], dtype="<u2") for s in raw["shards"]]
    assert np.concatenate(parts).tolist() == [5, 6, 7, 0, 8, 0, 9, 10, 11, 12, 0, 13, 14, 0]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1 << 16, "uint16"), ((1 << 16) + 1, "uint32")])
def test_ids_are_as_wide_as_the_vocabulary_needs(vocab_size: int, dtype: str, tmp_path: Path) -> None:
    info = TokenizerInfo("wide", "b" * 64, vocab_size)
    write_shards([([1, vocab_size - 1], 2)], tmp_path / "s", tokenizer=info, separator=0)
    shards = TokenShards.open(tmp_path / "s", check="hash")
    assert (shards.manifest.dtype, shards.slice(0, 3).tolist()) == (dtype, [1, vocab_size - 1, 0])


def test_the_digest_tells_corpora_apart(corpus: Make) -> None:
    one, same, other = corpus(DOCUMENTS), corpus(DOCUMENTS), corpus(DOCUMENTS[::-1])
    assert one.manifest.digest == same.manifest.digest != other.manifest.digest


def test_a_copy_opens_the_files_again(corpus: Make) -> None:
    shards = corpus(DOCUMENTS, 6)
    again = copy.deepcopy(shards)
    assert again is not shards
    assert again.slice(0, 14).tolist() == shards.slice(0, 14).tolist()


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "the corpus is empty"),
        ([([], 0)], "the corpus is empty"),
        ([([1], 1), ([1000], 1)], "document 1 has token 1000, outside the vocabulary of 1000"),
        ([([-1], 1)], "document 0 has token -1"),
        ([([1, 0, 2], 1)], "document 0 has the separator 0 among its tokens"),
    ],
)
def test_wrong_documents_leave_nothing_behind(documents: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        write_shards(documents, tmp_path / "s", tokenizer=INFO, separator=0)
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    def documents() -> Any:
        yield [1, 2], 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(documents(), tmp_path / "s", tokenizer=INFO, separator=0)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    def documents() -> Any:
        yield [1, 2], 2
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="the disk is full"):
        write_shards(documents(), tmp_path / "s", tokenizer=INFO, separator=0)
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_not_overwritten(tmp_path: Path) -> None:
    write_shards([([1], 1)], tmp_path / "s", tokenizer=INFO, separator=0)
    with pytest.raises(DataError, match="already exists"):
        write_shards([([2], 1)], tmp_path / "s", tokenizer=INFO, separator=0)
    for wrong, message in (({"shard_tokens": 0}, "shard_tokens is 0"), ({"separator": 1000}, "separator is 1000")):
        with pytest.raises(DataError, match=message):
            write_shards([([2], 1)], tmp_path / "t", **{"tokenizer": INFO, "separator": 0} | wrong)  # type: ignore[arg-type]


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = json.loads((path / "manifest.json").read_text())
    change(raw)
    (path / "manifest.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("separator"), "lacks separator"),
        (lambda m: (m.pop("tokens"), m.pop("tokenizer")), "lacks tokenizer, tokens"),
        (lambda m: m["tokenizer"].pop("sha256"), "tokenizer lacks sha256"),
        (lambda m: m["shards"][0].pop("file"), r"shards\[0\] lacks file"),
        (lambda m: m.update(shards=[]), "no shards"),
        (lambda m: m.update(shards={}), "shards is {}, allowed: a list"),
        (lambda m: m.update(version=2), "version is 2, allowed: 1"),
        (lambda m: m.update(dtype="int8"), "dtype is 'int8', allowed: uint16 or uint32"),
        (lambda m: m.update(tokens="many"), "tokens is 'many', allowed: a whole number"),
        (lambda m: m.update(tokens=15), "tokens is 15, but those of the shards sum to 14"),
        (lambda m: m.update(documents=5), "documents is 5, but those of the shards sum to 4"),
        (lambda m: m.update(separator=1000), "separator is 1000, but the vocabulary has 1000"),
        (lambda m: m["shards"][0].update(file="../x.bin"), "not the plain name of a file"),
        (lambda m: m["shards"][0].update(sha256="?"), "allowed: 64 hexadecimal digits"),
        (lambda m: m["shards"][0].update(file="gone.bin"), "gone.bin is missing"),
        (lambda m: m["shards"][0].update(tokens=0), "a shard without tokens"),
        (lambda m: m.update(source=3), "source is 3, allowed: text"),
        (lambda m: m.update(index=3), "index is int, allowed: a JSON object"),
    ],
)
def test_a_wrong_manifest_is_named(change: Callable[[dict[str, Any]], None], message: str, corpus: Make) -> None:
    path = corpus(DOCUMENTS, 6).path
    edit(path, change)
    with pytest.raises(DataError, match=message):
        TokenShards.open(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\x00"])
def test_a_manifest_that_is_none(text: str, corpus: Make) -> None:
    path = corpus(DOCUMENTS).path
    (path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json"):
        TokenShards.open(path)
    (path / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"holds no manifest\.json"):
        TokenShards.open(path)


def test_cut_and_changed_files_are_refused(corpus: Make) -> None:
    path = corpus(DOCUMENTS, 6).path
    first = path / "shard-00000.bin"
    whole = first.read_bytes()
    first.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"shard-00000\.bin has 11 bytes, but the manifest says 12"):
        TokenShards.open(path)
    first.write_bytes(whole[:-1] + b"\x07")
    TokenShards.open(path)  # sizes do not tell
    with pytest.raises(DataError, match="another SHA-256 than the manifest says"):
        TokenShards.open(path, check="hash")
    first.write_bytes(whole)
    os.truncate(path / "documents.idx", 8)
    with pytest.raises(DataError, match=r"documents\.idx has 8 bytes, but the manifest says 32"):
        TokenShards.open(path)


def test_ids_outside_the_vocabulary_are_found_by_reading(corpus: Make) -> None:
    path = corpus(DOCUMENTS).path
    edit(path, lambda m: m["tokenizer"].update(vocab_size=10))
    with pytest.raises(DataError, match="has token 14, outside the vocabulary of 10"):
        TokenShards.open(path, check="hash")


def test_a_damaged_id_is_refused_where_it_is_read(corpus: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = corpus(DOCUMENTS, 6).path
    whole = (path / "shard-00001.bin").read_bytes()
    (path / "shard-00001.bin").write_bytes(b"\xff" * len(whole))
    with pytest.raises(DataError, match="another SHA-256"):
        TokenShards.open(path, check="auto")
    monkeypatch.setattr("alignlab.data.shards.HASHED_BYTES", 0)  # as if it were large
    shards = TokenShards.open(path, check="auto")
    shards.slice(0, 6)
    for read in (lambda: shards.slice(5, 8), lambda: shards.take(np.array([[0, 7]]))):
        with pytest.raises(DataError, match=r"has token 65535, outside the vocabulary of \d+: a shard is damaged"):
            read()


def test_positions_outside(corpus: Make) -> None:
    shards = corpus(DOCUMENTS)
    for start, stop in ((-1, 3), (3, 2), (0, 15)):
        with pytest.raises(DataError, match="has 14 tokens"):
            shards.slice(start, stop)
    for position in (-1, 14):
        with pytest.raises(DataError, match="outside of the 14 tokens"):
            shards.take(np.array([position]))


def test_another_tokenizer_is_refused(corpus: Make) -> None:
    manifest = corpus(DOCUMENTS).manifest
    require_tokenizer(manifest, TokenizerInfo("the same under another name", "a" * 64, 1000))
    with pytest.raises(
        DataError, match=r"made by the tokenizer 'toy' .* this one is 'new' .*1000 tokens then, 900 now"
    ):
        require_tokenizer(manifest, TokenizerInfo("new", "b" * 64, 900))
