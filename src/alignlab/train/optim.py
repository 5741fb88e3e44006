"""Which parameters an optimiser gets, with which decay and learning rate, and the optimiser itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from alignlab.core.errors import ConfigError, TrainingError
from alignlab.train.config import TrainConfig
from alignlab.train.muon import Muon


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


def parameter_groups(
    model: nn.Module, weight_decay: float, scales: Mapping[str, float] | None = None, muon: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Groups for an optimiser: matrices decay; norms, biases and everything else of one dimension or none do not.

    Each group carries `lr_scale`, what `scales` says of its parameters' names (1 where it says nothing), and `muon`,
    whether its parameters are among the names `muon`. Without either argument there are the two groups of decay.

    Raises:
        ConfigError: `scales` names what is not a trainable parameter, or a scale is negative or not finite.
    """
    parameters, scales, hidden = trainable_parameters(model), scales or {}, set(muon)
    for name, scale in scales.items():
        if name not in parameters:
            raise ConfigError(f"scales has {name!r}, which is not a trainable parameter of {type(model).__name__}")
        if not 0 <= scale < math.inf:
            raise ConfigError(f"scales[{name!r}] is {scale!r}, allowed: 0 or a positive number")
    groups: dict[tuple[bool, bool, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        flat, scale = parameter.ndim < 2, float(scales.get(name, 1.0))
        decay = 0.0 if flat else weight_decay
        key = (name not in hidden, flat, scale)
        groups.setdefault(key, {"params": [], "weight_decay": decay, "lr_scale": scale, "muon": name in hidden})
        groups[key]["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def hidden_matrices(model: nn.Module) -> list[str]:
    """Names of the matrices between embedding and head: what Muon is for (Jordan et al. 2024).

    The trainable two-dimensional parameters of `model.blocks`.

    Raises:
        ConfigError: the model has no `blocks`, or no trainable matrix in them.
    """
    blocks = getattr(model, "blocks", None)
    inside = set() if not isinstance(blocks, nn.Module) else {id(parameter) for parameter in blocks.parameters()}
    names = [name for name, p in trainable_parameters(model).items() if p.ndim == 2 and id(p) in inside]
    if not names:
        raise ConfigError(
            f"optimizer is 'muon', but {type(model).__name__} has no trainable matrix in `blocks`, which is where Muon "
            "works; use 'adamw'"
        )
    return names


def make_adamw(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    scales: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over `parameter_groups`, in one fused kernel where the device has it."""
    return torch.optim.AdamW(
        parameter_groups(model, weight_decay, scales),
        lr=learning_rate,
        betas=(beta1, beta2),
        eps=eps,
        fused=_fusable(model),
    )


def make_optimizer(
    model: nn.Module, config: TrainConfig, scales: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """The optimiser that `config` names; the learning rate of each group is set before every step.

    Raises:
        ConfigError: `muon` for a model without hidden matrices, or `scales` that do not fit.
    """
    if config.optimizer == "adamw":
        return make_adamw(
            model,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            beta1=config.beta1,
            beta2=config.beta2,
            scales=scales,
        )
    return Muon(
        parameter_groups(model, config.weight_decay, scales, hidden_matrices(model)),
        lr=config.learning_rate,
        momentum=config.momentum,
        betas=(config.beta1, config.beta2),
        fused=_fusable(model),
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group `rate` times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def _fusable(model: nn.Module) -> bool:
    return {p.device.type for p in trainable_parameters(model).values()} <= {"cpu", "cuda"}
