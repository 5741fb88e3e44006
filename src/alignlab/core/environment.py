"""What a run ran on: versions, git commit, seed, hardware."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from alignlab.core.device import hardware

PACKAGES = (
    "alignlab", "torch", "numpy", "scipy", "safetensors", "gguf", "tokenizers", "huggingface_hub", "jinja2", "tyro",
    "polars", "plotly", "scikit-learn",
)  # fmt: skip


def environment(seed: int) -> dict[str, Any]:
    """Python and package versions, the git commit of the working directory, the seed and the hardware."""
    return {
        "python": platform.python_version(),
        "packages": package_versions(),
        "git": git_state(Path.cwd()),
        "seed": seed,
        "hardware": hardware(),
        "threads": {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ},
    }


def package_versions() -> dict[str, str | None]:
    """Installed versions from the packages' metadata, without importing them; None where one is not installed."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def git_state(directory: Path) -> dict[str, Any] | None:
    """The commit checked out in `directory` and whether tracked files differ from it; None outside a repository."""
    commit = _git(directory, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    changes = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "modified": None if changes is None else bool(changes)}


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            # Optional locks would touch the index of a repository that we only read.
            ["git", "--no-optional-locks", "-C", str(directory), *arguments],
            capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
