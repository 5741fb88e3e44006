"""Questions with short answers: what is asked, how it is asked, and when an answer is right."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from alignlab.core.config import require
from alignlab.core.errors import DataError
from alignlab.core.files import json_rows
from alignlab.lm.types import Completion, Message, Prompt
from alignlab.tasks.template_fields import check_fields

ARTICLES = frozenset({"a", "an", "the"})


@dataclass(frozen=True)
class Question:
    """A question and every wording of its right answer."""

    id: str
    question: str
    answers: tuple[str, ...]
    """Accepted answers, the usual one first."""
    category: str | None = None
    cluster: str | None = None
    """Questions that share a cluster are not independent (one passage, several questions)."""

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise DataError(f"question {self.id!r} has no text")
        if not self.answers or not all(plain(answer) for answer in self.answers):
            raise DataError(f"question {self.id!r} needs answers, each with a letter or a digit; it has {self.answers}")


def plain(answer: str) -> str:
    """`answer` without case, accents, articles, punctuation and spare spaces, as TriviaQA's evaluation has it (Joshi
    et al. 2017); two answers that are equal so are one answer."""
    letters = unicodedata.normalize("NFKD", answer.casefold())
    kept = "".join(c for c in letters if not unicodedata.combining(c))
    kept = re.sub(r"(?<=\d),(?=\d{3}\b)", "", kept)  # 1,000 is 1000
    kept = re.sub(r"[^\w\s.%-]|_", " ", kept)
    kept = re.sub(r"(?<!\d)\.|\.(?!\d)|(?<=\w)-(?=\w)", " ", kept)  # 3.5 and -4 keep their signs
    words = [word for word in kept.split() if word != "-"]
    return " ".join([word for word in words if word not in ARTICLES] or words)  # the answer "A" is one


def first_line(text: str) -> str:
    """The first line with anything in it: a model that goes on with a question of its own has answered before."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


@dataclass(frozen=True)
class Matching:
    """When an answer is right: `exact`, it is an accepted one after `plain`; `contains`, one stands in it as words.

    `contains` lets a sentence pass ("The capital is Paris.") and a list of guesses too; ask for few words. Only the
    first line counts. The last word of an answer that ran into the token limit may be half a word and is left out.
    """

    how: Literal["exact", "contains"] = "contains"

    def __post_init__(self) -> None:
        require(self.how in ("exact", "contains"), "how", self.how, "exact or contains")

    def __call__(self, answer: str, accepted: Sequence[str], cut: bool = False) -> bool:
        """Whether `answer` is right; `cut`: it ran into the token limit within its first line."""
        words = plain(answer)
        if cut:
            words = words.rpartition(" ")[0]
        if self.how == "exact":
            return any(words == plain(right) for right in accepted)
        return any(f" {plain(right)} " in f" {words} " for right in accepted)


@dataclass(frozen=True)
class AnswerTemplate:
    """How a question is put to a model. Everything here changes answers, so all of it is in a log's fingerprint."""

    instruction: str = "Answer each question with a few words."
    """Before everything; empty: none."""
    question: str = "Question: {question}\nAnswer:"
    answer: str = " {answer}"
    """How a solved example goes on."""
    separator: str = "\n\n"
    chat: bool = False
    """As a conversation (examples are earlier turns) instead of raw text."""

    def __post_init__(self) -> None:
        check_fields("question", self.question, ("question",))
        check_fields("answer", self.answer, ("answer",))

    def prompt(self, question: str, examples: Sequence[Question] = ()) -> Prompt:
        """The prompt that an answer follows."""
        if not self.chat:
            solved = [self.question.format(question=one.question) + self._solved(one) for one in examples]
            head = [self.instruction] if self.instruction else []
            return self.separator.join([*head, *solved, self.question.format(question=question)])
        messages: list[Message] = [{"role": "system", "content": self.instruction}] if self.instruction else []
        for one in examples:
            messages.append({"role": "user", "content": one.question})
            messages.append({"role": "assistant", "content": one.answers[0]})
        return [*messages, {"role": "user", "content": question}]

    def _solved(self, example: Question) -> str:
        return self.answer.format(answer=example.answers[0])


def is_cut(completion: Completion) -> bool:
    """Whether an answer ran into the token limit before its first line was over."""
    return completion.finish_reason == "length" and "\n" not in completion.text.lstrip()


def own_questions() -> list[Question]:
    """The lab's own questions with short answers, from easy to hard."""
    found = resources.files("alignlab.tasks") / "own" / "questions.jsonl"
    with resources.as_file(found) as path:
        return read_questions(path)


def read_questions(path: str | Path) -> list[Question]:
    """Questions in JSONL: `question`, and `answers` or `answer`: a text, a list of texts (as NQ-open has it), or an
    object with `value` and `aliases` (as TriviaQA has it). Optional: `id` (or `question_id`; default: the row's
    number), `category`, `cluster`.

    Raises:
        DataError: no questions, an id twice, or a row that cannot be read, with its line and field.
    """
    path = Path(path)
    found: list[Question] = []
    seen: set[str] = set()
    for number, (where, row) in enumerate(json_rows(path), start=1):
        question = _question(row, where, number)
        if question.id in seen:
            raise DataError(f"{where} has the id {question.id!r} again; ids must be unique")
        seen.add(question.id)
        found.append(question)
    if not found:
        raise DataError(f"{path} holds no questions")
    return found


def _question(row: dict[str, Any], where: str, number: int) -> Question:
    text = row.get("question")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: field 'question' is {text!r:.80}, allowed: text")
    name = "answers" if "answers" in row else "answer"
    answers = _answers(row.get(name), f"{where}: field {name!r}")
    identity = row.get("id", row.get("question_id", f"question-{number}"))
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        raise DataError(f"{where}: field 'id' is {identity!r}, allowed: text or a whole number")
    for field in ("category", "cluster"):
        if not isinstance(row.get(field), str | None):
            raise DataError(f"{where}: field {field!r} is {row[field]!r:.80}, allowed: text")
    try:
        return Question(str(identity), text.strip(), answers, row.get("category"), row.get("cluster"))
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _answers(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, dict):
        value = [value.get("value"), *(value.get("aliases") or [])]
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values or not all(isinstance(one, str) and one.strip() for one in values):
        raise DataError(f"{where} is {value!r:.80}, allowed: text, a list of texts, or an object with 'value'")
    # An alias of punctuation alone, such as TriviaQA has a few, would match every answer.
    return tuple(dict.fromkeys(one.strip() for one in values if plain(one)))


def refuse_overlap(task: str, questions: Sequence[Question], examples: Sequence[Question]) -> None:
    """DataError when an example is also asked (same question, whatever its id)."""
    shown = {plain(example.question): example.id for example in examples}
    for one in questions:
        if plain(one.question) in shown:
            other = shown[plain(one.question)]
            raise DataError(f"task {task!r}: question {one.id!r} is also the few-shot example {other!r}")
