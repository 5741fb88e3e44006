"""Muon: momentum whose matrices are orthogonalised before they are added to the weights (Jordan et al. 2024).

A matrix's gradient is dominated by a few directions. Muon replaces the momentum `U S V^T` by about `U V^T`, so that
every direction moves equally far. Newton-Schulz iterations do it with matrix products alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adamw import adamw

QUINTIC = (3.4445, -4.7750, 2.0315)
"""`a x + b x^3 + c x^5` with the steepest slope at 0 that still keeps singular values near 1 (Jordan et al. 2024)."""
RMS = 0.2
"""Root mean square of AdamW's updates, which Muon's are scaled to (Liu et al. 2025, "Muon is scalable", eq. 4)."""


def newton_schulz(
    matrices: Float[Tensor, "*n rows columns"], *, steps: int = 5, dtype: torch.dtype | None = None
) -> Float[Tensor, "*n rows columns"]:
    """About `U V^T` of each matrix `U S V^T`: singular values land between 0.7 and 1.2, not exactly on 1.

    With `X` scaled to Frobenius norm 1, each step is `X <- a X + (b A + c A^2) X`, `A = X X^T`, `QUINTIC` giving
    `a, b, c`. Computed and returned in `dtype`: by default bfloat16 on a GPU and float32 elsewhere.
    """
    if dtype is None:
        dtype = torch.bfloat16 if matrices.is_cuda else torch.float32
    a, b, c = QUINTIC
    x = matrices.to(dtype).reshape(-1, *matrices.shape[-2:])
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the smaller of the two Gram matrices
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(matrices.shape)


class Muon(torch.optim.Optimizer):
    """Muon for groups with `muon=True`, fused AdamW for all others, behind one state and one `step`.

    For a matrix with gradient `g` and learning rate `r`:

        m <- m + (1 - momentum) (g - m)
        u  = newton_schulz(g + momentum (m - g))                 # Nesterov's look ahead
        w <- w (1 - r weight_decay) - r 0.2 sqrt(max(rows, columns)) u

    The last factor gives the update AdamW's size (Liu et al. 2025), so that one learning rate serves all groups.
    Jordan's own factor, `sqrt(max(1, rows / columns))`, is chosen by `match_adamw=False`. Matrices of one shape are
    orthogonalised together. A sharded matrix is gathered for it: every rank computes the whole.

    With an attribute `found_inf` (a tensor, 0 or 1) a step changes nothing where it is 1, as torch's fused AdamW does.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        match_adamw: bool = True,
        fused: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": 0.0, "muon": False}
        super().__init__(list(groups), defaults)
        self.match_adamw, self.fused, self.dtype = match_adamw, fused, dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; `closure` must be None."""
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["muon"]:
                self._orthogonal_step(group, parameters, found_inf)
            elif parameters:
                self._adamw_step(group, parameters, found_inf)

    def _orthogonal_step(self, group: dict[str, Any], parameters: list[Tensor], found_inf: Tensor | None) -> None:
        rate, momentum = group["lr"], group["momentum"]
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            mean = state["momentum"]
            if found_inf is not None:  # a gradient equal to the mean leaves the mean as it is
                gradient = torch.where(found_inf > 0, mean, gradient)
            mean.lerp_(gradient, 1 - momentum)
            by_shape[parameter.shape].append((parameter, _whole(gradient.lerp(mean, momentum))))
        alive = 1.0 if found_inf is None else 1.0 - found_inf
        for (rows, columns), members in by_shape.items():
            updates = newton_schulz(torch.stack([update for _, update in members]), dtype=self.dtype)
            size = RMS * max(rows, columns) ** 0.5 if self.match_adamw else max(1.0, rows / columns) ** 0.5
            updates = updates.to(members[0][0].dtype) * (rate * size * alive)
            for (parameter, _), update in zip(members, updates, strict=True):
                parameter.mul_(1 - rate * group["weight_decay"] * alive).sub_(_shared_like(update, parameter))

    def _adamw_step(self, group: dict[str, Any], parameters: list[Tensor], found_inf: Tensor | None) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=self.fused,
            found_inf=found_inf,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _whole(matrix: Tensor) -> Tensor:
    gather = getattr(matrix, "full_tensor", None)  # only a DTensor has it
    return matrix if gather is None else gather()


def _shared_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """The part of `whole` that this rank holds of `parameter`."""
    if not hasattr(parameter, "full_tensor"):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
