"""What one `alignlab eval MODEL --tasks ...` is: a configuration that is recorded with the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignlab.core.config import from_dict, require
from alignlab.core.errors import ConfigError
from alignlab.lm.remote_limits import Dialect
from alignlab.tasks.builtin import TaskSettings, entry_of
from alignlab.tasks.settings import AskSettings

SHARED = tuple(field.name for field in dataclasses.fields(AskSettings) if field.name != "seed")
"""Settings that a flag gives to every task that reads them; the seed goes to all."""


@dataclass(frozen=True)
class Evaluated:
    """What is evaluated on what: the beginning of an `EvalConfig`, before the settings that tasks share."""

    model: str
    """A catalogue or registered name, a path, a hub id; with --endpoint, what the endpoint calls it."""
    tasks: tuple[str, ...]
    """Names, with the file of a public data set where one is needed: arc=FILE,lab-facts."""
    data: tuple[str, ...] = ()
    """Data of the tasks as NAME=FILE, where it is not given with the name."""
    examples: tuple[str, ...] = ()
    """Files of few-shot examples as NAME=FILE; none: the first items of the data, which are then not asked."""


@dataclass(frozen=True)
class EvalConfig(AskSettings, Evaluated):
    """Evaluate a model on tasks. A setting goes to every task that reads it; `alignlab eval list` says which do."""

    task_settings: tuple[str, ...] = ()
    """Settings of one task as TASK.SETTING=VALUE, such as arc.shots=25; they override the flags above."""
    judge: str | None = None
    """Model that judges, for tasks that need one; with --judge-url, what the endpoint calls it."""
    judge_url: str | None = None
    """OpenAI-compatible endpoint of the judge, up to and including /v1."""
    endpoint: str | None = None
    """OpenAI-compatible endpoint of the model, up to and including /v1; none: the model runs here."""
    dialect: Dialect = "openai"
    """Which server the endpoint is."""
    tokenizer: str | None = None
    """With --endpoint: a model whose tokenizer renders conversations that are scored."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of a model that runs here."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    packed: bool = False
    """Keep the Q4_0, Q4_1 and Q8_0 matrices of a GGUF file in their bits."""
    batch_size: int = 32
    """Items in one call of the model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tasks", "data", "examples", "task_settings"):
            object.__setattr__(self, name, tuple(split_list(getattr(self, name))))
        require(bool(self.tasks), "tasks", self.tasks, "at least one name; `alignlab eval list` shows them")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "a whole number of at least 1")
        require(self.judge_url is None or self.judge is not None, "judge", self.judge, "a name together with judge_url")
        require(self.tokenizer is None or self.endpoint is not None, "tokenizer", self.tokenizer, "only with endpoint")
        local = {"dtype": "auto", "device": "auto", "packed": False} if self.endpoint is not None else {}
        for name, default in local.items():
            require(getattr(self, name) == default, name, getattr(self, name), "only for a model that runs here")
        self.settings()

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks in order; ConfigError for one that is named twice."""
        names = tuple(one.partition("=")[0] for one in self.tasks)
        for name in names:
            require(names.count(name) == 1, "tasks", name, "every task once")
        return names

    def settings(self) -> dict[str, TaskSettings]:
        """The settings of every task; the judge, an object, is left out.

        Raises:
            ConfigError: no such task; data or examples of a task that is not evaluated; a setting that no task reads.
        """
        given = {field: getattr(self, field) for field in SHARED}
        given = {name: value for name, value in given.items() if value != getattr(TaskSettings(), name)}
        accepted = {name: entry_of(name).accepts for name in self.names}
        for name in given:
            if not any(name in accepts for accepts in accepted.values()):
                raise ConfigError(f"no task of {', '.join(self.names)} has a use for {name}; leave it out")
        files = {
            "data": _by_task([one for one in self.tasks if "=" in one] + list(self.data), "data", self.names),
            "examples": _by_task(self.examples, "examples", self.names),
        }
        own = _own_settings(self.task_settings, self.names)
        found = {}
        for name, accepts in accepted.items():
            values: dict[str, Any] = {key: value for key, value in given.items() if key in accepts}
            values |= {key: Path(paths[name]).expanduser() for key, paths in files.items() if name in paths}
            found[name] = from_dict(TaskSettings, {**values, "seed": self.seed, **own[name]}, where=name)
        return found


def split_list(parts: Iterable[str]) -> list[str]:
    """Comma-separated arguments as one list; a comma inside a file's name stays where no task's name follows it."""
    found: list[str] = []
    for part in parts:
        for piece in part.split(","):
            inside = found and "=" in found[-1] and "=" not in piece and ("/" in piece or "." in piece)
            if inside:
                found[-1] += f",{piece}"
            elif piece.strip():
                found.append(piece.strip())
    return found


def _by_task(pairs: Iterable[str], field: str, names: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        require(bool(equals and value), field, pair, "NAME=FILE, the name of a task and its file")
        require(name in names, field, pair, f"a file for one of the tasks: {', '.join(names)}")
        require(name not in found, field, pair, f"one file for {name}, which has {found.get(name)!r} already")
        found[name] = value
    return found


def _own_settings(pairs: Iterable[str], names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """`arc.shots=25` and the like, each value as YAML reads it."""
    import yaml

    own: dict[str, dict[str, Any]] = {name: {} for name in names}
    known = [field.name for field in dataclasses.fields(TaskSettings) if field.name != "judge"]
    for pair in pairs:
        where, equals, value = pair.partition("=")
        name, dot, key = where.rpartition(".")
        key = key.replace("-", "_")
        require(bool(equals and dot and value), "task_settings", pair, "TASK.SETTING=VALUE, such as arc.shots=25")
        require(name in names, "task_settings", pair, f"a setting of one of the tasks: {', '.join(names)}")
        require(key in known, "task_settings", pair, f"one of {', '.join(known)}")
        try:
            own[name][key] = yaml.safe_load(value)
        except yaml.YAMLError:
            own[name][key] = value
    return own
