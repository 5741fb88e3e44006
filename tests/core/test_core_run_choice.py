"""Which run a command works in: what goes on, what is new, and what is looked at before there is a directory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from alignlab.core.errors import ConfigError
from alignlab.core.progress import Progress
from alignlab.core.run_choice import open_or_create, run_at
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


def test_a_run_at_a_place_goes_on_there_and_nowhere_else(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Seeded:
        rate: float = 1e-4
        """Rate."""
        seed: int = 3
        """Seed."""

    looked: list[Path | None] = []

    def at(path: Path | None, config: Seeded | None = None) -> Path:
        with run_at(path, config or Seeded(), name="trial", check=lambda: looked.append(path)) as run:
            return run.path

    place = tmp_path / "here"
    assert at(place) == at(place) == place
    assert looked == [place]  # what the config names is looked at before there is a run, and not again
    assert Run.read(place).config_dict["seed"] == 3
    assert at(None) != at(None)  # without a place each is new, though the settings are the same
    with pytest.raises(ConfigError, match="rate"):
        at(place, Seeded(rate=1.0))
