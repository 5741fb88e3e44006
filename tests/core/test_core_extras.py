"""Looking for pip breaks nothing that comes after."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from alignlab.core import extras


def test_pip_is_seen_and_setuptools_works_after() -> None:
    """In a process of its own: setuptools is what torch.compile imports to build its programs."""
    code = "from alignlab.core.extras import has_pip\nprint(has_pip())\nimport setuptools\nimport distutils.core"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.strip() == "True"


def test_a_python_without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "version", missing)
    assert not extras.has_pip()
