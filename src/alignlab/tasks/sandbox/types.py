"""What goes into the sandbox and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alignlab.core.config import require
from alignlab.core.errors import ConfigError

Verdict = Literal["passed", "failed", "timeout", "memory", "output", "killed", "refused", "unavailable", "broken"]
"""How a run ended.

`passed`: it left with status 0 (and printed its token, where it has one). `failed`: another status, or no token.
`timeout`: wall clock or processor time is spent. `memory`, `output`: more than allowed. `killed`: by a signal.
The rest says nothing about the program: `refused`: this machine cannot isolate it; `unavailable`: no interpreter or
compiler; `broken`: the sandbox itself failed.
"""

JUDGED: frozenset[Verdict] = frozenset({"passed", "failed", "timeout", "memory", "output", "killed"})
"""Verdicts about the program; the others are about the machine."""

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one run may use, all its processes together unless said otherwise."""

    seconds: float = 10.0
    """Wall clock, in seconds, compilation included."""
    cpu_seconds: int = 10
    """Processor time of each process, in whole seconds; all of them together are bounded by the wall clock."""
    memory_mib: int = 512
    """Private and shared memory; also the most one process may reserve for writing."""
    processes: int = 64
    """Processes and threads at one time."""
    output_kib: int = 256
    """Standard output and standard error."""
    disk_mib: int = 64
    """The scratch directory; it lies in memory."""

    def __post_init__(self) -> None:
        require(0 < self.seconds <= 3600, "seconds", self.seconds, "a number above 0 and up to 3600")
        require(1 <= self.cpu_seconds <= 3600, "cpu_seconds", self.cpu_seconds, "a whole number from 1 to 3600")
        require(16 <= self.memory_mib <= 1 << 20, "memory_mib", self.memory_mib, "a whole number from 16")
        require(2 <= self.processes <= 4096, "processes", self.processes, "a whole number from 2 to 4096")
        require(1 <= self.output_kib <= 1 << 20, "output_kib", self.output_kib, "a whole number from 1")
        require(1 <= self.disk_mib <= 1 << 20, "disk_mib", self.disk_mib, "a whole number from 1")


@dataclass(frozen=True)
class Program:
    """Source text in one of `LANGUAGES`."""

    code: str
    language: str = "python"
    stdin: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    """Further files in the scratch directory, text by plain name."""
    token: str | None = None
    """A line that the program prints when its tests are through; without it, leaving early with status 0 would pass."""
    read_only: tuple[Path, ...] = ()
    """Directories that the program may read besides the system's and its interpreter's own."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "read_only", tuple(Path(path).resolve() for path in self.read_only))
        for name in self.files:
            if not name or "/" in name or name in (".", "..", ".stdin") or "\0" in name:
                raise ConfigError(f"files has the name {name!r}, allowed: a plain file name without directories")
        for path in self.read_only:
            if not path.is_dir() or path == Path("/"):
                raise ConfigError(f"read_only names {str(path)!r}, allowed: existing directories other than /")


@dataclass(frozen=True)
class RunResult:
    """What happened to one program."""

    verdict: Verdict
    detail: str
    """One sentence."""
    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    """Of the last command that ran; None when a signal ended it."""
    signal: int | None = None
    seconds: float = 0.0
    """Wall clock from the first command to the end."""
    cpu_seconds: float = 0.0
    """Processor time of the commands and of the children they waited for."""
    peak_mib: float = 0.0
    """Most memory seen at one sampling; short peaks can be missed."""
    isolation: str = "none"
    """What kept the program in: `namespaces+seccomp`, or `none` for a run that was allowed to be unsafe."""


@dataclass(frozen=True)
class Isolation:
    """Whether this process may start isolated programs here."""

    available: bool
    how: str
    """What isolates, or why nothing does."""
