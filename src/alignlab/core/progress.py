"""Live progress: samples, tokens a second, time left. A moving bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

LINE_EVERY_SECONDS = 5.0


class _Forgiving:
    """A text stream whose reader may go away, or whose disk may fill up: what cannot be shown is dropped."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return self._stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class ProgressTask:
    """One piece of work being counted; made by `Progress.task`."""

    def __init__(self, label: str, total: int | None, unit: str, clock: Callable[[], float]):
        self.label, self.total, self.unit = label, total, unit
        self.done = self.tokens = 0
        self._clock = clock
        self._started = clock()
        self._show: Callable[[ProgressTask], None] = lambda task: None

    def advance(self, n: int = 1, tokens: int = 0) -> None:
        """Count `n` more units and `tokens` more tokens."""
        self.done += n
        self.tokens += tokens
        self._show(self)

    @property
    def seconds(self) -> float:
        """Seconds since the task began."""
        return max(self._clock() - self._started, 0.0)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until `total` at the rate so far; None while that is unknown."""
        if self.total is None or not self.done or self.seconds == 0:
            return None
        return max(self.total - self.done, 0) * self.seconds / self.done

    def figures(self) -> str:
        """The counts in words, such as `12/100 samples, 340 tokens/s, 1:05 left`."""
        of = f"/{self.total}" if self.total is not None else ""
        parts = [f"{self.done}{of} {self.unit}"]
        if self.tokens and self.seconds > 0:
            parts.append(f"{self.tokens / self.seconds:.0f} tokens/s")
        left = self.seconds_left
        if left is not None and self.done < (self.total or 0):
            parts.append(f"{clock_time(left)} left")
        return ", ".join(parts)


def clock_time(seconds: float) -> str:
    """Seconds as 0:07, 12:40 or 1:02:03."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class Progress:
    """Shows tasks on stderr, or on `console`. A closed stderr, or one that nobody reads, never stops the work.

    On a terminal a task is a live bar; elsewhere a line at its start and end and every few seconds between.
    """

    def __init__(self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic):
        from rich.console import Console

        if console is None:
            console = Console(stderr=True)
            if sys.stderr is not None:
                console.file = cast(TextIO, _Forgiving(sys.stderr))
        self._console: Console | None = console
        self._clock = clock
        self._live: RichProgress | None = None

    @classmethod
    def silent(cls) -> Progress:
        """A Progress that counts and shows nothing."""
        progress = cls.__new__(cls)
        progress._console, progress._clock, progress._live = None, time.monotonic, None
        return progress

    def say(self, text: str) -> None:
        """Print one line above any live bar; `text` is shown literally."""
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def task(self, label: str, total: int | None, unit: str = "samples") -> Iterator[ProgressTask]:
        """Count a piece of work of `total` units (None: unknown) for as long as the block runs."""
        task = ProgressTask(label, total, unit, self._clock)
        if self._console is None:
            yield task
        elif self._console.is_terminal:
            with self._bar(task):
                yield task
            self.say(f"{label}: {task.figures()} in {clock_time(task.seconds)}")
        else:
            self._lines(task)
            yield task
            self.say(f"{label}: {task.figures()} in {clock_time(task.seconds)}")

    def _lines(self, task: ProgressTask) -> None:
        spoke = self._clock()
        self.say(f"{task.label}: started" + (f" ({task.total} {task.unit})" if task.total is not None else ""))

        def show(task: ProgressTask) -> None:
            nonlocal spoke
            if self._clock() - spoke >= LINE_EVERY_SECONDS and task.done != task.total:
                spoke = self._clock()
                self.say(f"{task.label}: {task.figures()}")

        task._show = show

    @contextmanager
    def _bar(self, task: ProgressTask) -> Iterator[None]:
        from rich.markup import escape
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as RichProgress

        outermost = self._live is None
        if self._live is None:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self._live = RichProgress(*columns, console=self._console, transient=True)
            self._live.start()
        live = self._live
        bar = live.add_task(escape(task.label), total=task.total, text="")

        def show(task: ProgressTask) -> None:
            live.update(bar, completed=task.done, text=escape(task.figures()))

        task._show = show
        try:
            yield
        finally:
            live.remove_task(bar)
            if outermost:
                live.stop()
                self._live = None


SILENT = Progress.silent()
