"""How items are put to a model: what can be said of one built-in task, and of all that a run evaluates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alignlab.core.config import require


@dataclass(frozen=True, kw_only=True)
class AskSettings:
    """The settings that every task could read; None or 0 leaves one to the task."""

    shots: int = 0
    """Solved examples before each item."""
    limit: int = 0
    """Most items of each task, the first ones; 0: all."""
    seed: int = 0
    """Of whatever a task draws (generated items, sampled answers), and of intervals."""
    style: Literal["cloze", "letter"] | None = None
    """Multiple choice: score the choices' texts or their letters; none: as the task has it."""
    normalise: Literal["none", "characters", "bytes", "tokens"] | None = None
    """Multiple choice: by which length log-likelihoods are divided; none: as the task has it."""
    chat: bool | None = None
    """Ask as a conversation, with the chat template, or as raw text; none: as the task has it."""
    max_tokens: int | None = None
    """Longest answer; none: as the task has it."""
    temperature: float | None = None
    """Of sampled answers, 0 is greedy; none: as the task has it."""
    answers: int = 1
    """Answers to each item, where several are drawn (pass@k)."""
    unsafe: bool = False
    """Run generated code without isolation where this machine offers none; otherwise it is then not run."""

    def __post_init__(self) -> None:
        for name in ("shots", "limit"):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= 0, name, value, "a whole number of at least 0")
        require(isinstance(self.answers, int) and self.answers >= 1, "answers", self.answers, "a whole number from 1")
        heat = self.temperature
        require(heat is None or heat >= 0, "temperature", heat, "0 (greedy) or a positive number")
        require(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
