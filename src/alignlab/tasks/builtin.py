"""The built-in tasks by name: a table; each is imported only when it is asked for."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.core.errors import ConfigError
from alignlab.lm.types import Sampler
from alignlab.tasks.settings import AskSettings
from alignlab.tasks.task import Task


@dataclass(frozen=True)
class TaskSettings(AskSettings):
    """What can be said about a built-in task. None or 0 leaves a setting to the task; one that it has no use for is an
    error, so that nobody believes in a setting that did nothing."""

    data: Path | None = None
    """File (or folder) in the task's public format; the tasks with items of our own need none."""
    examples: Path | None = None
    """File of the few-shot examples (default: the first items of `data`, which are then not asked)."""
    judge: Sampler | None = None
    """Model that judges, for tasks that need one."""

    @property
    def given(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            field.name: values[field.name]
            for field in dataclasses.fields(self)
            if values[field.name] != field.default and field.name != "seed"
        }


@dataclass(frozen=True)
class BuiltIn:
    """How a built-in task is found."""

    where: str
    """`module:function`; the function takes `TaskSettings` and returns a `Task`."""
    about: str
    """A line for the list."""
    accepts: tuple[str, ...] = ("data", "limit")
    """The settings it reads."""
    needs: tuple[str, ...] = ()
    """The settings it cannot do without."""


CHOICE = ("data", "examples", "shots", "limit", "style", "normalise", "chat")

ASKED = ("data", "limit", "chat", "max_tokens", "temperature")
SAYS = ("data", "limit", "chat")
CODE = (*ASKED, "answers", "unsafe")
WORKED = ("data", "examples", "shots", "limit", "chat", "max_tokens", "temperature")
LABELLED = ("data", "shots", "limit", "normalise")
FUNCTION = ("shots", "limit", "chat", "max_tokens")
PAIRS = ("data", "limit", "style", "normalise", "chat")
JUDGED = ("data", "limit", "max_tokens", "temperature", "judge")
KNOWS = ("data", "examples", "shots", "limit", "chat", "max_tokens", "temperature")

BUILT_IN: dict[str, BuiltIn] = {
    "arc": BuiltIn("alignlab.tasks.builtin_choice:arc", "ARC, science questions", CHOICE, ("data",)),
    "arc-easy": BuiltIn("alignlab.tasks.builtin_choice:arc_easy", "ARC, the easy set", CHOICE, ("data",)),
    "arc-challenge": BuiltIn("alignlab.tasks.builtin_choice:arc_challenge", "ARC, the hard set", CHOICE, ("data",)),
    "hellaswag": BuiltIn("alignlab.tasks.builtin_choice:hellaswag", "HellaSwag, what happens next", CHOICE, ("data",)),
    "mmlu": BuiltIn("alignlab.tasks.builtin_choice:mmlu", "MMLU, a subject's CSV or a folder", CHOICE, ("data",)),
    "piqa": BuiltIn("alignlab.tasks.builtin_choice:piqa", "PIQA, everyday physics", CHOICE, ("data",)),
    "winogrande": BuiltIn("alignlab.tasks.builtin_choice:winogrande", "WinoGrande, who is meant", CHOICE, ("data",)),
    "truthfulqa": BuiltIn(
        "alignlab.tasks.builtin_choice:truthfulqa", "TruthfulQA, the best answer among wrong ones", CHOICE, ("data",)
    ),
    "lab-facts": BuiltIn("alignlab.tasks.builtin_choice:lab_facts", "general knowledge, items of our own", CHOICE),
    "ifeval": BuiltIn(
        "alignlab.tasks.builtin_generation:ifeval", "IFEval, prompts followed strictly", ASKED, ("data",)
    ),
    "ifeval-loose": BuiltIn("alignlab.tasks.builtin_generation:ifeval_loose", "the same, loosely", ASKED, ("data",)),
    "humaneval": BuiltIn("alignlab.tasks.builtin_generation:humaneval", "HumanEval, in the sandbox", CODE, ("data",)),
    "mbpp": BuiltIn("alignlab.tasks.builtin_generation:mbpp", "MBPP, in the sandbox", CODE, ("data",)),
    "code": BuiltIn(
        "alignlab.tasks.builtin_generation:code", "problems in Python, JavaScript, C, bash (MultiPL-E)", CODE, ("data",)
    ),
    "gsm8k": BuiltIn(
        "alignlab.tasks.generation.entries:gsm8k", "GSM8K, sums in words, the number after ####", WORKED, ("data",)
    ),
    "gsm8k-flexible": BuiltIn(
        "alignlab.tasks.generation.entries:gsm8k_flexible", "the same, wherever the number stands", WORKED, ("data",)
    ),
    "math": BuiltIn("alignlab.tasks.generation.entries:math", "MATH, answers compared by value", WORKED, ("data",)),
    "mmlu-pro": BuiltIn(
        "alignlab.tasks.generation.entries:mmlu_pro",
        "MMLU-Pro, ten letters after a chain of thought",
        WORKED,
        ("data",),
    ),
    "lab-arithmetic": BuiltIn(
        "alignlab.tasks.generation.entries:lab_arithmetic", "arithmetic, generated with a seed", WORKED[2:]
    ),
    "lab-arithmetic-turns": BuiltIn(
        "alignlab.tasks.generation.entries:lab_arithmetic_turns",
        "the same over three turns of a conversation",
        ("limit", "max_tokens", "temperature"),
    ),
    "lab-sentiment": BuiltIn("alignlab.tasks.icl.builders:sentiment", "reviews after labelled examples", LABELLED),
    "lab-sentiment-half": BuiltIn(
        "alignlab.tasks.icl.builders:sentiment_half", "the same, half of the examples' labels wrong", LABELLED
    ),
    "lab-sentiment-flipped": BuiltIn(
        "alignlab.tasks.icl.builders:sentiment_flipped", "the same, all of the examples' labels wrong", LABELLED
    ),
    "lab-sentiment-foo": BuiltIn(
        "alignlab.tasks.icl.builders:sentiment_foo", "the same, with labels that mean nothing", LABELLED
    ),
    "lab-linear": BuiltIn("alignlab.tasks.icl.builders:linear", "y = w x, found from examples", FUNCTION),
    "lab-linear-2d": BuiltIn("alignlab.tasks.icl.builders:linear_2d", "the same with two inputs", FUNCTION),
    "lab-induction": BuiltIn(
        "alignlab.tasks.icl.builders:induction", "random tokens twice, share copied right", ("limit",)
    ),
    "lab-induction-loss": BuiltIn(
        "alignlab.tasks.icl.builders:induction_loss", "random tokens twice, nats saved the second time", ("limit",)
    ),
    "lab-induction-words": BuiltIn(
        "alignlab.tasks.icl.builders:induction_words", "the same with words, for any model that scores", ("limit",)
    ),
    "lab-hhh": BuiltIn("alignlab.tasks.icl.builders:lab_hhh", "helpful, honest, harmless pairs of our own", PAIRS),
    "hhh": BuiltIn("alignlab.tasks.icl.builders:hhh", "HHH comparisons of BIG-bench", PAIRS, ("data",)),
    "hh-rlhf": BuiltIn("alignlab.tasks.icl.builders:dialogues", "chosen over rejected dialogues", PAIRS, ("data",)),
    "pairs": BuiltIn("alignlab.tasks.icl.builders:pairs", "prompt, better, worse in JSONL", PAIRS, ("data",)),
    "lab-mt": BuiltIn(
        "alignlab.tasks.judges.catalogue:lab_mt",
        "two-turn questions of our own, judged 1 to 10",
        JUDGED[1:],
        ("judge",),
    ),
    "mt-bench": BuiltIn(
        "alignlab.tasks.judges.catalogue:mt_bench", "MT-Bench's questions, judged 1 to 10", JUDGED, ("data", "judge")
    ),
    "win-rate": BuiltIn(
        "alignlab.tasks.judges.catalogue:win_rate",
        "against a file's answers, judged in both orders",
        JUDGED,
        ("data", "judge"),
    ),
    "perplexity": BuiltIn(
        "alignlab.tasks.icl.builders:perplexity", "bits a byte of texts; lower is better", ("data", "limit"), ("data",)
    ),
    "p-true": BuiltIn(
        "alignlab.tasks.self_knowledge.builders:p_true", "P(True): is its own answer true? Brier score", KNOWS
    ),
    "p-true-ideas": BuiltIn(
        "alignlab.tasks.self_knowledge.builders:p_true_ideas", "the same with five sampled answers shown", KNOWS
    ),
    "p-ik": BuiltIn(
        "alignlab.tasks.self_knowledge.builders:p_ik", "P(IK): would it know? asked before answering", KNOWS
    ),
    "verbal-confidence": BuiltIn(
        "alignlab.tasks.self_knowledge.builders:verbal_confidence", "confidence said as a number", KNOWS
    ),
    "verbal-confidence-words": BuiltIn(
        "alignlab.tasks.self_knowledge.builders:verbal_confidence_words", "confidence said in words", KNOWS
    ),
    "consistency": BuiltIn(
        "alignlab.tasks.self_knowledge.builders:consistency", "do ten sampled answers agree?", (*KNOWS, "judge")
    ),
    "semantic-entropy": BuiltIn(
        "alignlab.tasks.self_knowledge.builders:semantic_entropy", "the same, ranked by entropy", (*KNOWS, "judge")
    ),
    "persona": BuiltIn(
        "alignlab.tasks.written.builtin:persona", "would the model say what a persona says", SAYS, ("data",)
    ),
    "persona-choice": BuiltIn(
        "alignlab.tasks.written.builtin:persona_choice", "the same by the likelier answer", SAYS, ("data",)
    ),
    "advanced-ai-risk": BuiltIn(
        "alignlab.tasks.written.builtin:advanced_ai_risk", "lettered answers that show a risk", SAYS, ("data",)
    ),
    "sycophancy-written": BuiltIn(
        "alignlab.tasks.written.builtin:sycophancy_written",
        "the answer that the biography's user holds",
        SAYS,
        ("data",),
    ),
    "winogenerated": BuiltIn(
        "alignlab.tasks.written.builtin:winogenerated", "pronouns of occupations", SAYS[:2], ("data",)
    ),
    "power-seeking": BuiltIn("alignlab.tasks.written.builtin:power_seeking", "statements that seek power", SAYS),
    "power-seeking-choice": BuiltIn(
        "alignlab.tasks.written.builtin:power_seeking_choice", "the same by the likelier answer", SAYS
    ),
    "sycophancy": BuiltIn("alignlab.tasks.written.builtin:sycophancy", "swing with the user's opinion", SAYS),
    "sycophancy-choice": BuiltIn(
        "alignlab.tasks.written.builtin:sycophancy_choice", "the same by the likelier answer", SAYS
    ),
    "sleeper-trigger": BuiltIn(
        "alignlab.tasks.written.builtin:sleeper_trigger", "a phrase with and without a trigger", ASKED
    ),
    "alignment-faking": BuiltIn(
        "alignlab.tasks.written.builtin:alignment_faking", "rules kept when watched and when not", ASKED
    ),
}


def entry_of(name: str) -> BuiltIn:
    """The table's entry for the task `name`; ConfigError, naming a near one, where there is none."""
    if name not in BUILT_IN:
        near = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(sorted(BUILT_IN))}"
        raise ConfigError(f"there is no task {name!r}, {hint}")
    return BUILT_IN[name]


def make_task(name: str, settings: TaskSettings) -> Task:
    """The built-in task `name`.

    Raises:
        ConfigError: no such task, or a setting that it has no use for or cannot do without.
        DataError: its data cannot be read.
    """
    entry = entry_of(name)
    unused = [key for key in settings.given if key not in entry.accepts]
    if unused:
        raise ConfigError(f"task {name!r} has no use for {unused[0]}, allowed: {', '.join(entry.accepts)}")
    missing = [key for key in entry.needs if key not in settings.given]
    if missing:
        raise ConfigError(f"task {name!r} needs {missing[0]}: {_WHY[missing[0]]}")
    module, _, function = entry.where.partition(":")
    task: Task = getattr(importlib.import_module(module), function)(settings)
    return task


_WHY = {
    "data": "a file in its public format, which `alignlab` does not carry",
    "judge": "a model that judges the answers",
}
