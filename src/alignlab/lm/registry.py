"""Models that runs produced, by name: `register` at the end of a run, `resolve` when someone asks for it.

One JSON file in the user's folder, replaced atomically under a lock, so that two runs that finish together both stay.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alignlab.core.errors import DataError, ModelError
from alignlab.core.files import atomic_write, read_json, user_dir

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class RegisteredModel:
    """A named model directory and what its maker noted about it (base model, run, method)."""

    name: str
    path: Path
    created: float
    info: dict[str, Any] = field(default_factory=dict)


def register(name: str, path: str | Path, info: Mapping[str, Any] | None = None) -> RegisteredModel:
    """Give the model directory `path` a name; a name given again points to the new directory.

    Raises `ModelError` when the name is not a plain word or `path` is not a model directory.
    """
    path = Path(path).resolve()
    check_name(name)
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: cannot be registered as {name!r}: there is no config.json in it")
    model = RegisteredModel(name, path, time.time(), dict(info or {}))
    with _locked():
        models = {m.name: m for m in registered()}
        models[name] = model
        rows = [asdict(m) | {"path": str(m.path)} for m in models.values()]
        atomic_write(_file(), json.dumps(rows, indent=2) + "\n")
    return model


def check_name(name: str) -> None:
    """`ModelError` where a model cannot be called that."""
    if not _NAME.fullmatch(name) or name == "latest":
        raise ModelError(f"model name {name!r} is not allowed; use letters, digits, '.', '_' and '-', not 'latest'")


def registered() -> list[RegisteredModel]:
    """All registered models, oldest first. Raises `ModelError` when the registry file is damaged."""
    if not _file().is_file():
        return []
    try:
        rows = read_json(_file())
        models = [RegisteredModel(r["name"], Path(r["path"]), float(r["created"]), dict(r["info"])) for r in rows]
    except (DataError, TypeError, KeyError, ValueError) as error:
        raise ModelError(f"{_file()}: the list of registered models is damaged ({error}); move it away") from None
    return sorted(models, key=lambda m: m.created)


def latest() -> RegisteredModel | None:
    """The model registered last."""
    return max(registered(), key=lambda m: m.created, default=None)


def find(name: str) -> RegisteredModel | None:
    """The model of that name; "latest" is the one registered last; None if there is none."""
    if name == "latest":
        return latest()
    return next((m for m in registered() if m.name == name), None)


def resolve(name: str) -> Path:
    """The directory of a registered model. Raises `ModelError` for an unknown name or a directory that is gone."""
    model = find(name)
    if model is None:
        near = difflib.get_close_matches(name, [m.name for m in registered()])
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ModelError(f"no model is registered as {name!r}{hint}")
    if not (model.path / "config.json").is_file():
        raise ModelError(f"model {model.name!r} was registered at {model.path}, where it no longer is")
    return model.path


def _file() -> Path:
    return user_dir() / "registry.json"


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    with (user_dir() / "registry.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
