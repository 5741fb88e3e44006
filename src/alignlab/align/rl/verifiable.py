"""Rewards that can be checked: the number that an answer ends with is right, or it is not.

`VerifiableReward` knows the answers of a data set; `reward` needs none, because it works out the arithmetic that a
prompt asks for. Both judge by value (`1,800.00` is 1800) with the extraction that evaluation uses.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.align.rl.rewards import RewardError
from alignlab.core.config import require
from alignlab.core.errors import ConfigError
from alignlab.lm.types import Completion, Prompt
from alignlab.tasks.generation.extraction import final_number, number_value
from alignlab.tasks.generation.scorers import FinalNumber, NumberForm, Silence
from alignlab.tasks.task import Sample

WORDS = {"plus": "+", "minus": "-", "times": "*", "multiplied by": "*", "divided by": "/", "×": "*", "÷": "/"}
EXPRESSION = r"(?P<sum>[-(]*\d[\d\s+\-*/().]*)"
OPEN = re.compile(rf"(?<![\w.]){EXPRESSION}=\s*$")
"""A sum that the text leaves open: `7 + 5 =`."""
ASKED = re.compile(rf"(?:what is|what's|calculate|compute|evaluate|work out)\s*:?\s*{EXPRESSION}", re.IGNORECASE)
REMAINDER = re.compile(r"remainder when (?P<a>\d+) is / (?P<b>\d+)", re.IGNORECASE)  # `divided by` is `/` by then
LONGEST = 200
"""Characters of an expression that is still worked out."""
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


@dataclass
class VerifiableReward:
    """What an answer to one of `samples` is worth: `right` in the asked form, `elsewhere` for the right number in
    another form, `formed` for a wrong number in the asked one, else 0.

    A small `formed` teaches the form to a model that hardly ever keeps it; `right` must be worth more than either, or
    the form alone would pay. The texts do not say whether they were cut off: with `marked` and `bare` set the
    training's `missing_end_penalty` to `right`, so that `#### 4` on its way to 42 earns nothing. `parts` holds what was
    counted since the last `after_step`.
    """

    samples: Sequence[Sample]
    form: NumberForm = "marked"
    right: float = 1.0
    elsewhere: float = 0.0
    formed: float = 0.0
    name: str = "verifiable"
    parts: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for other in ("elsewhere", "formed"):
            least = getattr(self, other)
            require(0 <= least < self.right, other, least, f"a number from 0 to below right ({self.right:g})")
        self._targets = {repr(sample.prompt): sample for sample in self.samples}
        if len(self._targets) < len(self.samples):
            raise ConfigError(
                f"reward {self.name!r} has {len(self.samples)} samples and {len(self._targets)} different prompts; it "
                "finds the sample by its prompt, so these must differ"
            )
        for sample in self.samples:
            if sample.target is None or number_value(sample.target) is None:
                raise ConfigError(f"sample {sample.id!r} has the target {sample.target!r}, allowed: a number")
        silence = Silence(empty="wrong")  # a policy that says nothing has not solved it
        self._strict, self._loose = FinalNumber(self.form, silence), FinalNumber("any", silence)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " batch"]:
        """One number for each response; RewardError for a prompt that is none of the samples'."""
        values = []
        for row, (prompt, text) in enumerate(zip(prompts, responses, strict=True)):
            sample = self._targets.get(repr(prompt))
            if sample is None:
                raise RewardError(f"prompt {row} is none of the {len(self.samples)} of reward {self.name!r}", row)
            answer = Completion(text, (), (), "stop")
            strict, loose = self._strict(sample, answer), self._loose(sample, answer)
            # The explanation of a number that was found is the number.
            formed = strict.explanation is not None and number_value(strict.explanation) is not None
            outcome = "right" if strict.value else "elsewhere" if loose.value else "formed" if formed else "neither"
            self.parts[outcome] = self.parts.get(outcome, 0) + 1
            values.append({"right": self.right, "elsewhere": self.elsewhere, "formed": self.formed}.get(outcome, 0.0))
        return torch.tensor(values, dtype=torch.float32)

    def after_step(self) -> dict[str, float]:
        """Shares of what was scored since the last call: right in form, right in any form."""
        total = max(1, sum(self.parts.values()))
        shares = {"right": self.parts.get("right", 0), "right_any_form": self.parts.get("right", 0)}
        shares["right_any_form"] += self.parts.get("elsewhere", 0)
        self.parts = {}
        return {f"{self.name}/{name}": count / total for name, count in shares.items()}


def reward(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    """1 where the final number of the answer is the value of the sum that the prompt asks for, else 0.

    Reads `7 + 5 =` at the end of a prompt, `What is (3 + 4) * 2?` or `calculate 12 times 9` in its last paragraph or
    message, and remainders. RewardError for a prompt that asks for nothing of the kind: a word problem needs
    `VerifiableReward` and its answers.
    """
    values = []
    for row, (prompt, text) in enumerate(zip(prompts, responses, strict=True)):
        wanted = asked_value(prompt)
        if wanted is None:
            shown = question_of(prompt)[-80:]
            raise RewardError(f"prompt {row} asks for no sum that can be worked out: {shown!r}", row)
        found = final_number(text)
        values.append(float(found is not None and number_value(found) == wanted))
    return values


def question_of(prompt: Prompt) -> str:
    """What a prompt asks last: the last paragraph of a text, the last message of the user in a conversation."""
    if isinstance(prompt, str):
        return prompt.rstrip().rpartition("\n\n")[2]
    users = [message["content"] for message in prompt if message["role"] == "user"]
    return users[-1] if users else ""


def asked_value(prompt: Prompt) -> Fraction | None:
    """The value of the sum that a prompt asks for last; None where there is none, or it divides by zero."""
    text = question_of(prompt)
    for word, sign in WORDS.items():
        text = re.sub(rf"(?<=[\d)\s]){re.escape(word)}(?=[\d(\s])", sign, text)
    left = REMAINDER.search(text)
    if left is not None:
        return Fraction(int(left["a"]) % int(left["b"])) if int(left["b"]) else None
    last = text.splitlines()[-1] if text else ""
    found = OPEN.search(last) or next(iter(reversed(list(ASKED.finditer(text)))), None)
    return None if found is None else expression_value(found["sum"])


def expression_value(text: str) -> Fraction | None:
    """The exact value of numbers with `+ - * /` and brackets; None for anything else, and for a division by zero."""
    text = text.strip().rstrip(".")
    if len(text) > LONGEST:
        return None
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.AST) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return Fraction(OPERATIONS[type(node.op)](_value(node.left), _value(node.right)))
    raise ValueError("no arithmetic")
