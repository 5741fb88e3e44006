"""What tests of the app share: a folder of planted runs, a server over it, and a real browser with a network log."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_world import Server, Surfer, plant_evaluation, plant_training, start_server, stop_server

CHROMIUM = Path(os.environ.get("ALIGNLAB_CHROMIUM") or "/usr/bin/chromium")


@pytest.fixture(scope="session")
def planted_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four trainings (three seeds of one config, one of another), one interrupted run and two evaluations."""
    root = tmp_path_factory.mktemp("planted")
    for seed in range(3):
        plant_training(root, f"train-seed-{seed}", seed)
    plant_training(root, "train-faster", 0, rate=0.3)
    plant_evaluation(root, "eval-base", "base-model", [1.0, 0.0, 0.0, None, 1.0] * 5)
    plant_evaluation(root, "eval-tuned", "tuned-model", [1.0, 1.0, 0.0, 1.0, 1.0] * 5)
    return root


@pytest.fixture(scope="session")
def server(planted_runs: Path) -> Iterator[Server]:
    """A server over the planted runs, for tests that change nothing; it must have had nothing to complain of."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed: pip install 'alignlab[app]'")
    running = start_server("--runs", str(planted_runs))
    yield running
    assert stop_server(running) == ""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium that phones nobody; skips where there is none.

    Ends with its module: Playwright keeps an event loop running in this thread, in which no other test could have one.
    """
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed: pip install playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no browser at {CHROMIUM}; name one in ALIGNLAB_CHROMIUM")
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--no-first-run", "--disable-dev-shm-usage"]  # fmt: skip
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), headless=True, args=quiet)
        yield browser
        browser.close()


@pytest.fixture
def surf(chromium: Any) -> Iterator[Any]:
    """Opens windows: `surf(width=..., dark=...)` gives a Surfer.

    At the end every window must have asked this machine only, and no script may have failed in it.
    """
    windows: list[Surfer] = []

    def window(*, width: int = 1200, height: int = 900, dark: bool = False) -> Surfer:
        scheme = "dark" if dark else "light"
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        context.set_default_timeout(60_000)
        windows.append(Surfer(context.new_page()))
        windows[-1].listen()
        return windows[-1]

    yield window
    outside = [url for one in windows for url in one.outside()]
    errors = [error for one in windows for error in one.failures()]
    for one in windows:
        one.page.context.close()
    assert outside == []
    assert errors == []
