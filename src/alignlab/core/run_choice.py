"""Which run a command works in: a new one, or the one that it goes on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignlab.core.config import from_dict
from alignlab.core.errors import ConfigError
from alignlab.core.progress import Progress
from alignlab.core.runs import Run, find_same


def run_at(
    path: Path | None,
    config: Any,
    *,
    name: str,
    sinks: tuple[str, ...] = (),
    check: Callable[[], object] = lambda: None,
) -> Run:
    """The run in `path`, to go on with, or a new one there (None: below ./runs) once `check` has found nothing wrong.

    `config` has a `seed`. ConfigError tells where a run that is there was started differently.
    """
    if path is not None and path.exists():
        return Run.open(path, config=config, sinks=sinks)
    check()
    return Run.create(config, name=name, seed=config.seed, path=path, sinks=sinks)


def open_or_create(
    config: Any,
    *,
    name: str,
    seed: int,
    path: Path | None,
    fresh: bool = False,
    sinks: tuple[str, ...] = (),
    check: Callable[[], None] = lambda: None,
    progress: Progress,
) -> Run:
    """The run in `path` if there is one; without a path the newest of this name and config, unless `fresh`; else a new
    one in `path`, once `check` has found nothing wrong with what the config names.

    What compares equal is the same config, whatever its patience with an endpoint. ConfigError tells where a run that
    is gone on with was started differently.
    """
    existing = path if path is not None and path.exists() else None
    if existing is None and path is None and not fresh:
        existing = find_same(name, config)
    if existing is None:
        check()
        return Run.create(config, name=name, seed=seed, path=path, sinks=sinks)
    run = Run.open(existing, config=None if _recorded(type(config), existing) == config else config, sinks=sinks)
    progress.say(f"going on with {existing}")
    return run


def _recorded(kind: type[Any], path: Path) -> Any:
    """The config that a run was started with; None where this version does not understand it."""
    try:
        return from_dict(kind, Run.read(path).config_dict)
    except ConfigError:
        return None
