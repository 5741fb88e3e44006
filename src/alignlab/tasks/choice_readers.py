"""Multiple-choice data sets in the formats that they are published in, as `ChoiceItem`s.

Every reader takes a file and says of a row that it cannot read which line and which field is wrong; none is skipped.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignlab.core.errors import DataError
from alignlab.core.files import json_rows
from alignlab.tasks.choice import LETTERS, ChoiceItem

Row = dict[str, Any]


def read_mmlu(path: str | Path) -> list[ChoiceItem]:
    """MMLU (Hendrycks et al. 2021): CSV without a header, question, four choices, letter; the category is the file's
    name without `_dev`, `_val` or `_test`."""
    path = Path(path)
    subject = path.stem
    for split in ("_dev", "_val", "_test"):
        subject = subject.removesuffix(split)
    items = []
    for number, row in enumerate(csv.reader(_text(path).splitlines(keepends=True)), start=1):
        where = f"{path}, row {number}"
        if not row:
            continue
        if len(row) != 6:
            raise DataError(f"{where} has {len(row)} fields, allowed: 6 (question, four choices, answer)")
        answer = _letter(row[5].strip(), 4, f"{where}, field 6 (answer)")
        items.append(_item(where, f"{path.stem}-{number}", row[0].strip(), tuple(row[1:5]), answer, subject))
    return _some(items, path)


def read_arc(path: str | Path) -> list[ChoiceItem]:
    """ARC (Clark et al. 2018) in JSONL, as the AI2 files and the hub have it: `question` (text, or an object with
    `stem` and `choices`), `choices` (`text` and `label`), `answerKey` (A to E, or 1 to 5). Also rows with `query`,
    `choices` and `gold`."""
    return _jsonl(path, _arc_row)


def read_hellaswag(path: str | Path) -> list[ChoiceItem]:
    """HellaSwag (Zellers et al. 2019) in JSONL: `activity_label`, `ctx_a`, `ctx_b`, `endings`, `label`.

    The question is prepared as lm-evaluation-harness does: activity, then the context, brackets and `[title]` removed.
    """
    return _jsonl(path, _hellaswag_row)


def read_piqa(path: str | Path, labels: str | Path) -> list[ChoiceItem]:
    """PIQA (Bisk et al. 2020): JSONL with `goal`, `sol1`, `sol2`, and a file of labels, 0 or 1 a line."""
    given = _text(Path(labels)).split()
    items = _jsonl(path, lambda row, where, number: _piqa_row(row, where, number, given, Path(labels)))
    if len(given) != len(items):
        raise DataError(f"{labels} has {len(given)} labels, {path} has {len(items)} rows")
    return items


def read_winogrande(path: str | Path) -> list[ChoiceItem]:
    """WinoGrande (Sakaguchi et al. 2020) in JSONL: `sentence` with one `_`, `option1`, `option2`, `answer` (1 or 2).

    The question is the sentence up to the gap, the choices are both options with all that follows. What tells them
    apart is then mostly the option itself; lm-evaluation-harness scores only what follows it, after either option.
    """
    return _jsonl(path, _winogrande_row)


def read_truthfulqa(path: str | Path) -> list[ChoiceItem]:
    """TruthfulQA's first multiple-choice form (Lin et al. 2022) from its CSV: the best answer against the incorrect
    ones, the best always first; the category is `Category`."""
    path = Path(path)
    items = []
    for number, row in enumerate(csv.DictReader(_text(path).splitlines(keepends=True)), start=2):
        where = f"{path}, row {number}"
        question, best = _string(row, "Question", where), _string(row, "Best Answer", where)
        wrong = [text.strip() for text in _string(row, "Incorrect Answers", where).split(";") if text.strip()]
        wrong = [text for text in dict.fromkeys(wrong) if text != best]
        category = row.get("Category") or None
        items.append(_item(where, f"{path.stem}-{number}", question, (best, *wrong), 0, category))
    return _some(items, path)


def _arc_row(row: Row, where: str, number: int) -> ChoiceItem:
    name = str(row.get("id", number))
    if "query" in row:
        question = _string(row, "query", where).removeprefix("Question: ")
        return _item(where, name, question, tuple(_strings(row, "choices", where)), _index(row, "gold", where), None)
    nested = row.get("question")
    outer: Row = nested if isinstance(nested, dict) else row
    question = _string(outer, "stem" if isinstance(nested, dict) else "question", where)
    choices = outer.get("choices")
    if isinstance(choices, list):
        choices = {key: [one.get(key) for one in choices if isinstance(one, dict)] for key in ("text", "label")}
    if not isinstance(choices, dict):
        raise DataError(f"{where}: field 'choices' is {choices!r}, allowed: texts with their labels")
    texts, labels = _strings(choices, "text", f"{where}, choices"), _strings(choices, "label", f"{where}, choices")
    key = _string(row, "answerKey", where)
    if key not in labels:
        raise DataError(f"{where}: field 'answerKey' is {key!r}, allowed: {', '.join(labels)}")
    return _item(where, name, question, tuple(texts), labels.index(key), None)


def _hellaswag_row(row: Row, where: str, number: int) -> ChoiceItem:
    context = f"{_string(row, 'ctx_a', where)} {str(row.get('ctx_b', '')).capitalize()}"
    question = _cleaned(f"{_string(row, 'activity_label', where)}: {context}")
    endings = tuple(_cleaned(ending) for ending in _strings(row, "endings", where))
    name = str(row.get("ind", number))
    source = row.get("source_id")
    return _item(where, name, question, endings, _index(row, "label", where), row.get("split_type"), source)


def _cleaned(text: str) -> str:
    """Without WikiHow's marks: `[title]` starts a sentence, other brackets hold editors' notes."""
    text = text.strip().replace(" [title]", ". ")
    while "[" in text and "]" in text[text.index("[") :]:
        start = text.index("[")
        text = text[:start] + text[text.index("]", start) + 1 :]
    return text.replace("  ", " ")


def _piqa_row(row: Row, where: str, number: int, labels: list[str], path: Path) -> ChoiceItem:
    label = labels[number - 1] if number <= len(labels) else None
    if label not in ("0", "1"):
        raise DataError(f"{path}, line {number}: the label is {label!r}, allowed: 0 or 1")
    choices = (_string(row, "sol1", where), _string(row, "sol2", where))
    return _item(where, str(row.get("id", number)), _string(row, "goal", where), choices, int(label), None)


def _winogrande_row(row: Row, where: str, number: int) -> ChoiceItem:
    sentence = _string(row, "sentence", where)
    if sentence.count("_") != 1:
        raise DataError(f"{where}: field 'sentence' has {sentence.count('_')} gaps (_), allowed: one")
    before, after = sentence.split("_")
    answer = str(row.get("answer"))
    if answer not in ("1", "2"):
        raise DataError(f"{where}: field 'answer' is {answer!r}, allowed: 1 or 2")
    choices = tuple(_string(row, name, where) + after for name in ("option1", "option2"))
    return _item(where, str(row.get("qID", number)), before.strip(), choices, int(answer) - 1, None)


def _item(
    where: str,
    name: str,
    question: str,
    choices: tuple[str, ...],
    answer: int,
    category: str | None,
    cluster: str | None = None,
) -> ChoiceItem:
    if not question.strip():
        raise DataError(f"{where}: the question is empty")
    try:
        return ChoiceItem(name, question, choices, answer, category, cluster)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _jsonl(path: str | Path, parse: Callable[[Row, str, int], ChoiceItem]) -> list[ChoiceItem]:
    path = Path(path)
    return _some([parse(row, where, number) for number, (where, row) in enumerate(json_rows(path), start=1)], path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None


def _some(items: list[ChoiceItem], path: Path) -> list[ChoiceItem]:
    if not items:
        raise DataError(f"{path} has no items")
    return items


def _string(row: Row, field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: field {field!r} is {value!r}, allowed: text")
    return value


def _strings(row: Row, field: str, where: str) -> list[str]:
    value = row.get(field)
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise DataError(f"{where}: field {field!r} is {value!r}, allowed: a list of texts")
    return value


def _index(row: Row, field: str, where: str) -> int:
    value = row.get(field)
    try:
        return int(str(value))
    except ValueError:
        raise DataError(f"{where}: field {field!r} is {value!r}, allowed: the number of a choice") from None


def _letter(value: str, n: int, where: str) -> int:
    if value not in tuple(LETTERS[:n]):
        raise DataError(f"{where} is {value!r}, allowed: {', '.join(LETTERS[:n])}")
    return LETTERS.index(value)
