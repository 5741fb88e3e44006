"""Run programs that nobody has read: isolated, limited, and refused where the kernel cannot isolate them."""

from __future__ import annotations

from alignlab.tasks.sandbox.languages import LANGUAGES
from alignlab.tasks.sandbox.run import isolation, run_program, run_programs
from alignlab.tasks.sandbox.types import Isolation, Limits, Program, RunResult, Verdict

__all__ = [
    "LANGUAGES",
    "Isolation",
    "Limits",
    "Program",
    "RunResult",
    "Verdict",
    "isolation",
    "run_program",
    "run_programs",
]
