"""Sums as a reward of the command line: prompts to learn from, others to measure on, and answers that can be checked.

alignlab rlhf --method grpo --reward alignlab.align.rlhf.arithmetic:Sums
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from alignlab.align.rl.verifiable import VerifiableReward
from alignlab.align.rl.verifiable_task import sums_task
from alignlab.lm.types import Prompt


class Sums:
    """1 for the right number in the asked form, else 0: `7 + 5 =` after four solved sums, as raw text.

    `heldout_prompts` are sums that none of `prompts` is, not even with its operands exchanged.
    """

    name = "sums"

    def __init__(self, n: int = 600, n_held: int = 128, *, shots: int = 4, seed: int = 0) -> None:
        task = sums_task(n, n_held, shots=shots, seed=seed)
        learned, held = task.samples(task.learned), task.samples(task.held)
        self.prompts: list[Prompt] = [sample.prompt for sample in learned]
        self.heldout_prompts: list[Prompt] = [sample.prompt for sample in held]
        self._reward = VerifiableReward([*learned, *held], task.form, name=self.name)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " batch"]:
        """One number for each response; RewardError for a prompt that is none of its own."""
        return self._reward.score(prompts, responses)

    def after_step(self) -> dict[str, float]:
        """Shares of right answers."""
        return self._reward.after_step()
