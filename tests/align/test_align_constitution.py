"""Constitutions: what a file may say, what it may not, and what is asked of a model in its name."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from alignlab.align.constitution import Constitution, Demonstration, Principle
from alignlab.core.errors import ConfigError, FeedbackError
from alignlab.core.yaml_text import dump_yaml
from alignlab.lm.scripted import ScriptedSampler


def rule(name: str, **changes: Any) -> Principle:
    return Principle(name, f"text of {name}", f"critique of {name}?", f"revise for {name}.", **changes)


def plain(name: str, **changes: Any) -> dict[str, Any]:
    return {"id": name, "text": "t", "critique_request": "c", "revision_request": "r", **changes}


def write(path: Path, value: Any) -> Path:
    path.write_text(dump_yaml(value))
    return path


EXAMPLE = Demonstration("d", "asked before", "poor answer", "what was wrong", "good answer", principle="one")


# The packaged constitution


def test_packaged_constitution() -> None:
    constitution = Constitution.load()
    assert len(constitution.principles) >= 12
    assert {p.category for p in constitution.principles} == {"harmlessness", "helpfulness", "honesty"}
    assert constitution.preamble
    assert constitution.opposite
    assert any(p.parent for p in constitution.principles)
    assert len(constitution.demonstrations) >= 4
    assert any(d.benign for d in constitution.demonstrations)
    assert {d.principle for d in constitution.demonstrations} <= constitution.by_id.keys()
    assert len({d.id for d in constitution.demonstrations}) == len(constitution.demonstrations)


def test_no_demonstration_is_a_prompt_that_is_measured() -> None:
    from alignlab.data.prompts import load_prompts

    shown = {d.request for d in Constitution.load().demonstrations}
    assert not shown & {p.prompt for name in ("harmful", "benign", "helpful") for p in load_prompts(name, "heldout")}  # type: ignore[arg-type]


def test_feedback_sees_no_demonstration_that_revisions_copy_from() -> None:
    """A text that copies its context is likely whatever it says, so the two never share a demonstration."""
    constitution = Constitution.load()
    judged = {d.id for d in constitution.shown("feedback")}
    written = {d.id for d in constitution.shown()}
    assert judged
    assert written
    assert not judged & written
    few = Constitution([rule("one")], demonstrations=[EXAMPLE])
    assert few.shown() == few.shown("feedback") == (EXAMPLE,)


# Files


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.yaml",
        {
            "name": "mine",
            "version": "2",
            "preamble": " Be kind. ",
            "opposite": "Be cruel.",
            "principles": [plain("a", weight=2), plain("b", parent="a", category="honesty")],
            "demonstrations": [
                {"id": "d", "request": "q", "response": "p", "critique": "w", "revision": "g", "principle": "a"}
            ],
        },
    )
    constitution = Constitution.load(path)
    assert (constitution.name, constitution.preamble, constitution.opposite) == ("mine", "Be kind.", "Be cruel.")
    assert constitution.find("a").weight == 2.0
    assert (constitution.find("b").parent, constitution.find("b").category) == ("a", "honesty")
    assert constitution.demonstrations == (Demonstration("d", "q", "p", "w", "g", principle="a"),)
    without = Constitution.load(write(tmp_path / "d.yaml", {"principles": [plain("a")]}))
    assert without.demonstrations == Constitution.load().demonstrations
    none = Constitution.load(write(tmp_path / "e.yaml", {"principles": [plain("a")], "demonstrations": []}))
    assert none.demonstrations == ()


BAD: dict[str, tuple[Any, str]] = {
    "duplicate ids": ([plain("a"), plain("a")], "two principles have the id 'a', ids must be unique"),
    "cycle": (
        [plain("a", parent="b"), plain("b", parent="c"), plain("c", parent="a")],
        "the parents of principle 'a' form a cycle: a -> b -> c -> a",
    ),
    "its own parent": ([plain("a", parent="a")], "the parents of principle 'a' form a cycle: a -> a"),
    "cycle further up": (
        [plain("a", parent="b"), plain("b", parent="c"), plain("c", parent="b")],
        "form a cycle: a -> b -> c -> b",
    ),
    "unknown parent": ([plain("a", parent="z")], "principle 'a' names the parent 'z', which does not exist"),
    "unknown key": ([plain("a", wieght=2)], "unknown key 'principles[0].wieght', did you mean 'weight'?"),
    "wrong type": ([plain("a", weight="heavy")], "principles[0].weight is 'heavy', allowed: a number"),
    "a number for a text": ([plain("a", text=3)], "principles[0].text is 3, allowed: "),
    "unknown category": ([plain("a", category="humour")], "principles[0].category is 'humour', allowed: "),
    "missing field": ([{"id": "a"}], "principles[0].text is missing"),
    "empty text": ([plain("a", text=" ")], "principle 'a': text is ' ', allowed: some text"),
    "weight zero": ([plain("a", weight=0)], "principle 'a': weight is 0.0, allowed: a positive"),
    "weight negative": ([plain("a", weight=-1)], "principle 'a': weight is -1.0, allowed: a positive"),
    "weight infinite": ([plain("a", weight=math.inf)], "principle 'a': weight is inf, allowed: a positive"),
    "weight not a number": ([plain("a", weight=math.nan)], "principle 'a': weight is nan, allowed: a positive"),
    "empty list": ([], "principles is [], allowed: at least one principle"),
    "no list": ({"a": 1}, "principles is {'a': 1}, allowed: a list of mappings"),
    "nothing": (None, "principles is None, allowed: a list of mappings"),
    "list of texts": (["be kind"], "principles[0] is 'be kind', allowed: a mapping"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_principles_are_named(tmp_path: Path, case: str) -> None:
    principles, sentence = BAD[case]
    with pytest.raises(ConfigError) as caught:
        Constitution.load(write(tmp_path / "c.yaml", {"principles": principles}))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"principles: []\nprincipels: []\n", "constitution key is 'principels', allowed: demonstrations, name, "),
        (b"- a\n- b\n", "is 'list', allowed: a YAML mapping"),
        (b"", "is 'NoneType', allowed: a YAML mapping"),
        (b"principles: [\n", "line 2 is not valid YAML"),
        (b"name: \xff\xfe\n", "is not UTF-8 text (byte 6)"),
        (b"name: a\nname: b\n", "line 2 is not valid YAML: the key 'name' is there twice"),
        (b"preamble: [1, 2]\n", "preamble is [1, 2], allowed: a text"),
        (b"preamble:\n", "preamble is None, allowed: a text"),
        (b"opposite: 3\n", "opposite is 3, allowed: a text"),
        (b"name: {a: 1}\n", "name is {'a': 1}, allowed: a text"),
        (b"demonstrations: 3\n", "demonstrations is 3, allowed: a list of mappings"),
        (b"demonstrations: [{id: a}]\n", "demonstrations[0].request is missing"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "c.yaml"
    if b"principles" not in content and content and not content.startswith(b"-"):
        content += b"principles: [{id: a, text: t, critique_request: c, revision_request: r}]\n"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Constitution.load(path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.yaml: no such file or directory"):
        Constitution.load(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="is a directory"):
        Constitution.load(tmp_path)


# Prompts


def test_critique_prompt_word_for_word() -> None:
    constitution = Constitution([rule("one"), rule("two")], demonstrations=[EXAMPLE], preamble="Be kind.")
    assert constitution.generate_critique_prompt("my answer", ["one", "two"], request="my question") == [
        {"role": "user", "content": "Request: asked before\nAnswer: poor answer\ncritique of one?"},
        {"role": "assistant", "content": "what was wrong"},
        {"role": "user", "content": "Request: my question\nAnswer: my answer\ncritique of one? critique of two?"},
    ]
    last = constitution.generate_critique_prompt("my answer", [constitution.find("two")])[-1]
    assert last == {"role": "user", "content": "Answer: my answer\ncritique of two?"}


def test_revision_prompt_word_for_word() -> None:
    constitution = Constitution([rule("one"), rule("two")], demonstrations=[EXAMPLE], preamble="Be kind.")
    assert constitution.generate_revision_prompt("my answer", "too rude", ["two"], request="my question") == [
        {"role": "system", "content": "Be kind."},
        {
            "role": "user",
            "content": "Request: asked before\nAnswer: poor answer\nCritique: what was wrong\nrevise for one.",
        },
        {"role": "assistant", "content": "good answer"},
        {"role": "user", "content": "Request: my question\nAnswer: my answer\nCritique: too rude\nrevise for two."},
    ]


def test_revision_prompt_without_the_response() -> None:
    constitution = Constitution([rule("one")], demonstrations=[EXAMPLE])
    messages = constitution.generate_revision_prompt("SECRET", "rude", ["one"], request="ask", show_response=False)
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert not any("SECRET" in message["content"] or "poor answer" in message["content"] for message in messages)
    assert messages[-1]["content"].startswith("ask\n")
    assert "rude" in messages[-1]["content"]


def test_a_demonstration_of_an_unknown_principle_gets_general_questions() -> None:
    constitution = Constitution([rule("two")], demonstrations=[EXAMPLE])
    assert "critique of" not in constitution.generate_critique_prompt("x", ["two"])[0]["content"]
    assert "revise for" not in constitution.generate_revision_prompt("x", "y", ["two"])[0]["content"]


def test_prompts_need_a_known_principle() -> None:
    constitution = Constitution([rule("one")])
    for violations, sentence in (
        ([], "at least one principle"),
        (["three"], "principle is 'three', allowed: one of one"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            constitution.generate_critique_prompt("x", violations)
        with pytest.raises(ConfigError, match=sentence):
            constitution.generate_revision_prompt("x", "y", violations)


# Drawing


def test_draw_follows_the_weights() -> None:
    """Chi-square against the weights at p = 1e-6: with these fixed seeds it holds or not; over all choices of 4,000
    seeds one in a million would fail.
    """
    weights = {"a": 1.0, "b": 2.0, "c": 0.5, "d": 4.5}
    constitution = Constitution([rule(name, weight=weight) for name, weight in weights.items()])
    n = 4000
    counts = Counter(constitution.draw(seed).id for seed in range(n))
    expected = [n * weight / sum(weights.values()) for weight in weights.values()]
    assert stats.chisquare([counts[name] for name in weights], expected).pvalue > 1e-6


def test_draw_is_a_function_of_the_seed_and_the_category() -> None:
    constitution = Constitution.load()
    drawn = [constitution.draw(seed) for seed in range(50)]
    assert drawn == [constitution.draw(seed) for seed in range(50)]
    assert len(set(drawn)) > 5
    assert {constitution.draw(seed, category="honesty").category for seed in range(50)} == {"honesty"}
    with pytest.raises(ConfigError, match="category is 'honesty', allowed: one that 'constitution' has principles of"):
        Constitution([rule("one")]).draw(0, category="honesty")


# Evaluating


class KnownJudge(ScriptedSampler):
    """Yes in two tokens of -0.25, No in one of -2."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []

    def logprobs(self, prompts: Any, completions: Any) -> list[Tensor]:
        self.asked += list(prompts)
        return [torch.tensor({"Yes": [-0.25, -0.25], "No": [-2.0]}[text]) for text in completions]


def test_evaluation_is_the_judges_log_odds() -> None:
    judge = KnownJudge()
    constitution = Constitution([rule("one")], judge=judge)
    found = constitution.evaluate_response("my answer", "one", request="my question")
    assert (found.principle, found.log_odds, found.violated) == ("one", 1.5, True)
    for question in judge.asked:
        (message,) = question
        assert message["role"] == "user"
        for part in ("my question", "my answer", "critique of one?", "Yes or No"):
            assert part in message["content"]
    judge.asked.clear()
    constitution.evaluate_response("my answer", constitution.find("one"))
    assert "User:" not in judge.asked[0][0]["content"]


def test_kept_and_undecided_are_no_violation() -> None:
    from alignlab.align.constitution import PrincipleEvaluation

    assert not PrincipleEvaluation("one", -0.1).violated
    assert not PrincipleEvaluation("one", 0.0).violated


def test_evaluation_needs_a_judge() -> None:
    with pytest.raises(FeedbackError, match="evaluate_response needs a judge"):
        Constitution([rule("one")]).evaluate_response("x", "one")
