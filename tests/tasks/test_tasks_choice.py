"""Multiple choice by likelihood: what is scored, what counts as an answer, and what every reader accepts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from alignlab.core.errors import ConfigError, DataError
from alignlab.lm.types import Completion, Prompt, SamplingParams
from alignlab.tasks import evaluate
from alignlab.tasks.choice import ChoiceItem, ChoiceTemplate, Likeliest, choice_task
from alignlab.tasks.choice_readers import (
    read_arc,
    read_hellaswag,
    read_mmlu,
    read_piqa,
    read_truthfulqa,
    read_winogrande,
)

ITEMS = [
    ChoiceItem("sky", "What colour is the sky?", ("blue", "dark green", "red"), 0),
    ChoiceItem("sum", "What is 1 + 1?", ("3", "two", "11"), 1),
    ChoiceItem("sea", "What is in the sea?", ("sand", "fire", "water"), 2),
]


class Planted:
    """A sampler that gives each continuation the log-probabilities planted for it, one for each character."""

    def __init__(self, nats: dict[str, float]) -> None:
        self.nats, self.calls = nats, 0
        self.asked: list[Prompt] = []

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
        raise AssertionError("nothing is generated")

    def logprobs(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[torch.Tensor]:
        self.calls += 1
        self.asked += prompts
        return [torch.full((len(c),), self.nats.get(c.strip(), -9.0) / len(c)) for c in completions]


def test_the_likeliest_choice_is_the_answer(tmp_path: Path) -> None:
    sampler = Planted({"blue": -1.0, "dark green": -2.0, "two": -3.0, "11": -2.5, "water": -0.5})
    done = evaluate(choice_task("quiz", ITEMS), sampler, log_dir=tmp_path, model="planted")
    assert done.values == {"sky": 1.0, "sum": 0.0, "sea": 1.0}
    assert sampler.calls == 1
    assert sampler.asked[:3] == ["Question: What colour is the sky?\nAnswer:"] * 3
    said = {result.id: json.loads(result.completion.text) for result in done.results if result.completion}
    assert said["sky"]["logprobs"] == pytest.approx([-1.0, -2.0, -9.0])
    assert said["sky"]["tokens"] == [5, 11, 4]  # with the space before it


def test_one_log_answers_under_every_normalisation() -> None:
    task = choice_task("quiz", [ChoiceItem("x", "Which?", ("abcd", "äöüßäöüß", "abcdef"), 1)])
    sample = task.dataset[0]
    logged = Completion(json.dumps({"logprobs": [-4.0, -6.0, -6.3], "tokens": [2, 12, 2]}), (), (), "stop")
    chosen = {
        kind: Likeliest(kind)(sample, logged).explanation  # type: ignore[arg-type]
        for kind in ("none", "characters", "bytes", "tokens")
    }
    # -4, -6, -6.3; by characters -1, -0.75, -1.05; by bytes -1, -0.375, -1.05; by tokens -2, -0.5, -3.15
    assert chosen == {"none": "abcd", "characters": "äöüßäöüß", "bytes": "äöüßäöüß", "tokens": "äöüßäöüß"}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"logprobs": [-1.0, -1.0, -2.0], "tokens": [1, 1, 1]}, "equally likely"),
        ({"logprobs": [-1.0, math.nan, -2.0], "tokens": [1, 1, 1]}, "not finite"),
        ({"logprobs": [-1.0, -math.inf, -2.0], "tokens": [1, 1, 1]}, "not finite"),
        ({"logprobs": [-1.0, -3.0], "tokens": [1, 1]}, "scores 2 choices, the sample has 3"),
        ({"logprobs": [-1.0, -3.0, -2.0], "tokens": [1, 0, 1]}, "no tokens"),
        ("blue", "no likelihoods"),
    ],
)
def test_no_answer_is_unscorable(said: object, reason: str) -> None:
    sample = choice_task("quiz", ITEMS).dataset[0]
    score = Likeliest("tokens")(sample, Completion(json.dumps(said), (), (), "stop"))
    assert score.value is None
    assert reason in str(score.reason)


def test_letters_examples_and_a_description_make_the_prompt() -> None:
    template = ChoiceTemplate("letter", "{question}\n{choices}\nAnswer:", description="Choose.")
    task = choice_task("quiz", ITEMS[:1], template=template, examples=ITEMS[1:])
    assert task.dataset[0].prompt == (
        "Choose.\n\nWhat is 1 + 1?\nA. 3\nB. two\nC. 11\nAnswer: B\n\nWhat is in the sea?\nA. sand\nB. fire\nC. water\n"
        "Answer: C\n\nWhat colour is the sky?\nA. blue\nB. dark green\nC. red\nAnswer:"
    )
    assert task.dataset[0].metadata["choices"] == [" A", " B", " C"]
    assert task.dataset[0].target == "0"


def test_bad_templates_items_and_examples_are_refused() -> None:
    for template, reason in (
        ({"question": "Answer:"}, "leaves out {question}"),
        ({"style": "letter", "question": "{question}"}, "leaves out {choices}"),
        ({"question": "{question} {choices}"}, "asks for {choices}"),
        ({"choice": " x"}, "leaves out {choice}"),
        ({"question": "{question"}, "question is"),
    ):
        with pytest.raises(ConfigError) as caught:
            ChoiceTemplate(**template)  # type: ignore[arg-type]
        assert reason in str(caught.value)
    with pytest.raises(DataError, match="item 'sum' is also the few-shot example 'shown'"):
        choice_task("quiz", ITEMS, examples=[ChoiceItem("shown", "What  is 1 + 1?", ("a", "b"), 0)])
    with pytest.raises(DataError, match="is empty"):
        choice_task("quiz", [])
    for choices, answer, reason in (((), 0, "has 0 choices"), (("a", "b"), 2, "answer is 2"), (("a", " "), 0, "empty")):
        with pytest.raises(DataError, match=reason):
            ChoiceItem("x", "?", choices, answer)


# Readers --------------------------------------------------------------------------------------------------------------


def written(tmp_path: Path, name: str, *rows: object) -> Path:
    path = tmp_path / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_readers_read_the_public_formats(tmp_path: Path) -> None:
    mmlu = read_mmlu(written(tmp_path, "tides_test.csv", '"Why, two?",moon,"sun, too",wind,fish,A'))
    assert mmlu == [ChoiceItem("tides_test-1", "Why, two?", ("moon", "sun, too", "wind", "fish"), 0, "tides")]
    arc = [
        {"id": "h", "question": "Q1", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        {
            "id": "o", "answerKey": "A",
            "question": {"stem": "Q2", "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}]},
        },
        {"query": "Question: Q3", "choices": ["x", "y", "z"], "gold": 2},
    ]  # fmt: skip
    found = read_arc(written(tmp_path, "arc.jsonl", *arc))
    assert [(item.id, item.question, item.answer) for item in found] == [("h", "Q1", 1), ("o", "Q2", 0), ("3", "Q3", 2)]
    row = {
        "ind": 7, "activity_label": "Baking", "ctx_a": "A cook [header] mixes. [title] Stir", "ctx_b": "she",
        "endings": ["stirs.", "[step] sleeps."], "label": "1", "source_id": "v", "split_type": "indomain",
    }  # fmt: skip
    (item,) = read_hellaswag(written(tmp_path, "hellaswag.jsonl", row))
    assert item == ChoiceItem("7", "Baking: A cook mixes.. Stir She", ("stirs.", " sleeps."), 1, "indomain", "v")
    goals = written(tmp_path, "piqa.jsonl", {"goal": "Open a jar", "sol1": "Twist", "sol2": "Bite"})
    (item,) = read_piqa(goals, written(tmp_path, "piqa.lst", "0"))
    assert (item.question, item.choices, item.answer) == ("Open a jar", ("Twist", "Bite"), 0)
    gap = {"qID": "w", "sentence": "The cup fell off the shelf as _ was wet.", "option1": "it", "option2": "she"}
    (item,) = read_winogrande(written(tmp_path, "wino.jsonl", gap | {"answer": "2"}))
    assert (item.question, item.answer) == ("The cup fell off the shelf as", 1)
    assert item.choices == ("it was wet.", "she was wet.")
    truths = (
        "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source",
        'Adversarial,Tales,"Do fish, fly?",Some glide,Some glide; No,All do; Never; All do,',
    )
    (item,) = read_truthfulqa(written(tmp_path, "truth.csv", *truths))
    assert item == ChoiceItem("truth-2", "Do fish, fly?", ("Some glide", "All do", "Never"), 0, "Tales")


BAD: list[tuple[Callable[[Path], object], str, str]] = [
    (read_mmlu, "q,a,b,c,D", "row 1 has 5 fields"),
    (read_mmlu, "q,a,b,c,d,E", r"row 1, field 6 \(answer\) is 'E', allowed: A, B, C, D"),
    (read_mmlu, " ,a,b,c,d,A", "row 1: the question is empty"),
    (read_mmlu, "", "has no items"),
    (read_arc, '{"question": "q"', "line 1 is not valid JSON"),
    (read_arc, "[1]", "line 1 is list, allowed: a JSON object"),
    (read_arc, '{"question": "q", "choices": 3}', "line 1: field 'choices' is 3"),
    (read_arc, '{"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}',
     "line 1: field 'answerKey' is 'C', allowed: A, B"),
    (read_arc, '{"query": "q", "choices": ["a", "b"], "gold": 2}', "line 1: item '1': the answer is 2"),
    (read_arc, '{"query": "q", "choices": ["a", "b"], "gold": "x"}', "field 'gold' is 'x'"),
    (read_hellaswag, '{"ctx_a": "a", "endings": ["x", "y"], "label": 0}', "field 'activity_label' is None"),
    (read_winogrande, '{"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}', "has 0 gaps"),
    (read_winogrande, '{"sentence": "a _ b", "option1": "a", "option2": "b", "answer": "3"}', "field 'answer' is '3'"),
    (read_truthfulqa, "Type,Question\nx,q", "row 2: field 'Best Answer' is None"),
]  # fmt: skip


@pytest.mark.parametrize(("read", "text", "reason"), BAD, ids=[f"{b[0].__name__}-{i}" for i, b in enumerate(BAD)])
def test_a_bad_row_is_named(read: Callable[[Path], object], text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason):
        read(written(tmp_path, "data.txt", text))


def test_labels_and_missing_files_are_named(tmp_path: Path) -> None:
    goals = written(tmp_path, "piqa.jsonl", {"goal": "g", "sol1": "a", "sol2": "b"})
    with pytest.raises(DataError, match="line 1: the label is '2', allowed: 0 or 1"):
        read_piqa(goals, written(tmp_path, "labels", "2"))
    with pytest.raises(DataError, match=r"has 2 labels, .* has 1 rows"):
        read_piqa(goals, written(tmp_path, "labels", "1", "0"))
    with pytest.raises(DataError, match=r"cannot read .*no such file"):
        read_mmlu(tmp_path / "absent.csv")
