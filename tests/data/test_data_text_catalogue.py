"""The folder of pulled texts: what is stored is described, and nothing is lost when storing fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignlab.core.errors import DataError
from alignlab.data.corpus import Corpus
from alignlab.data.text_catalogue import (
    TEXTS,
    check_text,
    find_text,
    pulled_texts,
    read_about,
    store_text,
    text_folder,
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path))
    return tmp_path / "data"


def test_a_text_is_stored_described_and_replaced(home: Path) -> None:
    assert find_text("mine") is None
    about = store_text("mine", ["one", "zwei Ü\n", "\ud800"], source="here", licence="CC0")
    assert (about.documents, about.bytes, about.licence, about.source) == (3, 12, "CC0", "here")
    path = find_text("mine")
    assert path == home / "mine" / "documents.jsonl"
    assert list(Corpus(str(path))) == ["one", "zwei Ü\n", "?"]
    assert read_about("mine") == about == check_text("mine")
    store_text("mine", ["other"], source="there", licence="CC0")
    assert list(Corpus(str(path))) == ["other"]
    assert [a.name for a in pulled_texts()] == ["mine"]
    assert [p.name for p in home.iterdir()] == ["mine"]


def test_a_failed_pull_keeps_what_was_there(home: Path) -> None:
    store_text("mine", ["kept"], source="here", licence="CC0")

    def broken() -> Iterator[str]:
        yield "new"
        raise DataError("the line is cut")

    with pytest.raises(DataError, match="the line is cut"):
        store_text("mine", broken(), source="here", licence="CC0")
    with pytest.raises(DataError, match="there has no documents"):
        store_text("mine", [], source="there", licence="CC0")
    assert list(Corpus(str(find_text("mine")))) == ["kept"]
    assert [p.name for p in home.iterdir()] == ["mine"]


def test_damage_is_noticed(home: Path) -> None:
    store_text("mine", ["kept"], source="here", licence="CC0")
    (home / "mine" / "documents.jsonl").write_text('{"text": "changed"}\n')
    with pytest.raises(DataError, match="is not what was pulled"):
        check_text("mine")
    (home / "mine" / "about.json").write_text(json.dumps({"name": "mine"}))
    with pytest.raises(DataError, match="does not describe a text"):
        read_about("mine")


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b"])
def test_names_stay_inside_the_folder(name: str) -> None:
    assert find_text(name) is None
    with pytest.raises(DataError, match="is no name for a text"):
        text_folder(name)


def test_entries_are_complete() -> None:
    for name, entry in TEXTS.items():
        assert name == entry.name
        assert text_folder(name)
        assert len(entry.sha256) == 64
        assert entry.n_bytes > 0
        assert entry.description
        assert entry.licence
