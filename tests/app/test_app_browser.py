"""The app in a real browser: pages by keyboard, live, on a phone, in the dark; nothing leaves the machine."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from app_world import Server, axe_violations, plant_training, shoot, start_server, stop_server

from alignlab.app.pages import pages
from alignlab.core.runs import Run

TOKEN = "a-token-for-the-browser-test"
PAGES = {"home": "", "runs": "runs?run=train-seed-0&run=train-seed-1&run=train-seed-2&run=train-faster",
         "evaluate": "evaluate?run=eval-base&run=eval-tuned"}  # fmt: skip
READY = {"home": "text=Latest runs", "runs": ".js-plotly-plot", "evaluate": ".js-plotly-plot"}


def test_home_is_there_before_anything_large(server: Server, surf: Any) -> None:
    window = surf()
    window.page.goto(server.home)
    assert window.page.title() == "Home · alignlab"
    assert window.page.locator("h1").inner_text() == "The lab on this machine"
    assert window.page.locator("nav a").all_inner_texts() == [page.title for page in pages()]
    assert window.page.locator("tbody tr").count() == 6
    window.page.keyboard.press("Tab")
    assert window.page.evaluate("document.activeElement.textContent") == "To the content"
    assert len(window.requests) <= 4


@pytest.mark.slow
def test_curves_joined_over_seeds_and_apart(server: Server, surf: Any) -> None:
    page = surf().page
    page.goto(server.home + PAGES["runs"])
    page.wait_for_selector(".legendtext")
    assert page.locator(".legendtext").all_text_contents() == ["train, 3 seeds", "train-faster"]
    assert page.locator("tbody th").all_inner_texts()[:4] == [f"train-seed-{i}" for i in range(3)] + ["train-faster"]
    shoot(page, "runs")
    page.get_by_label("Join runs that differ only in their seed").uncheck()
    page.wait_for_function("document.querySelectorAll('.legendtext').length === 4")
    page.get_by_label("Metric").click()
    page.get_by_role("option", name="loss").click()
    page.wait_for_selector("text=Last values of loss")
    page.get_by_role("button", name="Settings").click()
    assert "settings differ" in page.locator("caption", has_text="settings differ").inner_text()
    page.get_by_role("button", name="Files").click()
    with page.expect_popup() as opened:
        page.get_by_role("link", name="artifacts/report.html").first.click()
    assert "made by a run" in opened.value.content()


@pytest.mark.slow
def test_a_run_at_work_is_seen_at_work(server: Server, surf: Any, planted_runs: Path) -> None:
    page = surf().page
    with Run.create({"seed": 0}, name="sft", path=planted_runs / "live") as run:
        run.log(0, {"loss": 3.0})
        page.goto(server.home + "runs?run=live")
        row = page.locator("tbody tr", has_text="live")
        row.get_by_text("running").wait_for()
        run.log(1, {"loss": 2.125})
        row.get_by_text("2.125").wait_for()
        page.goto(server.home)
        page.get_by_text("live is at work").wait_for()
    page.locator("tbody tr", has_text="live").get_by_text("finished").wait_for()


@pytest.mark.slow
def test_from_a_score_down_to_a_sample_by_keyboard(server: Server, surf: Any) -> None:
    page = surf(height=1500).page
    page.goto(server.home + PAGES["evaluate"])
    page.wait_for_selector(".legendtext")
    assert page.locator("tbody tr").nth(0).inner_text().split("\t")[:4] == [
        "eval-base", "base-model", "facts", "0.500 [0.299, 0.701]",
    ]  # fmt: skip
    page.wait_for_selector(".samples input[type=radio]")
    shoot(page, "evaluate")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.type") == "radio":
            break
    page.keyboard.press("Space")
    page.get_by_role("heading", name="Sample item-3").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.get_by_role("heading", name="Sample item-8").wait_for()
    shown = page.locator(".verbatim").all_inner_texts()
    assert any("<script>window.bitten = 1</script>" in text and "${window.bitten = 1} {{7 * 7}}" in text
               for text in shown)  # fmt: skip
    assert page.evaluate("window.bitten") is None
    page.get_by_label("Holds the words").fill("item-24")
    page.keyboard.press("Enter")
    page.get_by_text("1 samples, page 1 of 1").wait_for()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PAGES))
def test_a_phone_in_the_dark(server: Server, surf: Any, name: str) -> None:
    page = surf(width=390, height=844, dark=True).page
    page.goto(server.home + PAGES[name])
    page.wait_for_selector(READY[name])
    page.wait_for_timeout(500)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 26)"
    shoot(page, f"{name}-phone")


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", list(PAGES))
def test_contrast_labels_and_order(server: Server, surf: Any, name: str, dark: bool) -> None:
    page = surf(dark=dark).page
    page.goto(server.home + PAGES[name])
    page.wait_for_selector(READY[name])
    if name == "home":
        shoot(page, f"home{'-dark' if dark else ''}")
    if name == "evaluate":
        page.locator(".samples input[type=radio]").first.check()
        page.get_by_role("heading", name="Sample item").wait_for()
    assert axe_violations(page) == []


@pytest.mark.slow
def test_others_come_in_by_token_only(planted_runs: Path, surf: Any) -> None:
    server = start_server("--runs", str(planted_runs), "--token", TOKEN)
    try:
        stranger, guest = surf(), surf()
        guest.page.goto(server.home.rstrip("/") + f"/?token={TOKEN}")
        assert TOKEN not in guest.page.url
        guest.page.get_by_role("link", name="Runs", exact=True).click()
        guest.page.wait_for_selector(".js-plotly-plot")
        stranger.page.goto(server.home + "runs")
        stranger.page.get_by_label("Access token").fill("wrong-wrong-wrong-wrong")
        stranger.page.keyboard.press("Enter")
        stranger.page.get_by_text("not the token").wait_for()
        stranger.page.get_by_label("Access token").fill(TOKEN)
        stranger.page.keyboard.press("Enter")
        stranger.page.get_by_role("heading", name="The lab on this machine").wait_for()
        stranger.errors.clear()  # the browser notes the two answers 401 as errors
        guest.page.goto("about:blank")
    finally:
        assert stop_server(server) == ""


def load_as_a_user(server: Server, number: int, failures: list[str], seconds: list[float]) -> None:
    """Everything that opening two pages asks of the server, Gradio's queue included."""
    try:
        for path in ("", "runs", "evaluate"):
            began = time.monotonic()
            text = urllib.request.urlopen(server.home + path, timeout=60).read().decode()
            if path:
                found = re.search(r"window\.gradio_config = (\{.*?\});?</script>", text, re.DOTALL)
                assert found is not None
                loads = [one["id"] for one in json.loads(found[1])["dependencies"] if ["load"] in
                         [target[1:] for target in one["targets"]]]  # fmt: skip
                session = f"user{number}{path}"
                body = json.dumps({"data": [], "fn_index": loads[0], "session_hash": session}).encode()
                ask = urllib.request.Request(
                    server.home + "gradio_api/queue/join", body, {"Content-Type": "application/json"}
                )
                urllib.request.urlopen(ask, timeout=60).read()
                stream = urllib.request.urlopen(
                    server.home + f"gradio_api/queue/data?session_hash={session}", timeout=60
                )
                done = next(line for line in stream if b"process_completed" in line)
                assert json.loads(done[5:])["success"] is True, done[:300]
                stream.close()
            seconds.append(time.monotonic() - began)
    except Exception as error:
        failures.append(f"{type(error).__name__}: {error}")


@pytest.mark.slow
def test_twenty_users_at_once(server: Server) -> None:
    urllib.request.urlopen(server.home + "runs", timeout=60).read()
    failures: list[str] = []
    seconds: list[float] = []
    users = [threading.Thread(target=load_as_a_user, args=(server, i, failures, seconds)) for i in range(20)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert failures == []
    assert len(seconds) == 60
    print(f"20 users, 3 pages each: median {sorted(seconds)[30]:.2f} s, slowest {max(seconds):.2f} s")


@pytest.mark.slow
def test_the_first_page_is_there_in_three_seconds(planted_runs: Path, surf: Any) -> None:
    """The issue's number, on a machine that does nothing else; 10 s here, where tests run beside each other."""
    window = surf()
    server = start_server("--runs", str(planted_runs))
    try:
        window.page.goto(server.home)
        window.page.wait_for_selector("h1")
        first = time.monotonic() - server.started
        window.page.goto(server.home + "runs")
        window.page.wait_for_selector("h1")
        gradio = time.monotonic() - server.started
        began = time.monotonic()
        window.page.goto(server.home + "evaluate")
        window.page.wait_for_selector("h1")
        later = time.monotonic() - began
        print(f"first page {first:.2f} s, Gradio's first {gradio:.2f} s after the start, a later one {later:.2f} s")
        assert first < 10
        assert later < 5
        window.page.goto("about:blank")
    finally:
        stop_server(server)


@pytest.mark.slow
def test_a_page_survives_a_folder_that_changes_under_it(tmp_path: Path, surf: Any) -> None:
    server = start_server("--runs", str(tmp_path / "runs"))
    try:
        page = surf().page
        page.goto(server.home + "runs")
        page.get_by_text("Choose a run above").wait_for()
        plant_training(tmp_path / "runs", "first", 0, steps=3)
        page.reload()
        page.locator("tbody tr", has_text="first").wait_for()
        page.goto("about:blank")
    finally:
        assert stop_server(server) == ""
