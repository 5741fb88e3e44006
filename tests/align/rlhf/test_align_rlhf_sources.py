"""Comparisons, demonstrations and prompts in the formats people have, and splits that nothing leaks through."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from alignlab.align.conversations import Conversation
from alignlab.align.reward.examples import dialogue_of
from alignlab.align.rlhf.config import JudgeSettings, RLHFConfig, SFTSettings
from alignlab.align.rlhf.material import gather
from alignlab.align.rlhf.sources import (
    Asking,
    apart,
    demonstrations_of,
    prompt_of,
    read_asked,
    read_comparisons,
    read_demonstrations,
    turns_of,
)
from alignlab.core.errors import ConfigError, DataError

RAW = Asking(chat=False)
POST = {"subreddit": "AskDocs", "title": "Cold", "post": "I have a cold since May."}
STIENNON = "SUBREDDIT: r/AskDocs\n\nTITLE: Cold\n\nPOST: I have a cold since May.\n\nTL;DR:"


def lines(path: Path, rows: list[Any]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def summary_row(number: int, choice: int) -> dict[str, Any]:
    """A row of `comparisons/*.json` of openai/summarize_from_feedback."""
    texts = [{"text": f" good {number}", "policy": "sup2"}, {"text": f" bad {number}", "policy": "ref"}]
    info = {"id": f"t3_{number}", "subreddit": "AskDocs", "title": "Cold", "post": f"Post {number}.", "article": None}
    return {
        "info": info,
        "summaries": texts if choice == 0 else texts[::-1],
        "choice": choice,
        "worker": "w1",
        "split": "train",
        "extra": {"confidence": 7},
    }


def test_comparisons_of_summaries_are_read_and_follow_their_post(tmp_path: Path) -> None:
    path = lines(tmp_path / "batch3.json.gz", [summary_row(i, i % 2) for i in range(4)])
    found = read_comparisons(path, RAW)
    assert [(pair.chosen, pair.rejected) for pair in found] == [(f" good {i}", f" bad {i}") for i in range(4)]
    # Stiennon's prompt ends in "TL;DR:", so an answer that goes on with it begins with a blank.
    assert found[0].prompt == "SUBREDDIT: r/AskDocs\n\nTITLE: Cold\n\nPOST: Post 0.\n\nTL;DR:"
    asked = read_comparisons(path, Asking())[0]
    assert asked.prompt == [{"role": "user", "content": found[0].prompt}]
    assert asked.chosen == "good 0"


def test_the_prompt_of_a_post_is_the_same_in_every_file(tmp_path: Path) -> None:
    told = demonstrations_of({**POST, "summary": "Cold for months."}, RAW)
    assert told[0].prompt == prompt_of(POST, RAW) == STIENNON
    judged = {**summary_row(0, 0), "info": {"id": "a", **POST}}
    assert read_comparisons(lines(tmp_path / "a.jsonl", [judged]), RAW)[0].prompt == STIENNON


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"prompt": "POST: x\n\nTL;DR:", "label": " short"}, "POST: x\n\nTL;DR:", " short"),
        ({"article": "Long.", "highlights": "Short."}, "Long.\n\nTL;DR:", " Short."),
        ({"document": "Long.", "summary": "Short."}, "Long.\n\nTL;DR:", " Short."),
        ({"prompt": "a ", "response": "b"}, "a ", "b"),
        ({"prompt": "a", "completion": "\nb"}, "a", "\nb"),
    ],
)
def test_demonstrations(tmp_path: Path, row: dict[str, str], prompt: str, answer: str) -> None:
    found = read_demonstrations(lines(tmp_path / "d.jsonl", [row]), RAW)
    assert [(example.prompt, example.response) for example in found] == [(prompt, answer)]


def test_a_conversation_is_one_example_where_the_model_reads_messages(tmp_path: Path) -> None:
    user, model = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
    file = lines(tmp_path / "d.jsonl", [{"messages": [user, model, user, {**model, "content": "no"}]}])
    (whole,) = read_demonstrations(file, Asking())
    assert isinstance(whole, Conversation)
    assert whole.learned == (1, 3)
    assert turns_of(whole) == [([user], "yes"), ([user, model, user], "no")]
    parts = read_demonstrations(file, Asking(dialogues=False))
    assert [example.response.strip() for example in parts] == ["yes", "no"]
    assert all(isinstance(example.prompt, str) for example in parts)


def test_prompts_of_every_form(tmp_path: Path) -> None:
    user, model = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
    rows = [
        {"prompt": "one"},
        {"prompt": [user]},
        {"messages": [user, model, user, model]},
        {"chosen": "\n\nHuman: what\n\nAssistant: a", "rejected": "\n\nHuman: what\n\nAssistant: b"},
        {**POST},
        {"text": "All of it.", "split": "test"},
    ]
    found = read_asked(lines(tmp_path / "p.jsonl", rows), Asking(template="Sum up: {text}"))
    assert [len(prompt) for prompt in found.train] == [1, 1, 3, 1, 1]
    assert found.train[0] == [{"role": "user", "content": "one"}]
    assert found.heldout == [[{"role": "user", "content": "Sum up: All of it."}]]
    (tmp_path / "p.txt").write_text("first\n\nsecond\n")
    assert read_asked(tmp_path / "p.txt", RAW).train == ["first", "second"]
    plain = Asking(dialogues=False)
    assert plain.prompt([user]) == "Human: hi\n\nAssistant: "


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "a", "chosen": "b"}], "line 1"),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], "no comparison in which one answer is preferred"),
        ([summary_row(0, 0), {**summary_row(1, 0), "choice": 2}], "line 2: field 'choice' is 2"),
        ([], "no"),
    ],
)
def test_wrong_comparisons_are_refused(tmp_path: Path, rows: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_comparisons(lines(tmp_path / "c.jsonl", rows), RAW)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: the record has title, allowed"):
        read_demonstrations(lines(tmp_path / "d.jsonl", [{"prompt": "a", "response": "b"}, {"title": "x"}]), RAW)
    with pytest.raises(DataError, match="line 1: the row has id, allowed: prompt, messages"):
        read_asked(lines(tmp_path / "p.jsonl", [{"id": 3}]), RAW)
    with pytest.raises(DataError, match="no turn before the assistant"):
        read_asked(lines(tmp_path / "m.jsonl", [{"messages": [{"role": "assistant", "content": "x"}]}]), RAW)
    for read in (read_comparisons, read_demonstrations, read_asked):
        with pytest.raises(DataError, match="is no file"):
            read(tmp_path / "absent.jsonl", RAW)
    with pytest.raises(DataError, match="holds no prompts"):
        read_asked(lines(tmp_path / "empty.jsonl", []), RAW)


class Characters:
    """A tokenizer of characters."""

    chat_template = "x"

    def encode_prompt(self, prompt: Any) -> list[int]:
        return [0] * sum(len(message["content"]) for message in prompt)


def model_of(n_ctx: int = 500) -> Any:
    return SimpleNamespace(tokenizer=Characters(), model=SimpleNamespace(config=SimpleNamespace(n_ctx=n_ctx)))


def test_nothing_measured_is_learned_from(tiny: ModuleType, tmp_path: Path) -> None:
    pairs = tiny.write_comparisons(tmp_path / "pairs.jsonl")
    config = RLHFConfig(comparisons=pairs, heldout=0.3, n_eval=0, judge=JudgeSettings(reward="comparisons"))
    found = gather(config, model_of())
    told = {
        name: {dialogue_of(item.prompt) for item in getattr(found, name)}
        for name in ("examples", "learn", "judge", "kept")
    }
    heldout, train = ({dialogue_of(p) for p in prompts} for prompts in (found.heldout, found.train))
    assert not told["kept"] & (told["learn"] | told["judge"] | told["examples"] | train)
    assert not told["learn"] & told["judge"]  # the judge has seen none of the reward's comparisons
    assert heldout == told["kept"]
    assert train == told["learn"] | told["judge"]
    assert found.account["comparisons"] + found.account["judge_comparisons"] + found.account["kept_comparisons"] == 60
    again = gather(config, model_of())
    assert (again.train, again.heldout, again.learn) == (found.train, found.heldout, found.learn)


def test_prompts_of_a_file_are_split_and_kept_apart(tiny: ModuleType, tmp_path: Path) -> None:
    pairs = tiny.write_comparisons(tmp_path / "pairs.jsonl")
    asked = tmp_path / "p.txt"
    asked.write_text("".join(f"question {i}\n" for i in range(40)) + "QUESTION 3!\n" + "x" * 390 + "\n")
    found = gather(RLHFConfig(comparisons=pairs, prompts=asked, heldout=0.25, n_eval=5, n_prompts=7), model_of())
    assert (len(found.train), len(found.heldout)) == (7, 5)
    measured = {dialogue_of(prompt) for prompt in found.heldout}
    assert not measured & {dialogue_of(pair.prompt) for pair in found.learn}
    assert found.account["learn_also_heldout"] > 0
    assert apart(["Question 3?", "b"], ["question 3"]) == ["b"]
    everything = gather(RLHFConfig(prompts=asked, reward=("x",), heldout=0.25, n_eval=0), model_of())
    assert everything.account["prompts_too_long"] == 1
    assert len(everything.train) + len(everything.heldout) == 41


def test_what_leaves_nothing_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text("a\n")
    other.write_text("A!\n")
    with pytest.raises(DataError, match="1 different prompts, at least two"):
        gather(RLHFConfig(prompts=one, reward=("x",)), model_of())
    with pytest.raises(DataError, match=r"no training prompt is left: 0 are longer.* 1 are also held out"):
        gather(RLHFConfig(prompts=one, eval_prompts=other, reward=("x",)), model_of())
    with pytest.raises(ConfigError, match="give --prompts FILE"):
        gather(RLHFConfig(reward=("x",)), model_of())
    with pytest.raises(ConfigError, match=r"max_prompt_tokens is 384, allowed: up to 136.*context of 200"):
        gather(RLHFConfig(prompts=one, reward=("x",)), model_of(200))
    pairs = tiny.write_comparisons(tmp_path / "pairs.jsonl")
    found = gather(RLHFConfig(comparisons=pairs, sft=SFTSettings(source="none")), model_of())
    assert found.examples == []
