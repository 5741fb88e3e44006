"""Which run a command works in: what goes on, what is new, and what is looked at before there is a directory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from alignlab.core.errors import ConfigError
from alignlab.core.progress import Progress
from alignlab.core.run_choice import open_or_create
from alignlab.core.runs import Run


@dataclass(frozen=True)
class Config:
    rate: float = 1e-4
    """Rate."""
    patience: float = field(default=1.0, compare=False)
    """What does not make another run."""


def chosen(config: Config, path: Path | None = None, **options: Any) -> tuple[Path, bool]:
    """(the run's directory, whether the config's inputs were looked at)."""
    looked: list[bool] = []
    run = open_or_create(
        config,
        name="trial",
        seed=1,
        path=path,
        check=lambda: looked.append(True),
        progress=Progress.silent(),
        **options,
    )
    with run:
        return run.path, bool(looked)


@pytest.fixture(autouse=True)
def _runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "runs"))


def test_the_same_settings_go_on_and_others_begin() -> None:
    first, looked = chosen(Config())
    assert looked
    assert chosen(Config()) == (first, False)
    assert chosen(Config(patience=9.0)) == (first, False)
    other, _ = chosen(Config(rate=1.0))
    again, looked = chosen(Config(), fresh=True)
    assert looked
    assert len({first, other, again}) == 3
    assert chosen(Config()) == (again, False)  # the newest of these settings


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    somewhere, place = chosen(Config())[0], tmp_path / "here"
    assert chosen(Config(), place) == (place, True)  # though a run of these settings is elsewhere
    assert chosen(Config(patience=2.0), place) == (place, False)
    with pytest.raises(ConfigError, match="rate"):
        chosen(Config(rate=2.0), place)
    assert Run.read(somewhere).state == "finished"


def test_nothing_is_made_where_an_input_is_wrong(tmp_path: Path) -> None:
    def wrong() -> None:
        raise ConfigError("no such file")

    with pytest.raises(ConfigError, match="no such file"):
        open_or_create(Config(), name="trial", seed=1, path=tmp_path / "r", check=wrong, progress=Progress.silent())
    assert not (tmp_path / "r").exists()
