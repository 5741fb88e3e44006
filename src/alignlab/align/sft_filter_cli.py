"""`alignlab data filter`: what is wrong with a file of conversations, and the file without it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignlab.align.sft_filter_settings import DEFAULT, FilterSettings
from alignlab.core.config import parse_cli, require
from alignlab.core.errors import DataError

if TYPE_CHECKING:
    from alignlab.align.sft_data import Reading
    from alignlab.align.sft_filters import Filtered
    from alignlab.core.progress import Progress


@dataclass(frozen=True)
class FilterCommand:
    """Look for bad records in a JSONL file for fine-tuning: say how many of each kind, show some, and with --out write
    what is left, and beside it what was dropped and why. Without --out nothing is written."""

    data: Path
    """JSONL as `alignlab sft` reads it; may be gzipped."""
    out: Path | None = None
    """Where to write the records that stay; NAME.dropped.jsonl and NAME.report.json go beside it."""
    filters: tuple[str, ...] = DEFAULT
    """Which filters run, in this order. Others: language, contamination, perplexity, reward."""
    filter: FilterSettings = field(default_factory=FilterSettings)
    """Where they draw their lines."""
    learn: Literal["all", "last"] = "all"
    """The assistant's turns of a conversation that are looked at."""
    show: int = 3
    """Examples shown of what each filter caught."""

    def __post_init__(self) -> None:
        require(len(self.filters) > 0, "filters", self.filters, "at least one")
        require(self.show >= 0, "show", self.show, "0 or a positive whole number")


def filter_data(argv: list[str]) -> int:
    """The `alignlab data filter` command; returns its exit code."""
    from alignlab.align.sft_data import Reading
    from alignlab.align.sft_filters import check_filters
    from alignlab.core.files import append_jsonl, atomic_write
    from alignlab.core.progress import Progress

    command = parse_cli(FilterCommand, argv, prog="alignlab data filter", first="data")
    check_filters(command.filters, command.filter)
    places = [] if command.out is None else _places(command.out)
    found = filtered_file(
        command.data, command.filters, command.filter, reading=Reading(command.learn), progress=Progress()
    )
    print(account(found, command.show))
    if not places:
        return 0
    report = {"data": str(command.data), **found.summary()}
    rows = ([record.given for record in found.kept], [caught.row() for caught in found.dropped])
    for place, part in zip(places, rows, strict=False):
        atomic_write(place, "")
        append_jsonl(place, part)
    atomic_write(places[2], json.dumps(report, indent=2) + "\n")
    print("\n".join(f"{what:<8} {place}" for what, place in zip(("kept", "dropped", "report"), places, strict=True)))
    return 0


def filtered_file(
    path: Path,
    names: Sequence[str],
    settings: FilterSettings,
    *,
    reading: Reading | None = None,
    progress: Progress | None = None,
) -> Filtered:
    """The records of a JSONL file after the filters `names`. Raises what `read_records` and `run_filters` do."""
    from alignlab.align.sft_data import read_records
    from alignlab.align.sft_filters import Record, run_filters

    records = [Record(*record) for record in read_records(path, reading)]
    return run_filters(records, names, settings, progress=progress)


def account(found: Filtered, show: int = 3) -> str:
    """What each filter did, with up to `show` examples of each, as lines of text."""
    total = len(found.kept) + len(found.dropped)
    lines = [f"{'filter':<14}{'seen':>8}{'dropped':>9}{'undecided':>11}"]
    for count in found.counts:
        lines.append(f"{count.name:<14}{count.seen:>8}{count.dropped:>9}{count.undecided or '':>11}")
        caught = [one for one in found.dropped if one.filter == count.name]
        for one in caught[:show]:
            said = " ".join(" / ".join(one.record.answers).split())
            lines.append(f"    line {one.record.line}: {one.reason}: {json.dumps(said[:60], ensure_ascii=False)}")
        if len(caught) > show > 0:
            lines.append(f"    and {len(caught) - show} more")
    lines.append(f"{len(found.kept)} of {total} records stay ({len(found.kept) / total:.1%})")
    return "\n".join(lines)


def _places(out: Path) -> list[Path]:
    """Where what stays, what was dropped and the report go; DataError where one of them is there already."""
    stem = out.name.removesuffix(".jsonl")
    places = [out, out.with_name(f"{stem}.dropped.jsonl"), out.with_name(f"{stem}.report.json")]
    for place in places:
        if place.exists():
            raise DataError(f"{place} is there already and is not written over; give another --out, or move it away")
    if not out.parent.is_dir():
        raise DataError(f"{out.parent} is no folder, so {out.name} cannot be written there")
    return places


def data(argv: list[str]) -> int:
    """The `alignlab data` command: `filter` here, everything else in the room of language models."""
    from alignlab.lm.data_cli import data as texts

    if argv[:1] == ["filter"]:
        return filter_data(argv[1:])
    return texts(argv)


def record_filters(run: Any, found: Filtered) -> None:
    """Write what the filters did to a run's artifacts: `filters.json` and `dropped.jsonl`."""
    run.write_artifact("filters.json", found.summary())
    rows = "".join(json.dumps(caught.row(), ensure_ascii=False) + "\n" for caught in found.dropped)
    run.write_artifact("dropped.jsonl", rows)
