"""Users' prompt files are read, or refused with a reason that names the file and the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignlab.core.errors import DataError
from alignlab.data import prompts
from alignlab.data.prompts import read_prompt_file


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def test_text_file_gives_one_record_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.txt", "\ufeffFirst prompt\r\n\r\n  Zweite Frage: schön? \nThird\u2028still third")
    records = read_prompt_file(path)
    assert [r.prompt for r in records] == ["First prompt", "Zweite Frage: schön?", "Third\u2028still third"]
    assert [r.id for r in records] == ["mine-1", "mine-3", "mine-4"]
    assert {(r.category, r.split) for r in records} == {("user", "heldout")}


def test_jsonl_file_keeps_the_fields_it_has(tmp_path: Path) -> None:
    rows = [
        {"prompt": " spaces stay "},
        {"prompt": "b", "id": "x", "category": "c", "split": "train", "reference": "r", "keywords": ["k"]},
        {"prompt": "c", "reference": None, "keywords": None, "unknown": 1},
    ]
    path = write(tmp_path / "mine.jsonl", "\n".join(map(json.dumps, rows)))
    first, second, third = read_prompt_file(path)
    assert (first.prompt, first.id, first.reference, first.keywords) == (" spaces stay ", "mine-1", None, ())
    assert (second.id, second.category, second.split, second.reference) == ("x", "c", "train", "r")
    assert second.keywords == ("k",)
    assert (third.reference, third.keywords) == (None, ())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "", "empty.txt holds no prompts"),
        ("blank.txt", " \n\t\n", "blank.txt holds no prompts"),
        ("empty.jsonl", "", "empty.jsonl holds no prompts"),
        ("latin.txt", "one\ntw\xf6\n".encode("latin-1"), r"latin.txt, line 2: byte 6 is not UTF-8"),
        ("latin.jsonl", b'{"prompt": "a"}\n\xff\xfe', r"latin.jsonl, line 2: byte 16 is not UTF-8"),
        ("gap.jsonl", '{"prompt": "a"}\n\n{"text": "b"}', r'gap.jsonl, line 3: the field "prompt" is missing.*text'),
        ("broken.jsonl", '{"prompt": "a"}\n{"prompt": ', "broken.jsonl, line 2: not valid JSON"),
        ("list.jsonl", '["a"]', "list.jsonl, line 1: got list"),
        ("deep.jsonl", "[" * 100_000, "deep.jsonl, line 1: not valid JSON"),
        ("number.jsonl", '{"prompt": 3}', "line 1: prompt is 3, expected a non-empty string"),
        ("void.jsonl", '{"prompt": "  "}', "line 1: prompt is '  ', expected"),
        ("half.jsonl", '{"prompt": "\\ud800"}', "line 1: prompt holds half of a surrogate pair"),
        ("split.jsonl", '{"prompt": "a", "split": "test"}', "line 1: split is 'test', allowed: train, heldout"),
        ("words.jsonl", '{"prompt": "a", "keywords": "k"}', "line 1: keywords is 'k', expected a list"),
        ("twice.jsonl", '{"prompt": "a", "id": "i"}\n{"prompt": "b", "id": "i"}', "id 'i' occurs twice"),
        ("table.csv", "prompt\na", r"table.csv is not a prompt file.*\.txt .*\.jsonl"),
    ],
)
def test_bad_files_are_refused_with_file_and_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_prompt_file(write(tmp_path / name, content))


def test_missing_file_and_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    for name in ("nowhere.txt", "folder.txt"):
        with pytest.raises(DataError, match=f"{name} is not a file"):
            read_prompt_file(tmp_path / name)


def test_too_large_file_or_prompt_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "MAX_PROMPT_CHARACTERS", 10)
    path = write(tmp_path / "long.txt", "short\n" + "x" * 11)
    with pytest.raises(DataError, match=r"long.txt, line 2: the prompt has 11 characters, the limit is 10"):
        read_prompt_file(path)
    monkeypatch.setattr(prompts, "MAX_FILE_BYTES", 16)
    with pytest.raises(DataError, match=r"long.txt is larger than"):
        read_prompt_file(path)


@given(content=st.binary(max_size=200), suffix=st.sampled_from([".txt", ".jsonl"]))
def test_any_bytes_give_records_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = write(tmp_path_factory.getbasetemp() / f"fuzz{suffix}", content)
    prompts_or_reason: list[str]
    try:
        prompts_or_reason = [record.prompt for record in read_prompt_file(path)]
    except DataError as error:
        prompts_or_reason = [str(error) if path.name in str(error) else ""]
    assert prompts_or_reason
    assert all(text.strip() for text in prompts_or_reason)
