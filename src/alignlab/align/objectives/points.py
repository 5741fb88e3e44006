"""Points of a trade-off from files and runs: who was measured in which objectives, on which items, from which seeds.

A record is `{"point": name, "seed": 0, "objectives": {name: [one value an item]}, "items": [...], "settings": {...}}`;
a line may also hold one item: `{"point": name, "item": id, "objectives": {name: value}}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alignlab.core.config import unknown_name
from alignlab.core.errors import ConfigError, DataError
from alignlab.core.files import json_rows
from alignlab.stats.interval import Interval
from alignlab.stats.pareto_table import PointTable, point_table

POINTS_FILE = "points.jsonl"


@dataclass(frozen=True)
class Record:
    """One training (or one measurement of it) in every objective."""

    point: str
    seed: int
    values: Mapping[str, Mapping[str, float]]
    """By objective, by item."""
    settings: Mapping[str, Any]
    where: str
    """For messages."""


@dataclass(frozen=True, eq=False)
class PointSet:
    """Points to choose among."""

    table: PointTable
    """Larger is better in every column: objectives that are to be small are negated."""
    minimised: tuple[str, ...]
    """Those objectives."""
    seeds: Mapping[str, tuple[int, ...]]
    settings: Mapping[str, Mapping[str, Any]]

    def shown(self, objective: str, value: Interval) -> Interval:
        """An interval of a column in the objective's own sign."""
        if objective not in self.minimised:
            return value
        return replace(value, estimate=-value.estimate, low=-value.high, high=-value.low)

    def label(self, objective: str) -> str:
        """The objective, with its direction where less is better."""
        return f"{objective} (less is better)" if objective in self.minimised else objective

    def signs(self) -> list[float]:
        """-1 for each objective that is to be small, 1 for the others."""
        return [-1.0 if name in self.minimised else 1.0 for name in self.table.objectives]


def read_records(path: Path) -> list[Record]:
    """The records of a JSONL file (it may be gzipped); DataError names the line that is none."""
    if not path.is_file():
        raise DataError(f"{path} is no file of points")
    found = [_record(row, where) for where, row in json_rows(path)]
    if not found:
        raise DataError(f"{path} has no point")
    return found


def record_of(row: Mapping[str, Any], where: str, **defaults: Any) -> Record:
    """One record from its JSON, with `defaults` for what it leaves out; DataError says what is wrong with it."""
    return _record({**defaults, **row}, where)


def _record(row: Mapping[str, Any], where: str) -> Record:
    name, seed, objectives = row.get("point"), row.get("seed", 0), row.get("objectives")
    if not isinstance(name, str) or not name:
        raise DataError(f"{where} has point {name!r}, right is the name of a point")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise DataError(f"{where} has seed {seed!r}, right is a whole number")
    if not isinstance(objectives, Mapping) or not objectives:
        raise DataError(f'{where} has objectives {objectives!r}, right is {{"name": [one value an item], ...}}')
    items = row.get("items")
    values: dict[str, dict[str, float]] = {}
    for objective, given in objectives.items():
        one = not isinstance(given, list)
        listed = [given] if one else given
        ids = [str(row.get("item", "all"))] if one else items if items is not None else list(range(len(listed)))
        if not isinstance(ids, list) or len(ids) != len(listed) or len(set(map(str, ids))) != len(ids):
            raise DataError(
                f"{where}: {objective} has {len(listed)} values and the items are not as many different ids"
            )
        for item, value in zip(ids, listed, strict=True):
            if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
                raise DataError(f"{where}: {objective} of item {item} is {value!r}, right is a finite number")
        values[str(objective)] = {str(item): float(value) for item, value in zip(ids, listed, strict=True)}
    settings = row.get("settings") or {}
    return Record(name, seed, values, settings if isinstance(settings, Mapping) else {}, where)


def point_set(records: Iterable[Record], objectives: Sequence[str] = (), minimise: Sequence[str] = ()) -> PointSet:
    """The records as one table.

    `objectives` chooses among those recorded (and orders them); `minimise` names those that are to be small. DataError
    where a record lacks an objective or an item that the first one has, or a seed of a point comes twice with the same
    items.
    """
    merged = _merged(records)
    first = next(iter(merged.values()))
    names = tuple(objectives) or tuple(first.values)
    for name in (*names, *minimise):
        if name not in first.values:
            raise ConfigError(unknown_name(f"objective {name!r}", name, first.values))
    for name in minimise:
        if name not in names:
            raise ConfigError(f"{name!r} is to be small but is none of the chosen objectives {', '.join(names)}")
    items = list(first.values[names[0]])
    by_point: dict[str, list[Record]] = {}
    for record in merged.values():
        by_point.setdefault(record.point, []).append(record)
    signs = np.array([-1.0 if name in minimise else 1.0 for name in names])
    values, seeds, settings = {}, {}, {}
    for point, members in by_point.items():
        members.sort(key=lambda record: record.seed)
        values[point] = np.stack([_array(record, names, items) for record in members]) * signs
        seeds[point], settings[point] = tuple(record.seed for record in members), members[0].settings
    return PointSet(point_table(values, names), tuple(minimise), seeds, settings)


def _merged(records: Iterable[Record]) -> dict[tuple[str, int], Record]:
    """One record a point and seed: lines of single items are put together."""
    merged: dict[tuple[str, int], Record] = {}
    for record in records:
        key = record.point, record.seed
        if key not in merged:
            merged[key] = replace(record, values={name: dict(own) for name, own in record.values.items()})
            continue
        for name, own in record.values.items():
            there: dict[str, float] = merged[key].values.setdefault(name, {})  # type: ignore[attr-defined]
            twice = next((item for item in own if item in there), None)
            if twice is not None:
                raise DataError(
                    f"{record.where}: point {record.point!r} has {name} of item {twice} from seed {record.seed} twice "
                    f"(first in {merged[key].where}); give other seeds to other trainings"
                )
            there.update(own)
    if not merged:
        raise DataError("there is no point; at least one is needed")
    return merged


def _array(record: Record, names: Sequence[str], items: Sequence[str]) -> np.ndarray:
    columns = []
    for name in names:
        own = record.values.get(name)
        if own is None:
            raise DataError(f"{record.where}: point {record.point!r} has no {name}, only {', '.join(record.values)}")
        missing = next((item for item in items if item not in own), None)
        extra = next((item for item in own if item not in items), None) if len(own) != len(items) else None
        if missing is not None or extra is not None:
            raise DataError(
                f"{record.where}: point {record.point!r} {'lacks' if missing is not None else 'alone has'} {name} of "
                f"item {missing if missing is not None else extra}; all points are measured on the same items"
            )
        columns.append([own[item] for item in items])
    return np.array(columns, dtype=np.float64).T
