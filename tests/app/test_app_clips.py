"""Clips: drawings of what a clip holds, a desk for their projects alone, and in a browser a training that waits."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_world import axe_violations, shoot, start_server, stop_server

from alignlab.align.preference_data.collector import PreferenceCollector
from alignlab.align.trajectories.clips import clip_text
from alignlab.align.trajectories.human import HumanTeacher
from alignlab.align.trajectories.segments import Segments
from alignlab.app.clip_desk import ClipDesk
from alignlab.app.clip_drawing import drawing
from alignlab.app.kept_store import KeptStore
from alignlab.core.store import open_store


def test_the_drawing_of_a_cart() -> None:
    """Two frames by hand: the cart at 0 and 1 unit (42 pixels), the pole at 0 and 0.1 rad (5.7 degrees)."""
    drawn = drawing(clip_text("CartPole-v1", np.array([[0.0, 0, 0.0, 0, 1, 0], [1.0, 0, 0.1, 0, 1, 0]])))
    assert drawn is not None
    assert 'values="120.0 110;162.0 110"' in drawn
    assert 'values="0.0;5.7"' in drawn
    assert 'keyTimes="0.0000;0.4000"' in drawn  # two frames, and half a frame's hold
    assert 'aria-label="Clip of CartPole-v1, 2 steps"' in drawn


def test_the_drawing_of_a_pendulum_takes_no_turn_at_the_bottom() -> None:
    angles = np.array([3.1, -3.1])
    inputs = np.stack([np.cos(angles), np.sin(angles), 0 * angles, np.array([0.5, -1.0])], axis=1)
    drawn = drawing(clip_text("Pendulum-v1", inputs))
    assert drawn is not None
    assert 'values="-177.6;-182.4"' in drawn
    assert 'values="-0.50 1;1.00 1"' in drawn


@pytest.mark.parametrize(
    "content",
    ["an answer", '{"clip":"CartPole-v1","frames":[["<script>",0]]}', '{"clip":"<img>","frames":[[0,0]]}', '{"clip":'],
)
def test_what_is_no_clip_is_not_drawn(content: str) -> None:
    assert drawing(content) is None


def some_clips(seed: int, n: int) -> Segments:
    """Carts that drift, poles that lean more and more."""
    rng, t = np.random.default_rng(seed), np.linspace(0, 1, 40)
    steps = [[rng.uniform(-1, 1) + rng.normal() * t, 0 * t, rng.normal(0, 0.25) * t**2, 0 * t, 0 * t, 0 * t]
             for _ in range(n)]  # fmt: skip
    return Segments(np.array(steps).transpose(0, 2, 1), np.zeros((n, 40)))


def test_the_desk_shows_projects_of_clips_and_waits_where_there_is_nothing(tmp_path: Path) -> None:
    desk = ClipDesk(KeptStore(str(tmp_path / "lab.db")))
    assert desk.act({"do": "open"}) == {"ok": True, "projects": []}
    first, second = some_clips(0, 1), some_clips(1, 1)
    with open_store(tmp_path / "lab.db") as store:
        PreferenceCollector(store, project="texts", annotator="-").collect_preferences("p", ["a", "b"])
        teacher = HumanTeacher(store, "clips-0", "CartPole-v1", every=0.01, say=str)
        found: list[Any] = []
        waiting = threading.Thread(target=lambda: found.append(teacher.judge(first, second, np.random.default_rng(0))))
        waiting.start()
        while desk.act({"do": "open"}).get("projects") != ["clips-0"]:
            pass
        shown = desk.act({"do": "next", "project": "clips-0", "name": "ada"})
        assert shown["html"].count('<svg class="clip"') == 2
        task = shown["task"]
        told = {"project": "clips-0", "name": "ada", "comparison": task["id"], "token": task["token"],
                "shown": task["shown"], "seconds": 1.0}  # fmt: skip
        after = desk.act({"do": "record", **told, "choice": 0})
        assert after["ok"]
        assert after["task"] is None
        assert after["wait"] > 0
        assert "New clips appear here by themselves" in after["html"]
        waiting.join(timeout=20)
    assert found[0].tolist() == [0.5]


@pytest.mark.slow
def test_a_person_teaches_by_keyboard(surf: Any, tmp_path: Path) -> None:
    """The training asks, the person answers 1, 2, 0 and s, and the next clips come without a click."""
    url = str(tmp_path / "lab.db")
    rounds: list[np.ndarray] = []
    ready = threading.Event()

    def train() -> None:
        with open_store(url) as store:
            teacher = HumanTeacher(store, "clips-0", "CartPole-v1", every=0.05, say=lambda words: ready.set())
            for seed in (0, 2):
                asked = some_clips(seed, 4), some_clips(seed + 1, 4)
                rounds.append(teacher.judge(*asked, np.random.default_rng(0)))

    training = threading.Thread(target=train)
    training.start()
    assert ready.wait(30)
    server = start_server("--runs", str(tmp_path / "runs"), "--store", url)
    try:
        page = surf(height=1000).page
        page.goto(f"{server.home}clips?project=clips-0&name=ada", timeout=240_000)
        page.locator("svg.clip").nth(1).wait_for()
        moved = "document.querySelector('svg.clip > g:not(.began)').getBoundingClientRect().x"
        before = page.evaluate(moved)
        page.wait_for_function(f"{moved} !== {before}")  # it moves
        page.wait_for_timeout(600)
        shoot(page, "clips")
        assert axe_violations(page) == []
        for count, key in enumerate(("1", "2", "0", "s"), start=1):
            page.keyboard.press(key)
            page.wait_for_function(f"document.querySelector('[data-progress] b')?.textContent === '{count}'")
        # The next round: nothing is clicked.
        page.locator("svg.clip").nth(1).wait_for()
        for count in range(5, 9):
            page.keyboard.press("1")
            page.wait_for_function(f"document.querySelector('[data-progress] b')?.textContent === '{count}'")
        training.join(timeout=30)
        assert not training.is_alive()
        page.get_by_text("Nothing to judge right now").wait_for()
    finally:
        said = stop_server(server)
    assert said == ""
    first = rounds[0]
    assert sorted(re.sub(r"\.0$", "", str(one)) for one in first if one not in (0.0, 1.0)) == ["0.5", "nan"]
    assert np.isin(rounds[1], (0.0, 1.0)).all()
