"""The process of a job that calls a function: `python -m alignlab.research.sweep.calling JSON DIRECTORY`."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alignlab.core.errors import AlignlabError, ConfigError
from alignlab.core.files import atomic_write
from alignlab.core.run_creation import pretty_json
from alignlab.core.runs import Run
from alignlab.research.sweep.jobs import RETURNED


def function_of(spec: str) -> Callable[..., Any]:
    """The function that FILE.py:NAME or MODULE:NAME means; ConfigError where there is none."""
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        raise ConfigError(f"function is {spec!r}, allowed: FILE.py:NAME or MODULE:NAME")
    if place.endswith(".py"):
        path = Path(place).resolve()
        if not path.is_file():
            raise ConfigError(f"function is {spec!r}, but there is no file {path}")
        made = importlib.util.spec_from_file_location(path.stem, path)
        assert made is not None
        assert made.loader is not None
        module = importlib.util.module_from_spec(made)
        sys.modules[path.stem] = module
        made.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ConfigError(f"function is {spec!r}, but there is no module {error.name!r}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"function is {spec!r}, but {place} has no function {name}")
    return function  # type: ignore[no-any-return]


def call(spec: str, settings: dict[str, Any], seed: int, directory: Path) -> None:
    """Call it in a run of its own; numbers that it returns are kept, lists of numbers are objectives item by item."""
    function = function_of(spec)
    config = {"function": spec, "settings": settings, "seed": seed}
    place = directory / "run"
    run = Run.open(place, config=config) if place.exists() else Run.create(config, name="sweep", seed=seed, path=place)
    with run:
        given = function(settings, seed, run)
        given = {} if given is None else given
        if not isinstance(given, Mapping):
            raise ConfigError(f"{spec} returned {type(given).__name__}, allowed: nothing or a mapping from names")
        numbers = {name: float(value) for name, value in given.items() if _is_number(value)}
        tables = {name: list(map(float, value)) for name, value in given.items() if isinstance(value, list | tuple)}
        odd = [name for name in given if name not in numbers and name not in tables]
        if odd:
            raise ConfigError(f"{spec} returned {odd[0]}={given[odd[0]]!r}, allowed: a number, or one for each item")
        if tables:
            run.write_artifact("objectives.json", {"point": "", "seed": seed, "objectives": tables})
            numbers |= {name: sum(values) / len(values) for name, values in tables.items() if values}
        atomic_write(directory / RETURNED, pretty_json(numbers))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or getattr(value, "ndim", None) == 0


def main(arguments: list[str]) -> int:
    """The process; 2 with one sentence for a mistake of the user's."""
    asked = json.loads(arguments[0])
    try:
        call(asked["function"], asked["settings"], asked["seed"], Path(arguments[1]))
    except AlignlabError as error:
        print(f"alignlab: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
