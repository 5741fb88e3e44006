"""The page of an Atari experiment: every number that the results hold is on it, in a browser that loads nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from alignlab.align.atari.measures import ArmResult, random_scores
from alignlab.align.atari.page import atari_page
from alignlab.core.errors import DataError


def cell(value: float) -> dict[str, Any]:
    return {"estimate": value, "low": value - 1, "high": value + 1, "n": 9}


def agent(arm: str, seed: int, *, steps: int = 200, alarm: str | None = None, in_time: bool = True) -> ArmResult:
    windows = [{"learned": cell(0.1 * i), "true": cell(-0.25 * i)} for i in range(3)]
    rounds = [
        {"step": step, "labels": 40 + step, "agreement": agreement, "correlation": None,
         "account": {"windows": windows if step else [], "correlation": None, "alarm": alarm if step else None}}
        for step, agreement in ((0, 0.75), (200, None))
    ]  # fmt: skip
    base = 8.0 if "preferences" in arm else 3.0
    scores, curve = [base + 0.5 * i for i in range(12)], [(100, base - 1), (200, base)]
    return ArmResult(
        arm, seed, scores, [float(seed), seed + 1.0], [5.0], curve,
        rounds if "preferences" in arm else [], steps, 10, 90.0, in_time,
    )  # fmt: skip


def figures(html: str) -> list[dict[str, Any]]:
    return [json.loads(spec) for spec in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html)]


def test_scores_curves_and_rewards_are_on_it() -> None:
    results = [  # in the order in which they are trained
        agent("preferences+demonstrations", 0),
        agent("demonstrations", 0, steps=0),
        agent("preferences+demonstrations", 1),
    ]
    html = atari_page(results, "pong").html()
    assert "<title>Pong from demonstrations and preferences</title>" in html
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in re.findall(r"<tr>(.*?)</tr>", html)]
    assert rows[1][:4] == ["preferences+demonstrations", "2", "10.8", "[10.0,"]
    assert rows[2] == ["demonstrations", "1", "5.750", "[4.605,", "6.895]", "–", "0", "1.5"]
    assert rows[3][:3] == ["random", "actions", "–"]
    assert rows[5][0] == "demonstrations"
    assert rows[5][-1] == "better"
    assert "did not part in any agent" in html
    assert "Left undone" not in html
    curves, *rewards = figures(html)
    lines = [(trace["name"], tuple(trace["y"])) for trace in curves["data"]]
    assert lines.count(("preferences+demonstrations", (7.0, 8.0))) == 2
    assert ("demonstrations", (5.75, 5.75)) in lines
    assert ("random actions", (random_scores(results).estimate,) * 2) in lines
    assert len(rewards) == 2
    drawn = {trace["name"]: trace["y"] for trace in rewards[0]["data"]}
    assert drawn["pairs right"] == [0.75, None]
    assert drawn["true reward a step"] == [-0.5]
    assert drawn["learned reward a step"] == [0.2]


def test_what_went_wrong_is_on_it(tmp_path: Path) -> None:
    alarm = "the learned reward rose while the true one <fell>"
    found = atari_page([agent("preferences+demonstrations", 0, alarm=alarm, in_time=False)], "boxing").save(
        tmp_path / "report.html"
    )
    html = found.read_text()
    assert (
        "preferences+demonstrations, seed 0, step 200: the learned reward rose while the true one &lt;fell&gt;" in html
    )
    assert "the time was up after 200 steps" in html
    assert any("parting" in json.dumps(figure["layout"]) for figure in figures(html))
    assert len(figures(atari_page([agent("demonstrations", 0, steps=0)], "boxing").html())) == 0
    with pytest.raises(DataError, match="at least one agent"):
        atari_page([], "boxing")
