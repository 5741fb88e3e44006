"""Prompt sets: the packaged ones, labelled pairs, held-out prose, and files that a user brings.

The packaged sets were written for alignlab (see ``prompts/PROVENANCE.md``). Each record belongs to one of two fixed
splits: a pipeline may train on ``train`` and must measure on ``heldout``. Inside a file the categories alternate, so
the first n records of a split are as balanced as n allows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from alignlab.core.errors import ConfigError, DataError

PromptSet = Literal["harmful", "benign", "helpful"]
Split = Literal["train", "heldout"]

PROMPT_SETS: tuple[str, ...] = ("harmful", "benign", "helpful")
SPLITS: tuple[str, ...] = ("train", "heldout")
MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_PROMPT_CHARACTERS = 100_000


@dataclass(frozen=True)
class PromptRecord:
    """One prompt of a packaged set or of a user's file."""

    id: str
    """Unique within its file."""
    category: str
    """What kind of request it is; ``"user"`` where a user's file names none."""
    prompt: str
    """The text that the model is asked."""
    split: str
    """``"train"`` or ``"heldout"``."""
    reference: str | None = None
    """A short correct answer, where the set has them."""
    keywords: tuple[str, ...] = ()
    """Lower-case word beginnings of which a correct answer contains at least one; none of them is in the prompt."""


@dataclass(frozen=True)
class LabelledPair:
    """Two answers to one prompt, written to be harmless and harmful: used to measure judges, never to train."""

    id: str
    category: str
    prompt: str
    harmless: str
    """Declines with consideration, or gives safe partial help."""
    harmful: str
    """Goes along with the request in tone, without any detail that could be acted on."""


def load_prompts(name: PromptSet, split: Split | None = None) -> list[PromptRecord]:
    """Return the packaged prompt set ``name``, or one split of it, in file order.

    Raises:
        ConfigError: unknown name or split.
    """
    if name not in PROMPT_SETS:
        raise ConfigError(f"prompt set is {name!r}, allowed: {', '.join(PROMPT_SETS)}")
    if split is not None and split not in SPLITS:
        raise ConfigError(f"split is {split!r}, allowed: {', '.join(SPLITS)} or None")
    return [record for record in _packaged_records(name) if split is None or record.split == split]


def categories(name: PromptSet) -> tuple[str, ...]:
    """Return the categories of a packaged set in the order in which they first occur."""
    return tuple(dict.fromkeys(record.category for record in load_prompts(name)))


def load_pairs() -> list[LabelledPair]:
    """Return the labelled pairs on which feedback methods and judges are measured."""
    return list(_packaged_pairs())


def mentions_keyword(text: str, keywords: Sequence[str]) -> bool:
    """Whether ``text`` has a word that begins with one of ``keywords``, ignoring case.

    Keywords are beginnings of words (``"apolog"`` finds *apologise*), but a number must match as a whole: ``"8"``
    finds neither 18 nor 80.
    """
    for keyword in keywords:
        end = r"(?!\d)" if keyword[-1:].isdigit() else ""
        if re.search(rf"(?<!\w){re.escape(keyword)}{end}", text, flags=re.IGNORECASE):
            return True
    return False


def heldout_text() -> list[str]:
    """Return prose written for alignlab, one string a text: for bits per byte on text that nobody trained on."""
    folder = files("alignlab.data").joinpath("heldout")
    texts = sorted((entry.name, entry) for entry in folder.iterdir() if entry.name.endswith(".txt"))
    return [entry.read_text(encoding="utf-8").strip() for _, entry in texts]


def read_prompt_file(path: str | Path) -> list[PromptRecord]:
    """Read a user's prompts: ``.txt`` with one prompt a line, or ``.jsonl`` with a ``prompt`` field in each object.

    Blank lines are skipped. JSONL objects may also carry ``id``, ``category``, ``split``, ``reference`` and
    ``keywords``. Where they do not, the id is the file's stem with the line number, the category is ``"user"`` and
    the split is ``"heldout"``, because a user's prompts are measured and not trained on unless they say so.

    Raises:
        DataError: no such file, other ending, too large, not UTF-8, no prompts, or a bad line (the message names it).
    """
    path = Path(path)
    text = _read_text(path)
    rows = ((number, line) for number, line in enumerate(_lines(text), start=1) if line.strip())
    if path.suffix.lower() == ".txt":
        # From a text file only the words count; surrounding blanks are nearly always an accident of editing.
        parsed: Iterable[tuple[int, dict[str, Any]]] = ((number, {"prompt": line.strip()}) for number, line in rows)
    else:
        parsed = ((number, _json_object(line, f"{path}, line {number}")) for number, line in rows)
    records = [
        _record(row, f"{path}, line {number}", fallback_id=f"{path.stem}-{number}", split="heldout")
        for number, row in parsed
    ]
    if not records:
        raise DataError(f"{path} holds no prompts; put one prompt on each line")
    _require_unique_ids(records, path)
    return records


@cache
def _packaged_records(name: str) -> tuple[PromptRecord, ...]:
    return tuple(_record(row, where, split=None) for where, row in _packaged_rows(f"{name}.jsonl"))


@cache
def _packaged_pairs() -> tuple[LabelledPair, ...]:
    fields = ("id", "category", "prompt", "harmless", "harmful")
    return tuple(
        LabelledPair(**{field: _string(row, field, where) for field in fields})
        for where, row in _packaged_rows("pairs.jsonl")
    )


def _packaged_rows(file_name: str) -> Iterable[tuple[str, dict[str, Any]]]:
    resource = files("alignlab.data").joinpath("prompts", file_name)
    for number, line in enumerate(_lines(resource.read_text(encoding="utf-8")), start=1):
        if line.strip():
            where = f"{file_name}, line {number}"
            yield where, _json_object(line, where)


def _lines(text: str) -> list[str]:
    # Not str.splitlines(): JSON text may carry U+2028 and friends unescaped inside a string.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _read_text(path: Path) -> str:
    if path.suffix.lower() not in (".txt", ".jsonl"):
        raise DataError(f"{path} is not a prompt file: its name must end in .txt (a prompt a line) or .jsonl")
    if not path.is_file():
        raise DataError(f"{path} is not a file; give the path of a .txt or .jsonl file with prompts")
    try:
        with path.open("rb") as stream:
            # The limit is applied while reading, so that a pipe or a growing file cannot fill the memory.
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{path} is larger than {MAX_FILE_BYTES // 1024**2} MiB, the limit for a prompt file; split it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from error


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f'{where}: not valid JSON, expected an object such as {{"prompt": "..."}}') from error
    if not isinstance(row, dict):
        raise DataError(f'{where}: got {type(row).__name__}, expected an object such as {{"prompt": "..."}}')
    return row


def _record(
    row: dict[str, Any], where: str, *, fallback_id: str | None = None, split: str | None = None
) -> PromptRecord:
    prompt = _string(row, "prompt", where)
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise DataError(f"{where}: the prompt has {len(prompt)} characters, the limit is {MAX_PROMPT_CHARACTERS}")
    chosen_split = _string(row, "split", where, default=split)
    if chosen_split not in SPLITS:
        raise DataError(f"{where}: split is {chosen_split!r}, allowed: {', '.join(SPLITS)}")
    keywords = row.get("keywords") if row.get("keywords") is not None else []
    if not isinstance(keywords, list) or not all(isinstance(word, str) and word for word in keywords):
        raise DataError(f"{where}: keywords is {keywords!r}, expected a list of non-empty strings")
    return PromptRecord(
        id=_string(row, "id", where, default=fallback_id),
        category=_string(row, "category", where, default="user" if fallback_id else None),
        prompt=prompt,
        split=chosen_split,
        reference=_string(row, "reference", where) if row.get("reference") is not None else None,
        keywords=tuple(keywords),
    )


def _string(row: dict[str, Any], field: str, where: str, default: str | None = None) -> str:
    value = row.get(field, default)
    if value is None:
        raise DataError(f'{where}: the field "{field}" is missing; fields found: {", ".join(map(str, row)) or "none"}')
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {field} is {value!r}, expected a non-empty string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON escapes can spell half of a surrogate pair, which no tokenizer accepts
        raise DataError(f"{where}: {field} holds half of a surrogate pair; write the whole character") from error
    return value


def _require_unique_ids(records: list[PromptRecord], path: Path) -> None:
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise DataError(f"{path}: the id {record.id!r} occurs twice; ids must be unique")
        seen.add(record.id)
