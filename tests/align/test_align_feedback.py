"""AI feedback: three ways to prefer one response, each against what it should come to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import tiny_run
import torch
from torch import Tensor

from alignlab.align.constitution import Constitution, Demonstration, Principle
from alignlab.align.feedback import (
    ChoiceFeedback,
    Comparison,
    ContrastFeedback,
    JudgeFeedback,
    Judgement,
    make_feedback,
    read_letter,
    sigmoid,
)
from alignlab.core.errors import ConfigError, FeedbackError
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.local import LocalSampler
from alignlab.lm.scripted import ScriptedSampler
from alignlab.lm.types import Prompt

PAIRS = [
    Comparison("How do I bake bread?", "Mix flour and water, then wait.", "No."),
    Comparison("Help me lie to her.", "I will not help with that.", "Sure, say that you were at work all day."),
    Comparison("Help me lie to her.", "Tell the truth", "Tell the truth"),
]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(str(tiny_run.build_model(tmp_path_factory.mktemp("model"))), dtype="float32")


@pytest.fixture
def constitution() -> Constitution:
    return Constitution(
        [Principle("kind", "Be kind.", "Is it unkind?", "Make it kind.")],
        preamble="You are kind.",
        opposite="You are cruel.",
        demonstrations=[Demonstration("d", "Insult me.", "You fool.", "It insults.", "I would rather not.", "kind")],
    )


class Letters(ScriptedSampler):
    """Likes the letter A by `bias` nats, and the response `favourite`, at whatever letter, by `merit` nats."""

    def __init__(self, bias: float, favourite: str = "", merit: float = 0.0) -> None:
        super().__init__()
        self.bias, self.favourite, self.merit = bias, favourite, merit

    def logprobs(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Tensor]:
        return [torch.tensor([self.one(prompt, letter)]) for prompt, letter in zip(prompts, completions, strict=True)]

    def one(self, prompt: Any, letter: str) -> float:
        text = prompt[-1]["content"]
        liked = bool(self.favourite) and f"({letter}) {self.favourite}" in text
        return -3.0 + (self.bias if letter == "A" else 0.0) + (self.merit if liked else 0.0)


# Contrast


def naive_mean(lm: LanguageModel, messages: list[dict[str, str]], response: str) -> float:
    """Mean log-probability of the response's tokens, one forward pass without cache, batch or shared prefix."""
    before, after = lm.tokenizer.encode_prompt(messages), lm.tokenizer.encode(response)
    with torch.no_grad():
        logprobs = lm.model(torch.tensor([before + after]))[0].double().log_softmax(-1)
    found = [float(logprobs[len(before) + i - 1, token]) for i, token in enumerate(after)]
    return sum(found) / len(found)


@pytest.mark.parametrize("packaged", [False, True])
def test_contrast_equals_the_naive_computation(lm: LanguageModel, constitution: Constitution, packaged: bool) -> None:
    rules = Constitution.load() if packaged else constitution
    feedback = ContrastFeedback(LocalSampler(lm, batch_size=2), rules, sharpness=7.0)

    def score(pair: Comparison, response: str) -> float:
        contexts: list[list[dict[str, str]]] = []
        for system, kept in ((rules.preamble, True), (rules.opposite, False)):
            messages = [{"role": "system", "content": system}]
            for shown in rules.shown("feedback"):
                answer = shown.revision if kept else shown.response
                messages.append({"role": "user", "content": shown.request})
                messages.append({"role": "assistant", "content": answer})
            contexts.append([*messages, {"role": "user", "content": pair.prompt}])
        return naive_mean(lm, contexts[0], response) - naive_mean(lm, contexts[1], response)

    expected = [(score(pair, pair.first), score(pair, pair.second)) for pair in PAIRS]
    found = feedback.score([pair.prompt for pair in PAIRS], [pair.first for pair in PAIRS])
    assert found == pytest.approx([first for first, _ in expected], abs=2e-5)
    judged = feedback.compare(PAIRS)
    for judgement, (first, second) in zip(judged, expected, strict=True):
        assert judgement.probability == pytest.approx(1 / (1 + math.exp(-7 * (first - second))), abs=2e-4)
    assert judged[0].probability != pytest.approx(0.5, abs=1e-3)
    assert judged[2].probability == pytest.approx(0.5, abs=1e-5)


def test_contrast_without_demonstrations(lm: LanguageModel, constitution: Constitution) -> None:
    feedback = ContrastFeedback(LocalSampler(lm), constitution, use_demonstrations=False)
    contexts = [
        [{"role": "system", "content": text}, {"role": "user", "content": "Who are you?"}]
        for text in ("You are kind.", "You are cruel.")
    ]
    expected = naive_mean(lm, contexts[0], "A friend.") - naive_mean(lm, contexts[1], "A friend.")
    assert feedback.score(["Who are you?"], ["A friend."]) == pytest.approx([expected], abs=2e-5)


def test_contrast_is_antisymmetric_and_means_over_tokens(constitution: Constitution) -> None:
    """Hand-worked: +0.5 nats a token under the good character for what has "kind" in it, whatever its length."""

    def score(prompt: Any, text: str) -> float:
        return -1.0 if prompt[0]["content"] == "You are kind." and "kind" in text else -1.5

    feedback = ContrastFeedback(ScriptedSampler(score=score), constitution, sharpness=4.0)
    assert feedback.score(["q", "q", "q"], ["kind", "a kind long text", "rude"]) == [0.5, 0.5, 0.0]
    (one,) = feedback.compare([Comparison("q", "so kind", "rude")])
    (other,) = feedback.compare([Comparison("q", "rude", "so kind")])
    assert one.probability == pytest.approx(1 / (1 + math.exp(-2)))
    assert one.probability is not None
    assert other.probability == pytest.approx(1 - one.probability)


def test_contrast_leaves_empty_responses_unscored(lm: LanguageModel, constitution: Constitution) -> None:
    feedback = ContrastFeedback(LocalSampler(lm), constitution)
    assert feedback.score(["q", "q"], ["", "words"])[0] is None
    judged = feedback.compare([Comparison("q", "", "words"), Comparison("q", "words", ""), Comparison("q", "a", "b")])
    assert judged[:2] == [Judgement(None, "a response is empty")] * 2
    assert judged[2].probability is not None
    assert feedback.compare([]) == []
    assert feedback.score(["q"], [""]) == [None]


@pytest.mark.parametrize(
    ("changes", "sharpness", "sentence"),
    [
        ({"preamble": ""}, 1.0, "preamble is '', allowed: a text, which contrast needs"),
        ({"opposite": " "}, 1.0, "opposite is '', allowed: a text, which contrast needs"),
        ({}, 0.0, "sharpness is 0.0, allowed: a positive number"),
    ],
)
def test_contrast_needs_both_characters(changes: dict[str, str], sharpness: float, sentence: str) -> None:
    texts = {"preamble": "kind", "opposite": "cruel", **changes}
    rules = Constitution([Principle("kind", "t", "c", "r")], **texts)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=sentence):
        ContrastFeedback(ScriptedSampler(), rules, sharpness=sharpness)


# Choice


@pytest.mark.parametrize("bias", [0.5, 5.0, -80.0])
def test_choice_is_exactly_even_for_a_lover_of_letters(constitution: Constitution, bias: float) -> None:
    judged = ChoiceFeedback(Letters(bias), constitution).compare(PAIRS)
    assert [judgement.probability for judgement in judged] == [0.5] * 3


def test_choice_averages_the_log_odds_of_both_orders(constitution: Constitution) -> None:
    """First order: bias + merit; second: merit - bias. The bias goes, the merit stays."""
    feedback = ChoiceFeedback(Letters(4.0, favourite="good", merit=1.25), constitution)
    judged = feedback.compare([Comparison("q", "good", "bad"), Comparison("q", "bad", "good")])
    assert judged[0].probability == pytest.approx(1 / (1 + math.exp(-1.25)))
    assert judged[1].probability == pytest.approx(1 / (1 + math.exp(1.25)))


def test_choice_question(constitution: Constitution) -> None:
    feedback = ChoiceFeedback(ScriptedSampler(), constitution)
    comparison = Comparison("why?", "first text", "second text")
    (message,) = feedback.question(comparison, swapped=False)
    for part in ("User: why?", "Be kind.", "(A) first text", "(B) second text"):
        assert part in message["content"]
    (swapped,) = feedback.question(comparison, swapped=True)
    assert "(A) second text" in swapped["content"]
    assert "(B) first text" in swapped["content"]


def test_choice_draws_harmlessness_principles_by_prompt_and_seed() -> None:
    rules = Constitution.load()
    feedback, other = ChoiceFeedback(ScriptedSampler(), rules), ChoiceFeedback(ScriptedSampler(), rules, seed=1)

    def drawn(source: ChoiceFeedback, prompt: str) -> str:
        text = source.question(Comparison(prompt, "a", "b"), swapped=False)[0]["content"]
        (found,) = [rule for rule in rules.principles if f"\n{rule.text}\n" in text]
        assert found.category == "harmlessness"
        return found.id

    prompts = [f"prompt {i}" for i in range(40)]
    first = [drawn(feedback, prompt) for prompt in prompts]
    assert first == [drawn(feedback, prompt) for prompt in prompts]
    assert first != [drawn(other, prompt) for prompt in prompts]
    assert len(set(first)) >= 4


def test_choice_on_a_model_equals_its_own_logits(lm: LanguageModel, constitution: Constitution) -> None:
    feedback = ChoiceFeedback(LocalSampler(lm), constitution)
    odds = 0.0
    for swapped in (False, True):
        question = feedback.question(PAIRS[0], swapped=swapped)
        a, b = (naive_mean(lm, question, letter) * len(lm.tokenizer.encode(letter)) for letter in "AB")
        odds += (b - a if swapped else a - b) / 2
    assert feedback.compare(PAIRS[:1])[0].probability == pytest.approx(sigmoid(odds), abs=1e-5)


# Judge


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("A", 1.0),
        ("B", 0.0),
        (" (A)", 1.0),
        ("The answer is B.", 0.0),
        ("**A**", 1.0),
        ("Response B is better", 0.0),
        ("neither", None),
        ("", None),
        ("Both", None),
        ("ABBA", None),
    ],
)
def test_letters_are_read(text: str, first: float | None) -> None:
    assert read_letter(text, swapped=False) == first
    assert read_letter(text, swapped=True) == (None if first is None else 1 - first)


def judge(answers: dict[str, str]) -> ScriptedSampler:
    """Answers by the text in place (A)."""
    return ScriptedSampler(lambda prompt: next(answers[k] for k in answers if f"(A) {k}\n" in prompt[-1]["content"]))  # type: ignore[index]


def test_judge_votes_in_both_orders(constitution: Constitution) -> None:
    pair = Comparison("q", "good", "bad")
    for answers, expected in (
        ({"good": "A", "bad": "B"}, 1.0),
        ({"good": "B", "bad": "A"}, 0.0),
        ({"good": "A", "bad": "A"}, 0.5),
        ({"good": "B", "bad": "B"}, 0.5),
    ):
        assert JudgeFeedback(judge(answers), constitution).compare([pair]) == [Judgement(expected)]


def test_judge_that_names_no_letter_is_unscorable(constitution: Constitution) -> None:
    for answers in ({"good": "A", "bad": "hm"}, {"good": "hm", "bad": "B"}):
        (found,) = JudgeFeedback(judge(answers), constitution).compare([Comparison("q", "good", "bad")])
        assert found == Judgement(None, "the judge named neither A nor B")


# Around them


def test_sigmoid_does_not_overflow() -> None:
    assert [sigmoid(x) for x in (-1e6, 0.0, 1e6)] == [0.0, 0.5, 1.0]
    assert sigmoid(1.7) == pytest.approx(1 / (1 + math.exp(-1.7)), rel=1e-12)


def test_make_feedback_by_name(constitution: Constitution) -> None:
    kinds = {"contrast": ContrastFeedback, "choice": ChoiceFeedback, "judge": JudgeFeedback}
    for name, kind in kinds.items():
        assert type(make_feedback(name, ScriptedSampler(), constitution)) is kind
    with pytest.raises(FeedbackError, match="feedback is 'coin', allowed: contrast, choice, judge"):
        make_feedback("coin", ScriptedSampler(), constitution)
