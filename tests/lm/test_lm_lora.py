"""LoRA against its definition and against PEFT: outputs, gradients, an AdamW step, merging, memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.core.errors import ConfigError, ModelError
from alignlab.lm.config import GPTConfig
from alignlab.lm.lora import (
    ALL_LINEAR,
    LoraConfig,
    LoRALinear,
    add_lora,
    lora_disabled,
    lora_layers,
    lora_parameters,
    merge_lora,
    remove_lora,
    unmerge_lora,
)
from alignlab.lm.model import GPTModel

SMALL = GPTConfig(vocab_size=31, n_ctx=16, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_mlp=24, qkv_bias=True)
ALL = ("q", "k", "v", "o", "gate", "up", "down")


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(31, (2, 7), generator=torch.Generator().manual_seed(seed))


def adapted(config: LoraConfig, dtype: torch.dtype = torch.float32, gpt: GPTConfig = SMALL) -> GPTModel:
    """A small model whose adapters are not at zero."""
    model = add_lora(GPTModel(gpt, seed=1).to(dtype), config)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.normal_(0, 0.3, generator=g)
    assert isinstance(model, GPTModel)
    return model


@pytest.fixture
def layer() -> LoRALinear:
    torch.manual_seed(0)
    wrapped = LoRALinear(nn.Linear(5, 3).double().requires_grad_(False), LoraConfig(2, 3.0), torch.Generator())
    nn.init.normal_(wrapped.lora_B)
    return wrapped


def definition(layer: LoRALinear, x: Tensor) -> Tensor:
    return F.linear(x, layer.base.weight + 1.5 * layer.lora_B @ layer.lora_A, layer.base.bias)


def test_forward_and_gradients_are_the_definition(layer: LoRALinear) -> None:
    x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 4, 3, dtype=torch.float64)
    inputs = (x, layer.lora_A, layer.lora_B)
    expected = definition(layer, x)
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs)
    got = layer(x)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad((got * weights).sum(), inputs), expected_grads)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer(x[0, 0]), expected[0, 0])
    assert torch.autograd.gradcheck(lambda x, a, b: layer(x), inputs)


def test_unfrozen_base_gets_its_gradient_too(layer: LoRALinear) -> None:
    layer.base.weight.requires_grad_()
    x = torch.randn(4, 5, dtype=torch.float64)
    inputs = (layer.base.weight, layer.lora_A)
    expected = torch.autograd.grad(definition(layer, x).square().sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad(layer(x).square().sum(), inputs), expected)


def test_fresh_adapters_change_nothing_and_only_they_train() -> None:
    plain = GPTModel(SMALL, seed=1)
    expected = plain(tokens())
    model = add_lora(GPTModel(SMALL, seed=1), LoraConfig(targets=ALL))
    torch.testing.assert_close(model(tokens()), expected, rtol=0, atol=1e-6)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 7 * 2
    assert all("lora_" in name for name in trainable)
    assert [id(p) for p in lora_parameters(model)] == [id(p) for p in model.parameters() if p.requires_grad]


def test_initialisation_is_seeded_and_differs_between_layers() -> None:
    def first(seed: int) -> list[Tensor]:
        model = GPTModel(SMALL)
        before = torch.get_rng_state()
        add_lora(model, LoraConfig(targets="q", seed=seed))  # type: ignore[arg-type]
        assert torch.equal(before, torch.get_rng_state())
        return [layer.lora_A.detach() for layer in lora_layers(model).values()]

    a, b, c = first(0), first(0), first(1)
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a[0], c[0])
    assert not torch.equal(a[0], a[1])
    bound = (1 / 16) ** 0.5  # Kaiming uniform with a = sqrt 5 over 16 inputs
    assert a[0].abs().max() <= bound
    assert a[0].abs().max() > 0.9 * bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_and_unmerge(dtype: torch.dtype) -> None:
    model = adapted(LoraConfig(4, targets=ALL), dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(tokens())
        with lora_disabled(model):
            reference = model(tokens())
        merge_lora(merge_lora(model))
        torch.testing.assert_close(
            model(tokens()), expected, **({} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1})
        )
        with lora_disabled(model):
            assert torch.equal(model(tokens()), reference)
        unmerge_lora(unmerge_lora(model))
        assert torch.equal(model(tokens()), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_disabled_is_the_base_model_and_restores_what_was() -> None:
    model = adapted(LoraConfig(4, targets=ALL))
    base = GPTModel(SMALL, seed=1)(tokens())
    adapted_logits = model(tokens())
    with lora_disabled(model):
        with lora_disabled(model):
            pass
        assert torch.equal(model(tokens()), base)
        with pytest.raises(RuntimeError), lora_disabled(model):
            raise RuntimeError
    assert not torch.allclose(adapted_logits, base)
    assert torch.equal(model(tokens()), adapted_logits)


def test_remove_with_and_without_merging() -> None:
    model = adapted(LoraConfig(4, targets=ALL))
    expected = model(tokens())
    assert torch.equal(remove_lora(adapted(LoraConfig(4, targets=ALL)))(tokens()), GPTModel(SMALL, seed=1)(tokens()))
    remove_lora(merge_lora(model))
    torch.testing.assert_close(model(tokens()), expected)
    assert list(model.state_dict()) == list(GPTModel(SMALL).state_dict())
    with pytest.raises(ModelError, match="GPTModel has no LoRA adapters"):
        merge_lora(model)


def test_effective_weight(layer: LoRALinear) -> None:
    expected = layer.base.weight + 1.5 * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer.effective_weight(), expected.detach())
    layer.enabled = False
    assert torch.equal(layer.effective_weight(), layer.base.weight)
    layer.merge()
    torch.testing.assert_close(layer.base.weight, expected.detach())
    assert layer.unmerged is not None
    assert torch.equal(layer.effective_weight(), layer.unmerged)
    layer.enabled = True
    assert torch.equal(layer.effective_weight(), layer.base.weight)


def test_targets() -> None:
    def layers(*targets: str) -> list[str]:
        return list(lora_layers(add_lora(GPTModel(SMALL), LoraConfig(targets=targets))))

    assert layers("q") == ["blocks.0.attn.q", "blocks.1.attn.q"]
    assert layers("blocks.1.mlp.down", "q") == ["blocks.0.attn.q", "blocks.1.attn.q", "blocks.1.mlp.down"]
    assert len(layers("all-linear")) == 14
    untied = GPTModel(GPTConfig(vocab_size=31, tie_embeddings=False))
    assert "head" not in lora_layers(add_lora(untied, LoraConfig(targets=("all-linear",))))
    with pytest.raises(
        ConfigError, match="targets has 'query', which names no linear layer, allowed: down, gate, k, o, q"
    ):
        layers("query")
    with pytest.raises(ModelError, match="already has LoRA"):
        add_lora(add_lora(GPTModel(SMALL), LoraConfig()), LoraConfig())


@pytest.mark.parametrize(
    ("field", "value"), [("rank", 0), ("alpha", 0.0), ("dropout", 1.0), ("targets", ()), ("alpha", float("nan"))]
)
def test_config_names_the_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{field} is"):
        LoraConfig(**{field: value})  # type: ignore[arg-type]


def test_dropout_only_while_training() -> None:
    model = adapted(LoraConfig(4, dropout=0.5))
    model.eval()
    quiet = model(tokens())
    assert torch.equal(quiet, model(tokens()))
    model.train()
    torch.manual_seed(0)
    assert not torch.allclose(quiet, model(tokens()))


# --- memory and types ---


def saved_by(call: object, *ignored: Tensor) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and types of the distinct tensors that autograd keeps for the backward pass, parameters left out."""
    kept: dict[int, Tensor] = {}
    known = {t.untyped_storage().data_ptr() for t in ignored}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()  # type: ignore[operator]
    return sorted(((tuple(t.shape), t.dtype) for t in kept.values()), key=str)


@pytest.mark.parametrize("autocast", [False, True])
def test_keeps_the_shared_input_and_rank_columns_only(autocast: bool) -> None:
    config = LoraConfig(rank=2)
    base = [nn.Linear(64, 48, bias=False).bfloat16().requires_grad_(False) for _ in range(3)]
    q, k, v = (LoRALinear(b, config, torch.Generator()) for b in base)
    x = torch.randn(10, 64).bfloat16().requires_grad_()
    parameters = [p for layer in (q, k, v) for p in layer.parameters()]

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y: Tensor = q(x) + k(x) + v(x)
        assert y.dtype == torch.bfloat16
        return y

    casts = [((2, 64), torch.bfloat16), ((48, 2), torch.bfloat16)] * 3  # bfloat16 copies of A and B
    inner = [((10, 2), torch.bfloat16)] * 3
    assert saved_by(run, *parameters) == sorted([((10, 64), torch.bfloat16), *casts, *inner], key=str)
    grads = torch.autograd.grad(run().float().sum(), [x, q.lora_A, q.lora_B])
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32, torch.float32]


def test_frozen_base_gets_no_gradient() -> None:
    model = adapted(LoraConfig(rank=2, targets=ALL))
    model(tokens()).sum().backward()
    with_grad = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_grad == {name for name, _ in model.named_parameters() if "lora_" in name}


def test_float32_base_under_autocast_works_in_bfloat16_and_keeps_no_copy_of_the_weight() -> None:
    layer = LoRALinear(nn.Linear(64, 48, bias=False).requires_grad_(False), LoraConfig(rank=2), torch.Generator())
    nn.init.normal_(layer.lora_B)
    x = torch.randn(10, 64).requires_grad_()
    expected = layer.bfloat16()(x.bfloat16()).detach()
    layer.float()

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y: Tensor = layer(x)
        return y

    kept = saved_by(run, *layer.parameters())
    assert ((48, 64), torch.bfloat16) not in kept
    assert ((10, 64), torch.bfloat16) in kept
    assert run().dtype == torch.bfloat16
    torch.testing.assert_close(run(), expected, rtol=0.05, atol=0.05)
    with torch.no_grad():
        assert run().dtype == torch.bfloat16


def _logits_and_gradients(device: str, bias: bool, compiled: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Of one pass over a small model in float64 with adapters everywhere."""
    config = GPTConfig(
        vocab_size=97, n_ctx=32, d_model=32, n_layers=1, n_heads=4, n_kv_heads=2, d_mlp=48, qkv_bias=bias,
        positions="learned",  # tables of angles are float32, and a compiler rounds their sines in its own way
    )  # fmt: skip
    model = add_lora(GPTModel(config, seed=1).double(), LoraConfig(rank=3, targets=(ALL_LINEAR,)))
    g = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    model.to(device)
    tokens = torch.randint(97, (3, 32), generator=g).to(device)
    logits: Tensor = (torch.compile(model) if compiled else model)(tokens)
    logits.square().mean().backward()
    return logits.detach().cpu(), {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="layers are joined on a GPU")
@pytest.mark.parametrize("bias", [False, True])
def test_joined_layers_equal_each_for_itself(bias: bool) -> None:
    expected, found = (_logits_and_gradients(device, bias, False) for device in ("cpu", "cuda"))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecates
def test_compiled_adapters_equal_the_written_out_gradient() -> None:
    expected, found = (_logits_and_gradients("cpu", True, compiled) for compiled in (False, True))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
