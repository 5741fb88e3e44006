"""Tensors count how often they are written to, and who keeps something made from weights looks at the counts.

torch's fused optimisers write without counting (seen with 2.6 to 2.13). Here every step of one, whosever loop it is in,
is counted: else a packed weight or a cache of keys and values would outlive the weights that it was made from.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook


@lru_cache(maxsize=1)
def count_fused_updates() -> None:
    """From now on steps of fused optimisers raise the version of the parameters that they have written to."""
    register_optimizer_step_post_hook(_count)


def _count(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    groups = [group for group in optimizer.param_groups if group.get("fused")]
    written = [parameter for group in groups for parameter in group["params"] if parameter.grad is not None]
    if written:
        torch.autograd.graph.increment_version(written)
