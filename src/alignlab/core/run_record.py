"""What a run directory holds, for reading: configuration, metrics, events and finished stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.core.errors import DataError, RunError
from alignlab.core.files import read_json, read_jsonl
from alignlab.core.yaml_text import read_yaml

RESERVED = ("step", "time")
_NOT_FINITE = ("nan", "inf", "-inf")


@dataclass(frozen=True)
class StageRecord:
    """A finished stage of a run."""

    name: str
    output: dict[str, Any]
    """What the stage returned, as JSON gives it back."""
    seconds: float
    """Wall-clock seconds of the attempt that finished."""
    peak_memory_bytes: int
    """Most memory held at once during that attempt."""
    attempts: int
    """How often the stage was started; more than 1 when the run was stopped in it."""


class RunRecord:
    """The readable side of a run; `alignlab.core.runs.Run` adds the writing side."""

    def __init__(self, path: Path, status: dict[str, Any]):
        """`status` is what `read_status(path)` gave."""
        config = read_yaml(path / "config.yaml")
        if config is not None and not isinstance(config, dict):
            raise RunError(f"the run {path} cannot be read: its config.yaml holds no mapping")
        self.path = path
        self.config_dict: dict[str, Any] = config or {}
        self._status = status

    @property
    def name(self) -> str:
        """The name given at creation."""
        return str(self._status["name"])

    @property
    def seed(self) -> int:
        """The seed given at creation."""
        return int(self._status["seed"])

    @property
    def state(self) -> str:
        """running, finished, failed or interrupted."""
        return str(self._status["state"])

    @property
    def artifacts(self) -> Path:
        """The folder of what the run made."""
        return self.path / "artifacts"

    @property
    def checkpoints(self) -> Path:
        """The folder of the model and optimiser states."""
        return self.path / "checkpoints"

    def environment(self) -> dict[str, Any]:
        """Versions, git commit, seed and hardware at creation."""
        environment = read_json(self.path / "environment.json")
        return dict(environment)

    def metrics(self) -> list[dict[str, Any]]:
        """One row {"step": ..., name: number, ...} a step, in order of steps; the last write of a (name, step) wins."""
        path = self.path / "metrics.jsonl"
        rows: dict[int, dict[str, Any]] = {}
        for line in read_jsonl(path) if path.exists() else []:
            step = line.get("step")
            if not isinstance(step, int):
                raise DataError(f"{path} holds a line without a step")
            row = rows.setdefault(step, {"step": step})
            for key, value in line.items():
                if key not in RESERVED:
                    row[key] = float(value) if value in _NOT_FINITE else value
        return [rows[step] for step in sorted(rows)]

    def events(self) -> list[dict[str, Any]]:
        """All events, oldest first."""
        path = self.path / "events.jsonl"
        return read_jsonl(path) if path.exists() else []

    def stages(self) -> dict[str, StageRecord]:
        """The finished stages by name, in the order in which they were first started."""
        names = [event["stage"] for event in self.events() if event["kind"] == "stage_started"]
        names += sorted(path.stem for path in (self.path / "stages").glob("*.json"))
        records = {name: self.stage_record(name) for name in dict.fromkeys(names)}
        return {name: record for name, record in records.items() if record is not None}

    def stage_record(self, name: str) -> StageRecord | None:
        """The record of one stage, None while it has not finished."""
        path = self.path / "stages" / f"{name}.json"
        if not path.exists():
            return None
        try:
            record = read_json(path)
            return StageRecord(**{field: record[field] for field in StageRecord.__dataclass_fields__})
        except (DataError, KeyError, TypeError) as error:
            raise RunError(f"{path} is not the record of a stage, delete it to run the stage again") from error
