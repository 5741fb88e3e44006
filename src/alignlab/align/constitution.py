"""`Constitution`: the principles that a model is aligned with, read from a YAML file and checked.

Source of the method: Bai et al. 2022, "Constitutional AI: Harmlessness from AI Feedback". A principle carries the
question that asks for a critique and the request that asks for a revision; worked demonstrations come before both, as
in the paper's appendix.
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignlab.core.config import from_dict, require
from alignlab.core.errors import ConfigError, FeedbackError
from alignlab.core.rng import numpy_generator
from alignlab.core.yaml_text import read_yaml
from alignlab.lm.types import Message, Sampler

Category = Literal["harmlessness", "helpfulness", "honesty"]
Use = Literal["revision", "feedback"]


@dataclass(frozen=True)
class Principle:
    """One rule of a constitution."""

    id: str
    """Short unique name."""
    text: str
    """What a good response does or does not do."""
    critique_request: str
    """Question that asks where a response breaks the principle."""
    revision_request: str
    """Request that asks for a response that keeps it."""
    weight: float = 1.0
    """How often the principle is drawn, relative to the others."""
    category: Category = "harmlessness"
    """Which of the three aims it serves."""
    parent: str | None = None
    """Id of the general principle that this one makes specific."""

    def __post_init__(self) -> None:
        for name in ("id", "text", "critique_request", "revision_request"):
            require(
                bool(getattr(self, name).strip()), f"principle {self.id!r}: {name}", getattr(self, name), "some text"
            )
        require(0 < self.weight < math.inf, f"principle {self.id!r}: weight", self.weight, "a positive number")


@dataclass(frozen=True)
class Demonstration:
    """A worked example of critique and revision, shown to the model before it writes its own."""

    id: str
    request: str
    response: str
    critique: str
    revision: str
    principle: str
    """Id of the principle that it applies; one that the constitution lacks is shown with the general questions."""
    benign: bool = False
    """The request is harmless, and the revision stays helpful."""
    use: Use = "revision"
    """`feedback` keeps it from critique and revision prompts; see `Constitution.shown`."""


@dataclass(frozen=True)
class PrincipleEvaluation:
    """How one response stands to one principle."""

    principle: str
    log_odds: float
    """ln P(broken) - ln P(kept), by the judge's answers to the critique question."""

    @property
    def violated(self) -> bool:
        return self.log_odds > 0


GENERAL_CRITIQUE = "Say how this answer could be better."
GENERAL_REVISION = "Rewrite the answer."


class Constitution:
    """Principles, two short characters (one that keeps them, one that breaks them) and demonstrations.

    `judge` is any `Sampler` that scores text; it is needed only by `evaluate_response`. Errors: duplicate ids, a
    parent that does not exist, a cycle of parents and an empty list are `ConfigError`s naming the principle.
    """

    def __init__(
        self,
        principles: Sequence[Principle],
        *,
        preamble: str = "",
        opposite: str = "",
        name: str = "constitution",
        demonstrations: Sequence[Demonstration] = (),
        judge: Sampler | None = None,
    ) -> None:
        self.principles, self.name = tuple(principles), name
        self.preamble, self.opposite = preamble.strip(), opposite.strip()
        self.demonstrations, self.judge = tuple(demonstrations), judge
        self.by_id = check_principles(self.principles)

    @classmethod
    def load(cls, path: str | Path | None = None, *, judge: Sampler | None = None) -> Constitution:
        """Read a YAML file; without a path, the constitution that comes with alignlab, with its demonstrations.

        A file that has no `demonstrations` of its own gets the packaged ones.
        """
        packaged = importlib.resources.files("alignlab.align") / "constitutions"
        with importlib.resources.as_file(packaged) as folder:
            values = read_mapping(Path(path) if path is not None else folder / "default.yaml")
            examples = values.pop("demonstrations", None)
            if examples is None:
                examples = read_mapping(folder / "fewshot.yaml")["demonstrations"]
        allowed = {"name", "version", "preamble", "opposite", "principles"}
        for key in values:
            require(key in allowed, "constitution key", key, ", ".join(sorted([*allowed, "demonstrations"])))
        for key, items in (("principles", values.get("principles")), ("demonstrations", examples)):
            require(isinstance(items, list), key, items, "a list of mappings")
        texts = {key: values.get(key, "") for key in ("preamble", "opposite")}
        texts["name"] = values.get("name", "constitution")
        for key, text in texts.items():
            require(isinstance(text, str), key, text, "a text")
        return cls(
            [from_dict(Principle, item, where=f"principles[{i}]") for i, item in enumerate(values["principles"])],
            **texts,
            demonstrations=[
                from_dict(Demonstration, item, where=f"demonstrations[{i}]") for i, item in enumerate(examples)
            ],
            judge=judge,
        )

    def evaluate_response(
        self, response: str, principle: Principle | str, *, request: str | None = None
    ) -> PrincipleEvaluation:
        """Ask the judge whether `response` breaks `principle`: log-odds of answering "Yes" to its critique question.

        A judge of a hundred million parameters answers such questions poorly; `docs/align.md` gives its measured
        accuracy beside that of `contrast`, which the pipeline uses.
        """
        if self.judge is None:
            raise FeedbackError("evaluate_response needs a judge: make the constitution with judge=<a Sampler>")
        rule = self.find(principle)
        asked = "" if request is None else f"User: {request}\n"
        question: list[Message] = [
            {"role": "user", "content": f"{asked}Assistant: {response}\n\n{rule.critique_request} Answer Yes or No."}
        ]
        yes, no = self.judge.logprobs([question, question], ["Yes", "No"])
        return PrincipleEvaluation(rule.id, float(yes.sum() - no.sum()))

    def generate_critique_prompt(
        self, response: str, violations: Sequence[Principle | str], *, request: str = ""
    ) -> list[Message]:
        """A conversation that ends by asking for a critique of `response` under the given principles."""
        rules = [self.find(violation) for violation in violations]
        require(bool(rules), "violations", list(violations), "at least one principle")
        messages: list[Message] = []
        for example in self.shown():
            messages += exchange(
                example.request, example.response, self.questions(example, "critique"), example.critique
            )
        return messages + exchange(request, response, " ".join(rule.critique_request for rule in rules))

    def generate_revision_prompt(
        self,
        response: str,
        critique: str,
        violations: Sequence[Principle | str],
        *,
        request: str = "",
        show_response: bool = True,
    ) -> list[Message]:
        """A conversation that ends by asking for a revision of `response` in the light of `critique`.

        With `show_response=False` the critique stands for the response: a model of a hundred million parameters copies
        whatever response it sees (see `docs/align.md`), and writes a better one when it sees only what was wrong.
        """
        rules = [self.find(violation) for violation in violations]
        require(bool(rules), "violations", list(violations), "at least one principle")
        messages: list[Message] = [{"role": "system", "content": self.preamble}] if self.preamble else []
        for example in self.shown():
            if show_response:
                ask = f"Critique: {example.critique}\n{self.questions(example, 'revision')}"
                messages += exchange(example.request, example.response, ask, example.revision)
            else:
                messages += [
                    hinted(example.request, example.critique),
                    {"role": "assistant", "content": example.revision},
                ]
        if not show_response:
            return [*messages, hinted(request, critique)]
        ask = f"Critique: {critique}\n{' '.join(rule.revision_request for rule in rules)}"
        return messages + exchange(request, response, ask)

    def shown(self, use: Use = "revision") -> tuple[Demonstration, ...]:
        """The demonstrations for critiques and revisions, or those kept for the feedback.

        A model asked for the likelihood of a text that copies its own context finds it likely whatever it says, so
        feedback on revisions needs demonstrations that no revision was shown; where there are none, it takes them all.
        """
        return tuple(d for d in self.demonstrations if d.use == use) or self.demonstrations

    def questions(self, example: Demonstration, kind: Literal["critique", "revision"]) -> str:
        """The request of the principle that a demonstration applies."""
        rule = self.by_id.get(example.principle)
        if rule is None:
            return GENERAL_CRITIQUE if kind == "critique" else GENERAL_REVISION
        return rule.critique_request if kind == "critique" else rule.revision_request

    def draw(self, seed: int, *, category: Category | None = None) -> Principle:
        """One principle at random by weight, of one category where it is given."""
        pool = [rule for rule in self.principles if category in (None, rule.category)]
        require(bool(pool), "category", category, f"one that {self.name!r} has principles of")
        weights = [rule.weight for rule in pool]
        total = sum(weights)
        return pool[int(numpy_generator(seed).choice(len(pool), p=[weight / total for weight in weights]))]

    def find(self, principle: Principle | str) -> Principle:
        """The principle with this id (or the one given)."""
        if isinstance(principle, Principle):
            return principle
        require(principle in self.by_id, "principle", principle, f"one of {', '.join(self.by_id)}")
        return self.by_id[principle]


def exchange(request: str, response: str, ask: str, answer: str | None = None) -> list[Message]:
    """One round of the critique conversation; without an answer it is the one the model completes."""
    asked = f"Request: {request}\n" if request else ""
    turn = [{"role": "user", "content": f"{asked}Answer: {response}\n{ask}"}]
    return turn if answer is None else [*turn, {"role": "assistant", "content": answer}]


def hinted(request: str, critique: str) -> Message:
    """A request with what was wrong with the first answer to it."""
    return {"role": "user", "content": f"{request}\n(Critique of the first answer: {critique})"}


def read_mapping(path: Path) -> dict[str, Any]:
    """The YAML mapping in `path`."""
    values = read_yaml(path)
    require(isinstance(values, dict), str(path), type(values).__name__, "a YAML mapping")
    return dict(values)


def check_principles(principles: Sequence[Principle]) -> dict[str, Principle]:
    """Principles by id, after the checks that concern them together."""
    require(bool(principles), "principles", [], "at least one principle")
    by_id: dict[str, Principle] = {}
    for rule in principles:
        if rule.id in by_id:
            raise ConfigError(f"two principles have the id {rule.id!r}, ids must be unique")
        by_id[rule.id] = rule
    for rule in principles:
        path = [rule.id]
        while (parent := by_id[path[-1]].parent) is not None:
            if parent not in by_id:
                raise ConfigError(f"principle {path[-1]!r} names the parent {parent!r}, which does not exist")
            if parent in path:
                raise ConfigError(f"the parents of principle {rule.id!r} form a cycle: {' -> '.join([*path, parent])}")
            path.append(parent)
    return by_id
