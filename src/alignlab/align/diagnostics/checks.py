"""All alarms that are looked for."""

from __future__ import annotations

from alignlab.align.diagnostics import reward_checks, training_checks
from alignlab.align.diagnostics.alarms import Check
from alignlab.align.diagnostics.kl_budget import over_budget, wasted
from alignlab.align.diagnostics.training_checks import not_finite

__all__ = ["CHECKS", "not_finite"]

CHECKS: tuple[Check, ...] = (
    reward_checks.reward_hacking,
    reward_checks.length_growth,
    reward_checks.shrinking,
    reward_checks.unended,
    reward_checks.repetition,
    reward_checks.sameness,
    reward_checks.equal_groups,
    training_checks.entropy_collapse,
    training_checks.value_function,
    training_checks.clipping,
    training_checks.drift,
    over_budget,
    wasted,
)
"""Each looks at one moment and gives its alarm or None."""
