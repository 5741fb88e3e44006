"""Tasks with answers that can be checked, split into what is learned from and what is held out.

No question to learn from is also held out, not even with its operands exchanged. `gains` compares what `measure` finds
before and after.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from alignlab.align.rl.verifiable import VerifiableReward
from alignlab.align.sft import SFTExample
from alignlab.core.config import require
from alignlab.core.errors import DataError
from alignlab.lm.types import Prompt, Sampler, SamplingParams
from alignlab.tasks.generation.arithmetic import SHORT, arithmetic_items
from alignlab.tasks.generation.entries import NUMBER_CHAT
from alignlab.tasks.generation.readers import read_gsm8k
from alignlab.tasks.generation.scorers import FinalNumber, NumberForm, Silence
from alignlab.tasks.generation.worked import WorkedItem, WorkedTemplate, worked_task
from alignlab.tasks.task import Sample

SUMS = WorkedTemplate(question="{question} =", solution=" {answer}", separator="\n", stop=("\n",))
COMMUTES = re.compile(r"(?<![\w.])(\d+) (\+|\*|times|plus) (\d+)(?! ?[\d*/(])")


@dataclass(frozen=True)
class VerifiableTask:
    """Questions to learn from, others to measure on, and the form that an answer is to have."""

    name: str
    learned: tuple[WorkedItem, ...]
    held: tuple[WorkedItem, ...]
    template: WorkedTemplate
    sampling: SamplingParams
    """Longest answer and stop strings; temperature and seed are the measurement's."""
    form: NumberForm = "marked"
    shown: tuple[WorkedItem, ...] = ()
    """Solved examples before every question."""

    def __post_init__(self) -> None:
        shared = shared_questions(self.learned, self.held)
        if shared:
            first = next(item for item in self.learned if item.id == shared[0])
            raise DataError(
                f"task {self.name!r}: {len(shared)} questions to learn from are also held out, the first is "
                f"{first.id!r}: {first.question[:80]!r}; leave them out of one of the two"
            )

    def samples(self, items: Sequence[WorkedItem]) -> list[Sample]:
        """The items as the model is asked them."""
        scorer = FinalNumber(self.form)
        task = worked_task(
            self.name, items, scorer, template=self.template, sampling=self.sampling, examples=self.shown
        )
        return list(task.dataset)

    @property
    def prompts(self) -> list[Prompt]:
        """What to train on."""
        return [sample.prompt for sample in self.samples(self.learned)]

    @property
    def stop(self) -> tuple[str, ...]:
        """Where an answer ends, for the training's `stop`."""
        return (*self.sampling.stop, *(one for one in self.template.stop if one not in self.sampling.stop))

    def reward(self, *, right: float = 1.0, elsewhere: float = 0.0, formed: float = 0.0) -> VerifiableReward:
        """What answers to `prompts` are worth."""
        samples = self.samples(self.learned)
        return VerifiableReward(samples, self.form, right, elsewhere, formed, name=self.name)

    def solutions(self) -> list[SFTExample]:
        """Prompts with their solutions in the asked form, for a supervised warm-up; DataError where one is missing."""
        pairs = zip(self.prompts, self.learned, strict=True)
        return [SFTExample(prompt, self.template.solved(item).strip()) for prompt, item in pairs]


def question_key(question: str) -> str:
    """The same for questions that differ in case, white space, or the order of two numbers added or multiplied."""
    plain = " ".join(question.lower().split())
    return COMMUTES.sub(lambda m: f" {m[2]} ".join(sorted((m[1], m[3]), key=int)), plain)


def shared_questions(learned: Sequence[WorkedItem], held: Sequence[WorkedItem]) -> list[str]:
    """Ids of the items to learn from whose question is also held out."""
    kept = {question_key(item.question) for item in held}
    return [item.id for item in learned if question_key(item.question) in kept]


def without_shared(learned: Sequence[WorkedItem], held: Sequence[WorkedItem]) -> list[WorkedItem]:
    """`learned` less the questions that are held out."""
    shared = set(shared_questions(learned, held))
    return [item for item in learned if item.id not in shared]


def sums_task(
    n: int, n_held: int, *, kinds: Sequence[str] = tuple(SHORT), shots: int = 4, max_tokens: int = 6, seed: int = 0
) -> VerifiableTask:
    """`n` sums to learn from and `n_held` others, written `7 + 5 =` after `shots` solved ones; the answer is bare.

    Raw text, so that a model needs no warm-up to keep to the form.
    """
    held = arithmetic_items(n_held, seed=seed, stream="held-out", kinds=kinds)
    shown = arithmetic_items(shots, seed=seed, stream="examples", kinds=kinds) if shots else []
    apart = [item.question for item in (*held, *shown)]
    held = [item for item in held if item.question not in {one.question for one in shown}]
    drawn = arithmetic_items(n + n // 4 + len(kinds), seed=seed, avoid=tuple(apart), kinds=kinds)
    learned = without_shared(drawn, [*held, *shown])[:n]
    if len(learned) < n:
        raise DataError(f"there are {len(learned)} different sums beside the {n_held} held-out ones, asked for: {n}")
    return VerifiableTask(
        "sums", tuple(learned), tuple(held), SUMS, SamplingParams(max_tokens=max_tokens), "bare", tuple(shown)
    )


def word_task(n: int, n_held: int, *, max_tokens: int = 128, seed: int = 0) -> VerifiableTask:
    """Generated word problems of two or three steps, asked in a conversation, the answer after `####`."""
    kinds = ("sharing", "paying")
    held = arithmetic_items(n_held, seed=seed, stream="held-out", kinds=kinds)
    learned = arithmetic_items(n, seed=seed, avoid=tuple(item.question for item in held), kinds=kinds)
    return VerifiableTask(
        "word problems", tuple(learned), tuple(held), NUMBER_CHAT, SamplingParams(max_tokens=max_tokens)
    )


def gsm8k_task(
    learn: str | Path, held: str | Path, *, n: int | None = None, n_held: int | None = None, max_tokens: int = 256
) -> VerifiableTask:
    """GSM8K (Cobbe et al. 2021), train and test file as published: a conversation, the answer after `####`.

    Questions of the test file are left out of the other.
    """
    test = read_gsm8k(held)[:n_held]
    learned = without_shared(read_gsm8k(learn), test)[:n]
    return VerifiableTask("gsm8k", tuple(learned), tuple(test), NUMBER_CHAT, SamplingParams(max_tokens=max_tokens))


@dataclass(frozen=True)
class Measured:
    """Answers to the held-out items, one entry an item, in their order; means over the answers of an item."""

    right: list[float]
    """Right number in the asked form."""
    right_any_form: list[float]
    ended: list[float]
    """Finished before the token limit."""
    tokens: list[float]


def measure(
    sampler: Sampler, task: VerifiableTask, *, temperature: float = 0.0, seed: int = 0, answers: int = 1
) -> Measured:
    """Ask every held-out item; several `answers` want a temperature. An answer that was cut off is wrong."""
    require(answers == 1 or temperature > 0, "answers", answers, "1 at temperature 0, where all are the same")
    samples = task.samples(task.held)
    sampling = replace(task.sampling, temperature=temperature, seed=seed, n=answers, stop=task.stop)
    said = sampler.generate([sample.prompt for sample in samples], sampling)
    silence = Silence(empty="wrong")
    strict, loose = FinalNumber(task.form, silence), FinalNumber("any", silence)
    asked = [sample for sample in samples for _ in range(answers)]
    pairs = list(zip(asked, said, strict=True))
    columns = [
        [strict(sample, completion).value or 0.0 for sample, completion in pairs],
        [loose(sample, completion).value or 0.0 for sample, completion in pairs],
        [float(completion.finish_reason == "stop") for completion in said],
        [float(len(completion.tokens)) for completion in said],
    ]
    return Measured(*(np.array(column).reshape(-1, answers).mean(axis=1).tolist() for column in columns))
