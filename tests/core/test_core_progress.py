"""Progress: counts and rates are right, plain lines without a terminal, and a lost stderr never stops the work."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from rich.console import Console

from alignlab.core.progress import LINE_EVERY_SECONDS, SILENT, Progress, ProgressTask, clock_time


class Clock:
    """A clock that goes when it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plain(clock: Clock) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    return Progress(Console(file=out, width=100), clock=clock), out


def test_figures_are_counts_and_rates() -> None:
    clock = Clock()
    task = ProgressTask("work", 40, "samples", clock)
    assert task.figures() == "0/40 samples"
    assert task.seconds_left is None
    clock.now += 10
    task.advance(8, tokens=250)
    assert task.figures() == "8/40 samples, 25 tokens/s, 0:40 left"
    task.advance(32)
    assert task.figures() == "40/40 samples, 25 tokens/s"
    assert task.seconds_left == 0
    open_ended = ProgressTask("work", None, "steps", clock)
    open_ended.advance()
    assert open_ended.figures() == "1 steps"
    assert open_ended.seconds_left is None


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (759.6, "12:40"), (3723, "1:02:03")])
def test_clock_time(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


def test_plain_lines_come_every_few_seconds() -> None:
    clock = Clock()
    progress, out = plain(clock)
    with progress.task("critique [b]", 100, unit="prompts") as task:
        for _ in range(100):
            clock.now += LINE_EVERY_SECONDS / 40
            task.advance(1, tokens=5)
    lines = out.getvalue().splitlines()
    assert lines[0] == "critique [b]: started (100 prompts)"
    assert lines[1] == "critique [b]: 40/100 prompts, 40 tokens/s, 0:08 left"
    assert lines[-1] == "critique [b]: 100/100 prompts, 40 tokens/s in 0:12"
    assert len(lines) == 4


def test_unknown_total_and_messages() -> None:
    progress, out = plain(Clock())
    progress.say("[red]literal[/red]")
    with progress.task("read", None) as task:
        task.advance(3)
    assert out.getvalue().splitlines() == ["[red]literal[/red]", "read: started", "read: 3 samples in 0:00"]


def test_terminal_shows_bars_that_nest() -> None:
    out = io.StringIO()
    progress = Progress(Console(file=out, force_terminal=True, width=100))
    with progress.task("outer [x]", 2) as outer:
        outer.advance()
        with progress.task("inner", 5) as inner:
            inner.advance(5, tokens=10)
        outer.advance()
    shown = out.getvalue()
    for words in ("outer [x]", "inner", "5/5 samples", "2/2 samples"):
        assert words in shown
    with progress.task("later", 1):
        pass
    assert "later" in out.getvalue()


def test_silent_counts_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with SILENT.task("work", 3) as task:
        task.advance(2, tokens=7)
    SILENT.say("nothing")
    assert (task.done, task.tokens) == (2, 7)
    assert capsys.readouterr() == ("", "")


def test_errors_inside_pass_through() -> None:
    for console in (Console(file=io.StringIO()), Console(file=io.StringIO(), force_terminal=True)):
        progress = Progress(console)
        with pytest.raises(ZeroDivisionError), progress.task("work", 3):
            raise ZeroDivisionError
        with progress.task("again", 1) as task:
            task.advance()


class Broken(io.StringIO):
    """A stream that refuses everything."""

    def write(self, text: str = "") -> int:
        raise BrokenPipeError

    flush = write  # type: ignore[assignment]


@pytest.mark.parametrize("terminal", [False, True])
def test_broken_stream_is_ignored(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    stream = Broken()
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Progress()
    progress.say("nobody hears")
    with progress.task("work", 2) as task:
        task.advance(2)
    assert task.done == 2
    assert stream.getvalue() == ""


LOST = """
import os, sys
from alignlab.core.progress import Progress
{}
for terminal in (False, True):
    if terminal:
        os.environ["FORCE_COLOR"] = "1"
    progress = Progress()
    assert progress._console.is_terminal == terminal
    with progress.task("work", 300) as task:
        for _ in range(300):
            task.advance(1, tokens=3)
os.write(1, b"done")
"""


@pytest.mark.parametrize(
    "loss",
    [
        "os.close(2)",
        "sys.stderr.close()",
        "sys.stderr = None",
        "r, w = os.pipe(); os.dup2(w, 2); os.close(r)",
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)",
    ],
)
def test_lost_stderr_does_not_stop_the_work(loss: str) -> None:
    done = subprocess.run([sys.executable, "-c", LOST.format(loss)], capture_output=True, timeout=60)
    assert done.stdout == b"done", done.stderr.decode()
