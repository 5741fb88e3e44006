"""AI feedback: which of two responses keeps the constitution better, by three interchangeable methods.

- `ContrastFeedback`: mean-token log-likelihood of a response under the constitution's character minus that under its
  opposite. Needs no instruction following, so it works with small models.
- `ChoiceFeedback`: the multiple-choice log-probabilities of Bai et al. 2022 (section 4.1), in both orders.
- `JudgeFeedback`: a model that is asked in words, for instance a larger one behind an endpoint; in both orders.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from alignlab.align.constitution import Constitution
from alignlab.core.config import require
from alignlab.core.errors import FeedbackError
from alignlab.core.rng import derive_seed
from alignlab.lm.types import Message, Prompt, Sampler, SamplingParams


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt."""

    prompt: str
    first: str
    second: str


@dataclass(frozen=True)
class Judgement:
    """The probability that the first response is the better one, or None with the reason why there is none."""

    probability: float | None
    reason: str | None = None


class Feedback(Protocol):
    """Anything that judges comparisons."""

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgement]: ...


def sigmoid(x: float) -> float:
    """The logistic function, without overflow."""
    return 0.5 * (1 + math.tanh(x / 2))


class ContrastFeedback:
    """Scores a response by how much likelier the constitution's character makes it than the opposite character does.

    score = mean log p(token | good context, prompt) - mean log p(token | bad context, prompt), in nats per token;
    P(first is better) = sigmoid(sharpness · (score₁ - score₂)). A context is the preamble (or the opposite) as system
    message and, with `use_demonstrations`, the worked examples answered by their revisions (or their poor responses).
    The examples are what makes a small model tell the two characters apart; `docs/align.md` has the figures.
    """

    def __init__(
        self,
        sampler: Sampler,
        constitution: Constitution,
        *,
        sharpness: float = 10.0,
        use_demonstrations: bool = True,
    ) -> None:
        require(bool(constitution.preamble), "preamble", constitution.preamble, "a text, which contrast needs")
        require(bool(constitution.opposite), "opposite", constitution.opposite, "a text, which contrast needs")
        require(sharpness > 0, "sharpness", sharpness, "a positive number")
        self.sampler, self.sharpness = sampler, sharpness
        examples = constitution.shown("feedback") if use_demonstrations else ()
        good: list[Message] = [{"role": "system", "content": constitution.preamble}]
        bad: list[Message] = [{"role": "system", "content": constitution.opposite}]
        for example in examples:
            asked = {"role": "user", "content": example.request}
            good += [asked, {"role": "assistant", "content": example.revision}]
            bad += [asked, {"role": "assistant", "content": example.response}]
        self.contexts = (good, bad)

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        """One score for each response; None for an empty response."""
        means = []
        for context in self.contexts:
            framed: list[Prompt] = [[*context, {"role": "user", "content": prompt}] for prompt in prompts]
            means.append([float(lp.mean()) if len(lp) else None for lp in self.sampler.logprobs(framed, responses)])
        return [None if a is None or b is None else a - b for a, b in zip(*means, strict=True)]

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        prompts = [c.prompt for c in comparisons]
        first = self.score(prompts, [c.first for c in comparisons])
        second = self.score(prompts, [c.second for c in comparisons])
        return [
            Judgement(None, "a response is empty")
            if a is None or b is None
            else Judgement(sigmoid(self.sharpness * (a - b)))
            for a, b in zip(first, second, strict=True)
        ]


class ChoiceFeedback:
    """Log-probability of answering (A) or (B) when asked which response keeps a principle better, over both orders.

    The principle is drawn for each comparison by weight, as in the paper; averaging the log-odds of the two orders
    removes the preference for a letter.
    """

    def __init__(self, sampler: Sampler, constitution: Constitution, *, seed: int = 0) -> None:
        self.sampler, self.constitution, self.seed = sampler, constitution, seed

    def question(self, comparison: Comparison, *, swapped: bool) -> list[Message]:
        """The multiple-choice question as a conversation."""
        rule = self.constitution.draw(derive_seed(self.seed, comparison.prompt), category="harmlessness")
        a, b = (comparison.second, comparison.first) if swapped else (comparison.first, comparison.second)
        text = (
            f"Consider this conversation.\nUser: {comparison.prompt}\n\n{rule.text}\n"
            f"Which response is better?\n(A) {a}\n(B) {b}\nAnswer with A or B."
        )
        return [{"role": "user", "content": text}]

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        log_odds = [0.0] * len(comparisons)
        for swapped in (False, True):
            questions: list[Prompt] = [self.question(c, swapped=swapped) for c in comparisons]
            in_favour = self.sampler.logprobs(questions, ["B" if swapped else "A"] * len(questions))
            against = self.sampler.logprobs(questions, ["A" if swapped else "B"] * len(questions))
            for i, (up, down) in enumerate(zip(in_favour, against, strict=True)):
                log_odds[i] += float(up.sum() - down.sum()) / 2
        return [Judgement(sigmoid(value)) for value in log_odds]


class JudgeFeedback(ChoiceFeedback):
    """Asks a model in words and reads its answer; orders that contradict each other count as a tie.

    Made for a larger model behind an OpenAI-compatible endpoint, whose log-probabilities may not be had. An answer that
    names neither letter makes the comparison unscorable.
    """

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        votes: list[list[float | None]] = []
        for swapped in (False, True):
            questions: list[Prompt] = [self.question(c, swapped=swapped) for c in comparisons]
            answers = self.sampler.generate(questions, SamplingParams(max_tokens=8, temperature=0))
            votes.append([read_letter(answer.text, swapped=swapped) for answer in answers])
        return [
            Judgement(None, "the judge named neither A nor B") if a is None or b is None else Judgement((a + b) / 2)
            for a, b in zip(*votes, strict=True)
        ]


def read_letter(text: str, *, swapped: bool) -> float | None:
    """1 if the answer names the first response, 0 if the second, None if neither.

    An "A" before a lower-case word is taken for the article, not for the letter.
    """
    found = re.search(r"\b(B|A(?!\s+[a-z]))\b", text)
    return None if found is None else float((found.group(1) == "A") != swapped)


def make_feedback(method: str, sampler: Sampler, constitution: Constitution, *, seed: int = 0) -> Feedback:
    """The feedback of that name: `contrast`, `choice` or `judge`."""
    if method == "contrast":
        return ContrastFeedback(sampler, constitution)
    kinds = {"choice": ChoiceFeedback, "judge": JudgeFeedback}
    if method not in kinds:
        raise FeedbackError(f"feedback is {method!r}, allowed: contrast, choice, judge")
    return kinds[method](sampler, constitution, seed=seed)
