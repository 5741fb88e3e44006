"""The benchmark's public format: JSON lines of "key", "prompt", "instruction_id_list" and "kwargs"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignlab.core.errors import DataError
from alignlab.core.files import json_rows
from alignlab.tasks.ifeval.registry import find
from alignlab.tasks.task import Sample

FIELDS = ("key", "prompt", "instruction_id_list", "kwargs")


def read_ifeval(path: str | Path) -> list[Sample]:
    """One sample a line: the key as its id, the prompt as a user's message, the instructions in its metadata.

    Blank lines are skipped; fields beyond the four are ignored. Raises DataError naming line and field for a row that
    is malformed, an instruction that is unknown, an argument that is missing or not allowed, or a key that repeats.
    """
    samples: list[Sample] = []
    seen: dict[str, str] = {}
    for where, row in json_rows(path):
        missing = [name for name in FIELDS if name not in row]
        if missing:
            raise DataError(f"{where} lacks the field {missing[0]!r}, allowed: an object with {', '.join(FIELDS)}")
        sample = _sample(row, where)
        if sample.id in seen:
            raise DataError(f"{where}: key {sample.id} is also that of {seen[sample.id]}; keys must be unique")
        seen[sample.id] = where.rpartition(", ")[2]
        samples.append(sample)
    if not samples:
        raise DataError(f"{path} holds no rows; at least one is needed")
    return samples


def _sample(row: dict[str, Any], where: str) -> Sample:
    key, prompt, identifiers, arguments = (row[name] for name in FIELDS)
    if isinstance(key, bool) or not isinstance(key, int | str) or key == "":
        raise DataError(f"{where}: key is {key!r}, allowed: a whole number or a non-empty text")
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{where}: prompt is {prompt!r}, allowed: a text that is not blank")
    if not isinstance(identifiers, list) or not identifiers:
        raise DataError(f"{where}: instruction_id_list is {identifiers!r}, allowed: a non-empty list of identifiers")
    if not isinstance(arguments, list) or not all(isinstance(one, dict) for one in arguments):
        raise DataError(f"{where}: kwargs is {arguments!r}, allowed: a list of objects, one for each instruction")
    if len(arguments) != len(identifiers):
        raise DataError(
            f"{where}: kwargs has {len(arguments)} entries for {len(identifiers)} instructions, allowed: one for each"
        )
    instructions = []
    for place, (identifier, given) in enumerate(zip(identifiers, arguments, strict=True)):
        try:
            instruction = find(identifier)
        except DataError as error:
            raise DataError(f"{where}, instruction_id_list[{place}]: {error}") from error
        try:
            instructions.append({"id": identifier, "arguments": instruction.validated(given)})
        except DataError as error:
            raise DataError(f"{where}, kwargs[{place}]: {error}") from error
    return Sample(str(key), [{"role": "user", "content": prompt}], metadata={"instructions": instructions})
