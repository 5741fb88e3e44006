"""IFEval: does a model do what it is told? 25 kinds of instruction that a program can check (Zhou et al. 2023)."""

from __future__ import annotations

from alignlab.tasks.ifeval.english import sentence_model
from alignlab.tasks.ifeval.reader import read_ifeval
from alignlab.tasks.ifeval.registry import INSTRUCTIONS, Verdict, follows, judge, variants
from alignlab.tasks.ifeval.scorer import Accuracies, IFEval, accuracies, ifeval_task

__all__ = [
    "INSTRUCTIONS",
    "Accuracies",
    "IFEval",
    "Verdict",
    "accuracies",
    "follows",
    "ifeval_task",
    "judge",
    "read_ifeval",
    "sentence_model",
    "variants",
]
