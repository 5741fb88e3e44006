"""AdamW with weight decay on matrices only."""

from __future__ import annotations

import torch
from torch import nn

from alignlab.core.errors import TrainingError


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that training changes, by name; a parameter shared under two names appears once.

    Raises:
        TrainingError: there are none.
    """
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not found:
        raise TrainingError(
            f"{type(model).__name__} has no trainable parameter; set requires_grad or add LoRA before training"
        )
    return found


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: matrices with decay; norms, biases and everything else of one dimension or none without it."""
    parameters = list(trainable_parameters(model).values())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_adamw(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over `parameter_groups`, in one fused kernel where the device has it."""
    devices = {p.device.type for p in trainable_parameters(model).values()}
    return torch.optim.AdamW(
        parameter_groups(model, weight_decay),
        lr=learning_rate,
        betas=(beta1, beta2),
        eps=eps,
        fused=devices <= {"cpu", "cuda"},
    )
