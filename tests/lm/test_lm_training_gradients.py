"""Backward passes of our own: attention in bfloat16 on the CPU, and RMSNorm, beside torch's in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alignlab.lm import attention_gradient
from alignlab.lm.attention import MultiHeadAttention, attend_with_total
from alignlab.lm.attention_gradient import attend_for_training
from alignlab.lm.config import GPTConfig
from alignlab.lm.norm import rms_norm


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def segment_mask(batch: int, pos: int) -> Tensor:
    """Two documents a row, cut at another place in each."""
    cut = torch.arange(batch)[:, None] + 3
    document = (torch.arange(pos) >= cut).long()
    causal = torch.ones(pos, pos, dtype=torch.bool).tril()
    return ((document[:, :, None] == document[:, None, :]) & causal).unsqueeze(1)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_gradients_equal_autograd(kv_heads: int, masked: bool) -> None:
    """In float64 the hand-written backward pass is that of the definition."""
    batch, heads, pos, width, scale = 3, 6, 9, 4, 0.37
    q = drawn(batch, heads, pos, width, seed=1, dtype=torch.float64).requires_grad_()
    k, v = (drawn(batch, kv_heads, pos, width, seed=s, dtype=torch.float64).requires_grad_() for s in (2, 3))
    mask = segment_mask(batch, pos) if masked else None
    plain = torch.ones(pos, pos, dtype=torch.bool).tril() if mask is None else mask
    groups = heads // kv_heads
    scores = scale * q @ k.repeat_interleave(groups, 1).transpose(-1, -2)
    expected = scores.masked_fill(~plain, float("-inf")).softmax(-1) @ v.repeat_interleave(groups, 1)
    found = attend_for_training(q, k, v, mask, scale)
    weights = drawn(batch, heads, pos, width, seed=4, dtype=torch.float64)
    assert torch.allclose(found, expected, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), (q, k, v)),
        torch.autograd.grad((expected * weights).sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_bfloat16_gradients_are_as_near_as_the_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (drawn(2, h, 24, 16, seed=h, dtype=torch.bfloat16).requires_grad_() for h in (6, 2, 2))
    weights = drawn(2, 24, 6, 16, seed=9, dtype=torch.bfloat16)
    wide = [t.detach().double().requires_grad_() for t in (q, k, v)]
    repeated = [wide[0], *(t.repeat_interleave(3, 1) for t in wide[1:])]
    exact = F.scaled_dot_product_attention(*repeated, is_causal=True).transpose(1, 2)
    expected = torch.autograd.grad((exact * weights).sum(), wide)
    module = MultiHeadAttention(GPTConfig(d_model=96, n_heads=6, n_kv_heads=2, d_head=16), 0)
    errors = {}
    for path in (True, False):
        monkeypatch.setattr("alignlab.lm.attention.trains_faster", lambda _, path=path: path)
        found = torch.autograd.grad((module.attend(q, k, v, None) * weights).sum(), (q, k, v))
        errors[path] = [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]
    for ours, fused in zip(errors[True], errors[False], strict=True):
        assert ours < max(0.01, 3 * fused)


def test_the_hand_written_pass_is_for_bfloat16_on_the_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_gradient, "can_pack", lambda: True)
    assert attention_gradient.trains_faster(drawn(2, 2, seed=0, dtype=torch.bfloat16))
    assert not attention_gradient.trains_faster(drawn(2, 2, seed=0))
    with torch.no_grad():
        assert not attention_gradient.trains_faster(drawn(2, 2, seed=0, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rms_norm_equals_torch(dtype: torch.dtype, eps: float) -> None:
    x, weight = drawn(3, 5, 16, seed=1, dtype=dtype).requires_grad_(), drawn(16, seed=2, dtype=dtype).requires_grad_()
    grad = drawn(3, 5, 16, seed=3, dtype=dtype)
    ours, theirs = rms_norm(x, weight, eps), F.rms_norm(x, (16,), weight, eps)
    tolerance = 1e-6 if dtype is torch.float32 else 1e-13
    assert torch.allclose(ours, theirs, atol=tolerance)
    with torch.no_grad():
        assert torch.equal(rms_norm(x, weight, eps), ours)
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight), grad), torch.autograd.grad(theirs, (x, weight), grad), strict=True
    ):
        assert torch.allclose(a, b, atol=10 * tolerance)


def test_rms_norm_of_narrow_numbers_rounds_once() -> None:
    x, weight = drawn(7, 32, seed=1, dtype=torch.bfloat16), drawn(32, seed=2, dtype=torch.bfloat16)
    exact = F.rms_norm(x.double(), (32,), weight.double(), 1e-5)
    assert torch.equal(rms_norm(x, weight, 1e-5), exact.to(torch.bfloat16))


def test_rms_norm_of_zeros_has_finite_gradients() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    rms_norm(x, torch.ones(8), 1e-5).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
def test_two_parts_of_the_keys_make_the_whole(masked: bool) -> None:
    """What `attend_with_prefix` relies on: outputs weighted by their denominators."""
    q, k, v = drawn(2, 3, 4, 8, seed=1), drawn(2, 3, 11, 8, seed=2), drawn(2, 3, 11, 8, seed=3)
    mask = torch.rand(2, 1, 4, 11, generator=torch.Generator().manual_seed(5)) < 0.6
    mask[..., 0], mask[..., -1] = True, True
    used = mask if masked else None
    whole = F.scaled_dot_product_attention(q, k, v, attn_mask=used, scale=0.3)
    parts = []
    for part in (slice(0, 6), slice(6, 11)):
        parts.append(attend_with_total(q, k[:, :, part], v[:, :, part], None if used is None else used[..., part], 0.3))
    (a, a_total), (b, b_total) = parts
    share = torch.sigmoid(a_total - b_total).unsqueeze(-1)
    assert torch.allclose(b + share * (a - b), whole, atol=1e-5)
