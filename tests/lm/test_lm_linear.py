"""`times` is `F.linear` up to bf16 rounding, whatever the number of rows and the shape around them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.lm.linear import ROWS_HINT, can_pack, packed, project, project_together, times
from alignlab.lm.lora import LoraConfig, add_lora

ROUNDING = 2.0**-8  # largest relative error of one rounding to bf16


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def excess(x: Tensor, weight: Tensor, bias: Tensor | None, got: Tensor) -> float:
    """How far `got` is beyond the rounding of the product and of the sum (negative where it is within)."""
    product = x.double() @ weight.double().T
    exact = product if bias is None else product + bias.double()
    accumulation = 1e-5 * (x.double().abs() @ weight.double().abs().T)
    allowed = ROUNDING * (exact.abs() + (0 if bias is None else product.abs())) * 1.01 + accumulation
    return float((got.double() - exact).abs().sub(allowed).max())


@pytest.mark.parametrize("biased", [False, True])
@torch.no_grad()
def test_equals_linear_for_every_number_of_rows(biased: bool) -> None:
    weight, bias = random(40, 96, seed=1), random(40, seed=2) if biased else None
    for rows in range(1, 201):
        x = random(rows, 96, seed=rows)
        got = times(x, weight, bias)
        assert got.shape == (rows, 40)
        assert got.dtype == torch.bfloat16
        assert excess(x, weight, bias, got) <= 0, rows
        assert excess(x, weight, bias, F.linear(x, weight, bias)) <= 0, rows  # the bound is fair to both


@pytest.mark.parametrize("shape", [(96,), (1, 96), (3, 1, 96), (2, 3, 5, 96), (0, 96), (4, 0, 96)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.no_grad()
def test_any_leading_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, bias = random(*shape, dtype=dtype), random(40, 96, seed=1, dtype=dtype), random(40, seed=2, dtype=dtype)
    for used in (None, bias):
        got, expected = times(x, weight, used), F.linear(x, weight, used)
        assert got.shape == expected.shape == (*shape[:-1], 40)
        assert got.dtype == dtype
        assert torch.allclose(got, expected, rtol=2 * ROUNDING, atol=0.1 if dtype == torch.bfloat16 else 1e-5)


@torch.no_grad()
def test_strided_operands() -> None:
    x, weight = random(96, 7).t(), random(96, 40, seed=1).t()
    assert excess(x, weight, None, times(x, weight)) <= 0


@torch.no_grad()
def test_the_number_of_rows_changes_the_path_not_the_row() -> None:
    x, weight = random(ROWS_HINT + 1, 96), random(40, 96, seed=1)
    many = times(x, weight)
    assert torch.allclose(many[:ROWS_HINT], times(x[:ROWS_HINT], weight), rtol=2 * ROUNDING, atol=1e-2)
    assert torch.allclose(many[:1], times(x[:1], weight), rtol=2 * ROUNDING, atol=1e-2)


def test_gradients_flow_as_through_linear() -> None:
    weight, x = random(40, 96, seed=1).requires_grad_(), random(5, 96)
    times(x, weight).float().square().sum().backward()
    again = weight.detach().clone().requires_grad_()
    F.linear(x, again).float().square().sum().backward()
    assert weight.grad is not None
    assert again.grad is not None
    assert torch.equal(weight.grad, again.grad)


@torch.no_grad()
def test_adapters_are_not_bypassed() -> None:
    """`project` reads the weights of plain layers only; a layer with an adapter answers for itself."""
    holder = nn.Sequential(nn.Linear(8, 8))
    x = random(3, 8, dtype=torch.float32)
    plain = project(holder[0], x)
    assert torch.equal(plain, holder[0](x))
    add_lora(holder, LoraConfig(rank=2, targets=("0",)))
    for name, parameter in holder.named_parameters():
        if "lora" in name.lower() or parameter.requires_grad:
            parameter.add_(0.5)
    assert torch.equal(project(holder[0], x), holder[0](x))
    assert not torch.allclose(project(holder[0], x), plain)


@torch.no_grad()
def test_projections_made_together_are_those_made_apart() -> None:
    layers = [nn.Linear(96, width, bias=biased).bfloat16() for width, biased in ((40, True), (8, True), (16, True))]
    x = random(2, 3, 96)
    for got, layer in zip(project_together(layers, x), layers, strict=True):
        assert got.shape == (2, 3, layer.out_features)
        assert excess(x, layer.weight, layer.bias, got) <= 0
    mixed = [nn.Linear(96, 8).bfloat16(), nn.Sequential(nn.Linear(96, 8).bfloat16())]
    for got, module in zip(project_together(mixed, x), mixed, strict=True):
        assert torch.allclose(got, module(x), rtol=2 * ROUNDING, atol=1e-2)


@pytest.mark.skipif(not can_pack(), reason="this processor has no packed bf16 product")
@torch.no_grad()
def test_the_packed_weight_follows_the_weight() -> None:
    """Written in place or given other storage, the next product uses the new numbers; unchanged, it stays packed."""
    weight, x = nn.Parameter(random(40, 96, seed=1)), random(3, 96)
    times(x, weight)
    assert packed(weight) is packed(weight)
    weight.mul_(-2)
    assert excess(x, weight, None, times(x, weight)) <= 0
    weight.data = random(40, 96, seed=5)
    assert excess(x, weight, None, times(x, weight)) <= 0
