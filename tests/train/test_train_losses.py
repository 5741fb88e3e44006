"""Chunked losses against `torch.nn.functional.cross_entropy`, their memory, and the refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from alignlab.core.errors import TrainingError
from alignlab.train.losses import check_mask, check_variance, chunked_cross_entropy, chunked_lm_loss

N, D, V = 23, 8, 37


def inputs(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(V, (N,), generator=g)
    weights = torch.rand(N, generator=g, dtype=torch.float64)
    weights[::3] = 0
    return hidden, weight, targets, weights


def naive(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, reduction="none")


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [1, 5, N, 100])
def test_token_losses_and_gradients_equal_torch(chunk: int, softcap: float | None) -> None:
    hidden, weight, targets, weights = inputs()
    expected = naive(hidden, weight, targets, softcap)
    expected_grads = torch.autograd.grad((expected * weights).sum(), (hidden, weight))
    got = chunked_cross_entropy(hidden, weight, targets, chunk=chunk, softcap=softcap)
    grads = torch.autograd.grad((got * weights).sum(), (hidden, weight))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_with_a_frozen_head_token_losses_and_gradients_equal_torch(chunk: int, softcap: float | None) -> None:
    hidden, weight, targets, weights = inputs()
    weight.requires_grad_(False)
    expected = naive(hidden, weight, targets, softcap)
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), hidden)
    got = chunked_cross_entropy(hidden, weight, targets, chunk=chunk, softcap=softcap)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    for factor in (1.0, -2.5):  # a second backward pass finds what the first one left
        (grad,) = torch.autograd.grad((got * weights).sum() * factor, hidden, retain_graph=True)
        torch.testing.assert_close(grad, expected_grad * factor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("frozen", "times"), [(True, 1), (False, 2)])
def test_token_losses_compute_logits_once_where_the_head_is_frozen(frozen: bool, times: int) -> None:
    hidden, weight = torch.randn(64, 4, requires_grad=True), torch.randn(1000, 4, requires_grad=not frozen)
    with LargestTensor() as seen:
        chunked_cross_entropy(hidden, weight, torch.zeros(64, dtype=torch.long), chunk=16).sum().backward()
    assert seen.rows == times * 64


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_fused_loss_and_gradients_equal_torch(chunk: int, softcap: float | None) -> None:
    hidden, weight, targets, weights = inputs()
    expected = (naive(hidden, weight, targets, softcap) * weights).sum() / weights.sum()
    expected_grads = torch.autograd.grad(7 * expected, (hidden, weight))
    got = chunked_lm_loss(hidden, weight, targets, weights, chunk=chunk, softcap=softcap)
    grads = torch.autograd.grad(7 * got, (hidden, weight))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradcheck(softcap: float | None) -> None:
    hidden, weight, targets, weights = inputs(seed=3)
    assert torch.autograd.gradcheck(
        lambda h, w: chunked_cross_entropy(h, w, targets, chunk=4, softcap=softcap), (hidden, weight)
    )
    assert torch.autograd.gradcheck(
        lambda h, w: chunked_lm_loss(h, w, targets, weights, chunk=4, softcap=softcap), (hidden, weight)
    )


def test_bfloat16_is_as_close_to_the_exact_gradient_as_torch_in_bfloat16() -> None:
    hidden, weight, targets, weights = inputs(torch.bfloat16)
    exact_h, exact_w = (x.detach().double().requires_grad_() for x in (hidden, weight))
    exact = torch.autograd.grad((naive(exact_h, exact_w, targets, None) * weights).sum() / weights.sum(), exact_h)[0]
    plain_loss = (F.cross_entropy((hidden @ weight.T).float(), targets, reduction="none") * weights).sum()
    plain = torch.autograd.grad(plain_loss / weights.sum(), hidden)[0]
    loss = chunked_lm_loss(hidden, weight, targets, weights, chunk=4)
    ours = torch.autograd.grad(loss, hidden)[0]
    assert loss.dtype == torch.float32
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact).norm() <= 1.2 * (plain.double() - exact).norm()


def test_autocast_uses_bfloat16_products_and_gives_float32_gradients() -> None:
    hidden, weight, targets, weights = inputs(torch.float32)
    low_h, low_w = (x.detach().bfloat16().requires_grad_() for x in (hidden, weight))
    expected = chunked_lm_loss(low_h, low_w, targets, weights)
    expected_grad = torch.autograd.grad(expected, low_h)[0]
    for loss_fn in (chunked_lm_loss, lambda *a: (chunked_cross_entropy(*a[:3]) * a[3].float()).sum() / a[3].sum()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_fn(hidden, weight, targets, weights)
        grad = torch.autograd.grad(loss, hidden)[0]
        torch.testing.assert_close(loss.float(), expected, rtol=1e-5, atol=1e-6)
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, expected_grad.float(), rtol=1e-2, atol=1e-4)


class LargestTensor(TorchDispatchMode):
    """Remembers the element count of the largest tensor that any operation returned, and of the largest product."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel())
                if value.ndim == 2 and value.shape[1] == 1000 and "mm" in str(func):
                    self.rows += value.shape[0]
        return out


LOSSES: dict[str, Callable[..., Tensor]] = {
    "per token": lambda h, w, t, m: (chunked_cross_entropy(h, w, t, chunk=16) * m).sum(),
    "fused": lambda h, w, t, m: chunked_lm_loss(h, w, t, m, chunk=16),
}


@pytest.mark.parametrize("name", LOSSES)
def test_never_holds_all_logits(name: str) -> None:
    n, d, v = 200, 4, 1000
    hidden, weight = torch.randn(n, d, requires_grad=True), torch.randn(v, d, requires_grad=True)
    with LargestTensor() as seen:
        LOSSES[name](hidden, weight, torch.randint(v, (n,)), torch.ones(n)).backward()
    assert seen.largest == 16 * v  # logits of one chunk; n * v would be 200 * v


def test_fused_loss_computes_logits_once_and_only_where_the_weight_is_not_zero() -> None:
    hidden, weight = torch.randn(64, 4, requires_grad=True), torch.randn(1000, 4)
    mask = torch.zeros(64, dtype=torch.bool)
    mask[10:31] = True
    with LargestTensor() as seen:
        loss = chunked_lm_loss(hidden, weight, torch.zeros(64, dtype=torch.long), mask, chunk=16)
        loss.backward()
    assert seen.rows == 21
    assert hidden.grad is not None
    assert hidden.grad[~mask].abs().sum() == 0
    assert weight.grad is None


def test_without_grad_nothing_is_kept() -> None:
    hidden, weight, targets, weights = inputs()
    with torch.no_grad():
        loss = chunked_lm_loss(hidden, weight, targets, weights)
    assert not loss.requires_grad


def test_empty_mask_is_refused() -> None:
    hidden, weight, targets, weights = inputs()
    with pytest.raises(TrainingError, match="loss_mask selects none of the batch's 23 positions"):
        chunked_lm_loss(hidden, weight, targets, weights * 0)
    check_mask(torch.tensor([False, True]))
    with pytest.raises(TrainingError, match="response_mask"):
        check_mask(torch.zeros(2, 3, dtype=torch.bool), "response_mask")


def test_zero_variance_is_refused() -> None:
    check_variance(torch.tensor([0.5, 0.5, 0.6]))
    with pytest.raises(TrainingError, match=r"rewards of this batch of 3 are all 0.5"):
        check_variance(torch.full((3,), 0.5))
    with pytest.raises(TrainingError, match="scores"):
        check_variance(torch.tensor([1.0]), "scores")
    with pytest.raises(TrainingError, match="empty"):
        check_variance(torch.tensor([]))


def test_shapes_and_weights_are_checked() -> None:
    hidden, weight, targets, weights = inputs()
    with pytest.raises(TrainingError, match=r"hidden \(23, 7\)"):
        chunked_cross_entropy(hidden[:, :7], weight, targets)
    with pytest.raises(TrainingError, match=r"right are \(n, d\)"):
        chunked_cross_entropy(hidden[None], weight, targets)
    with pytest.raises(TrainingError, match="chunk is 0"):
        chunked_cross_entropy(hidden, weight, targets, chunk=0)
    with pytest.raises(TrainingError, match="negative"):
        chunked_lm_loss(hidden, weight, targets, weights - 0.5)
