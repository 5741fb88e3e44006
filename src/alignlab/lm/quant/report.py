"""What quantisation did to each layer, and to the whole."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LayerReport:
    """One matrix before and after."""

    name: str
    shape: tuple[int, int]
    bits_per_weight: float
    """Codes, scales and offsets together."""
    weight_error: float
    """Relative Frobenius error, `|W - Q| / |W|`."""
    output_error: float | None
    """The same of the layer's outputs on the calibration batch, `|XWᵀ - XQᵀ| / |XWᵀ|`; None without one."""


@dataclass(frozen=True)
class QuantReport:
    """All matrices, and the memory of the model before and after."""

    scheme: str
    group_size: int
    layers: tuple[LayerReport, ...]
    kept: tuple[str, ...]
    """Linear layers that stayed as they were, because no group fills their rows."""
    bytes_before: int
    bytes_after: int

    def worst(self, n: int = 5) -> list[LayerReport]:
        """The layers with the largest error of outputs (of weights, where there was no calibration), worst first."""
        return sorted(self.layers, key=lambda layer: -(layer.output_error or layer.weight_error))[:n]

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain types."""
        return asdict(self)

    def table(self) -> str:
        """A line a layer, aligned."""
        head = ("layer", "shape", "bits/weight", "weight error", "output error")
        rows = [
            (
                layer.name,
                "x".join(map(str, layer.shape)),
                f"{layer.bits_per_weight:.2f}",
                f"{layer.weight_error:.5f}",
                "" if layer.output_error is None else f"{layer.output_error:.5f}",
            )
            for layer in self.layers
        ]
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        return "\n".join(
            "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
        )

    def summary(self) -> str:
        """One sentence."""
        mean = sum(layer.weight_error for layer in self.layers) / max(len(self.layers), 1)
        return (
            f"{self.scheme}, groups of {self.group_size}: {len(self.layers)} matrices, mean weight error {mean:.5f}, "
            f"{self.bytes_before / 1e6:.1f} MB before, {self.bytes_after / 1e6:.1f} MB after "
            f"({self.bytes_after / self.bytes_before:.1%})"
        )
