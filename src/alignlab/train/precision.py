"""Loss scaling: keeping float16's small gradients from vanishing (Micikevicius et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

START, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000
SMALLEST = 2.0**-10
"""Below this scale it is not the range of float16 that is wrong."""

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class LossScale:
    """Multiplies the loss, and learns by how much: halved when a gradient overflows, doubled after 2000 that did not.

    The rules and numbers of `torch.amp.GradScaler`, kept on the device so that nothing waits for it; powers of two, so
    that scaling loses no bits.
    """

    def __init__(self, device: torch.device) -> None:
        self.value = torch.tensor(START, device=device)
        """What the loss is multiplied by."""
        self.good = torch.tensor(0, device=device)
        """Updates since it last changed."""

    def update(self, overflowed: Tensor) -> None:
        """Adapt to whether this update's gradients were infinite or not a number; `overflowed` is boolean, ()."""
        good = torch.where(overflowed, 0, self.good + 1)
        grow = good >= INTERVAL
        factor = torch.where(overflowed, BACKOFF, torch.where(grow, GROWTH, 1.0))
        self.value, self.good = self.value * factor, torch.where(grow, 0, good)

    def state(self) -> dict[str, float]:
        """Plain numbers for a checkpoint."""
        return {"scale": float(self.value), "good": int(self.good)}

    def load(self, state: dict[str, float]) -> None:
        """Go on from what `state` returned."""
        self.value.fill_(state["scale"])
        self.good.fill_(int(state["good"]))
