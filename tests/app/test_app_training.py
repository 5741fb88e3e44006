"""What the page *Training* shows, and in a real browser: a run that grows, alarms, coloured answers, hostile files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_world import HOSTILE, Server, axe_violations, plant_training, shoot, start_server, stop_server
from training_world import log_step, plant_rl

from alignlab.align.diagnostics.response_log import FILE, ResponseLog
from alignlab.app import training_data as data
from alignlab.core.errors import RunError
from alignlab.core.runs import Run


@pytest.fixture(scope="module")
def rl_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rl")
    plant_rl(root, "hacked")
    plant_rl(root, "healthy", hacked=False)
    plant_training(root, "supervised", 0)
    with Run.create({}, name="rl", path=root / "empty"):
        pass
    return root


@pytest.fixture(scope="module")
def rl_server(rl_runs: Path) -> Iterator[Server]:
    pytest.importorskip("gradio")
    running = start_server("--runs", str(rl_runs))
    yield running
    assert stop_server(running) == ""


def test_only_trainings_against_a_reward_are_offered_and_any_that_is_asked_for(rl_runs: Path) -> None:
    assert [name for _, name in data.choices(rl_runs)] == ["healthy", "hacked"]
    assert "supervised" in [name for _, name in data.choices(rl_runs, ["supervised"])]


def test_the_parts_of_the_page(rl_runs: Path) -> None:
    training = data.training_of(rl_runs / "hacked")
    assert training is data.training_of(rl_runs / "hacked")
    found = training.alarms()
    assert {alarm.name for alarm in found} == {"reward hacking"}
    assert "GRPO, 48 of 48 steps" in data.state_html(training)
    assert "while the gold reward fell by" in data.alarms_html(training, found)
    assert "% of the 12 allowed are spent" in data.budget_html(training, 12.0)
    newest = data.answers_html(training, None)
    assert "Answers of step 48" in newest
    assert 'title="+0.9"' in newest
    assert "<script>" not in newest
    assert "${" not in newest
    assert "Answers of step 7" in data.answers_html(training, 7)
    healthy = data.training_of(rl_runs / "healthy")
    assert "No alarm." in data.alarms_html(healthy, healthy.alarms())


def test_what_is_no_training_is_one_sentence(rl_runs: Path) -> None:
    for name, words in (("supervised", "trained nothing against a reward"), ("empty", "logged no metrics yet")):
        with pytest.raises(RunError, match=words):
            data.training_of(rl_runs / name)


@pytest.mark.slow
def test_a_training_is_watched_while_it_grows(rl_server: Server, rl_runs: Path, surf: Any) -> None:
    page = surf(height=1500).page
    with Run.create({"grpo": {"steps": 60}}, name="rl", path=rl_runs / "live") as run:
        log = ResponseLog(run.path / FILE)
        for step in range(1, 5):
            log_step(run, log, step, steps=60)
        page.goto(rl_server.home + "training?run=live")
        page.get_by_text("GRPO, 4 of 60 steps").wait_for()
        page.get_by_text("Too early for alarms").wait_for()
        page.get_by_role("heading", name="Answers of step 4").wait_for()
        for step in range(5, 61):
            log_step(run, log, step, steps=60)
        with open(run.path / "metrics.jsonl", "ab") as stream:
            stream.write(b'{"step": 61, "grpo/rew')  # a line that is being written
        page.get_by_text("GRPO, 60 of 60 steps").wait_for()
        page.get_by_role("row", name="reward hacking").first.wait_for()
        page.get_by_role("heading", name="Answers of step 60").wait_for()
        assert page.evaluate("window.bitten") is None
        assert any(HOSTILE in shown for shown in page.locator(".verbatim").all_inner_texts())
        page.get_by_label("KL that may be spent, nats a response").fill("4")
        page.keyboard.press("Enter")
        page.get_by_text("of the 4 allowed are spent").wait_for()
        page.get_by_role("row", name="KL budget").first.wait_for()
        page.get_by_role("slider").press("Home")
        page.get_by_role("heading", name="Answers of step 1", exact=True).wait_for()
        assert not page.get_by_label("Follow the newest step").is_checked()
        with open(run.path / "metrics.jsonl", "ab") as stream:
            stream.write(b"\n")
        log_step(run, log, 61, steps=60)
        page.get_by_text("lines left out because they cannot be read: 1").wait_for()
        page.get_by_text("GRPO, 61 steps").wait_for()
        page.get_by_role("heading", name="Answers of step 1", exact=True).wait_for()
        page.get_by_label("Follow the newest step").check()
        page.get_by_role("heading", name="Answers of step 61").wait_for()


@pytest.mark.slow
def test_the_picture_and_runs_with_nothing_to_show(rl_server: Server, surf: Any) -> None:
    page = surf(height=1750).page
    page.goto(rl_server.home + "training?run=hacked")
    page.wait_for_selector(".js-plotly-plot .annotation")
    page.get_by_role("heading", name="Answers of step 48").wait_for()
    page.wait_for_timeout(500)
    shoot(page, "training")
    page.goto(rl_server.home + "training?run=supervised")
    page.get_by_text("trained nothing against a reward").wait_for()
    page.goto(rl_server.home + "training?run=empty")
    page.get_by_text("has logged no metrics yet").wait_for()


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_contrast_labels_and_a_phone(rl_server: Server, surf: Any, dark: bool) -> None:
    page = surf(width=390 if dark else 1200, height=844, dark=dark).page
    page.goto(rl_server.home + "training?run=hacked")
    page.wait_for_selector(".js-plotly-plot .annotation")
    page.get_by_role("heading", name="Answers of step 48").wait_for()
    page.wait_for_timeout(500)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= (390 if dark else 1200)
    assert axe_violations(page) == []


@pytest.mark.slow
def test_without_any_training_the_page_says_so(tmp_path: Path, surf: Any) -> None:
    server = start_server("--runs", str(tmp_path))
    try:
        page = surf().page
        page.goto(server.home + "training")
        page.get_by_text("No run here trains against a reward yet").wait_for()
    finally:
        assert stop_server(server) == ""
