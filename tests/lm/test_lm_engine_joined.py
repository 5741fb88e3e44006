"""Layers joined for decoding: equal to the layers one by one, also after an update, in every mixture of kinds."""

from __future__ import annotations

import pytest
import torch

from alignlab.lm.config import GPTConfig
from alignlab.lm.engine.joined import JoinedProducts
from alignlab.lm.lora import ALL_LINEAR, LoraConfig, add_lora, lora_disabled, lora_parameters, merge_lora
from alignlab.lm.model import GPTModel

TOKENS = torch.tensor([[1, 5, 9, 2], [3, 3, 7, 0]])


def model(**changes: object) -> GPTModel:
    shape = {"vocab_size": 16, "d_model": 24, "n_layers": 2, "n_heads": 3, "n_kv_heads": 1, "d_mlp": 40, "n_ctx": 16}
    return GPTModel(GPTConfig(**(shape | changes)), seed=1).double().eval()  # type: ignore[arg-type]


def with_adapters(trained: GPTModel, *targets: str) -> GPTModel:
    add_lora(trained, LoraConfig(rank=3, alpha=5.0, targets=targets or (ALL_LINEAR,)))
    draw(trained, 0)
    return trained


def draw(trained: GPTModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora_parameters(trained):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)


@torch.no_grad()
def same(trained: GPTModel, products: JoinedProducts, tolerance: float = 1e-12) -> None:
    alone = trained.hidden_states(TOKENS)
    with products.attached():
        together = trained.hidden_states(TOKENS)
    torch.testing.assert_close(together, alone, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(trained.hidden_states(TOKENS), alone, atol=0, rtol=0)  # nothing stays behind


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True, "mlp_bias": True, "out_bias": True}, {"gated_mlp": False}])
def test_joined_layers_give_what_they_give_alone(changes: dict[str, object]) -> None:
    plain = model(**changes)
    same(plain, JoinedProducts(plain))
    adapted = with_adapters(model(**changes))
    products = JoinedProducts(adapted)
    assert len(products.layers) == 2 * 4
    assert all(part.a is not None for part in products.parts)
    same(adapted, products)


def test_an_update_of_the_adapters_is_taken_over_where_the_matrices_stand() -> None:
    adapted = with_adapters(model())
    products = JoinedProducts(adapted)
    places = [part.a.data_ptr() for part in products.parts if part.a is not None]
    before = adapted.hidden_states(TOKENS)
    draw(adapted, 1)
    assert (adapted.hidden_states(TOKENS) - before).abs().max() > 0.01
    with pytest.raises(AssertionError):
        same(adapted, products)
    products.renew()
    same(adapted, products)
    assert places == [part.a.data_ptr() for part in products.parts if part.a is not None]


def test_groups_in_which_not_all_have_adapters_stay_apart() -> None:
    mixed = with_adapters(model(), "q", "v", "down")
    products = JoinedProducts(mixed)
    assert [len(group) for group in products.layers] == [2, 1] * 2  # gate and up are plain, down has one; qkv is mixed
    same(mixed, products)


def test_adapters_that_are_off_or_merged_are_not_joined() -> None:
    adapted = with_adapters(model())
    with lora_disabled(adapted):
        assert JoinedProducts(adapted).layers == []
    merge_lora(adapted)
    products = JoinedProducts(adapted)
    assert products.layers == []
    same(adapted, products)


def test_bfloat16_adapters_are_narrowed_as_every_step_would() -> None:
    adapted = with_adapters(model().to(torch.bfloat16))
    same(adapted, JoinedProducts(adapted), tolerance=0.05)


def test_a_compiler_sees_through_joined_layers() -> None:
    adapted = with_adapters(model())
    products = JoinedProducts(adapted)
    attention = torch.compile(adapted.blocks[0].mlp.forward, backend="eager", fullgraph=True)
    x = torch.randn(2, 4, 24, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    with torch.no_grad(), products.attached():
        torch.testing.assert_close(attention(x), adapted.blocks[0].mlp(x))
