"""Comparisons read once for all: rows of every kind of file, where dialogues part, and what each use refuses."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignlab.align.preference_data.reading import read_pairs as judged_pairs
from alignlab.align.reward.readers import read_pairs as reward_pairs
from alignlab.core.errors import DataError
from alignlab.lm.types import Message
from alignlab.tasks.icl.pairs import read_dialogues
from alignlab.tasks.pair_rows import dialogue, every_row, only_answer, part, sides_of, sound_rows, whole_answer

ASKED: Message = {"role": "user", "content": "a?"}


def said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def written(path: Path, rows: list[Any]) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".parquet":
        polars.DataFrame(rows).write_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


# Rows -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.parquet"])
def test_the_same_rows_come_from_every_kind_of_file_to_every_use(tmp_path: Path, name: str) -> None:
    start = "\n\nHuman: Say Ünï\n\nAssistant:"
    path = written(tmp_path / name, [{"chosen": f"{start} yes", "rejected": f"{start} no"}] * 2)
    assert [row["chosen"] for _, row in sound_rows(path)] == [f"{start} yes"] * 2
    prompt = [{"role": "user", "content": "Say Ünï"}]
    for found in (judged_pairs(path), reward_pairs(path)):
        assert [(pair.prompt, pair.chosen, pair.rejected) for pair in found] == [(prompt, "yes", "no")] * 2
    assert [(pair.prompt, pair.better, pair.worse) for pair in read_dialogues(path)] == [(prompt, "yes", "no")] * 2


def test_broken_rows_are_given_with_their_place_or_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n\n{"a"\n[1]\n{"a": 2}\n')
    found = list(every_row(tmp_path / "x.jsonl"))
    assert [place for place, _ in found] == ["line 1", "line 3", "line 4", "line 5"]
    assert [isinstance(row, DataError) for _, row in found] == [False, True, True, False]
    with pytest.raises(DataError, match=r"x\.jsonl, line 3 is not valid JSON"):
        list(sound_rows(tmp_path / "x.jsonl"))
    (tmp_path / "x.json").write_text('[{"a": 1}, 3]')
    with pytest.raises(DataError, match=r"x\.json, row 2 is int, allowed: a JSON object"):
        list(sound_rows(tmp_path / "x.json"))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match=r"x\.json is dict, allowed: a list"):
        list(every_row(tmp_path / "x.json"))
    cut = written(tmp_path / "cut.jsonl.gz", [{"a": str(i)} for i in range(2000)])
    cut.write_bytes(cut.read_bytes()[:-30])
    rows = every_row(cut)
    assert next(rows) == ("line 1", {"a": "0"})
    with pytest.raises(DataError, match="cannot read"):
        list(rows)


# Dialogues ------------------------------------------------------------------------------------------------------------


def test_dialogues_are_read_with_and_without_line_breaks_before_them() -> None:
    turns = [{"role": "user", "content": "a\n\nb: Human: x"}, said("c")]
    for before in ("\n\n", "", "\n"):
        assert dialogue(f"{before}Human: a\n\nb: Human: x\n\nAssistant: c ") == turns
    for text in ("", "hello", "x\n\nAssistant: b", "Human a"):
        with pytest.raises(DataError, match="does not begin with 'Human:' or 'Assistant:'"):
            dialogue(text)


@given(
    st.lists(st.sampled_from("ab"), min_size=1, max_size=4),
    st.lists(st.tuples(st.sampled_from("ua"), st.sampled_from("ab")), min_size=0, max_size=4),
    st.lists(st.tuples(st.sampled_from("ua"), st.sampled_from("ab")), min_size=0, max_size=4),
)
def test_sides_part_at_the_assistants_turn_and_nothing_is_lost(
    start: list[str], one: list[tuple[str, str]], other: list[tuple[str, str]]
) -> None:
    role = {"u": "user", "a": "assistant"}
    shared: list[Message] = [{"role": role["ua"[i % 2]], "content": text} for i, text in enumerate(start)]
    sides = [shared + [{"role": role[who], "content": text} for who, text in rest] for rest in (one, other)]
    try:
        found = part(*sides)
    except DataError:
        # Only where no common turn is followed by one of the assistant on both sides.
        common = next((i for i, (a, b) in enumerate(zip(*sides)) if a != b), min(map(len, sides)) - 1)
        assert not any(sides[0][i]["role"] == sides[1][i]["role"] == "assistant" for i in range(1, common + 1))
        return
    assert [found.prompt + found.chosen, found.prompt + found.rejected] == sides
    assert found.chosen[0]["role"] == found.rejected[0]["role"] == "assistant"
    if found.chosen[0] == found.rejected[0]:  # the sides differ later, where the assistant does not answer on both
        assert found.early or sides[0] == sides[1]


def test_sides_of_each_form() -> None:
    answers = ([ASKED], [said("b")], [said("c")])
    hh = {"chosen": "\n\nHuman: a?\n\nAssistant: b", "rejected": "\n\nHuman: a?\n\nAssistant: c"}
    whole = {"chosen": [ASKED, said("b")], "rejected": [ASKED, said("c")]}
    alone = {"chosen": [said("b")], "rejected": [said("c")]}
    for row in (hh, whole, whole | {"prompt": "a?"}, whole | {"prompt": [ASKED]}, alone | {"prompt": [ASKED]},
                {"prompt": [ASKED], "chosen": "b", "rejected": [said("c")]}, whole | {"prompt": None}):  # fmt: skip
        found = sides_of(row)
        assert (found.prompt, found.chosen, found.rejected, found.early) == (*answers, False)
    for row in (alone, {"chosen": "b", "rejected": "c"}):
        found = sides_of(row | {"prompt": "a?"})
        assert (found.prompt, found.chosen, found.rejected) == ("a?", *answers[1:])
    several = [said("b"), ASKED, said("d")]
    assert whole_answer(several) == "b\n\nHuman: a?\n\nAssistant: d"
    with pytest.raises(DataError, match="'chosen' answers with assistant, user, assistant, allowed: one message"):
        only_answer(several, "chosen")


# What each use refuses ------------------------------------------------------------------------------------------------

START = "\n\nHuman: a\n\nAssistant:"
NO_PROMPT = "share no turn that the assistant answers"
USES: dict[str, Callable[[Path], Any]] = {
    "store": lambda path: judged_pairs(path, "hh-rlhf"),
    "reward": reward_pairs,
    "task": read_dialogues,
}
CASES: list[tuple[dict[str, Any], dict[str, str | None]]] = [
    # Parting early: refused, learned from whole, or kept as what cannot be scored.
    ({"chosen": f"{START} b\n\nHuman: c\n\nAssistant: d", "rejected": f"{START} e"},
     {"store": "the dialogues part before their last answer", "reward": None, "task": None}),
    # An answer of no letters is one for the store and the reward; a task cannot score it.
    ({"chosen": f"{START} b", "rejected": START}, {"store": None, "reward": None, "task": None}),
    ({"chosen": f"{START} b", "rejected": f"{START} b"}, {"store": "same text", "reward": None, "task": None}),
    ({"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: a\n\nAssistant: c"},
     {"store": None, "reward": None, "task": None}),
    ({"chosen": f"{START} b", "rejected": "\n\nHuman: z\n\nAssistant: b"}, dict.fromkeys(USES, NO_PROMPT)),
    ({"chosen": "\n\nAssistant: b", "rejected": "\n\nAssistant: c"}, dict.fromkeys(USES, NO_PROMPT)),
    ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"}, dict.fromkeys(USES, NO_PROMPT)),
    ({"chosen": "sky", "rejected": "sea"}, dict.fromkeys(USES, "does not begin with 'Human:'")),
    ({"chosen": f"{START} b"}, {"store": "'rejected' is None", "reward": "has chosen", "task": "'rejected' is None"}),
    ({"chosen": f"{START} b", "rejected": 3}, dict.fromkeys(USES, "'rejected' is 3, allowed: text")),
]  # fmt: skip


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("case", range(len(CASES)))
def test_each_use_takes_and_refuses_what_it_should(tmp_path: Path, case: int, use: str) -> None:
    row, reasons = CASES[case]
    path, reason = written(tmp_path / "x.jsonl", [row]), reasons[use]
    if reason is None:
        assert len(USES[use](path)) == 1
    else:
        with pytest.raises(DataError, match=f"line 1.*{reason}"):
            USES[use](path)


def test_a_task_keeps_what_it_cannot_score_and_says_why(tmp_path: Path) -> None:
    kept = [CASES[i][0] for i in range(3)]
    found = read_dialogues(written(tmp_path / "x.jsonl", kept))
    assert [pair.flaw for pair in found] == [
        "the dialogues part before their last answer",
        "an answer of the pair is empty",
        "both answers are the same text",
    ]
    learned = reward_pairs(tmp_path / "x.jsonl")
    assert learned[0].chosen == found[0].better == "b\n\nHuman: c\n\nAssistant: d"
