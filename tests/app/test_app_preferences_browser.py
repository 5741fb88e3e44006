"""Preferences in a real browser: people at the keyboard, reloads, databases that fail, phones, and what comes out."""

from __future__ import annotations

import importlib.util
import json
import random
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from app_world import HOSTILE, Server, axe_violations, shoot, start_server, stop_server

from alignlab.align.preference_data.collector import PreferenceCollector
from alignlab.align.preference_data.judgement import Judgement, Kind
from alignlab.align.preference_data.questions import Question
from alignlab.align.preference_data.reading import read_pairs
from alignlab.core.store import open_store

pytestmark = pytest.mark.slow
PAIRS = 20


def beside(name: str, path: str) -> ModuleType:
    """A module of the tests of `align`."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "align" / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


postgres = beside("databases", "preference_data/conftest.py").postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new store goes, of both kinds in turn."""
    if request.param == "sqlite":
        return str(tmp_path / "lab.db")
    found: str = request.getfixturevalue("postgres").new_database()
    return found


@pytest.fixture
def served(url: str, tmp_path: Path) -> Iterator[Server]:
    running = start_server("--runs", str(tmp_path / "runs"), "--store", url)
    yield running
    assert stop_server(running) == ""


def plant(url: str, project: str, kind: Kind, count: int = 3) -> None:
    """Questions with markup in them; the answer in vowels is the better one."""
    rng = random.Random(project)
    questions = []
    for i in range(count):
        said = ["".join(rng.choices(letters, k=7)) for letters in ("aeiou", "bcdfg", "xyz")]
        questions.append(Question(f"Question {i}? {HOSTILE}", tuple(f"{one} {HOSTILE}" for one in said), kind))
    with open_store(url) as store:
        PreferenceCollector(store, project=project, annotator="-").add(questions)


EXPLAINED = (
    ("Why is the sky blue?", "Air scatters blue light more than red, so blue reaches us from every direction.",
     "Because it reflects the sea, which is blue. Everybody knows that."),
    ("My bread does not rise. What can I do?", "Throw it away and buy some. Baking is not for everyone.",
     "Check the yeast first: stir it into warm water with a little sugar. If it foams within ten minutes it lives, and "
     "the dough needs more time or a warmer place. If not, take a fresh packet."),
    ("Explain a leap year to a child.", "A year is a bit longer than 365 days. We save the bits up, and every fourth "
     "year they make a whole extra day: the 29th of February.", "It is a correction of the tropical year."),
    ("How do I say no to a friend?", "Say it early, plainly and kindly: “I would love to help, but I cannot.”",
     "You do not. Friends always say yes."),
    ("What is a good way to learn chess?", "Play slowly, look at every check and capture, and read your lost games "
     "again.", "Learn two hundred openings by heart."),
)  # fmt: skip


def plant_explanations(url: str) -> None:
    """A project to look at, of which two people have judged some."""
    questions = [
        Question(prompt, tuple(answers), models=("model-alpha", "model-beta")) for prompt, *answers in EXPLAINED
    ]
    with open_store(url) as store:
        PreferenceCollector(store, project="explanations", annotator="-").add(questions)
        for name, count, last in (("ada", 4, 1), ("bob", 5, 2)):
            lab = PreferenceCollector(store, project="explanations", annotator=name)
            for i in range(count):
                task = lab.next_task()
                assert task is not None
                longest = max(task.answers, key=lambda answer: len(answer.text)).id
                lab.record(task, longest if i < 3 else last, seconds=4.0 + i)


def judgements(url: str, project: str) -> list[Judgement]:
    with open_store(url) as store:
        return PreferenceCollector(store, project=project, annotator="-").judgements()


def arrive(surf: Any, server: Server, project: str, name: str, **window: Any) -> Any:
    """The page of a window in which this person judges this project."""
    page = surf(**window).page
    page.goto(f"{server.home}preferences?project={project}&name={name}")
    page.locator(".answer").first.wait_for()
    return page


def done(page: Any) -> int:
    return int(page.locator("[data-progress] b").inner_text())


def wait_done(page: Any, count: int) -> None:
    page.wait_for_function(f"document.querySelector('[data-progress] b')?.textContent === '{count}'")


def better(page: Any) -> str:
    """The place of the answer in vowels."""
    texts = page.locator(".answer .verbatim").all_inner_texts()
    return str([set(text[:7]) <= set("aeiou") for text in texts].index(True) + 1)


def pairs_file(folder: Path) -> Path:
    rng = random.Random(0)
    rows = []
    for i in range(PAIRS):
        good, bad = ("".join(rng.choices(letters, k=8)) for letters in ("aeiou", "bcdfg"))
        rows.append({"prompt": f"question {i}", "chosen": good, "rejected": bad})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_project(page: Any, server: Server, file: Path) -> None:
    """A new project from a file, in the browser."""
    page.goto(server.home + "preferences")
    form = page.locator("[data-upload]")
    page.get_by_text("There is no project yet").wait_for()
    form.get_by_label("Name of the project").fill("sums")
    form.get_by_label("File", exact=True).set_input_files(str(file))
    form.get_by_role("button", name="Add the file").press("Enter")
    page.get_by_text(f"{PAIRS} rows of trl: {PAIRS} new questions, 0 new judgements, 0 left out.").wait_for()


def begin_by_keyboard(page: Any, server: Server, name: str) -> None:
    page.goto(server.home + "preferences")
    page.wait_for_function("document.querySelector('[data-seat] select')?.options.length === 1")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "name":
            break
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    page.locator(".answer").first.wait_for()


def test_two_people_judge_twenty_pairs_by_keyboard_and_the_export_trains(
    served: Server, surf: Any, url: str, tmp_path: Path
) -> None:
    ada, bob = surf().page, surf().page
    make_project(ada, served, pairs_file(tmp_path))
    begin_by_keyboard(ada, served, "ada")
    begin_by_keyboard(bob, served, "bob")
    for count in range(PAIRS):
        if count == 8:
            reload_midway(ada)
        if count == 11:
            ada.keyboard.press("u")
            wait_done(ada, count - 1)
            ada.keyboard.press(better(ada))
            wait_done(ada, count)
        keys = {ada: better(ada), bob: better(bob)}
        if count == 15:  # bob errs once
            keys[bob] = "2" if keys[bob] == "1" else "1"
        for page, key in keys.items():  # both before either is answered
            page.keyboard.press(key)
        for page in keys:
            wait_done(page, count + 1)
    for page in (ada, bob):
        page.get_by_role("heading", name="All done").wait_for()
    bob.reload()
    bob.get_by_text("Cohen's kappa").wait_for()
    stored = judgements(url, "sums")
    assert len(stored) == len({one.token for one in stored}) == 2 * PAIRS
    assert len({(one.annotator, one.comparison_id) for one in stored}) == 2 * PAIRS
    assert all(one.verdict.outcome == "choice" and 0 < (one.seconds or 0) < 600 for one in stored)
    assert [one.reason for one in stored if one.reason] == ["kept over the reload"]
    learn(export(ada, tmp_path), tmp_path)
    for page in (ada, bob):
        page.goto("about:blank")


def reload_midway(page: Any) -> None:
    """Nothing is lost: not what was judged, not what was written, and the same pair is there."""
    before = page.locator(".answers").inner_text()
    page.keyboard.press("r")
    page.keyboard.type("kept over the reload")
    page.reload()
    page.locator(".answer").first.wait_for()
    assert page.locator(".answers").inner_text() == before
    assert page.get_by_label("Why?").input_value() == "kept over the reload"
    assert done(page) == 8


def export(page: Any, folder: Path) -> Path:
    page.get_by_text("Export", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").press("Enter")
    path = folder / str(download.value.suggested_filename)
    download.value.save_as(path)
    page.get_by_text(f"{PAIRS - 1} rows in {path.name}.").wait_for()
    return path


def learn(path: Path, folder: Path) -> None:
    """`alignlab reward train` takes the file and learns what the two people prefer."""
    from alignlab.align.reward.cli import reward
    from alignlab.align.reward.saved import load_reward

    pairs = read_pairs(path)
    assert len(pairs) == PAIRS - 1  # the one on which they differ says nothing
    assert all(set(pair.chosen) <= set("aeiou") and pair.probability == 1 for pair in pairs)
    model, run = beside("tiny_run", "tiny_run.py").build_model(folder / "models"), folder / "trained"
    arguments = ["--model", str(model), "--run", str(run), "--device", "cpu", "--learning-rate", "0.01"]
    assert reward(["train", str(path), *arguments, "--rank", "2", "--epochs", "4"]) == 0
    assert (run / "artifacts" / "measures.json").is_file()
    assert load_reward(run) is not None


def complaint(page: Any) -> str:
    page.locator("[data-complaint]").wait_for()
    page.wait_for_function("document.activeElement.matches('[data-again]')")
    return str(page.locator("[data-complaint-text]").inner_text())


def test_a_locked_database_keeps_what_was_chosen(surf: Any, tmp_path: Path) -> None:
    place = tmp_path / "lab.db"
    plant(str(place), "p", "pair")
    server = start_server("--runs", str(tmp_path / "runs"), "--store", str(place))
    try:
        page = arrive(surf, server, "p", "ada")
        other = sqlite3.connect(place, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        first, key = page.locator(".answers").inner_text(), better(page)
        page.keyboard.press(key)
        assert "is locked by another process" in complaint(page)
        assert page.locator('[aria-pressed="true"]').get_attribute("data-act") == f"choose:{key}"
        page.keyboard.press("3")  # no other judgement before that one
        assert page.locator(".answers").inner_text() == first
        other.execute("ROLLBACK")
        other.close()
        page.keyboard.press("Enter")
        wait_done(page, 1)
        assert not page.locator("[data-complaint]").is_visible()
        other = sqlite3.connect(place, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        page.keyboard.press("s")
        complaint(page)
        other.execute("ROLLBACK")
        other.close()
        page.reload()  # it is sent again as it was
        wait_done(page, 2)
        aside = place.rename(tmp_path / "aside.db")
        page.keyboard.press("0")
        assert "was deleted, moved or replaced" in complaint(page)
        aside.rename(place)
        page.keyboard.press("Enter")
        wait_done(page, 3)
        page.goto("about:blank")
    finally:
        assert stop_server(server) == ""
    assert sorted(one.verdict.outcome for one in judgements(str(place), "p")) == ["choice", "skip", "tie"]


def test_postgres_goes_away_while_somebody_judges(postgres: Any, surf: Any, tmp_path: Path) -> None:
    url = postgres.new_database()
    plant(url, "p", "pair")
    server = start_server("--runs", str(tmp_path / "runs"), "--store", url)
    try:
        page = arrive(surf, server, "p", "ada")
        postgres.stop()
        try:
            page.keyboard.press("1")
            assert "the connection" in complaint(page) or "cannot be reached" in complaint(page)
            page.keyboard.press("Enter")
            page.wait_for_timeout(500)
            assert "cannot be reached" in complaint(page)
        finally:
            postgres.start()
        page.keyboard.press("Enter")
        wait_done(page, 1)
        page.goto("about:blank")
    finally:
        assert stop_server(server) == ""
    assert len(judgements(url, "p")) == 1


def test_a_server_that_is_started_again_gets_what_was_chosen(surf: Any, tmp_path: Path) -> None:
    url = str(tmp_path / "lab.db")
    plant(url, "p", "pair")
    arguments = ["--runs", str(tmp_path / "runs"), "--store", url]
    server = start_server(*arguments)
    window = surf()
    try:
        page = arrive(lambda: window, server, "p", "ada")
        stop_server(server)
        page.keyboard.press("1")
        assert "The server does not answer" in complaint(page)
        port = server.home.rstrip("/").rpartition(":")[2]
        server = start_server(*arguments, "--port", port)
        page.keyboard.press("Enter")
        wait_done(page, 1)
        page.goto("about:blank")
    finally:
        stop_server(server)
    assert len(judgements(url, "p")) == 1
    assert window.errors
    window.errors.clear()  # of a server that was not there


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a project of each kind, for what is only looked at."""
    folder = tmp_path_factory.mktemp("gallery")
    url = str(folder / "lab.db")
    kinds: tuple[Kind, ...] = ("pair", "ranking", "rating")
    for kind in kinds:
        plant(url, kind, kind, 6)
    plant_explanations(url)
    running = start_server("--runs", str(folder / "runs"), "--store", url)
    yield running
    assert stop_server(running) == ""


def test_rankings_and_ratings_by_keyboard(gallery: Server, surf: Any) -> None:
    page = arrive(surf, gallery, "ranking", "ada")
    for key in ("2", "=", "3", "Enter"):
        page.keyboard.press(key)
    page.get_by_text("Answer 1 is still missing.").wait_for()
    page.keyboard.press("1")
    assert [one.input_value() for one in page.locator("[data-rank]").all()] == ["2", "1", "1"]
    page.keyboard.press("Enter")
    page.get_by_text("Saved: ranking 2=3 > 1.").or_(page.get_by_text("Saved: ranking 3=2 > 1.")).wait_for()
    page = arrive(surf, gallery, "rating", "ada")
    assert page.locator(".answer.current").get_attribute("data-place") == "1"
    for key in ("5", "1", "Backspace", "4", "2", "3", "Enter"):
        page.keyboard.press(key)
    page.get_by_text("Saved: ratings 4, 2, 3.").wait_for()
    assert page.evaluate("window.bitten") is None
    assert HOSTILE in page.locator(".answer .verbatim").first.inner_text()


def test_keys_are_for_judging_only(gallery: Server, surf: Any) -> None:
    page = arrive(surf, gallery, "pair", "carol")
    before = page.locator(".answers").inner_text()
    page.get_by_label("Why?").fill("because ")
    page.get_by_label("Why?").press_sequentially("1 2 0 s u")
    page.keyboard.press("Escape")
    page.keyboard.press("Control+1")
    page.keyboard.press("7")
    page.get_by_label("Keyboard shortcuts").uncheck()
    page.keyboard.press("1")
    page.wait_for_timeout(300)
    assert page.locator(".answers").inner_text() == before
    assert done(page) == 0
    page.get_by_role("button", name="Answer 2").click()
    wait_done(page, 1)
    page.get_by_label("Keyboard shortcuts").check()
    page.keyboard.press("Escape")
    for _ in range(12):  # faster than the server: one judgement a comparison, and none of a comparison not shown yet
        page.keyboard.press("s")
    page.wait_for_timeout(1000)
    assert 2 <= done(page) <= 6


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("kind", ["explanations", "ranking", "rating"])
def test_contrast_labels_and_order(gallery: Server, surf: Any, kind: str, dark: bool) -> None:
    page = arrive(surf, gallery, kind, "dora", dark=dark)
    if kind == "explanations":
        page.get_by_text("Cohen's kappa").wait_for()
    for summary in page.locator("summary").all():
        summary.click()
    assert axe_violations(page) == []


def test_what_a_person_sees(gallery: Server, surf: Any) -> None:
    page = arrive(surf, gallery, "explanations", "carol", height=1000)
    page.keyboard.press("1")
    wait_done(page, 1)
    page.get_by_text("Cohen's kappa, ada and bob").wait_for()
    assert "All together: 10 judgements of 3 people" in page.locator("[data-progress]").inner_text()
    assert "model-alpha" not in page.content()
    shoot(page, "preferences")


def test_a_phone_stacks_the_answers(gallery: Server, surf: Any) -> None:
    page = arrive(surf, gallery, "explanations", "eve", width=390, height=844, dark=True)
    boxes = [one.bounding_box() for one in page.locator(".answer").all()]
    assert boxes[0]["x"] == boxes[1]["x"]
    assert boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"]
    buttons = page.locator(".actions").bounding_box()
    assert buttons["y"] + buttons["height"] <= 844  # at hand however long the answers are
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    shoot(page, "preferences-phone")
