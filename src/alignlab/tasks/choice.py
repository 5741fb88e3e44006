"""Multiple choice by likelihood: which of the given answers does the model find likeliest after the question?

The solver scores every choice and writes all scores into the log; the scorer picks. So one log answers under every
normalisation, and what the model thought of the other choices is not lost.
"""

from __future__ import annotations

import json
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from alignlab.core.errors import DataError
from alignlab.lm.types import Completion, Sampler
from alignlab.tasks.task import Sample, Score, Task
from alignlab.tasks.template_fields import check_fields

Style = Literal["cloze", "letter"]
Normalise = Literal["none", "characters", "bytes", "tokens"]
LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class ChoiceItem:
    """A question with its possible answers."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right choice."""
    category: str | None = None
    cluster: str | None = None
    """Items that share a cluster are not independent (one passage, several questions)."""

    def __post_init__(self) -> None:
        if not 2 <= len(self.choices) <= len(LETTERS):
            raise DataError(f"item {self.id!r} has {len(self.choices)} choices, allowed: 2 to {len(LETTERS)}")
        if not 0 <= self.answer < len(self.choices):
            raise DataError(f"item {self.id!r}: the answer is {self.answer}, allowed: 0 to {len(self.choices) - 1}")
        if not all(choice.strip() for choice in self.choices):
            raise DataError(f"item {self.id!r} has an empty choice")


@dataclass(frozen=True)
class ChoiceTemplate:
    """How an item becomes text. Everything here changes scores, so all of it is part of a log's fingerprint.

    In `cloze` style the choices themselves are scored as continuations of the question; in `letter` style they are
    listed, and their letters are scored (as MMLU does; Hendrycks et al. 2021).
    """

    style: Style = "cloze"
    question: str = "Question: {question}\nAnswer:"
    """With `{question}`, and in letter style `{choices}`, the list of them."""
    choice: str = " {choice}"
    """What is scored: with `{choice}`, the choice's text or its letter."""
    listed: str = "{letter}. {choice}"
    """A line of the list in letter style."""
    separator: str = "\n\n"
    """Between examples, and between the last of them and the question."""
    description: str = ""
    """Before everything, the separator after it."""

    def __post_init__(self) -> None:
        needed = {"question": ["question"] + (["choices"] if self.style == "letter" else []), "choice": ["choice"]}
        for name, fields in needed.items():
            check_fields(name, getattr(self, name), fields)

    def asked(self, item: ChoiceItem) -> str:
        """The question, up to where an answer is scored."""
        lines = [self.listed.format(letter=LETTERS[i], choice=text) for i, text in enumerate(item.choices)]
        return self.question.format(question=item.question, **({"choices": "\n".join(lines)} if self.letters else {}))

    def continuations(self, item: ChoiceItem) -> tuple[str, ...]:
        """What is scored for each choice."""
        return tuple(
            self.choice.format(choice=LETTERS[i] if self.letters else text) for i, text in enumerate(item.choices)
        )

    @property
    def letters(self) -> bool:
        """Whether letters stand for the choices."""
        return self.style == "letter"

    def prompt(self, item: ChoiceItem, examples: Sequence[ChoiceItem]) -> str:
        """Solved examples, then the question."""
        solved = [self.asked(example) + self.continuations(example)[example.answer] for example in examples]
        return self.separator.join([*([self.description] if self.description else []), *solved, self.asked(item)])


@dataclass(frozen=True)
class Likelihoods:
    """The solver: the log-likelihood of every choice after the prompt, as JSON in the completion's text.

    All choices of all samples of a batch go to the sampler in one call, those of one question beside each other, so
    that a sampler which shares prefixes reads each question once.
    """

    def __call__(self, sampler: Sampler, samples: Sequence[Sample]) -> list[Completion]:
        """One completion for each sample; `finish_reason` is always `stop`."""
        choices = [choices_of(sample) for sample in samples]
        prompts = [sample.prompt for sample, own in zip(samples, choices, strict=True) for _ in own]
        scored = iter(sampler.logprobs(prompts, [text for own in choices for text in own]))
        found = []
        for own in choices:
            each = [next(scored) for _ in own]
            said = {"logprobs": [float(one.double().sum()) for one in each], "tokens": [len(one) for one in each]}
            found.append(Completion(json.dumps(said), (), (), "stop"))
        return found


def choices_of(sample: Sample) -> list[str]:
    """The continuations of a sample that `choice_task` made."""
    choices = sample.metadata.get("choices")
    if not isinstance(choices, list) or len(choices) < 2:
        raise DataError(f"sample {sample.id!r} has no list of choices in its metadata")
    return choices


@dataclass(frozen=True)
class Likeliest:
    """1 where the likeliest choice is the right one, its log-likelihood divided by its length as `normalise` says.

    Lengths are those of the continuation without the space before it, in characters (`acc_norm` of lm-evaluation-
    harness), UTF-8 bytes, or the model's tokens. Scores that are not finite are unscorable, and so is a tie: a model
    that prefers nothing has not answered.
    """

    normalise: Normalise = "none"

    def __call__(self, sample: Sample, completion: Completion) -> Score:
        """0 or 1, or unscorable with the reason."""
        scores = self.scores(sample, completion)
        if isinstance(scores, str):
            return Score.unscorable(scores)
        best = max(scores)
        if scores.count(best) > 1:
            return Score.unscorable("two choices are equally likely")
        chosen = scores.index(best)
        return Score(float(str(chosen) == sample.target), explanation=choices_of(sample)[chosen].strip())

    def scores(self, sample: Sample, completion: Completion) -> list[float] | str:
        """What is compared, or why there is nothing to compare."""
        choices = choices_of(sample)
        try:
            said: dict[str, Any] = json.loads(completion.text)
            logprobs, tokens = [float(x) for x in said["logprobs"]], [int(n) for n in said["tokens"]]
        except (ValueError, KeyError, TypeError):
            return "the completion holds no likelihoods; the solver must be `likelihoods()`"
        if not len(logprobs) == len(tokens) == len(choices):
            return f"the completion scores {len(logprobs)} choices, the sample has {len(choices)}"
        if not all(math.isfinite(x) for x in logprobs):
            return "a choice has a log-likelihood that is not finite"
        texts = [choice.strip() for choice in choices]
        lengths = {
            "none": [1] * len(choices),
            "characters": [len(text) for text in texts],
            "bytes": [len(text.encode()) for text in texts],
            "tokens": tokens,
        }[self.normalise]
        if not all(lengths):
            return "a choice has no tokens"
        return [x / n for x, n in zip(logprobs, lengths, strict=True)]


def choice_task(
    name: str,
    items: Sequence[ChoiceItem],
    *,
    template: ChoiceTemplate | None = None,
    examples: Sequence[ChoiceItem] = (),
    normalise: Normalise = "none",
) -> Task:
    """Multiple choice on `items`, each asked after the solved `examples`.

    Raises:
        DataError: no items, or an example is also among them (same question, whatever its id): what the model has just
            been shown is not measured.
    """
    template = template or ChoiceTemplate()
    questions = {" ".join(example.question.split()): example for example in examples}
    for item in items:
        shown = questions.get(" ".join(item.question.split()))
        if shown is not None:
            raise DataError(f"task {name!r}: item {item.id!r} is also the few-shot example {shown.id!r}")
    dataset = [
        Sample(
            id=item.id,
            prompt=template.prompt(item, examples),
            target=str(item.answer),
            metadata={"choices": list(template.continuations(item)), "shots": len(examples)}
            | ({} if item.category is None else {"category": item.category}),
            cluster=item.cluster,
        )
        for item in items
    ]
    return Task(name, dataset, Likelihoods(), Likeliest(normalise))
