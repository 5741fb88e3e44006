"""Every fast path of attention equals the explicit one, forwards and in the gradients, over a grid of choices.

FlexAttention has no backward pass on the CPU. There its two rules (who may look at whom, what becomes of a score) are
applied to whole tensors and compared, gradients included; torch's own unfused form runs them forwards; and where there
is a GPU, the compiled kernel is compared in both directions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from alignlab.lm.attention import Extra, MultiHeadAttention, causal_mask
from alignlab.lm.config import GPTConfig
from alignlab.lm.flex import flex_attend, flex_plan, mask_rule, score_rule, uses_flex
from alignlab.lm.model import GPTModel
from alignlab.lm.positions import AlibiBias
from alignlab.lm.taps import listen

TOLERANCE = 1e-5
LENGTH = 24
SEGMENTS = torch.tensor([[1] * 9 + [2] * 11 + [0] * 4, [1] * 3 + [2] * 21])
GRID = list(product([None, 5], ["rotary", "alibi", "none"], [None, 2.0], [False, True], [1, 2, 6], [False, True]))
"""Window, positions, soft cap, packed documents, key-value heads (multi-query, grouped, one each), QK-norm."""

Grads = dict[str, Tensor]


def name_of(case: tuple[Any, ...]) -> str:
    window, positions, softcap, packed, n_kv_heads, qk_norm = case
    parts = [f"w{window}", positions, f"cap{softcap}", f"kv{n_kv_heads}"]
    return "-".join([*parts, *(["packed"] if packed else []), *(["qk"] if qk_norm else [])])


def fields_of(case: tuple[Any, ...], d_head: int = 8) -> dict[str, Any]:
    window, positions, softcap, _, n_kv_heads, qk_norm = case
    return {
        "d_model": 48, "n_heads": 6, "d_head": d_head, "vocab_size": 64, "d_mlp": 32, "n_layers": 2, "window": window,
        "window_layers": () if window is None else (True, False), "positions": positions, "attn_softcap": softcap,
        "n_kv_heads": n_kv_heads, "qk_norm": qk_norm,
    }  # fmt: skip


def random_model(attention: str, device: str = "cpu", **fields: Any) -> GPTModel:
    """Weights large enough that attention is far from uniform; the same for every `attention`."""
    model = GPTModel(GPTConfig(attention=attention, **fields))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * parameter.shape[1] ** -0.5 if parameter.ndim == 2 else 1 + 0.2 * noise)
        model.embed.weight.mul_(3)
    return model.to(device)


def logits_and_gradients(model: GPTModel, packed: bool) -> tuple[Tensor, Grads]:
    """Logits at real tokens, and the gradients of their product with fixed numbers, of size about one."""
    device = model.embed.weight.device
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 64, (2, LENGTH), generator=generator).to(device)
    segments = SEGMENTS.to(device) if packed else None
    logits = model(tokens, segments=segments)
    if segments is not None:
        logits = logits[segments > 0]
    (logits * torch.randn(logits.shape, generator=generator).to(device)).sum().mul(0.01).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(ours: tuple[Tensor, Grads], reference: tuple[Tensor, Grads]) -> None:
    logits, grads = reference
    assert logits.std() > 0.3
    assert (ours[0] - logits).abs().max() <= TOLERANCE
    assert ours[1].keys() == grads.keys()
    assert grads["blocks.0.attn.v.weight"].abs().max() > 0.05
    assert grads["blocks.0.attn.q.weight"].abs().max() > 0.005
    for name, grad in grads.items():
        assert (ours[1][name] - grad).abs().max() <= TOLERANCE, name


@pytest.mark.parametrize("case", [case for case in GRID if case[2] is None], ids=name_of)
def test_sdpa_equals_explicit(case: tuple[Any, ...]) -> None:
    fields, packed = fields_of(case), case[3]
    reference = logits_and_gradients(random_model("explicit", **fields), packed)
    assert_equal(logits_and_gradients(random_model("sdpa", **fields), packed), reference)
    assert_equal(logits_and_gradients(random_model("auto", **fields), packed), reference)


def test_watching_scores_and_explicit_attention_take_the_same_path() -> None:
    fields = fields_of((5, "alibi", 2.0, True, 2, True))
    tokens = torch.randint(0, 64, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    auto, explicit = random_model("auto", **fields), random_model("explicit", **fields)
    with torch.no_grad(), listen(auto, {"blocks.1.attn.hook_pattern": lambda x, name: None}):
        assert torch.equal(auto(tokens, segments=SEGMENTS), explicit(tokens, segments=SEGMENTS))


# FlexAttention --------------------------------------------------------------------------------------------------------


def heads(n_kv_heads: int, d_head: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n_kv_heads)
    return [1.5 * torch.randn(2, h, LENGTH, d_head, generator=generator) for h in (6, n_kv_heads, n_kv_heads)]


def explicit_case(case: tuple[Any, ...]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`attend_explicitly` under the mask and the bias that the model would make for this case."""
    window, positions, _, packed, _, _ = case
    module = MultiHeadAttention(GPTConfig(**fields_of(case, d_head=16)), 0)
    columns = torch.arange(LENGTH).expand(2, -1)
    same = SEGMENTS[:, :, None] == SEGMENTS[:, None, :] if packed else None
    mask = causal_mask(columns, columns, window, same)
    extra = Extra(bias=AlibiBias(6)(columns, columns, mask, torch.float32)) if positions == "alibi" else None
    return lambda q, k, v: module.attend_explicitly(q, k, v, mask, extra)


def rules_of(case: tuple[Any, ...]) -> tuple[Any, Any]:
    window, positions, softcap, packed, _, _ = case
    slopes = AlibiBias(6).slopes(torch.device("cpu")) if positions == "alibi" else None
    return mask_rule(window, SEGMENTS if packed else None), score_rule(softcap, slopes)


def flex_unfused(case: tuple[Any, ...]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What FlexAttention is defined to do with the two rules, on whole tensors."""
    may_look, change = rules_of(case)
    b, h, i, j = torch.meshgrid(*(torch.arange(n) for n in (2, 6, LENGTH, LENGTH)), indexing="ij")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (t.repeat_interleave(6 // t.shape[1], 1) for t in (k, v))
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * 16**-0.5
        scores = scores if change is None else change(scores, b, h, i, j)
        return scores.masked_fill(~may_look(b, h, i, j), float("-inf")).softmax(-1) @ v

    return attend


FLEX_GRID = [case for case in GRID if not case[5] and case[1] != "rotary"]  # neither reaches the kernel


@pytest.mark.parametrize("case", FLEX_GRID, ids=name_of)
def test_flex_rules_equal_explicit(case: tuple[Any, ...]) -> None:
    results = []
    for attend in (explicit_case(case), flex_unfused(case)):
        q, k, v = (t.requires_grad_() for t in heads(case[4]))
        z = attend(q, k, v)
        (z * torch.randn(z.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        results.append((z.detach(), q.grad, k.grad, v.grad))
    for ours, reference in zip(results[1], results[0], strict=True):
        assert reference.abs().max() > 0.5
        assert (ours - reference).abs().max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        (None, "none", None, False, 6, False),
        (5, "alibi", 2.0, True, 2, False),
        (None, "alibi", None, True, 1, False),
        (5, "none", 2.0, False, 6, False),
    ],
    ids=name_of,
)
@torch.no_grad()
def test_flex_attention_itself_equals_explicit(case: tuple[Any, ...]) -> None:
    window, positions, _, packed, n_kv_heads, _ = case
    config = GPTConfig(**fields_of(case, d_head=16))
    slopes = AlibiBias(6).slopes(torch.device("cpu")) if positions == "alibi" else None
    plan = flex_plan(config, LENGTH, window, SEGMENTS if packed else None, slopes, torch.device("cpu"))
    q, k, v = heads(n_kv_heads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that this form is not the fused one
        z = flex_attend(q, k, v, plan, config.score_scale)
    assert (z - explicit_case(case)(q, k, v)).abs().max() <= TOLERANCE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has kernels with gradients on CUDA only")
@pytest.mark.parametrize("case", GRID[::5], ids=name_of)
def test_compiled_flex_attention_equals_explicit(case: tuple[Any, ...]) -> None:
    fields, packed = fields_of(case, d_head=16), case[3]
    flex = random_model("flex", "cuda", **fields)
    assert uses_flex(flex.config, torch.device("cuda"))
    reference = logits_and_gradients(random_model("explicit", "cuda", **fields), packed)
    assert_equal(logits_and_gradients(flex, packed), reference)


def test_flex_serves_where_it_has_kernels() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    wide = {"d_model": 64, "n_heads": 4}
    assert not uses_flex(GPTConfig(**wide, attention="flex"), cpu)
    assert uses_flex(GPTConfig(**wide, attention="flex"), cuda)
    assert not uses_flex(GPTConfig(d_model=32, n_heads=4, attention="flex"), cuda)  # heads of 8 are too narrow
    assert uses_flex(GPTConfig(**wide, attn_softcap=30.0), cuda)
    assert not uses_flex(GPTConfig(**wide), cuda)
    assert not uses_flex(GPTConfig(**wide, attn_softcap=30.0, attention="explicit"), cuda)
    with torch.no_grad():
        assert not uses_flex(GPTConfig(**wide, attn_softcap=30.0), cuda)
    # On the CPU "flex" is computed by the path that auto takes.
    tokens = torch.randint(0, 64, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    fields = fields_of((5, "alibi", None, False, 2, False), d_head=16)
    flex, auto = (random_model(name, **fields) for name in ("flex", "auto"))
    assert torch.equal(flex(tokens), auto(tokens))
