"""The z-loss fused into the chunked cross-entropy against autograd, and losses in float16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alignlab.train.losses import chunked_lm_loss, chunked_lm_losses

N, D, V = 19, 6, 31


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(4)
    hidden = torch.randn(N, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    weights = torch.rand(N, generator=g, dtype=torch.float64)
    weights[::4] = 0
    return hidden, weight, torch.randint(V, (N,), generator=g), weights


def naive(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, z_loss: float) -> Tensor:
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, reduction="none") + z_loss * logits.logsumexp(1).square()


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [1, 7, 100, None])
@pytest.mark.parametrize("weighted", [True, False])
def test_loss_and_gradients_equal_autograd(chunk: int | None, softcap: float | None, weighted: bool) -> None:
    hidden, weight, targets, weights = inputs()
    weights = weights if weighted else torch.ones_like(weights)
    expected = (naive(hidden, weight, targets, softcap, 0.05) * weights).sum() / weights.sum()
    expected_grads = torch.autograd.grad(3 * expected, (hidden, weight))
    got = chunked_lm_loss(
        hidden, weight, targets, weights if weighted else None, chunk=chunk, softcap=softcap, z_loss=0.05
    )
    grads = torch.autograd.grad(3 * got, (hidden, weight))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-12, atol=1e-12)


def test_gradcheck() -> None:
    hidden, weight, targets, weights = inputs()
    assert torch.autograd.gradcheck(
        lambda h, w: chunked_lm_loss(h, w, targets, weights, chunk=4, softcap=2.0, z_loss=0.1), (hidden, weight)
    )


def test_its_share_is_reported_and_has_no_gradient() -> None:
    hidden, weight, targets, _ = inputs()
    loss, penalty = chunked_lm_losses(hidden, weight, targets, None, z_loss=0.05)
    torch.testing.assert_close(penalty, 0.05 * (hidden @ weight.T).logsumexp(1).square().mean().detach())
    torch.testing.assert_close(loss - penalty, chunked_lm_loss(hidden, weight, targets, None))
    assert not penalty.requires_grad
    assert float(chunked_lm_losses(hidden, weight, targets, None)[1]) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel runs on a GPU")
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_the_gpu_kernel_computes_the_same(softcap: float | None, z_loss: float) -> None:
    g = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(70, 32, generator=g), torch.randn(9001, 32, generator=g)
    targets, weights = torch.randint(9001, (70,), generator=g), torch.rand(70, generator=g)
    weights[::7] = 0
    found = {}
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        h, w = (a.to(device, dtype, copy=True).requires_grad_() for a in (hidden, weight))
        losses = chunked_lm_losses(h, w, targets.to(device), weights.to(device), softcap=softcap, z_loss=z_loss)
        found[device] = [a.double().cpu() for a in (*losses, *torch.autograd.grad(losses[0], (h, w)))]
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-4, atol=1e-6)


def test_float16_gradients_of_a_mean_over_many_positions_survive_with_a_loss_scale() -> None:
    # At 1/n each, softmax values would be below float16's smallest number before the loss scale could lift them.
    g = torch.Generator().manual_seed(0)
    n = 30_000
    hidden = torch.randn(n, 4, generator=g).half().requires_grad_()
    weight = torch.randn(50, 4, generator=g).half().requires_grad_()
    targets = torch.randint(50, (n,), generator=g)
    wide = hidden.detach().float().requires_grad_()
    expected = torch.autograd.grad(chunked_lm_loss(wide, weight.detach().float(), targets, None), wide)[0]
    scaled = chunked_lm_loss(hidden, weight, targets, None) * 2.0**14
    grads = torch.autograd.grad(scaled, (hidden, weight))
    assert all(bool(grad.isfinite().all()) for grad in grads)
    error = (grads[0].float() / 2.0**14 - expected).norm() / expected.norm()
    assert float(error) < 2e-3
