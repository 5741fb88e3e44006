"""Questions with worked solutions, how they become prompts, and the task that asks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alignlab.core.config import require
from alignlab.core.errors import ConfigError, DataError
from alignlab.lm.types import Completion, Message, Prompt, Sampler, SamplingParams
from alignlab.tasks.choice import LETTERS
from alignlab.tasks.task import Sample, Scorer, Task
from alignlab.tasks.template_fields import check_fields, fields_in


@dataclass(frozen=True)
class WorkedItem:
    """A question, its final answer and, where there is one, a solution that leads to it."""

    id: str
    question: str
    answer: str
    """The final answer: a number, LaTeX, or the letter of an option."""
    solution: str | None = None
    """The reasoning, without the final answer's line; what a few-shot example shows."""
    options: tuple[str, ...] = ()
    """Possible answers, for questions that offer some; `answer` is then a letter."""
    category: str | None = None
    cluster: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the data set says (JSON values)."""

    def __post_init__(self) -> None:
        for name in ("question", "answer"):
            if not getattr(self, name).strip():
                raise DataError(f"item {self.id!r} has an empty {name}")
        if self.options:
            if not 2 <= len(self.options) <= len(LETTERS):
                raise DataError(f"item {self.id!r} has {len(self.options)} options, allowed: 2 to {len(LETTERS)}")
            letters = LETTERS[: len(self.options)]
            if self.answer not in tuple(letters):
                raise DataError(f"item {self.id!r}: the answer is {self.answer!r}, allowed: {', '.join(letters)}")


@dataclass(frozen=True)
class WorkedTemplate:
    """How items become prompts. All of it changes scores; the solver holds it, so that a log's fingerprint knows it."""

    question: str = "Question: {question}\nAnswer:"
    """With `{question}`, and `{options}` where items have some."""
    solution: str = " {solution}\n#### {answer}"
    """How an example is answered: `{answer}`, and `{solution}` for a chain of thought (Wei et al. 2022)."""
    separator: str = "\n\n"
    """Between examples, and between the last of them and the question (raw text only)."""
    description: str = ""
    """Before everything; in a conversation the system message."""
    option: str = "{letter}. {option}"
    """A line of the list of options."""
    chat: bool = False
    """Examples and question as turns of a conversation, rendered by the model's own chat template; else raw text."""
    stop: tuple[str, ...] = ()
    """Where an answer ends; raw text needs one, or the model goes on with a question of its own."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", tuple(self.stop))
        allowed = {
            "question": ("question", "options"),
            "solution": ("solution", "answer"),
            "option": ("letter", "option"),
        }
        needed = {"question": ("question",), "solution": ("answer",), "option": ("letter", "option")}
        for name, fields in allowed.items():
            check_fields(name, getattr(self, name), needed[name], fields)

    def fields(self, name: str) -> set[str]:
        """Names in braces of one of the texts."""
        return fields_in(name, getattr(self, name))

    def asked(self, item: WorkedItem) -> str:
        """The question as the model reads it."""
        lines = [self.option.format(letter=LETTERS[i], option=text) for i, text in enumerate(item.options)]
        if lines and "options" not in self.fields("question"):
            raise ConfigError(f"template question is {self.question!r}, it leaves out {{options}}")
        return self.question.format(question=item.question, options="\n".join(lines))

    def solved(self, item: WorkedItem) -> str:
        """The answer of an example. DataError where a solution is to be shown and the item has none."""
        if "solution" in self.fields("solution") and not (item.solution or "").strip():
            raise DataError(f"the few-shot example {item.id!r} has no worked solution to show")
        return self.solution.format(solution=item.solution, answer=item.answer)

    def prompt(self, item: WorkedItem, examples: Sequence[WorkedItem]) -> Prompt:
        """Solved examples, then the question."""
        if not self.chat:
            before = [self.description] if self.description else []
            shown = [self.asked(example) + self.solved(example) for example in examples]
            return self.separator.join([*before, *shown, self.asked(item)])
        messages: list[Message] = [{"role": "system", "content": self.description}] if self.description else []
        for example in examples:
            messages.append({"role": "user", "content": self.asked(example)})
            messages.append({"role": "assistant", "content": self.solved(example).strip()})
        return [*messages, {"role": "user", "content": self.asked(item)}]


@dataclass(frozen=True)
class AskWorked:
    """The solver: one completion for each prompt. Template and examples are here so that the log names them."""

    sampling: SamplingParams
    template: WorkedTemplate
    examples: tuple[str, ...] = ()
    """Ids of what is shown, in order."""

    def __call__(self, sampler: Sampler, samples: Sequence[Sample]) -> list[Completion]:
        """Completions in the order of `samples`."""
        return sampler.generate([sample.prompt for sample in samples], self.sampling)


def worked_task(
    name: str,
    items: Sequence[WorkedItem],
    scorer: Scorer,
    *,
    template: WorkedTemplate,
    sampling: SamplingParams,
    examples: Sequence[WorkedItem] = (),
    by_category: bool = False,
) -> Task:
    """Asks `items` after the solved `examples`; with `by_category`, each after those of its own category.

    The template's stop strings are added to those of `sampling`.

    Raises:
        DataError: no items; an example is also among them (same question, whatever its id); a category without
            examples, or an example without a solution where the template shows one.
    """
    asked = {_plain(item.question): item for item in items}
    for example in examples:
        item = asked.get(_plain(example.question))
        if item is not None:
            raise DataError(f"task {name!r}: item {item.id!r} is also the few-shot example {example.id!r}")
    shown = {item.id: _examples_for(name, item, examples, by_category) for item in items}
    dataset = [
        Sample(
            id=item.id,
            prompt=template.prompt(item, shown[item.id]),
            target=item.answer,
            metadata={"shots": len(shown[item.id]), **item.metadata}
            | ({"options": list(item.options)} if item.options else {})
            | ({} if item.category is None else {"category": item.category}),
            cluster=item.cluster,
        )
        for item in items
    ]
    stop = (*sampling.stop, *(one for one in template.stop if one not in sampling.stop))
    solver = AskWorked(_with_stop(sampling, stop), template, tuple(example.id for example in examples))
    return Task(name, dataset, solver, scorer)


def _with_stop(sampling: SamplingParams, stop: tuple[str, ...]) -> SamplingParams:
    require(sampling.n == 1, "n", sampling.n, "1, each item is asked once")
    return replace(sampling, stop=stop)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _examples_for(
    name: str, item: WorkedItem, examples: Sequence[WorkedItem], by_category: bool
) -> Sequence[WorkedItem]:
    if not by_category or not examples:
        return examples
    own = [example for example in examples if example.category == item.category]
    if not own:
        raise DataError(f"task {name!r}: there is no few-shot example of the category {item.category!r}")
    return own


def split_examples(
    items: Sequence[WorkedItem], examples: Sequence[WorkedItem] | None, shots: int, *, by_category: bool = False
) -> tuple[list[WorkedItem], list[WorkedItem]]:
    """What is asked and what is shown: the first `shots` of `examples`, or else the first of `items`, which are then
    not asked; with `by_category`, as many of every category.

    Raises:
        DataError: fewer than `shots` examples (in a category), or no items left to ask.
    """
    source = items if examples is None else examples
    groups: dict[str | None, list[WorkedItem]] = {}
    if shots:
        for one in source:
            groups.setdefault(one.category if by_category else None, []).append(one)
    wanted = {item.category for item in items} if by_category and shots else {None} if shots else set()
    for category in wanted:
        have = len(groups.get(category, []))
        if have < shots:
            where = f" in the category {category!r}" if by_category else ""
            raise DataError(f"{shots} few-shot examples are asked for, there are {have}{where}")
    shown = [one for category, group in groups.items() if category in wanted for one in group[:shots]]
    if examples is not None:
        return list(items), shown
    taken = {one.id for one in shown}
    left = [item for item in items if item.id not in taken]
    if not left:
        raise DataError(f"all {len(items)} items are few-shot examples, none is left to ask")
    return left, shown
