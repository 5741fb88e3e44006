"""Over-optimisation of a reward model in a small world made from scratch (Gao, Schulman & Hilton 2022).

In every seed there is another gold reward, another policy, and proxies that learn from comparisons of the policy's
answers labelled by gold. Best-of-n and PPO optimise the policy against a proxy; gold is watched.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from alignlab.core.config import require
from alignlab.core.rng import derive_seed
from alignlab.studies.overoptimisation_findings import EXPECTATIONS
from alignlab.studies.overoptimisation_plan import PLANS, Plan
from alignlab.studies.study import Scale, Stage, at_once

if TYPE_CHECKING:
    from alignlab.core.progress import Progress
    from alignlab.studies.findings import Expectation, Findings


@dataclass(frozen=True)
class RewardOveroptimisation:
    """Gold reward while a policy is optimised against proxies, by best-of-n and by PPO."""

    name: ClassVar[str] = "reward-overoptimisation"
    question: ClassVar[str] = (
        "Does what is wanted rise, peak and fall while a policy is optimised against a proxy of it?"
    )
    claim: ClassVar[str] = (
        "the gold reward rises, peaks and falls; the peak comes later and is higher with more comparisons for the "
        "proxy; RL spends more KL than best-of-n"
    )
    source: ClassVar[str] = "Gao, Schulman & Hilton 2022"
    sources: ClassVar[tuple[str, ...]] = tuple(
        f"alignlab.studies.overoptimisation_{name}" for name in ("plan", "world", "experiment", "findings")
    )

    seeds: int = 0
    """Worlds, each with a gold reward of its own; 0 takes what the scale says."""

    def check(self, scale: Scale) -> None:
        """Raise what is wrong with the options."""
        require(self.seeds == 0 or self.seeds >= 2, "seeds", self.seeds, "0 or a whole number of at least 2")

    def expectations(self, scale: Scale) -> dict[str, Expectation]:
        """The claims, which are registered before anything is measured."""
        return EXPECTATIONS

    def plan(self, scale: Scale) -> dict[str, Any]:
        """All sizes."""
        return dataclasses.asdict(self._sizes(scale))

    def run(self, scale: Scale, seed: int, progress: Progress, *, stage: Stage = at_once) -> Findings:
        """Each world is a stage."""
        from alignlab.studies.overoptimisation_experiment import experiment
        from alignlab.studies.overoptimisation_findings import findings

        plan, records = self._sizes(scale), []
        with progress.task("worlds", plan.seeds, unit="worlds") as bar:
            for i in range(plan.seeds):
                own = derive_seed(seed, "world", i) % 2**31

                def work(own: int = own) -> dict[str, Any]:
                    return experiment(plan, own)

                records.append(stage(f"world-{i}", work))
                bar.advance()
        return findings(records, plan)

    def _sizes(self, scale: Scale) -> Plan:
        plan = PLANS[scale]
        return dataclasses.replace(plan, seeds=self.seeds) if self.seeds else plan
