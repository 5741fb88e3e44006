"""Trade-offs: what the page says of planted points, and the weight moved in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_world import HOSTILE, axe_violations, shoot, start_server, stop_server

from alignlab.app.context import AppContext
from alignlab.app.pages.tradeoffs import account_of, sources, told
from alignlab.core.errors import DataError

MEANS = {"kind": (0.0, 2.0), "even": (1.5, 1.5), "blunt": (2.0, 0.0), "poor": (0.4, 0.4)}


def plant(folder: Path, *, hostile: bool = False) -> Path:
    rng = np.random.default_rng(0)
    prompts = rng.normal(size=(40, 2))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "points.jsonl").open("w") as file:
        for name, mean in MEANS.items():
            values = np.array(mean) + prompts + 0.3 * rng.normal(size=(40, 2))
            objectives = {"helpful": values[:, 0].tolist(), "harmless": values[:, 1].tolist()}
            point = f"{name} {HOSTILE}" if hostile and name == "poor" else name
            file.write(json.dumps({"point": point, "objectives": objectives}) + "\n")
    return folder


def test_the_best_for_a_weight_and_its_cost(tmp_path: Path) -> None:
    context = AppContext(tmp_path)
    assert sources(tmp_path) == []
    plant(tmp_path / "sweep", hostile=True)
    ((label, place),) = sources(tmp_path)
    assert label == "sweep/points.jsonl"
    account = account_of(context, place)
    assert [told(account, "helpful", "harmless", share)[0] for share in (0.0, 0.5, 1.0)] == ["kind", "even", "blunt"]
    said = told(account, "helpful", "harmless", 0.5)[1]
    assert "<b>even</b> is best for this weight, the best in 100% of resamples" in said
    assert "<script>" not in said
    with pytest.raises(DataError, match="among the runs"):
        account_of(context, "/etc/passwd")


@pytest.mark.slow
def test_the_weight_is_moved_by_keyboard(surf: Any, tmp_path: Path) -> None:
    plant(tmp_path / "runs" / "sweep")
    server = start_server("--runs", str(tmp_path / "runs"))
    try:
        page = surf(height=1100).page
        page.goto(f"{server.home}trade-offs", timeout=240_000)
        page.wait_for_selector(".js-plotly-plot")
        page.get_by_text("even is best for this weight").wait_for()
        page.wait_for_timeout(600)
        shoot(page, "trade-offs")
        assert axe_violations(page) == []
        page.locator("input[type=range]").focus()
        page.keyboard.press("End")
        page.keyboard.press("Tab")
        page.get_by_text("blunt is best for this weight").wait_for()
    finally:
        said = stop_server(server)
    assert said == ""
