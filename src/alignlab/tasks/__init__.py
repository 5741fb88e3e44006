"""Evaluation: a task is a dataset, a solver and a scorer; `evaluate` runs it and keeps honest denominators."""

from __future__ import annotations

from alignlab.tasks.comparison import EvaluationComparison, compare_evaluations
from alignlab.tasks.evaluation import Aggregate, Evaluation, SampleResult
from alignlab.tasks.evaluator import evaluate
from alignlab.tasks.scorers import exact_match, includes, regex_match
from alignlab.tasks.solvers import generate, replay
from alignlab.tasks.task import BatchScorer, Sample, Score, Scorer, Solver, Task

__all__ = [
    "Aggregate",
    "BatchScorer",
    "Evaluation",
    "EvaluationComparison",
    "Sample",
    "SampleResult",
    "Score",
    "Scorer",
    "Solver",
    "Task",
    "compare_evaluations",
    "evaluate",
    "exact_match",
    "generate",
    "includes",
    "regex_match",
    "replay",
]
