"""Files of comparisons, and a split in which no dialogue is on both sides."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignlab.align.reward.examples import (
    RewardPair,
    bootstrap_weights,
    dialogue_of,
    dialogues,
    ranked_pairs,
    split_dialogues,
)
from alignlab.align.reward.readers import as_text, pair_of, read_pairs
from alignlab.core.errors import ConfigError, DataError

ASKED = {"role": "user", "content": "a?"}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_every_form_of_record_gives_its_comparison() -> None:
    hh = pair_of({"chosen": "\n\nHuman: a?\n\nAssistant: b", "rejected": "\n\nHuman: a?\n\nAssistant: c"})
    assert hh == RewardPair([ASKED], "b", "c")
    later = "\n\nHuman: a?\n\nAssistant: b\n\nHuman: d\n\nAssistant: "
    assert pair_of({"chosen": later + "e", "rejected": later}).prompt == [ASKED, said("b"), {**ASKED, "content": "d"}]
    assert pair_of({"chosen": later + "e", "rejected": later}).rejected == ""
    parted = pair_of({"chosen": later + "e", "rejected": "\n\nHuman: a?\n\nAssistant: x\n\nHuman: d\n\nAssistant: y"})
    assert parted == RewardPair([ASKED], "b\n\nHuman: d\n\nAssistant: e", "x\n\nHuman: d\n\nAssistant: y")
    assert pair_of({"chosen": [ASKED, said("b")], "rejected": [ASKED, said("c")]}) == hh
    assert pair_of({"prompt": [ASKED], "chosen": [said("b")], "rejected": [said("c")]}) == hh
    assert pair_of({"prompt": "a", "chosen": "b", "rejected": "c"}) == RewardPair("a", "b", "c")
    full = {"prompt": "a", "chosen": "b", "rejected": "c", "probability": 0.7, "margin": 1, "tie": False}
    assert pair_of({**full, "objective": "kind"}) == RewardPair("a", "b", "c", 0.7, 1.0, False, "kind")
    exchange = {"question": "a?", "response_j": "b", "response_k": "c"}
    assert pair_of(exchange) == hh
    assert as_text(hh.prompt) == "Human: a?\n\nAssistant: "


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"text": "x"}, "the record has text, allowed"),
        ({"prompt": "x"}, "the record has prompt, allowed"),
        ([1], "list is no comparison"),
        ({"chosen": "hello", "rejected": "x"}, "a dialogue is 'hello'"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: b\n\nAssistant: b"}, "share no turn"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, r"'prompt' is \[\], allowed: a list of messages"),
        ({"prompt": "a", "chosen": 3, "rejected": "b"}, "'chosen' is 3, allowed: text, or a list"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "wide"}, "margin is 'wide'"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")}, "finite"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "tie": 1}, "tie is 1"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "probability": 2}, r"allowed: a number in \[0, 1\]"),
    ],
)
def test_another_form_is_refused(record: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        pair_of(record)


def test_files_are_read_and_a_wrong_line_is_named(tmp_path: Path) -> None:
    record = {"prompt": "a", "chosen": "b", "rejected": "c"}
    lines = (json.dumps(record) + "\n") * 3
    (tmp_path / "x.jsonl").write_text(lines)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "x.json").write_text(json.dumps([record] * 3))
    for name in ("x.jsonl", "x.jsonl.gz", "x.json"):
        assert read_pairs(tmp_path / name) == [RewardPair("a", "b", "c")] * 3
        assert len(read_pairs(tmp_path / name, most=2)) == 2
    (tmp_path / "x.jsonl").write_text(lines + '{"text": 1}\n')
    with pytest.raises(DataError, match=r"x\.jsonl, line 4: the record has text"):
        read_pairs(tmp_path / "x.jsonl")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match="is dict, allowed: a list"):
        read_pairs(tmp_path / "x.json")
    (tmp_path / "x.jsonl").write_text("")
    with pytest.raises(DataError, match="has no comparison"):
        read_pairs(tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="is no file"):
        read_pairs(tmp_path / "absent")


def test_scored_answers_become_comparisons() -> None:
    pairs = ranked_pairs("q", ["a", "b", "c"], [1, 5, 1])
    assert [(p.chosen, p.rejected, p.tie) for p in pairs] == [("b", "a", False), ("b", "c", False), ("a", "c", True)]
    assert len(ranked_pairs("q", ["a", "b", "c"], [1, 2, 3], most=2)) == 2
    with pytest.raises(DataError, match="one each"):
        ranked_pairs("q", ["a"], [])


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=40))
def test_no_dialogue_is_on_both_sides(drawn: list[tuple[int, int, int]]) -> None:
    answers = [f"a rather long answer, long enough to count as one: {i}" for i in range(9)]
    pairs = [RewardPair(f"  Prompt, {p}!", answers[a], answers[b]) for p, a, b in drawn]
    groups = dialogues(pairs)
    for i, first in enumerate(pairs):
        for j, second in enumerate(pairs):
            if first.prompt == second.prompt or {first.chosen, first.rejected} & {second.chosen, second.rejected}:
                assert groups[i] == groups[j]
    if len(set(groups)) < 2:
        with pytest.raises(DataError, match="at least two are needed"):
            split_dialogues(pairs)
        return
    learn, kept = split_dialogues(pairs, 0.3, seed=1)
    assert sorted(learn + kept) == list(range(len(pairs)))
    assert learn
    assert kept
    assert not {groups[i] for i in learn} & {groups[i] for i in kept}


def test_a_split_keeps_the_share_and_depends_on_the_seed() -> None:
    pairs = [RewardPair(f"prompt {i // 3}", "yes", "no") for i in range(300)]
    _, kept = split_dialogues(pairs, 0.2, seed=0)
    assert abs(len(kept) - 60) <= 3
    assert kept == split_dialogues(pairs, 0.2, seed=0)[1]
    assert kept != split_dialogues(pairs, 0.2, seed=1)[1]
    assert (
        dialogue_of([{"role": "system", "content": "x"}, {"role": "user", "content": "Hello,  World!"}])
        == "hello world"
    )
    with pytest.raises(ConfigError, match="heldout is 1"):
        split_dialogues(pairs, 1)


def test_bootstrap_weights_are_poisson_by_dialogue() -> None:
    groups = [i // 2 for i in range(4000)]
    weights = bootstrap_weights(groups, 5, seed=0)
    assert weights.shape == (4000, 5)
    assert (weights[::2] == weights[1::2]).all()
    # Mean and variance of 10,000 draws of Poisson(1): standard errors 0.01 and 0.017; five of them.
    assert abs(float(weights.mean()) - 1) < 0.05
    assert abs(float(weights[::2].var()) - 1) < 0.09
    assert float(bootstrap_weights([0], 20, seed=0).min()) >= 1


def test_the_shared_comparisons_split_without_leakage() -> None:
    folder = os.environ.get("ALIGNLAB_SHARED_DATA")
    if folder is None:
        pytest.skip("ALIGNLAB_SHARED_DATA names no folder with public data")
    pairs = read_pairs(Path(folder) / "preference/hh_rlhf_harmless_base_test.jsonl.gz")
    assert len(pairs) == 2312
    learn, kept = split_dialogues(pairs, 0.2, seed=0)
    assert abs(len(kept) - 0.2 * 2312) < 5
    sides = [{dialogue_of(pairs[i].prompt) for i in part} for part in (learn, kept)]
    assert not sides[0] & sides[1]
    texts = [{t for i in part for t in (pairs[i].chosen, pairs[i].rejected) if len(t) >= 40} for part in (learn, kept)]
    assert not texts[0] & texts[1]
