"""Accuracy by what a comparison is like: lengths, turns, margin, objective, or any column of the file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignlab.align.pairs import PreferencePair
from alignlab.align.reward.examples import RewardPair, dialogues
from alignlab.core.errors import DataError
from alignlab.core.files import json_rows, read_json
from alignlab.stats.interval import Interval
from alignlab.stats.paired import mean_interval

MOST_NAMES = 12
"""Values of a column that are told apart; the rarer ones together are `other`."""
PARTS = 4
"""Bins of a number, of about equal size."""


@dataclass(frozen=True)
class SliceGroup:
    """Accuracy in parts that together hold every comparison with a value."""

    name: str
    """What the comparisons are parted by."""
    slices: dict[str, Interval]
    """Accuracy by part, with intervals by dialogue."""
    macro: Interval
    """Mean of the parts, each counting alike (RewardBench, Lambert et al. 2024, scores so)."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        parts = {name: value.as_dict() for name, value in self.slices.items()}
        return {"name": self.name, "slices": parts, "macro": self.macro.as_dict()}

    def lines(self) -> list[str]:
        """For the terminal."""
        width = max(map(len, [*self.slices, "mean of these"]))
        rows = [*self.slices.items(), ("mean of these", self.macro)]
        return [f"by {self.name}", *(f"  {name:<{width}}  {value}" for name, value in rows)]


def right_shares(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where the chosen side has the higher reward, one half where both are equal, 0 otherwise: (pairs,)."""
    return np.asarray((margins > 0) + 0.5 * (margins == 0), dtype=np.float64)


def slice_accuracy(
    margins: NDArray[np.float64],
    pairs: Sequence[PreferencePair],
    *,
    columns: Mapping[str, Sequence[object]] | None = None,
    seed: int = 0,
) -> list[SliceGroup]:
    """Accuracy of margins (reward of the chosen less that of the rejected side) by everything known of the pairs.

    `columns` holds further values, one a pair, None where there is none: names are told apart as they are, numbers of
    more than `MOST_NAMES` values in quarters. Groups that leave one part are left out. Raises DataError where margins,
    pairs and columns do not fit.
    """
    if len(margins) != len(pairs) or not len(pairs):
        raise DataError(f"got {len(margins)} margins and {len(pairs)} pairs, right is one each, at least one")
    right, groups = right_shares(margins), np.array(dialogues(pairs))
    labels = {**described(pairs), "size of the margin": in_quarters(np.abs(margins), "nats")}
    for name, values in (columns or {}).items():
        if len(values) != len(pairs):
            raise DataError(f"column {name!r} has {len(values)} values for {len(pairs)} pairs")
        labels[name] = of_column(values)
    found = []
    for name, parts in labels.items():
        known = np.array([part is not None for part in parts])
        order = dict.fromkeys(sorted((p for p in parts if p is not None), key=_first_number))
        if len(order) >= 2:
            where = {part: np.array([p == part for p in parts]) for part in order}
            found.append(_group(name, where, known, right, groups, seed))
    return found


def _group(
    name: str,
    where: Mapping[str, NDArray[np.bool_]],
    known: NDArray[np.bool_],
    right: NDArray[np.float64],
    groups: NDArray[np.int64],
    seed: int,
) -> SliceGroup:
    slices = {
        part: mean_interval(right[inside], clusters=groups[inside].tolist(), n_resamples=2000, seed=seed)
        for part, inside in where.items()
    }
    # The mean of the parts' means is a mean of all items, those of small parts weighing more.
    weight = np.zeros(len(right))
    for inside in where.values():
        weight[inside] = known.sum() / (len(where) * inside.sum())
    macro = mean_interval(
        (weight * right)[known], clusters=groups[known].tolist(), limits=None, n_resamples=2000, seed=seed
    )
    return SliceGroup(name, slices, macro)


def described(pairs: Sequence[PreferencePair]) -> dict[str, list[str | None]]:
    """The part of each pair by length of chosen and rejected, prompt, turns, label and objective."""
    found: dict[str, list[str | None]] = {
        "length of chosen beside rejected": [_length_part(pair) for pair in pairs],
        "length of the prompt": in_quarters([_prompt_length(pair) for pair in pairs], "characters"),
        "requests so far": [_turns_part(pair) for pair in pairs],
    }
    full = [pair if isinstance(pair, RewardPair) else None for pair in pairs]
    if any(pair is not None and pair.objective for pair in full):
        found["objective"] = of_column([(pair.objective or None) if pair else None for pair in full])
    if any(pair is not None and pair.margin for pair in full):
        found["margin of the label"] = in_quarters([pair.margin if pair else 0.0 for pair in full], "nats")
    return found


def _length_part(pair: PreferencePair) -> str:
    ratio = (1 + len(pair.chosen)) / (1 + len(pair.rejected))
    bounds = ((0.5, "1. under half"), (1 / 1.1, "2. shorter"), (1.1, "3. about equal"), (2.0, "4. longer"))
    return next((name for bound, name in bounds if ratio < bound), "5. twice and more")


def _prompt_length(pair: PreferencePair) -> float:
    return float(len(pair.prompt) if isinstance(pair.prompt, str) else sum(len(m["content"]) for m in pair.prompt))


def _turns_part(pair: PreferencePair) -> str:
    turns = 1 if isinstance(pair.prompt, str) else sum(m["role"] == "user" for m in pair.prompt)
    return str(turns) if turns < 4 else "4 and more"


def in_quarters(values: Sequence[float] | NDArray[np.float64], unit: str = "") -> list[str | None]:
    """The bin of each number, by its limits; equal numbers are never parted, what is not finite has no bin."""
    numbers = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(numbers)
    if not finite.any():
        return [None] * len(numbers)
    edges = np.unique(np.quantile(numbers[finite], np.arange(1, PARTS) / PARTS, method="inverted_cdf"))
    codes = np.searchsorted(edges, numbers, side="left")
    names = {}
    for code in set(codes[finite].tolist()):
        inside = numbers[finite & (codes == code)]
        low, high = float(inside.min()), float(inside.max())
        span = _short(low) if low == high else f"{_short(low)} to {_short(high)}"
        names[code] = f"{span} {unit}".strip()
    return [names[code] if ok else None for code, ok in zip(codes.tolist(), finite.tolist(), strict=True)]


def _short(number: float) -> str:
    return f"{0.0 if abs(number) < 1e-3 else number:.4g}"


def of_column(values: Sequence[object]) -> list[str | None]:
    """The part of each value: numbers of many values in quarters, anything else by its name, rare ones as `other`."""
    known = [value for value in values if value is not None]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
    if known and numbers and len(set(known)) > MOST_NAMES:
        return in_quarters([math.nan if v is None else float(v) for v in values])  # type: ignore[arg-type]
    counts: dict[str, int] = {}
    for value in known:
        counts[str(value)] = counts.get(str(value), 0) + 1
    frequent = sorted(counts, key=lambda name: -counts[name])
    kept = set(frequent if len(frequent) <= MOST_NAMES else frequent[: MOST_NAMES - 1])
    return [None if value is None else str(value) if str(value) in kept else "other" for value in values]


def read_columns(path: str | Path, names: Sequence[str], *, most: int | None = None) -> dict[str, list[object]]:
    """Further columns of a file of comparisons, in the order in which `read_pairs` gives them; DataError for a name
    that no record has."""
    records = read_json(path) if Path(path).suffix == ".json" else [row for _, row in json_rows(path)]
    records = records[:most]
    found: dict[str, list[object]] = {name: [record.get(name) for record in records] for name in names}
    for name, values in found.items():
        if all(value is None for value in values):
            known = ", ".join(dict.fromkeys(key for record in records for key in record))
            raise DataError(f"no record of {path} has a column {name!r}, there are: {known}")
        if any(isinstance(value, list | dict) for value in values):
            raise DataError(f"column {name!r} of {path} holds lists or objects, allowed: text and numbers")
    return found


def _first_number(part: str) -> tuple[int, float, str]:
    """Bins in the order of their numbers, names after them in alphabetical order, `other` last."""
    head = part.split(" ")[0].rstrip(".")
    try:
        return (0, float(head), part)
    except ValueError:
        return (2 if part == "other" else 1, 0.0, part)
