"""Where a network learns: size of gradients, updates and activations, layer by layer, during training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from alignlab.core.config import require
from alignlab.core.errors import ConfigError
from alignlab.train.observer import Metrics, UpdateView

Grouping = Literal["layer", "parameter"]


def tensor_norms(tensors: Sequence[Tensor]) -> list[float]:
    """L2 norm of each tensor, at least in float32, with one synchronisation; a sharded tensor's norm is of all of it.

    Computed as gradient clipping computes them, so that the rounding of very large tensors cancels between the two.
    """
    if not tensors:
        return []
    dtype = torch.float64 if any(tensor.dtype is torch.float64 for tensor in tensors) else torch.float32
    norms = torch._foreach_norm([tensor.detach() for tensor in tensors], 2, dtype)
    # A DTensor's norm is a partial sum on each rank until it is asked for as a whole.
    whole = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]
    values: list[float] = torch.stack([norm.to(whole[0].device) for norm in whole]).double().tolist()
    return values


def layer_of(parameter: str) -> str:
    """The layer a parameter belongs to: its block and the part of it, such as `blocks.3.attn`; else its first name.

    `blocks.3.attn.q.weight` is of `blocks.3.attn`, `embed.weight` of `embed`.
    """
    parts = parameter.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if number is None:
        return parts[0]
    end = number + 2 if len(parts) > number + 2 else number + 1
    return ".".join(parts[:end])


def layer_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules whose outputs are worth watching, by name in the order of the model.

    Members of a `ModuleList` or `Sequential` (a transformer's blocks, whose output is the residual stream) and, within
    them, children that have children (attention and MLP). Without any such list, the model's own children.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(name.startswith(f"{up}.") for up in found):
            continue
        for key, layer in module.named_children():
            full = f"{name}.{key}" if name else key
            for inner, part in layer.named_children():
                if any(True for _ in part.children()) and not isinstance(part, nn.ModuleList):
                    found[f"{full}.{inner}"] = part
            found[full] = layer
    return found or dict(model.named_children())


class LayerStatistics:
    """Observer: norms of gradients and weights, updates relative to weights, sizes of activations, for each layer.

    At updates that are a multiple of `every` it logs, under `layers/<layer>/`:

    - `gradient_norm`: L2 norm before clipping
    - `weight_norm`: L2 norm before the step
    - `update_ratio`: norm of the change of the weights over `weight_norm`; left out while a layer's weights are all 0
    - `activation_rms`, `activation_max`: root mean square and largest size of the outputs of `layer_modules`, over the
      micro-batches of this rank; evaluations in between do not count

    `by="parameter"` has one layer a parameter. Costs one copy of the weights at measured updates, and hooks that are
    attached for the forward passes of measured updates only: nothing at all between them.

    Raises, at the first update measured:
        ConfigError: the hooks saw nothing, as in a model that was compiled before they were attached.
    """

    micro_gradients_every = 0

    def __init__(self, model: nn.Module, *, every: int = 10, activations: bool = True, by: Grouping = "layer") -> None:
        require(every >= 1, "every", every, "a positive whole number")
        require(by in ("layer", "parameter"), "by", by, "layer, parameter")
        self.every = every
        self._by = by
        self._watched = layer_modules(model) if activations else {}
        self._hooks: list[Any] = []
        self._seen: dict[str, list[tuple[Tensor, Tensor, int]]] = {}
        self._before: dict[str, Tensor] = {}
        self._weight_norms: dict[str, float] = {}
        if every == 1:  # otherwise the update before a measured one attaches them
            self._attach()

    def before_update(self, view: UpdateView) -> Metrics:
        """Gradients and activations; keeps a copy of the weights."""
        self._before = {}  # an update that was refused in between left its copy
        if view.step % self.every:
            self.close()
            return {}
        gradients = {name: p.grad for name, p in view.parameters.items() if p.grad is not None}
        self._before = {name: p.detach().clone() for name, p in view.parameters.items()}
        self._weight_norms = self._grouped(self._before)
        metrics = {
            **self._named(self._grouped(gradients), "gradient_norm"),
            **self._named(self._weight_norms, "weight_norm"),
            **self._activations(view.step),
        }
        self.close()
        return metrics

    def after_update(self, view: UpdateView) -> Metrics:
        """Updates, relative to the weights they change."""
        metrics: Metrics = {}
        if self._before:  # empty too where gradients overflowed, and nobody was asked before the update
            changes = {name: p.detach() - self._before[name] for name, p in view.parameters.items()}
            norms = self._grouped(changes)
            self._before = {}
            ratios = {k: norm / self._weight_norms[k] for k, norm in norms.items() if self._weight_norms[k] > 0}
            metrics = self._named(ratios, "update_ratio")
        if (view.step + 1) % self.every == 0:
            self._attach()
        return metrics

    def state(self) -> dict[str, Any]:
        """Whether the next update is a measured one whose activations are waited for."""
        return {"listening": bool(self._hooks)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Wait for them again, so that a resumed training measures the same updates."""
        listening = bool(state["listening"])
        self.close()
        self._before = {}
        if listening:
            self._attach()

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._seen = [], {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _attach(self) -> None:
        self.close()
        self._hooks = [module.register_forward_hook(self._listener(name)) for name, module in self._watched.items()]

    def _listener(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple | list) else output
            if module.training and isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                value = value.detach()
                norm = torch.linalg.vector_norm(value, dtype=torch.promote_types(value.dtype, torch.float32))
                largest = torch.linalg.vector_norm(value, math.inf)
                self._seen.setdefault(name, []).append((norm.square(), largest, value.numel()))

        return hook

    def _activations(self, step: int) -> Metrics:
        """Statistics of what the hooks saw since they were attached."""
        if not self._hooks:
            return {}
        if not self._seen:
            raise ConfigError(
                f"layer statistics saw no activation at update {step}: a compiled model does not call hooks attached "
                "after it; use activations=False, or train without compile"
            )
        metrics: Metrics = {}
        for name in (name for name in self._watched if name in self._seen):
            squares, largest, counts = zip(*self._seen[name], strict=True)
            mean_square = float(torch.stack(squares).double().sum()) / sum(counts)
            metrics[f"layers/{name}/activation_rms"] = math.sqrt(mean_square)
            metrics[f"layers/{name}/activation_max"] = float(torch.stack(largest).max())
        return metrics

    def _grouped(self, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Norm of all tensors of each layer together."""
        squares: dict[str, float] = {}
        for name, norm in zip(tensors, tensor_norms(list(tensors.values())), strict=True):
            layer = name if self._by == "parameter" else layer_of(name)
            squares[layer] = squares.get(layer, 0.0) + norm**2
        return {layer: math.sqrt(square) for layer, square in squares.items()}

    @staticmethod
    def _named(values: Mapping[str, float], statistic: str) -> Metrics:
        return {f"layers/{layer}/{statistic}": value for layer, value in values.items()}
