"""Languages of the sandbox: the file a program goes to, the commands that run it, and where their programs lie."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from alignlab.core.errors import ConfigError


@dataclass(frozen=True)
class Tools:
    """What a language needs on this machine."""

    commands: tuple[tuple[str, ...], ...]
    """Run in order in the scratch directory until one fails; the last is the program itself."""
    visible: tuple[str, ...] = ()
    """Paths outside the system directories that the commands read."""


@dataclass(frozen=True)
class Language:
    """One language."""

    file: str
    """Name of the source file."""
    tools: Callable[[int], Tools | str]
    """From the memory limit in MiB: how to run it, or what is missing."""
    environment: Mapping[str, str]
    """Variables besides the common ones."""


def _found(path: str) -> tuple[str, ...]:
    """What must be visible for the program at `path`: its installation, unless that would show a home directory."""
    real = Path(path).resolve()
    if real.is_relative_to("/usr"):
        return ()
    prefix = real.parent.parent
    homely = Path.home().is_relative_to(prefix) or len(prefix.parts) < 3
    return (str(real),) if homely else (str(prefix),)


def _python(memory_mib: int) -> Tools | str:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    candidates = [str(Path(sys.base_prefix) / "bin" / name), shutil.which(name, path="/usr/bin:/usr/local/bin")]
    for candidate in candidates:
        if candidate and Path(candidate).exists():
            real = str(Path(candidate).resolve())
            return Tools(((real, "-s", "-E", "-B", "main.py"),), _found(real))
    return f"{name} was not found in {sys.base_prefix} or /usr"


def _javascript(memory_mib: int) -> Tools | str:
    for name in ("node", "nodejs"):
        if path := shutil.which(name):
            real = str(Path(path).resolve())
            heap = f"--max-old-space-size={max(16, memory_mib // 2)}"
            return Tools(((real, heap, "--single-threaded-gc", "main.js"),), _found(real))
    return "node was not found on PATH"


def _c(memory_mib: int) -> Tools | str:
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            real = str(Path(path).resolve())
            build = (real, "-O1", "-w", "-o", "main", "main.c", "-lm")
            return Tools((build, ("/scratch/main",)), _found(real))
    return "no C compiler (cc, gcc, clang) was found on PATH"


def _bash(memory_mib: int) -> Tools | str:
    if path := shutil.which("bash"):
        real = str(Path(path).resolve())
        return Tools(((real, "--noprofile", "--norc", "main.sh"),), _found(real))
    return "bash was not found on PATH"


LANGUAGES: dict[str, Language] = {
    "python": Language("main.py", _python, {"PYTHONHASHSEED": "0"}),
    "javascript": Language("main.js", _javascript, {"UV_THREADPOOL_SIZE": "1"}),
    "c": Language("main.c", _c, {}),
    "bash": Language("main.sh", _bash, {}),
}
"""By name."""

ALIASES = {"py": "python", "python3": "python", "js": "javascript", "node": "javascript", "sh": "bash"}


def language_named(name: str) -> str:
    """The key of `LANGUAGES` for a name or a usual short form; ConfigError for another."""
    key = ALIASES.get(name.lower(), name.lower())
    if key not in LANGUAGES:
        raise ConfigError(f"language is {name!r}, allowed: {', '.join(LANGUAGES)}")
    return key


def missing(language: str) -> str | None:
    """What this machine lacks to run `language`; None when nothing."""
    tools = LANGUAGES[language_named(language)].tools(512)
    return tools if isinstance(tools, str) else None
