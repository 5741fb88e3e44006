"""A random model of a few thousand weights, comparisons and rewards of a user, once for all tests here."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import tiny_rlhf


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The library of these tests."""
    return tiny_rlhf


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory."""
    return Path(tiny_rlhf.tiny_run.build_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Comparisons in HH-RLHF's notation."""
    return Path(tiny_rlhf.write_comparisons(tmp_path / "pairs.jsonl"))


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    """A user's file of rewards."""
    return Path(tiny_rlhf.write_callable(tmp_path))
