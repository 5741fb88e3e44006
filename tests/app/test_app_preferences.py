"""The page Preferences without a browser: what the server answers to each message, and what a person reads."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_world import HOSTILE

from alignlab.align.preference_data.collector import PreferenceCollector
from alignlab.align.preference_data.judgement import Kind
from alignlab.align.preference_data.questions import Question
from alignlab.app import judging_markup as markup
from alignlab.app.judging_data import Desk
from alignlab.app.kept_store import KeptStore
from alignlab.app.pages import preferences
from alignlab.core.store import open_store

Reply = dict[str, Any]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "lab.db"
    open_store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.fixture
def place(tmp_path: Path, empty: Path) -> Path:
    """A database of two projects: three pairs, and one question to rank and one to rate."""
    path = tmp_path / "lab.db"
    path.write_bytes(empty.read_bytes())
    with open_store(path) as store:
        pairs = [Question(f"What is {n} + {n}?", (str(2 * n), f"{n} {HOSTILE}"), models=("a", "b")) for n in range(3)]
        PreferenceCollector(store, project="sums", annotator="-").add(pairs)
        kinds: tuple[Kind, ...] = ("ranking", "rating")
        others = [Question("Name a colour.", ("red", "blue", "fish"), kind) for kind in kinds]
        PreferenceCollector(store, project="others", annotator="-").add(others)
    return path


@pytest.fixture
def desk(place: Path) -> Iterator[Desk]:
    kept = KeptStore(str(place))
    yield Desk(kept)
    kept.close()


def ask(desk: Desk, do: str, **more: Any) -> Reply:
    """A message of Ada's about the sums, unless told otherwise; the reply survives JSON, as on its way to a browser."""
    message = {"do": do, "project": "sums", "name": "ada", "order": "given", **more}
    return dict(json.loads(json.dumps(desk.act(json.loads(json.dumps(message))))))


def judge(desk: Desk, reply: Reply, **verdict: Any) -> Reply:
    task = reply["task"]
    return ask(desk, "record", comparison=task["id"], token=task["token"], shown=task["shown"], **verdict)


def words(page: str) -> str:
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", page)).split())


def stored(place: Path, project: str = "sums") -> list[Any]:
    with open_store(place) as store:
        return PreferenceCollector(store, project=project, annotator="-").judgements(withdrawn=True)


def test_a_judgement_is_stored_before_the_next_is_shown(desk: Desk, place: Path) -> None:
    first = ask(desk, "next")
    second = judge(desk, first, choice=2, reason="because", seconds=1.5)
    assert second["said"] == "Saved: answer 2 is better."
    assert second["task"]["id"] != first["task"]["id"]
    (kept,) = stored(place)
    assert (kept.comparison_id, kept.token) == (first["task"]["id"], first["task"]["token"])
    assert (kept.verdict.choice, list(kept.shown)) == (first["task"]["shown"][1], first["task"]["shown"])
    assert (kept.reason, kept.seconds, kept.annotator) == ("because", 1.5, "ada")
    assert "You have judged 1 of 3" in words(second["progress"])


def test_what_is_sent_twice_is_stored_once(desk: Desk, place: Path) -> None:
    first = ask(desk, "next")
    once, twice = judge(desk, first, choice=1), judge(desk, first, choice=1)
    assert once["task"]["id"] == twice["task"]["id"]
    assert len(stored(place)) == 1


def test_a_page_that_is_loaded_again_shows_the_same(desk: Desk, place: Path) -> None:
    judge(desk, ask(desk, "next"), choice="skip")
    before = ask(desk, "next")
    other = KeptStore(str(place))  # that of a server that was started again
    for fresh in (desk, Desk(other)):
        again = ask(fresh, "next")
        assert again["html"] == before["html"]
        assert again["task"]["shown"] == before["task"]["shown"]
    other.close()
    last = judge(desk, before, choice="tie")["task"]["id"]
    assert ask(desk, "next", name="bob", current=last)["task"]["id"] == last  # where somebody was, not the first
    assert ask(desk, "next", current=before["task"]["id"])["task"]["id"] == last  # judged already
    assert ask(desk, "next", current="nonsense")["task"]["id"] == last


def test_undo_withdraws_and_shows_it_again(desk: Desk, place: Path) -> None:
    first = ask(desk, "next")
    assert first["undo"] is None
    second = judge(desk, first, choice=1)
    back = ask(desk, "undo", token=second["undo"])
    assert back["said"] == "Taken back: answer 1 is better."
    assert back["task"]["id"] == first["task"]["id"]
    assert back["html"] == first["html"]
    assert ask(desk, "undo", token=second["undo"])["task"]["id"] == first["task"]["id"]  # twice does no more
    assert judge(desk, back, choice=2)["ok"]
    assert [(one.withdrawn is None) for one in stored(place)] == [False, True]
    refused = ask(desk, "undo", name="bob", token=second["undo"])
    assert refused == {"ok": False, "error": "that judgement is not yours to take back", "again": False}


@pytest.mark.parametrize(
    ("verdict", "outcome"), [({"choice": 0}, "tie"), ({"choice": "skip"}, "skip"), ({"choice": 1}, "choice")]
)
def test_ties_and_skips(desk: Desk, place: Path, verdict: Any, outcome: str) -> None:
    assert judge(desk, ask(desk, "next"), **verdict)["ok"]
    assert stored(place)[0].verdict.outcome == outcome


def test_rankings_and_ratings(desk: Desk, place: Path) -> None:
    first = ask(desk, "next", project="others")
    task = first["task"]
    assert task["kind"] == "ranking"
    assert first["html"].count("data-rank=") == 3
    sent = {"comparison": task["id"], "token": task["token"], "shown": task["shown"], "project": "others"}
    second = ask(desk, "record", ranking=[[3], [1, 2]], **sent)
    assert second["task"]["kind"] == "rating"
    assert second["html"].count('type="radio"') == 15
    task = second["task"]
    sent = {"comparison": task["id"], "token": task["token"], "shown": task["shown"], "project": "others"}
    last = ask(desk, "record", ratings=[5, 1, 3], **sent)
    assert last["said"] == "Saved: ratings 5, 1, 3."
    assert last["task"] is None
    assert "Nothing is left" in words(last["html"])
    ranked, rated = stored(place, "others")
    assert [len(group) for group in ranked.verdict.ranking] == [1, 2]
    assert rated.verdict.ratings == dict(zip(task["shown"], [5.0, 1.0, 3.0], strict=True))


def test_answers_are_text_and_nothing_tells_the_model(desk: Desk) -> None:
    shown = ask(desk, "next")["html"]
    assert "<script" not in shown
    assert "<img" not in shown
    assert "{{" not in shown
    assert "$" not in shown
    assert " ".join(HOSTILE.split()) in words(shown)
    with desk.kept.use() as store:
        chat = [{"role": "user", "content": f"Hello {HOSTILE}"}, {"role": "<b>", "content": "x"}]
        task = PreferenceCollector(store, project="chat", annotator="ada").collect_preferences(chat, ["a", "b"])
    page = markup.comparison(task)
    assert "<b>" not in page
    assert [words(one) for one in re.findall('<p class="said">(.*?)</p>', page)] == ["user", "<b>"]


def test_agreement_once_two_people_judged(desk: Desk) -> None:
    at = ask(desk, "next")
    while at["task"]:
        at = judge(desk, at, choice=1, seconds=2)
    assert ask(desk, "agreement") == {"ok": True, "agreement": ""}
    at = ask(desk, "next", name="bob")
    for _ in range(3):
        better = sorted(at["task"]["shown"])[0]
        task = at["task"]
        at = ask(desk, "record", name="bob", comparison=task["id"], token=task["token"], shown=task["shown"],
                 choice=better)  # fmt: skip
    shown = words(ask(desk, "agreement")["agreement"])
    for part in ("equal judgements", "Krippendorff", "Cohen's kappa, ada and bob", "shown first", "ada 2.0 s"):
        assert part in shown
    assert ask(desk, "agreement") == ask(desk, "agreement", name="bob")
    assert at["people"] == 2


def test_an_answer_that_was_deleted_meanwhile(desk: Desk, place: Path) -> None:
    at = ask(desk, "next")
    with open_store(place) as store:
        PreferenceCollector(store, project="sums", annotator="-").delete_answer(at["task"]["shown"][0])
    after = judge(desk, at, choice=2)
    assert "answer 1 of comparison" in words(after["notice"])
    assert "was deleted, so the judgement was not stored" in words(after["notice"])
    assert after["task"]["id"] != at["task"]["id"]
    assert stored(place) == []


def test_a_judgement_given_elsewhere_stands(desk: Desk, place: Path) -> None:
    one, other = ask(desk, "next"), ask(desk, "next")
    judge(desk, one, choice=1)
    after = judge(desk, other, choice=2)
    assert "has judged comparison" in words(after["notice"])
    assert after["task"]["id"] != one["task"]["id"]
    assert len(stored(place)) == 1


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("nonsense", "does not know; load it again"),
        ({"do": "nonsense"}, "does not know; load it again"),
        ({"do": "next", "project": "sums"}, "name is empty, right is some text"),
        ({"do": "next", "project": "sums", "name": "ada", "order": "best"}, "'given', 'adaptive' or 'models'"),
        ({"do": "next", "project": 3, "name": "ada"}, "project is empty"),
        ({"do": "record", "project": "sums", "name": "ada"}, "one of a choice, a ranking and ratings"),
        ({"do": "record", "project": "sums", "name": "ada", "choice": True}, "one of a choice"),
        ({"do": "record", "project": "sums", "name": "ada", "ratings": ["5"]}, "one of a choice"),
        ({"do": "record", "project": "sums", "name": "ada", "ranking": [[1.5]]}, "one of a choice"),
        ({"do": "export", "project": "sums", "format": "pickle"}, "format is 'pickle', allowed: trl"),
        ({"do": "export", "project": "sums", "format": "trl"}, "has nothing to export as trl"),
        ({"do": "add", "project": "new", "prompt": "x", "answers": ["a", " "]}, "at least 2 are needed"),
        ({"do": "add", "project": "new", "prompt": "x", "answers": "ab"}, "allowed: a list of texts"),
        ({"do": "add", "project": "new", "prompt": " ", "answers": ["a", "b"]}, "prompt is empty"),
        ({"do": "add", "project": "a\nb", "prompt": "x", "answers": ["a", "b"]}, "the project is 'a\\nb'"),
        ({"do": "add", "project": "p", "prompt": "x", "answers": ["a", "b"], "kind": "x"}, "kind is 'x', allowed"),
        ({"do": "import", "project": "p", "file": "x.csv", "content": "YQ=="}, "x.csv has no suffix that is known"),
        ({"do": "import", "project": "p", "file": "x.jsonl", "content": ""}, "the file is empty"),
        ({"do": "import", "project": "p", "file": "x.jsonl", "content": "?"}, "the file is empty"),
    ],
)
def test_messages_that_make_no_sense(desk: Desk, place: Path, message: Any, sentence: str) -> None:
    reply = desk.act(message)
    assert reply["ok"] is False
    assert reply["again"] is False
    assert sentence in reply["error"]
    assert stored(place) == []


def test_odd_times_are_left_out(desk: Desk, place: Path) -> None:
    at = ask(desk, "next")
    for odd in ("fast", -1, 1e9):
        at = judge(desk, at, choice=1, seconds=odd)
    assert [one.seconds for one in stored(place)] == [None] * 3


def encoded(*rows: Any) -> str:
    return base64.b64encode("".join(f"{json.dumps(row)}\n" for row in rows).encode()).decode()


PAIR = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}


def test_a_file_is_asked_afresh_or_taken_as_it_is(desk: Desk, place: Path) -> None:
    content = encoded(PAIR, PAIR | {"prompt": "Bye"})
    reply = ask(desk, "import", project="new", file="some.JSONL", content=content)
    assert reply["said"] == "2 rows of trl: 2 new questions, 0 new judgements, 0 left out."
    assert ask(desk, "open")["projects"] == ["new", "others", "sums"]
    assert "You have judged 0 of 2" in words(ask(desk, "next", project="new")["progress"])
    reply = ask(desk, "import", project="new", file="some.jsonl", content=content, keep=True)
    assert reply["said"] == "2 rows of trl: 0 new questions, 2 new judgements, 0 left out."
    assert [one.annotator for one in stored(place, "new")] == ["imported"] * 2
    ask(desk, "import", project="ranks", file="some.jsonl", content=content, kind="ranking")
    assert ask(desk, "next", project="ranks")["task"]["kind"] == "ranking"


@pytest.mark.parametrize("keep", [True, False])
def test_broken_rows_are_told_by_line(desk: Desk, place: Path, keep: bool) -> None:
    content = encoded(PAIR, {"prompt": "x", "chosen": "same", "rejected": "same"}, ["no object"])
    refused = ask(desk, "import", project="new", file="mine.jsonl", content=content, keep=keep)
    assert "mine.jsonl has 2 broken rows among 3" in refused["error"]
    assert "line 3: it is list" in refused["error"]
    assert ask(desk, "open")["projects"] == ["others", "sums"]
    taken = ask(desk, "import", project="new", file="mine.jsonl", content=content, keep=keep, skip_broken=True)
    assert taken["said"].startswith("3 rows of trl: 1 new questions")
    assert [line.partition(":")[0] for line in taken["left_out"]] == ["line 2", "line 3"]


def test_typed_questions_make_a_project(tmp_path: Path) -> None:
    kept = KeptStore(str(tmp_path / "folder" / "new.db"))
    desk = Desk(kept)
    assert ask(desk, "open") == {"ok": True, "projects": []}
    assert not (tmp_path / "folder").exists()  # looking makes nothing
    sent = {"project": "typed", "prompt": "Say\nhello", "answers": ["a", "", "b", "c"]}
    assert ask(desk, "add", **sent)["said"] == "1 question was added."
    assert ask(desk, "add", **sent)["said"] == "That question was there already."
    assert ask(desk, "next", project="typed")["html"].count("<article") == 3
    kept.close()


@pytest.mark.parametrize("form", ["trl", "trl-parquet", "hh-rlhf", "judgements"])
def test_what_is_downloaded_reads_back(desk: Desk, tmp_path: Path, form: str) -> None:
    import polars

    from alignlab.align.preference_data.reading import read_pairs

    with desk.kept.use() as store:
        lab = PreferenceCollector(store, project="my pairs/1", annotator="ada")
        lab.record(lab.collect_preferences("Hi", ["Hello!", "What?"]), 1)
        expected = lab.create_preference_dataset()
    reply = ask(desk, "export", project="my pairs/1", format=form)
    assert reply["said"] == f"1 rows in {reply['name']}."
    assert reply["name"].startswith("my-pairs-1-")
    content = base64.b64decode(reply["content"])
    if form == "trl-parquet":
        assert polars.read_parquet(io.BytesIO(content))["chosen"].to_list() == [expected[0].chosen]
    (tmp_path / reply["name"]).write_bytes(content)
    (pair,) = read_pairs(tmp_path / reply["name"])
    assert (pair.chosen, pair.rejected) == (expected[0].chosen, expected[0].rejected)


def test_the_page_is_built_with_names_and_labels() -> None:
    page = preferences.shell()
    for control in re.findall(r"<(?:input|select|textarea)[^>]*>", page):
        at = page.index(control)
        assert page.rfind("<label", 0, at) > page.rfind("</label>", 0, at), control
    assert preferences.SCRIPT.is_file()
    assert "server.act(" in preferences.SCRIPT.read_text(encoding="utf-8")
