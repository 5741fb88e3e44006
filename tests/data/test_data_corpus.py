"""Corpora: every format gives the same documents, and what cannot be read is named with its place."""

from __future__ import annotations

import gzip
import json
import sys
import types
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignlab.core.errors import DataError, MissingExtraError
from alignlab.data import corpus as module
from alignlab.data.corpus import Corpus, text_documents
from alignlab.data.validation_split import split_validation

DOCUMENTS = ["first\nwith two lines", "zweites, mit Ümlaut", "第三 🎉", "a\u2028b\x85c\r\nd"]


def write(path: Path, documents: list[str]) -> Path:
    if path.name.endswith(".parquet"):
        pl.DataFrame({"text": documents, "other": [1] * len(documents)}).write_parquet(path)
    elif path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress("".join(json.dumps({"text": d}) + "\n" for d in documents).encode()))
    elif path.name.endswith(".jsonl"):
        path.write_text("\n".join(json.dumps({"text": d}, ensure_ascii=False) for d in documents), encoding="utf-8")
    else:
        path.write_bytes("\n---\n".join(documents).encode())
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_every_format_gives_the_same_documents_again_and_again(name: str, tmp_path: Path) -> None:
    corpus = Corpus(str(write(tmp_path / name, DOCUMENTS)), separator="\n---\n")
    assert list(corpus) == DOCUMENTS
    assert list(corpus) == DOCUMENTS


def test_directories_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "b.txt", ["two"])
    write(tmp_path / "a.jsonl", ["one"])
    write(tmp_path / "deep" / "c.parquet", ["three"])
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    assert list(Corpus(str(tmp_path))) == ["one", "two", "three"]


@given(
    documents=st.lists(st.text(max_size=12), max_size=6),
    separator=st.sampled_from(["|", "\n\n", "aba", "éé", "🎉"]),
    block=st.integers(1, 9),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_blocks_do_not_matter(
    documents: list[str], separator: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = separator.join(documents)
    path = tmp_path / "x.txt"
    path.write_bytes(whole.encode())
    monkeypatch.setattr(module, "_BLOCK", block)
    expected = whole.removeprefix("\ufeff").split(separator)
    assert list(text_documents(path, separator)) == expected
    assert list(text_documents(path)) == [whole.removeprefix("\ufeff")]


def test_empty_documents_are_skipped_and_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfone||two|")
    assert list(Corpus(str(tmp_path / "x.txt"), separator="|")) == ["one", "two"]
    pl.DataFrame({"text": ["a", None, "", "b"]}).write_parquet(tmp_path / "x.parquet")
    assert list(Corpus(str(tmp_path / "x.parquet"))) == ["a", "b"]


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_parquet_in_parts(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", rows)
    documents = [f"document {i}" for i in range(10)]
    assert list(Corpus(str(write(tmp_path / "x.parquet", documents)))) == documents


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"abc\xff", r"x\.txt is not UTF-8: byte 0xff at offset 3; convert it"),
        ("x.txt", b"abc\xe2\x82", "byte 0xe2 at offset 3"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', r"x\.jsonl is not UTF-8: byte 0xe9 at offset 24"),
        ("x.jsonl", b'{"text": "a"}\n\n{"text"\n', "line 3 is not valid JSON"),
        ("x.jsonl", b"[1]\n", "line 1 is list, allowed: a JSON object a line"),
        ("x.jsonl", b'{"txt": "a", "n": 1}\n', "line 1 has no field 'text', only 'txt', 'n'"),
        ("x.jsonl", b'{"text": 3}\n', "line 1: field 'text' is int, allowed: text"),
        ("x.jsonl.gz", b"no gzip", "cannot be read"),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9], "cannot be read"),
        ("x.parquet", b"PAR1 no", "is not a Parquet file that can be read"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(Corpus(str(tmp_path / name)))


def test_offsets_are_right_beyond_the_first_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 4)
    (tmp_path / "x.txt").write_bytes("aé🎉".encode() + b"b\xc3(")
    with pytest.raises(DataError, match="byte 0xc3 at offset 8"):
        list(Corpus(str(tmp_path / "x.txt")))


def test_missing_things(tmp_path: Path) -> None:
    for source, message in ((tmp_path / "no.txt", "does not exist"), (tmp_path, "holds no text; files that are read")):
        with pytest.raises(DataError, match=message):
            list(Corpus(str(source)))
    path = str(write(tmp_path / "x.parquet", ["a"]))
    with pytest.raises(DataError, match="no column 'content', only 'text', 'other'"):
        list(Corpus(path, field="content"))
    with pytest.raises(DataError, match="column 'other' is Int64, allowed: text"):
        list(Corpus(path, field="other"))
    with pytest.raises(DataError, match="the separator of documents is empty"):
        list(text_documents(path, ""))


def test_documents_that_are_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 10)
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 10)
    monkeypatch.setattr(module, "_BLOCK", 4)
    (tmp_path / "x.txt").write_text("a" * 11)
    with pytest.raises(DataError, match="has 11 bytes, which is too much for one document; name the text that parts"):
        list(Corpus(str(tmp_path / "x.txt")))
    with pytest.raises(DataError, match=r"more than 10 characters; is '\|' right"):
        list(Corpus(str(tmp_path / "x.txt"), separator="|"))
    (tmp_path / "x.jsonl").write_text('{"text": "a"}')
    with pytest.raises(DataError, match="a line of more than 10 bytes"):
        list(Corpus(str(tmp_path / "x.jsonl")))


def fake_datasets(monkeypatch: pytest.MonkeyPatch, rows: Any) -> list[tuple[Any, ...]]:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(*args: Any, **named: Any) -> Any:
        asked.append((*args, named))
        if isinstance(rows, Exception):
            raise rows
        return rows()

    library = types.ModuleType("datasets")
    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    return asked


def test_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_datasets(monkeypatch, lambda: ({"text": t, "id": i} for i, t in enumerate(["a", "", "b"])))
    assert list(Corpus("hub:owner/name:part", split="validation")) == ["a", "b"]
    assert asked == [("owner/name", "part", {"split": "validation", "streaming": True})]
    with pytest.raises(
        DataError, match="hub:owner/name, split train, document 1 has no field 'body', only 'text', 'id'"
    ):
        list(Corpus("hub:owner/name", field="body"))


def test_what_goes_wrong_with_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_datasets(monkeypatch, ConnectionError("no route to host\nand more"))
    with pytest.raises(DataError, match=r"hub:owner/name, split train cannot be opened: no route to host$"):
        list(Corpus("hub:owner/name"))

    def broken() -> Any:
        yield {"text": "a"}
        raise ConnectionError("reset")

    fake_datasets(monkeypatch, broken)
    with pytest.raises(DataError, match="broke off after 1 documents: reset"):
        list(Corpus("hub:owner/name"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'alignlab\[data\]'"):
        list(Corpus("hub:owner/name"))


def test_real_datasets_stream_from_files(tmp_path: Path) -> None:
    """The library itself, on a local file: its rows are what `hub_documents` takes."""
    datasets = pytest.importorskip("datasets", reason="the optional package datasets is not installed")
    path = write(tmp_path / "x.jsonl", ["a", "b"])
    rows = datasets.load_dataset("json", data_files=str(path), split="train", streaming=True)
    assert [row["text"] for row in rows] == ["a", "b"]


def test_validation_is_decided_by_the_text_alone() -> None:
    documents = [f"document {i}" for i in range(1000)]
    train, held_out = split_validation(documents, 0.2, seed=1)
    assert sorted([*train, *held_out]) == sorted(documents)
    assert not set(train) & set(held_out)
    assert 150 < len(list(held_out)) < 250  # 200 ± 12.6
    # Order, copies and other documents change nothing: what is held out stays held out.
    more = [*documents[::-1], *documents, "another"]
    assert set(split_validation(more, 0.2, seed=1)[1]) - {"another"} == set(held_out)
    assert set(split_validation(documents, 0.2, seed=2)[1]) != set(held_out)


def test_few_documents_are_cut_inside() -> None:
    text = "".join(chr(97 + i % 26) for i in range(1003))
    train, held_out = split_validation([text], 0.1)
    assert (list(train), list(held_out)) == ([text[: int(1003 * 0.9)]], [text[int(1003 * 0.9) :]])
    train, held_out = split_validation(["abcd"] * 30, 0.5, by="end")
    assert (list(train), list(held_out)) == (["ab"] * 30, ["cd"] * 30)
    for wrong in (0.0, 1.0, -1.0):
        with pytest.raises(DataError, match="share for validation"):
            split_validation([text], wrong)
