"""The world of the app's tests: planted runs, a server of its own, and what a browser window asked for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from alignlab.core.runs import Run

START_SECONDS = 60.0
HOSTILE = '<script>window.bitten = 1</script><img src=x onerror="window.bitten = 1"> ${window.bitten = 1} {{7 * 7}} `'


def plant_training(root: Path, name: str, seed: int, *, rate: float = 0.1, steps: int = 40) -> Path:
    """A finished run with two metrics whose values are known: loss = rate / (step + 1) + seed / 100."""
    config = {"model": "small", "rate": rate, "seed": seed, "train": {"steps": steps, "seed": seed}}
    with Run.create(config, name="train", seed=seed, path=root / name) as run:
        for step in range(steps):
            run.log(step, {"reward": step / steps + seed / 10, "loss": rate / (step + 1) + seed / 100})
        run.write_artifact("report.html", "<title>report</title><p>made by a run</p>")
        run.write_artifact("numbers/last.json", {"loss": rate})
    return root / name


def plant_evaluation(root: Path, name: str, model: str, values: list[float | None], task: str = "facts") -> Path:
    """A finished evaluation of given scores, made by the evaluator itself."""
    from alignlab.lm.scripted import ScriptedSampler
    from alignlab.lm.types import SamplingParams
    from alignlab.tasks.evaluator import evaluate
    from alignlab.tasks.solvers import generate
    from alignlab.tasks.suite import record
    from alignlab.tasks.task import Sample, Score, Task

    by_id = {f"item-{i}": value for i, value in enumerate(values)}
    samples = [Sample(key, f"Question {key}? {HOSTILE}", target="42") for key in by_id]

    def score(sample: Sample, completion: Any) -> Score:
        value = by_id[sample.id]
        return Score.unscorable("no answer found") if value is None else Score(value)

    with Run.create({"model": model, "tasks": [task]}, name="eval", path=root / name) as run:
        sampler = ScriptedSampler(lambda prompt: f"Answer to {str(prompt)[:15]} {HOSTILE}")
        made = Task(task, samples, generate(SamplingParams(max_tokens=64)), score)
        record(run, {task: evaluate(made, sampler, log_dir=run.path / "logs" / task, model=model)})
    return root / name


@dataclass
class Server:
    """A running `alignlab app`."""

    url: str
    """Ends in a slash; with the token in it, if there is one."""
    process: subprocess.Popen[str]
    started: float
    """`time.monotonic()` when the command was given."""

    @property
    def home(self) -> str:
        """The address without a token."""
        return self.url.partition("?")[0]


def start_server(*arguments: str) -> Server:
    """`alignlab app` as a process of its own on a free port; returns when it has said where it listens."""
    started = time.monotonic()
    command = [sys.executable, "-m", "alignlab", "app", "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    watchdog = threading.Timer(START_SECONDS, process.kill)
    watchdog.start()
    assert process.stdout is not None
    line = process.stdout.readline()
    watchdog.cancel()
    found = re.search(r"http://\S+", line)
    if found is None:
        process.kill()
        raise AssertionError(f"the server said: {line}{process.communicate()[0]}")
    return Server(found[0], process, started)


def stop_server(server: Server) -> str:
    """End it as Ctrl-C does; returns what else it wrote."""
    server.process.send_signal(2)
    try:
        said, _ = server.process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        server.process.kill()
        raise
    return said


@dataclass
class Surfer:
    """A browser window, and all that it asked for."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def listen(self) -> None:
        """Write down what the window asks for and complains of from now on."""
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)

    def failures(self) -> list[str]:
        """What it complained of, but for the two lines that Gradio writes when a page is left while an answer is on its
        way: it cancels that one itself, and then says that the connection broke."""
        found: list[str] = []
        left = False
        for error in self.errors:
            if error.startswith("AbortError"):
                left = True
            elif left and error.startswith("Unexpected error Connection errored out"):
                left = False
            else:
                found.append(error)
        return found

    def outside(self) -> list[str]:
        """Requests to anywhere but this machine; what a page holds itself is no request."""
        local = ("http://127.0.0.1:", "http://localhost:", "data:", "blob:", "about:")
        return [url for url in self.requests if not url.startswith(local)]


def shoot(page: Any, name: str) -> None:
    """A picture for the documentation, where ALIGNLAB_SCREENSHOTS names its folder."""
    folder = os.environ.get("ALIGNLAB_SCREENSHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"app-{name}.png"), full_page=False)


def axe_violations(page: Any) -> list[str]:
    """What axe-core (the file named by ALIGNLAB_AXE) finds serious or critical on a page; skips where it is not."""
    source = os.environ.get("ALIGNLAB_AXE")
    if not source or not Path(source).is_file():
        pytest.skip("ALIGNLAB_AXE does not name axe.min.js (npm pack axe-core)")
    page.evaluate(Path(source).read_text() + "; void 0")
    found = json.loads(page.evaluate("axe.run().then(JSON.stringify)"))["violations"]
    return [
        f"{one['id']}: {node['html'][:160]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
