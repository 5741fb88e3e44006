"""Files of preferences: formats of others read and written, broken rows told by line, imports that double nothing."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignlab.align.pairs import PreferencePair
from alignlab.align.preference_data.collector import PreferenceCollector
from alignlab.align.preference_data.exporting import WRITERS, export_preferences, pair_rows
from alignlab.align.preference_data.formats import FORMATS, recognise
from alignlab.align.preference_data.importing import import_preferences
from alignlab.align.preference_data.reading import read_pairs, read_preferences
from alignlab.core.errors import ConfigError, DataError
from alignlab.core.store import Store, open_store

USER = [{"role": "user", "content": "Say hi"}]
GOOD, BAD = [{"role": "assistant", "content": "hi"}], [{"role": "assistant", "content": "no"}]
SUMMARY = {
    "info": {"id": "t3_1", "post": "Long story.", "title": "Help", "subreddit": "advice"},
    "summaries": [{"text": " a cat", "policy": "ref"}, {"text": " a dog", "policy": "sup4"}],
    "choice": 1, "worker": "w7", "split": "train", "extra": {"confidence": 8},
}  # fmt: skip
ROWS: dict[str, tuple[dict[str, Any], str, list[tuple[Any, str, str]]]] = {
    "hh": (
        {"chosen": "\n\nHuman: Say hi\n\nAssistant: hi", "rejected": "\n\nHuman: Say hi\n\nAssistant: no"},
        "hh-rlhf", [(USER, "hi", "no")],
    ),
    "explicit": ({"prompt": "2+2=", "chosen": "4", "rejected": "5"}, "trl", [("2+2=", "4", "5")]),
    "implicit": ({"chosen": "The sky is blue", "rejected": "The sky is red"}, "trl", [("The sky is", " blue", " red")]),
    "chat": ({"prompt": USER, "chosen": GOOD, "rejected": BAD}, "trl", [(USER, "hi", "no")]),
    "chat implicit": ({"chosen": USER + GOOD, "rejected": USER + BAD}, "trl", [(USER, "hi", "no")]),
    "binarized": (
        {"prompt": "Say hi", "prompt_id": "1", "chosen": USER + GOOD, "rejected": USER + BAD, "score_chosen": 8.0,
         "score_rejected": 3.0},
        "ultrafeedback", [(USER, "hi", "no")],
    ),
    "ultrafeedback": (
        {"source": "evol", "instruction": "Q", "completions": [
            {"model": "m1", "response": "A", "overall_score": 7.0},
            {"model": "m2", "response": "B", "overall_score": 9},
            {"model": "m3", "response": "C", "overall_score": "7"}]},
        "ultrafeedback", [("Q", "B", "A"), ("Q", "B", "C")],
    ),
    "summaries": (
        SUMMARY, "openai-summaries",
        [("SUBREDDIT: r/advice\n\nTITLE: Help\n\nPOST: Long story.\n\nTL;DR:", "a dog", "a cat")],
    ),
    "shp": (
        {"post_id": "p", "domain": "askbaking", "history": "Why?", "human_ref_A": "So.", "human_ref_B": "Because.",
         "labels": 0, "score_A": 2, "score_B": 9, "score_ratio": 4.5},
        "shp", [("Why?", "Because.", "So.")],
    ),
}  # fmt: skip


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def triples(pairs: list[PreferencePair]) -> list[tuple[Any, str, str]]:
    return [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]


@pytest.mark.parametrize("name", ROWS)
def test_each_format_is_recognised_and_read(tmp_path: Path, name: str) -> None:
    row, format, expected = ROWS[name]
    assert recognise(row) == format
    path = write(tmp_path / "rows.jsonl", [row])
    assert triples(read_pairs(path)) == expected
    assert triples(read_pairs(path, format)) == expected


def test_what_a_row_says_besides_is_kept(tmp_path: Path) -> None:
    ((_, summary),) = read_preferences(write(tmp_path / "a.jsonl", [SUMMARY])).rows
    assert (summary.annotator, summary.models) == ("w7", ("ref", "sup4"))
    assert summary.about == {"id": "t3_1", "split": "train", "confidence": 8}
    ((_, shp),) = read_preferences(write(tmp_path / "b.jsonl", [ROWS["shp"][0]])).rows
    assert shp.about["score_ratio"] == 4.5
    ((_, binarized),) = read_preferences(write(tmp_path / "c.jsonl", [ROWS["binarized"][0]])).rows
    assert (binarized.about["score_chosen"], binarized.about["score_rejected"]) == (8.0, 3.0)


@pytest.mark.slow  # importing trl takes most of the time
def test_implicit_prompts_are_parted_as_trl_parts_them() -> None:
    from trl import extract_prompt

    for name in ("implicit", "chat implicit"):
        row, _, ((prompt, chosen, rejected),) = ROWS[name]
        theirs = extract_prompt(row)
        if name == "implicit":
            assert theirs == {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        else:
            assert theirs["prompt"] == prompt
            assert theirs["chosen"][0]["content"] == chosen


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json", ".parquet"])
def test_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    import polars

    rows = [ROWS["chat"][0], {"prompt": USER, "chosen": BAD, "rejected": [{"role": "assistant", "content": "Ünï"}]}]
    path = tmp_path / f"rows{suffix}"
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if suffix == ".parquet":
        polars.DataFrame(rows).write_parquet(path)
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_bytes(gzip.compress(lines.encode()) if suffix.endswith("gz") else lines.encode())
    assert triples(read_pairs(path)) == [(USER, "hi", "no"), (USER, "no", "Ünï")]


BROKEN = [
    ROWS["explicit"][0],
    "{not json",
    ["a list"],
    {"prompt": "p", "chosen": "same", "rejected": "same"},
    {"prompt": "p", "chosen": "only"},
    {"prompt": 7, "chosen": "a", "rejected": "b"},
    "",
    {"prompt": "p", "chosen": "x", "rejected": "y"},
]


def test_broken_rows_are_told_by_line_and_the_rest_taken_on_request(tmp_path: Path, store: Store) -> None:
    path = write(tmp_path / "rows.jsonl", BROKEN)
    reading = read_preferences(path)
    assert [row.where for row in reading.broken] == [f"line {i}" for i in (2, 3, 4, 5, 6)]
    assert "not valid JSON" in reading.broken[0].reason
    assert "the same text" in reading.broken[2].reason
    with pytest.raises(DataError, match=r"5 broken rows among 7 \(line 2: .*line 3: .*and 2 more\)"):
        read_pairs(path)
    assert len(read_pairs(path, skip_broken=True)) == 2
    with pytest.raises(DataError, match="nothing was taken"):
        import_preferences(store, path, project="p")
    lab = PreferenceCollector(store, project="p", annotator="ada")
    assert lab.progress().comparisons == 0
    report = import_preferences(store, path, project="p", skip_broken=True)
    assert (report.rows, report.comparisons, report.judgements, len(report.left_out)) == (7, 2, 2, 5)
    assert triples(lab.create_preference_dataset()) == [("2+2=", "4", "5"), ("p", "x", "y")]


@pytest.mark.parametrize(
    ("row", "format", "message"),
    [
        ({"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "x"}, "hh-rlhf", "does not begin with"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: z\n\nAssistant: b"}, "hh-rlhf", "share no"),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"}, "hh-rlhf", "that the assistant answers"),
        ({"chosen": "ab", "rejected": "cd"}, "trl", "share no beginning"),
        ({"chosen": GOOD, "rejected": BAD}, "trl", "share no turn"),
        ({"chosen": USER + GOOD + USER, "rejected": USER + BAD}, "trl", "answers with assistant, user"),
        ({"instruction": "q", "completions": [{"response": "a"}]}, "ultrafeedback", "'fine-grained_score' is None"),
        (SUMMARY | {"choice": 2}, "openai-summaries", "'choice' is 2"),
        (ROWS["shp"][0] | {"labels": None}, "shp", "'labels' is None"),
        ({"kind": "duel", "answers": []}, "judgements", "'kind' is 'duel'"),
        ({"kind": "pair", "prompt": "p", "answers": [{"text": "a"}, {"text": "b"}], "outcome": "choice", "choice": 2},
         "judgements", "outcome 'choice' with choice 2"),
    ],
)  # fmt: skip
def test_each_reader_says_what_is_wrong(row: dict[str, Any], format: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        FORMATS[format](row)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n' * 500)[:-20])
    for path, message in (
        (tmp_path / "none.jsonl", "no such file"),
        (cut, "cannot read"),
        (write(tmp_path / "empty.jsonl", []), "has no rows"),
        (write(tmp_path / "other.jsonl", [{"x": 1}]), "no format that is known .fields: x."),
        (write(tmp_path / "no.parquet", ["text"]), "cannot read"),
        (write(tmp_path / "one.json", ["{}"]), "is dict, allowed: a list"),
    ):
        with pytest.raises(DataError, match=message):
            read_preferences(path)
    with pytest.raises(ConfigError, match="format is 'csv'"):
        read_preferences(tmp_path / "x", "csv")


def test_importing_again_adds_nothing(tmp_path: Path, store: Store) -> None:
    rows = [ROWS["explicit"][0], ROWS["explicit"][0], ROWS["chat"][0]]
    path = write(tmp_path / "rows.jsonl", rows)
    first = import_preferences(store, path, project="p")
    assert (first.comparisons, first.judgements, first.repeated) == (2, 2, 1)
    again = import_preferences(store, path, project="p")
    assert (again.comparisons, again.judgements, again.repeated) == (0, 0, 3)
    other = import_preferences(store, path, project="p", annotator="bob")  # another person may say the same
    assert (other.comparisons, other.judgements) == (0, 2)


def test_contradictory_rows_and_deleted_answers_are_told(tmp_path: Path, store: Store) -> None:
    row = ROWS["explicit"][0]
    path = write(tmp_path / "rows.jsonl", [row, row | {"chosen": "5", "rejected": "4"}])
    with pytest.raises(DataError, match=r"1 broken rows among 2 \(line 2: 'imported' said something else"):
        import_preferences(store, path, project="p")
    report = import_preferences(store, path, project="p", skip_broken=True)
    assert (report.judgements, [row.where for row in report.left_out]) == (1, ["line 2"])
    lab = PreferenceCollector(store, project="p", annotator="ada")
    assert triples(lab.create_preference_dataset()) == [("2+2=", "4", "5")]
    task = lab.next_task()
    assert task is not None
    lab.delete_answer(task.answers[0].id)
    with pytest.raises(DataError, match="line 1: an answer of it was deleted"):
        import_preferences(store, path, project="p", annotator="bob")
    rated = write(tmp_path / "rated.jsonl", [ROWS["ultrafeedback"][0]])
    assert import_preferences(store, rated, project="p").judgements == 1
    assert len(lab.create_preference_dataset()) == 2  # the deleted answer's pair is gone


PAIRS = [PreferencePair("2+2=", "4", "5", 0.75), PreferencePair("Ünï?", " ja", "\n\nnein 🎈")]
TALKS = [PreferencePair(USER + GOOD + USER, "again", "", 1.0), PreferencePair(USER, "hi", "no", 2 / 3)]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json", ".parquet"])
@pytest.mark.parametrize("format", list(WRITERS))
@pytest.mark.parametrize("pairs", [PAIRS, TALKS], ids=["text", "talk"])
def test_what_is_written_is_read_again(tmp_path: Path, format: str, suffix: str, pairs: list[PreferencePair]) -> None:
    from alignlab.align.preference_data.exporting import as_messages, encoded

    path = tmp_path / f"x{suffix}"
    path.write_bytes(encoded(pair_rows(pairs, format), path))
    expected = [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    if format in ("trl-conversational", "ultrafeedback", "hh-rlhf"):
        expected = [(as_messages(prompt), a, b) for prompt, a, b in expected]
    if format == "hh-rlhf":  # which has no blanks around a turn
        expected = [(prompt, a.strip(), b.strip()) for prompt, a, b in expected]
    found = triples(read_pairs(path))
    if format == "trl-implicit" and pairs is PAIRS:  # where the prompt ends is not in the file
        found, expected = ([(p + a, p + b) for p, a, b in those] for those in (found, expected))  # type: ignore[misc]
    assert found == expected


@pytest.mark.slow
def test_trl_takes_what_we_write(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import is_conversational, maybe_extract_prompt

    for pairs, talk in ((PAIRS, False), (TALKS, True)):
        for format in ("trl", "trl-implicit", "trl-conversational"):
            row = Dataset.from_list(pair_rows(pairs, format))[1]
            assert is_conversational(row) == (talk or format == "trl-conversational")
            parted = maybe_extract_prompt(row)
            assert {"prompt", "chosen", "rejected"} <= parted.keys()
            if talk:
                assert parted["prompt"] == USER
                assert parted["chosen"] == GOOD


def test_texts_that_a_format_cannot_hold(tmp_path: Path, store: Store) -> None:
    lab = PreferenceCollector(store, project="p", annotator="ada")
    with pytest.raises(DataError, match="nothing to export"):
        export_preferences(lab, tmp_path / "x.jsonl")
    task = lab.collect_preferences([{"role": "system", "content": "s"}, *USER], ["a", "b\n\nHuman: c"])
    lab.record(task, 1)
    with pytest.raises(DataError, match="no turn of 'system'"):
        export_preferences(lab, tmp_path / "x.jsonl", "hh-rlhf")
    with pytest.raises(DataError, match="'Human:' or 'Assistant:'"):
        pair_rows([PreferencePair("p", "a", "b\n\nHuman: c")], "hh-rlhf")
    with pytest.raises(DataError, match="no suffix that is known"):
        export_preferences(lab, tmp_path / "x.csv")
    with pytest.raises(ConfigError, match="format is 'csv'"):
        export_preferences(lab, tmp_path / "x.csv", "csv")  # type: ignore[arg-type]
    assert not list(tmp_path.glob("x*"))


def test_everything_moves_from_one_database_into_another(tmp_path: Path, new_url: Callable[[], str]) -> None:
    path = tmp_path / "all.jsonl"
    with open_store(tmp_path / "here.db") as here, open_store(new_url()) as there:
        old, new = (PreferenceCollector(s, project="p", annotator="ada") for s in (here, there))
        for i, kind in enumerate(("pair", "ranking", "rating", "pair", "pair")):
            task = old.collect_preferences(f"q{i}", ["a", "b\0", "c\ud83d"], kind=kind, models=["x", None, "y"])  # type: ignore[arg-type]
            if i == 0:
                old.withdraw(old.record(task, 1))
                old.record(old.comparison(task.id), 3, reason="better", seconds=1.5)
            elif i < 4:
                verdict = {"ranking": [2, [1, 3]]} if i == 1 else {"ratings": [1, 2, 2]} if i == 2 else {"choice": 0}
                old.record(task, **verdict)  # type: ignore[arg-type]
        assert export_preferences(old, path, "judgements") == 6  # the last question has none
        report = import_preferences(there, path, project="p")
        assert (report.comparisons, report.judgements) == (5, 5)
        assert new.judgements(withdrawn=True) == old.judgements(withdrawn=True)
        assert new.create_preference_dataset(ties="half") == old.create_preference_dataset(ties="half")
        assert new.progress() == old.progress()
        assert import_preferences(there, path, project="p").repeated == 5


def test_real_rows_of_hh_rlhf(tmp_path: Path) -> None:
    folder = os.environ.get("ALIGNLAB_SHARED_DATA")
    if not folder:
        pytest.skip("ALIGNLAB_SHARED_DATA does not name the folder of real data")
    path = Path(folder) / "preference" / "hh_rlhf_harmless_base_test.jsonl.gz"
    reading = read_preferences(path)
    assert (reading.format, len(reading.rows), len(reading.broken)) == ("hh-rlhf", 2307, 5)
    assert {row.reason for row in reading.broken} == {"the dialogues part before their last answer"}
    with gzip.open(path, "rt") as stream:
        raw = [json.loads(line) for line in stream]
    for where, row in reading.rows[:300]:
        text = raw[int(where.split()[1]) - 1]["chosen"]
        assert text.rstrip().endswith(row.responses[0])
