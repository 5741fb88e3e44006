"""From a model and its optimiser to a checkpoint and back, refusing the checkpoint of another training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.core.config import to_dict
from alignlab.core.errors import TrainingError
from alignlab.train.checkpoint import Checkpoint
from alignlab.train.config import TrainConfig
from alignlab.train.optim import trainable_parameters

FREE_TO_CHANGE = ("checkpoint_every", "log_every", "validate_every", "max_rewinds", "gradient_checkpointing")
"""Settings that may differ between the two halves of a resumed training: they do not touch the weights."""
_SAMPLED = 64


def capture(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, history: list[dict[str, float]]
) -> Checkpoint:
    """Everything that the rest of a training depends on."""
    parameters = trainable_parameters(model)
    states = {
        f"{key}.{name}": torch.as_tensor(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    state = {"config": to_dict(config), "model": fingerprint(model), "history": history}
    return Checkpoint(step, {**parameters, **persistent_buffers(model)}, states, state)


@torch.no_grad()
def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, where: str
) -> list[dict[str, float]]:
    """Put a checkpoint's state into `model` and `optimizer`, bit for bit; returns its history.

    Raises:
        TrainingError: the checkpoint belongs to another model or another configuration; names the first difference
            and changes nothing.
    """
    refuse_another(checkpoint.state, where, model=fingerprint(model), config=config)
    parameters = trainable_parameters(model)
    targets = {**parameters, **persistent_buffers(model)}
    difference = first_difference(_shapes(checkpoint.weights), _shapes(targets))
    if difference is not None:
        raise TrainingError(f"checkpoint {where} is of another model: {difference}")
    for name, target in targets.items():
        target.copy_(checkpoint.weights[name])
    optimizer.state.clear()
    for full_name, value in checkpoint.optimizer.items():
        key, name = full_name.split(".", 1)
        parameter = parameters[name]
        # Scalars such as AdamW's step count live where the fused kernel wants them: with the parameter.
        optimizer.state[parameter][key] = value.to(parameter.device)
    return list(checkpoint.state.get("history", []))


def refuse_another(
    saved: Mapping[str, Any],
    where: str,
    *,
    model: Mapping[str, Any],
    config: TrainConfig,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Check that a checkpoint's state is of this `model` (its `fingerprint`), this configuration and this data.

    A setting that the checkpoint does not know yet counts as its default. Data are compared where both sides name them.

    Raises:
        TrainingError: it is of another; names the first difference.
    """
    own_config, own_data = to_dict(config), None if data is None else json.loads(json.dumps(data))
    elsewhere = "or begin anew in another directory"
    saved_config = {**_defaults(config), **saved.get("config", {})}
    for name in FREE_TO_CHANGE:
        own_config.pop(name, None)
        saved_config.pop(name, None)
    for what, there, here, advice in (
        ("is of another model", saved.get("model", {}), model, "go on with that model"),
        ("is of another training configuration", saved_config, own_config, "go on with that configuration"),
        ("was trained on other data", saved.get("data"), own_data, "go on with those data"),
    ):
        if there is None or here is None:
            continue
        difference = first_difference(there, here)
        if difference is not None:
            raise TrainingError(f"checkpoint {where} {what}: {difference}; {advice}, {elsewhere}")


def _defaults(config: object) -> dict[str, Any]:
    fields = dataclasses.fields(config) if dataclasses.is_dataclass(config) else ()
    return {field.name: field.default for field in fields if isinstance(field.default, bool | int | float | str)}


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """What identifies a model: class, configuration, trainable shapes, and a digest of the frozen weights.

    The digest reads at most 64 values of each frozen tensor, spread over it: enough to tell two models apart, cheap
    at any size.
    """
    config = getattr(model, "config", None)
    digest = hashlib.sha256()
    frozen = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for name, tensor in {**frozen, **_constant_buffers(model)}.items():
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // _SAMPLED)][:_SAMPLED].contiguous().cpu()
        digest.update(f"{name} {_describe(tensor)} ".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return {
        "class": type(model).__name__,
        "config": to_dict(config) if dataclasses.is_dataclass(config) and not isinstance(config, type) else {},
        "trainable": _shapes(trainable_parameters(model)),
        "frozen weights": digest.hexdigest()[:16],
    }


def first_difference(saved: Any, own: Any, name: str = "") -> str | None:
    """Where two trees of plain values first differ, as `name is X there and Y here`; None where they agree."""
    if isinstance(saved, Mapping) and isinstance(own, Mapping):
        for key in [*own, *(key for key in saved if key not in own)]:
            found = first_difference(saved.get(key, "absent"), own.get(key, "absent"), f"{name}.{key}" if name else key)
            if found is not None:
                return found
        return None
    return None if saved == own else f"{name} is {_short(saved)} there and {_short(own)} here"


def _short(value: Any) -> Any:
    """A value as a message shows it: of a digest its beginning."""
    is_digest = isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")
    return f"{value[:12]}…" if is_digest else value


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that belong to the model's state, such as the running means of a batch norm.

    Those of modules that call themselves `is_constant` do not: weights of few bits, which no training changes.
    """
    kept = model.state_dict(keep_vars=True).keys() - _constant_buffers(model).keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


def _constant_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers of modules that call themselves `is_constant`: as much the base of a training as frozen parameters."""
    constant = tuple(f"{name}." for name, module in model.named_modules() if getattr(module, "is_constant", False))
    return {name: buffer for name, buffer in model.named_buffers() if name.startswith(constant)}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: _describe(tensor) for name, tensor in tensors.items()}


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
