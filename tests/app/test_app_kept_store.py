"""The app's database when something is wrong: one sentence, nothing lost, and the same message works afterwards."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from alignlab.align.preference_data.collector import PreferenceCollector
from alignlab.app import kept_store
from alignlab.app.judging_data import Desk
from alignlab.app.kept_store import KeptStore
from alignlab.core.errors import StoreError
from alignlab.core.store import database, open_store, schema

Reply = dict[str, Any]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database with three questions, as the content of its file."""
    path = tmp_path_factory.mktemp("planted") / "lab.db"
    with open_store(path) as store:
        lab = PreferenceCollector(store, project="p", annotator="ada")
        for prompt in ("one", "two", "three"):
            lab.collect_preferences(prompt, ["a", "b"])
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.read_bytes()


@pytest.fixture
def place(tmp_path: Path, planted: bytes) -> Path:
    path = tmp_path / "lab.db"
    path.write_bytes(planted)
    return path


@pytest.fixture
def desk(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(kept_store, "PATIENCE", 0.2)
    kept = KeptStore(str(place))
    yield Desk(kept)
    kept.close()


def ask(desk: Desk, do: str = "next", **more: Any) -> Reply:
    return desk.act({"do": do, "project": "p", "name": "ada", **more})


def sent(reply: Reply) -> Reply:
    """The message that chooses the first answer shown."""
    task = reply["task"]
    return {"do": "record", "comparison": task["id"], "token": task["token"], "shown": task["shown"], "choice": 1}


def count(place: Path) -> int:
    with sqlite3.connect(place) as connection:
        return int(connection.execute("SELECT count(*) FROM preference_judgements").fetchone()[0])


def test_a_locked_database_is_told_and_the_same_message_works_later(desk: Desk, place: Path) -> None:
    message = sent(ask(desk))
    other = sqlite3.connect(place, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    refused = ask(desk, **message)
    assert refused["ok"] is False
    assert refused["again"] is True
    assert "is locked by another process" in refused["error"]
    other.execute("ROLLBACK")
    other.close()
    assert ask(desk, **message)["said"] == "Saved: answer 1 is better."
    assert ask(desk, **message)["ok"]
    assert count(place) == 1


def test_a_read_only_file(desk: Desk, place: Path) -> None:
    message = sent(ask(desk))
    desk.kept.close()
    with pytest.MonkeyPatch.context() as patch:  # root may write everywhere: it is opened as where nobody may
        patch.setattr(database, "_on_fixed_ground", lambda path: True)
        assert ask(desk)["task"]["id"] == message["comparison"]  # reading goes on
        refused = ask(desk, **message)
    assert "is read-only" in refused["error"]
    assert refused["again"] is True
    assert ask(desk, **message)["ok"]
    assert count(place) == 1


def test_a_database_that_refuses_to_be_written(desk: Desk, place: Path) -> None:
    message = sent(ask(desk))
    with sqlite3.connect(place) as other:
        other.execute("CREATE TRIGGER full BEFORE INSERT ON preference_judgements BEGIN SELECT RAISE(FAIL, 'no'); END")
    refused = ask(desk, **message)
    assert refused["again"] is True
    assert "refused: no" in refused["error"]
    with sqlite3.connect(place) as other:
        other.execute("DROP TRIGGER full")
    assert ask(desk, **message)["ok"]
    assert count(place) == 1


def test_a_file_that_is_gone_is_not_made_anew(desk: Desk, place: Path) -> None:
    message = sent(ask(desk))
    aside = place.rename(place.with_suffix(".aside"))
    for _ in range(2):
        refused = ask(desk, **message)
        assert refused["again"] is True
        assert "was deleted, moved" in refused["error"] or "there is no database" in refused["error"]
    assert not place.exists()
    assert ask(desk, "open") == {"ok": True, "projects": []}
    aside.rename(place)
    assert ask(desk, **message)["said"] == "Saved: answer 1 is better."
    assert count(place) == 1


def test_another_file_at_its_place(desk: Desk, place: Path, planted: bytes) -> None:
    ask(desk)
    place.unlink()
    for log in place.parent.glob("lab.db-*"):
        log.unlink()
    place.write_bytes(planted)
    assert "was deleted, moved or replaced" in ask(desk)["error"]
    assert ask(desk)["ok"]  # opened anew


@pytest.mark.parametrize(
    ("change", "sentence"),
    [("UPDATE {table} SET version_num = '7777'", "which is newer"), (None, "is no SQLite database")],
)
def test_what_cannot_be_opened_is_told(place: Path, change: str | None, sentence: str) -> None:
    if change is None:
        place.write_bytes(b"something else entirely, and long enough to be read as a header" * 20)
    else:
        with sqlite3.connect(place) as other:
            other.execute(change.format(table=schema.VERSION_TABLE))
    kept = KeptStore(str(place))
    reply = ask(Desk(kept), "open")
    assert reply["again"] is True
    assert sentence in reply["error"]


def test_a_wrong_address_is_told_without_its_password() -> None:
    desk = Desk(KeptStore("mysql://lab:secret@here/lab"))
    reply = ask(desk, "open")
    assert "the store is asked for in 'mysql'" in reply["error"]
    assert "secret" not in json.dumps(reply)


def test_closing_is_harmless(place: Path) -> None:
    kept = KeptStore(str(place))
    kept.close()
    with kept.use() as first, kept.use() as second:
        assert first is second
    with pytest.raises(StoreError, match="boom"), kept.use():
        raise StoreError("boom")
    with kept.use() as third:
        assert third is not first
    kept.close()


def test_twenty_people_at_once(desk: Desk, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_store, "PATIENCE", 30.0)

    def judge_all(name: str) -> list[bool]:
        at = ask(desk, name=name)
        fine = [at["ok"]]
        while at["ok"] and at["task"]:
            at = ask(desk, **sent(at), name=name)
            fine.append(at["ok"])
        return fine

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(judge_all, [f"person {i}" for i in range(20)])) == [[True] * 4] * 20
    assert count(place) == 60
