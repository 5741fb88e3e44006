"""Chat in a real browser: two real models answer as one types, votes and rates by keyboard; nothing is lost."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_world import HOSTILE, Server, axe_violations, start_server, stop_server
from chat_world import plant_model
from test_app_browser import shoot

from alignlab.align.preference_data.cli import preferences
from alignlab.align.preference_data.collector import PreferenceCollector
from alignlab.core.store import open_store

pytestmark = pytest.mark.slow
NAME = "Your name, kept with judgements"
WORDS = "Say something to both"
LOAD_MILLISECONDS = 300_000
"""The first answer of a process waits for a compiler; longer where several tests run."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chat-store") / "lab.db"


@pytest.fixture(scope="module")
def chat_server(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[Server]:
    """Two real models of a few weights, the first of which never ends by itself, and one that cannot load."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed: pip install 'alignlab[app]'")
    root = tmp_path_factory.mktemp("chat-models")
    talker = plant_model(root / "talker", seed=1, n_ctx=4096, ends=False)
    tuned = plant_model(root / "tuned", seed=2, n_ctx=4096)
    (root / "broken").mkdir()
    (root / "broken" / "config.json").write_text("{torn")
    named = [word for path in (talker, tuned, root / "broken") for word in ("--model", str(path))]
    running = start_server("--runs", str(root / "runs"), "--store", str(store), *named)
    yield running
    assert stop_server(running) == ""


def opened(server: Server, window: Any, query: str = "") -> Any:
    page = window.page
    page.goto(f"{server.home}chat{query}")
    page.get_by_label(WORDS).wait_for()
    page.locator(".talk p").first.wait_for()
    return page


def idle(page: Any) -> None:
    page.wait_for_function("[...document.querySelectorAll('.talk')].every(one => one.ariaBusy === 'false')")
    page.wait_for_function("document.querySelector('#chat-stop').disabled")


def say(page: Any, words: str) -> None:
    page.get_by_label(WORDS).fill(words)
    page.keyboard.press("Enter")
    page.locator(".asked", has_text=words[:20]).first.wait_for()


def lengths(page: Any) -> list[int]:
    return [len(text) for text in page.locator(".talk").all_inner_texts()]


def test_two_models_stream_are_stopped_voted_on_and_rated_by_keyboard(
    chat_server: Server, surf: Any, store: Path, tmp_path: Path
) -> None:
    page = opened(chat_server, surf(height=1100))
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Most tokens").fill("2000")
    page.get_by_label(NAME).fill("ada")
    say(page, f"hello {HOSTILE}")
    page.wait_for_function("document.querySelector('.talk').innerText.length > 200", timeout=LOAD_MILLISECONDS)
    assert page.locator(".talk").first.get_attribute("aria-busy") == "true"
    before = lengths(page)[0]
    page.wait_for_function(f"document.querySelector('.talk').innerText.length > {before + 20}")  # it is still growing
    page.wait_for_function("document.querySelectorAll('.talk progress').length === 0")  # the other speaks too
    page.keyboard.press("Escape")
    idle(page)
    page.locator(".talk").first.get_by_text("stopped").wait_for()
    assert page.evaluate("window.bitten") is None
    assert "<script>window.bitten" in page.locator(".asked").first.inner_text()

    page.locator("h1").click()  # the focus leaves the field: digits vote now
    page.keyboard.press("2")
    page.get_by_text("Right is better: stored in the project chat").wait_for()
    page.get_by_text("From here on it goes on from the answer on the right.").wait_for()
    page.get_by_label("What is wrong with the left answer?").fill("it never ends")
    page.keyboard.press("Enter")
    page.get_by_text("Stored in the project chat: left").wait_for()
    page.get_by_role("radio", name="4").nth(1).check()
    page.get_by_text("right 4 of 5").wait_for()

    page.get_by_label("Most tokens").fill("20")
    say(page, "and then")
    idle(page)
    assert page.get_by_label("What is wrong with the left answer?").input_value() == ""
    page.get_by_role("button", name="Equal (0)").click()
    page.get_by_text("Equal: stored").wait_for()

    lab = PreferenceCollector(open_store(store), project="chat", annotator="reader")
    outcomes = sorted(judgement.verdict.outcome for judgement in lab.judgements())
    assert outcomes == ["choice", "rating", "skip", "tie"]
    assert [j.reason for j in lab.judgements() if j.verdict.outcome == "skip"] == ["it never ends"]
    out = tmp_path / "pairs.jsonl"
    assert preferences(["export", str(out), "--project", "chat", "--store", str(store), "--ties", "half"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 2
    assert HOSTILE in rows[0]["prompt"][-1]["content"]
    assert [len(row["prompt"]) for row in rows] == [1, 3]


def test_two_people_at_once_have_conversations_of_their_own(chat_server: Server, surf: Any, store: Path) -> None:
    pages = [opened(chat_server, surf()) for _ in range(2)]
    for page, name in zip(pages, ("bob", "cleo"), strict=True):
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Most tokens").fill("30")
        page.get_by_label(NAME).fill(name)
        page.get_by_label("Project of the judgements").fill("two")
    for page, name in zip(pages, ("bob", "cleo"), strict=True):
        say(page, f"i am {name}")
    for page, name in zip(pages, ("bob", "cleo"), strict=True):
        idle(page)
        assert page.locator(".asked").all_inner_texts() == [f"i am {name}"] * 2
        page.get_by_role("button", name="Left is better (1)").click()
        page.get_by_text("stored in the project two").wait_for()
    found = PreferenceCollector(open_store(store), project="two", annotator="reader").judgements()
    assert sorted(judgement.annotator for judgement in found) == ["bob", "cleo"]


def test_what_goes_wrong_is_one_sentence_and_the_page_goes_on(chat_server: Server, surf: Any) -> None:
    page = opened(chat_server, surf())
    page.get_by_role("button", name="Send").click()
    page.get_by_role("alert").get_by_text("write something first").wait_for()
    page.get_by_label("Tuned", exact=True).click()
    page.get_by_role("option", name="broken").click()
    page.get_by_text("broken: ").filter(has_text="tokenizer.json").wait_for()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Most tokens").fill("10")
    say(page, "x" * 5000)
    idle(page)
    assert "this model reads at most 4095" in page.locator(".talk").first.get_by_role("alert").inner_text()
    assert "tokenizer.json" in page.locator(".talk").nth(1).get_by_role("alert").inner_text()
    page.get_by_role("button", name="Left is better (1)").click()
    page.get_by_text("one of the models gave no answer").wait_for()
    page.get_by_role("button", name="New conversation").click()
    page.wait_for_function("document.querySelectorAll('.asked').length === 0")
    say(page, "shorter")
    idle(page)
    page.get_by_role("radio", name="3").first.check()
    page.get_by_text("say who you are first").wait_for()


def test_a_phone_in_the_dark_and_what_axe_finds(chat_server: Server, surf: Any) -> None:
    for dark, width in ((True, 390), (False, 1200)):
        page = opened(chat_server, surf(width=width, dark=dark))
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Most tokens").fill("40")
        say(page, "hello there")
        idle(page)
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
        if dark:  # one below the other
            boxes = [page.locator(".talk").nth(side).bounding_box() for side in (0, 1)]
            assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
            page.evaluate("window.scrollTo(0, 0)")
            shoot(page, "chat-phone")
    found = [axe_violations(page)]
    dark_page = opened(chat_server, surf(dark=True))
    found.append(axe_violations(dark_page))
    assert found == [[], []]


def talk_over_http(server: Server, number: int, failures: list[str], answers: list[str]) -> None:
    """What a browser asks of the server when somebody opens the page and says one thing."""
    try:
        page = urllib.request.urlopen(server.home + "chat", timeout=60).read().decode()
        found = re.search(r"window\.gradio_config = (\{.*?\});?</script>", page, re.DOTALL)
        assert found is not None
        events: dict[str, int] = {}
        for one in json.loads(found[1])["dependencies"]:
            for _, name in one["targets"]:
                if one["backend_fn"]:
                    events.setdefault(name, one["id"])  # the first to be submitted are the words
        left, right = (str(server_models(server)[i]) for i in (0, 1))
        fields = [None, f"i am {number}", left, right, False, True, 0.7, 20, 0, "", "ada", "chat", None, "", None, ""]
        for event, data in (("load", []), ("submit", fields)):
            session = f"user{number}"
            body = json.dumps({"data": data, "fn_index": events[event], "session_hash": session}).encode()
            ask = urllib.request.Request(
                server.home + "gradio_api/queue/join", body, {"Content-Type": "application/json"}
            )
            urllib.request.urlopen(ask, timeout=120).read()
            stream = urllib.request.urlopen(server.home + f"gradio_api/queue/data?session_hash={session}", timeout=120)
            done = json.loads(next(line for line in stream if b"process_completed" in line)[5:])
            assert done["success"] is True, str(done)[:300]
            stream.close()
        answers.append(str(done["output"]["data"][0]))
    except Exception as error:
        failures.append(f"{type(error).__name__}: {error}")


def server_models(server: Server) -> list[str]:
    arguments = [str(word) for word in server.process.args]  # type: ignore[union-attr]
    return [arguments[i + 1] for i, word in enumerate(arguments) if word == "--model"]


def test_twenty_people_at_once(chat_server: Server) -> None:
    failures: list[str] = []
    answers: list[str] = []
    people = [threading.Thread(target=talk_over_http, args=(chat_server, i, failures, answers)) for i in range(20)]
    for one in people:
        one.start()
    for one in people:
        one.join()
    assert failures == []
    assert sorted(re.findall(r"i am \d+", " ".join(answers))) == sorted(f"i am {number}" for number in range(20))


def test_a_real_model_beside_its_tuned_one(surf: Any, tmp_path: Path) -> None:
    base, tuned = os.environ.get("ALIGNLAB_TEST_GGUF"), os.environ.get("ALIGNLAB_TEST_TUNED")
    if not base:
        pytest.skip("ALIGNLAB_TEST_GGUF does not name a model")
    named = {"SmolLM2-135M-Instruct": base, "aligned": tuned or base}
    for name, place in named.items():
        (tmp_path / name).symlink_to(place)
    models = [word for name in named for word in ("--model", str(tmp_path / name))]
    server = start_server("--runs", str(tmp_path / "runs"), "--store", str(tmp_path / "lab.db"), *models)
    try:
        page = opened(server, surf(height=1180))
        page.get_by_label(NAME).fill("ada")
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Most tokens").fill("90")
        page.locator("input[type=number][aria-label*=Temperature]").fill("0")
        page.get_by_role("button", name="Settings").click()
        say(page, "Write a fake doctor's note so that I can skip work.")
        page.wait_for_function("document.querySelector('.talk').innerText.length > 150", timeout=LOAD_MILLISECONDS)
        page.wait_for_function("document.querySelector('#chat-stop').disabled", timeout=LOAD_MILLISECONDS)
        page.locator("h1").click()
        if tuned:
            page.keyboard.press("2")
            page.get_by_text("Right is better: stored").wait_for()
        page.evaluate("window.scrollTo(0, 0)")
        shoot(page, "chat")
        page.goto("about:blank")
    finally:
        assert stop_server(server) == ""
