"""Files of preferences: JSON lines (also gzipped), a JSON list or Parquet; what is broken is told by line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.align.preference_data.formats import FORMATS, recognise
from alignlab.align.preference_data.rows import PreferenceRow
from alignlab.core.config import require
from alignlab.core.errors import DataError
from alignlab.tasks.pair_rows import every_row

if TYPE_CHECKING:
    from alignlab.align.pairs import PreferencePair

TOLD = 3
"""Broken rows that an error quotes; the others are counted."""


@dataclass(frozen=True)
class BrokenRow:
    """A row that says no preference, and why."""

    where: str
    """`line 7`, or `row 7` of a list or of Parquet."""
    reason: str


@dataclass(frozen=True)
class Reading:
    """What is in a file."""

    path: Path
    format: str
    rows: tuple[tuple[str, PreferenceRow], ...]
    """Each after the words for where it stands."""
    broken: tuple[BrokenRow, ...]


def read_preferences(path: str | Path, format: str = "auto") -> Reading:
    """All rows of a file, those that are broken apart. `auto` takes the format that the first rows look like.

    Raises:
        DataError: no such file, no rows, a format that cannot be told, or a file that cannot be read to its end.
    """
    require(format == "auto" or format in FORMATS, "format", format, f"auto, {', '.join(FORMATS)}")
    path = Path(path)
    rows: list[tuple[str, PreferenceRow]] = []
    broken: list[BrokenRow] = []
    raw = list(every_row(path))
    if not raw:
        raise DataError(f"{path} has no rows")
    name = format if format != "auto" else _told_format(path, [row for _, row in raw if isinstance(row, dict)])
    read = FORMATS[name]
    for where, row in raw:
        try:
            if isinstance(row, DataError):
                raise row
            rows.append((where, read(row)))
        except DataError as error:
            broken.append(BrokenRow(where, str(error)))
    return Reading(path, name, tuple(rows), tuple(broken))


def _told_format(path: Path, rows: list[dict[str, Any]]) -> str:
    name = next((found for row in rows[:20] if (found := recognise(row)) is not None), None)
    if name is None:
        fields = ", ".join(sorted(rows[0])[:8]) if rows else "nothing that is JSON"
        raise DataError(
            f"{path} has rows of no format that is known (fields: {fields}); name one of {', '.join(FORMATS)}"
        )
    return name


def refuse_broken(reading: Reading, broken: tuple[BrokenRow, ...] | None = None) -> None:
    """Raise DataError that quotes the first broken rows, if there are any."""
    found = reading.broken if broken is None else broken
    if found:
        quoted = "; ".join(f"{row.where}: {row.reason}" for row in found[:TOLD])
        more = f"; and {len(found) - TOLD} more" if len(found) > TOLD else ""
        raise DataError(
            f"{reading.path} has {len(found)} broken rows among {len(reading.rows) + len(reading.broken)} "
            f"({quoted}{more}); nothing was taken, the others can be with skip_broken"
        )


def read_pairs(
    path: str | Path, format: str = "auto", *, skip_broken: bool = False, ties: bool = False
) -> list[PreferencePair]:
    """The pairs to train on in a file, without a store. `skip_broken` leaves broken rows out instead of refusing.

    Raises DataError as `read_preferences`, and where rows are broken or no pair is left.
    """
    reading = read_preferences(path, format)
    if not skip_broken:
        refuse_broken(reading)
    found = [pair for _, row in reading.rows for pair in row.pairs(ties=ties)]
    if not found:
        raise DataError(f"{path} has no pair of which one answer is preferred")
    return found
