"""The birth of a run directory: whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignlab.core.environment import environment
from alignlab.core.errors import RunError
from alignlab.core.files import atomic_write, runs_dir, sync_directory, writing
from alignlab.core.run_lock import RunLock
from alignlab.core.run_status import STATUS_FILE, new_status
from alignlab.core.yaml_text import dump_yaml


def new_place(name: str, root: str | Path | None) -> Path:
    """A directory TIME-NAME-SUFFIX below `root` (default: `runs_dir()`), free unless 48 random bits repeat."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path(root if root is not None else runs_dir()) / f"{stamp}-{name}-{secrets.token_hex(3)}"


def make_run_directory(target: Path, config: Mapping[str, Any], *, name: str, seed: int) -> RunLock:
    """Make `target` with all that a run starts with and return its lock, already held.

    It is built beside its place and renamed into it: at no moment is there a half-made run, and of two processes that
    want one place the second fails, because a directory cannot be renamed onto one with content.
    """
    contents = {
        "config.yaml": dump_yaml(dict(config)),
        "environment.json": pretty_json(environment(seed)),
        STATUS_FILE: pretty_json(new_status(name, seed)),
    }
    unfinished = target.parent / f".{target.name}.{secrets.token_hex(4)}.creating"
    lock: RunLock | None = None
    with writing(target):
        if target.exists() or target.is_symlink():
            raise RunError(f"run directory {target} exists already, choose another or go on with the run in it")
        unfinished.mkdir(parents=True)
        try:
            lock = RunLock(unfinished)
            for folder in ("artifacts", "checkpoints", "stages"):
                (unfinished / folder).mkdir()
            for file, content in contents.items():
                atomic_write(unfinished / file, content)
            os.rename(unfinished, target)
        except BaseException:
            if lock is not None:
                lock.release()
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    sync_directory(target.parent)
    return lock


def pretty_json(value: Any) -> str:
    """`value` as indented JSON with a final newline."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
