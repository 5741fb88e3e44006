"""Generation by the compiled pass: the same answers, weights that change, and models that it leaves to torch."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from alignlab.lm.config import GPTConfig
from alignlab.lm.cpu_step.reading import Stepper
from alignlab.lm.cpu_step.step import CpuStep, open_step
from alignlab.lm.generate import decode
from alignlab.lm.lora import LoraConfig, add_lora, lora_disabled, lora_layers, merge_lora
from alignlab.lm.model import GPTModel
from alignlab.lm.quant.apply import quantise
from alignlab.lm.taps import listen
from alignlab.lm.types import GenerationError, SamplingParams

GGUF = os.environ.get("ALIGNLAB_TEST_GGUF")
pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or shutil.which("g++") is None, reason="the program needs Linux and g++"
)
SMALL: dict[str, Any] = {
    "vocab_size": 300, "n_ctx": 96, "d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_mlp": 96,
}  # fmt: skip
PLAIN_WAY = "ALIGNLAB_NO_COMPILER"


def made(seed: int = 0, **fields: Any) -> GPTModel:
    model = GPTModel(GPTConfig(**{**SMALL, **fields}), seed=seed).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def answers(
    model: GPTModel, prompts: Sequence[list[int]], sampling: SamplingParams
) -> list[tuple[list[int], list[float]]]:
    found: dict[int, tuple[list[int], list[float]]] = {}
    for moved in decode(model, list(prompts), sampling, frozenset({7})):
        found.update({row.index: (list(row.tokens), list(row.logprobs)) for row in moved})
    return [found[i] for i in range(len(prompts))]


def prompts_of(n: int, shared: int, seed: int = 0, vocab: int = 300) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    front = torch.randint(0, vocab, (shared,), generator=generator).tolist()
    lengths = torch.randint(1, 20, (n,), generator=generator).tolist()
    return [front + torch.randint(0, vocab, (k,), generator=generator).tolist() for k in lengths]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every compiled step."""
    rows: list[int] = []
    read = CpuStep.read

    def counted(self: CpuStep, tokens: torch.Tensor, cache: Any) -> Any:
        rows.append(len(tokens))
        return read(self, tokens, cache)

    monkeypatch.setattr(CpuStep, "read", counted)
    return rows


@pytest.mark.parametrize("scheme", [None, "int4"])
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(max_tokens=24, temperature=0),
        SamplingParams(max_tokens=24, temperature=0, repetition_penalty=1.3, logit_bias=((5, 2.0),)),
        SamplingParams(max_tokens=24, temperature=0.9, top_p=0.9, seed=3),
    ],
    ids=["greedy", "penalty", "sampled"],
)
@pytest.mark.parametrize("shared", [0, 20])
def test_answers_are_those_of_the_plain_way(
    scheme: str | None, sampling: SamplingParams, shared: int, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made()
    if scheme is not None:
        quantise(model, scheme, group_size=32)
    prompts = prompts_of(13, shared)
    prompts += prompts[:2]
    found = answers(model, prompts, sampling)
    assert len(steps) > 5
    count = len(steps)
    monkeypatch.setenv(PLAIN_WAY, "1")
    expected = answers(model, prompts, sampling)
    assert len(steps) == count
    for (tokens, logprobs), (plain_tokens, plain_logprobs) in zip(found, expected, strict=True):
        assert tokens == plain_tokens
        assert logprobs == pytest.approx(plain_logprobs, abs=1e-4)


def test_a_companion_changes_no_bit(steps: list[int]) -> None:
    model, sampling = made(), SamplingParams(max_tokens=16, temperature=0.8, seed=1)
    prompts = prompts_of(11, 0)
    together = answers(model, prompts, sampling)
    for i in (0, 4, 10):
        assert answers(model, [prompts[i]], sampling)[0] == together[i]
    assert steps


@pytest.mark.parametrize("change", ["in place", "replaced", "data", "norm"])
def test_changed_weights_are_noticed(change: str, steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model, greedy = made(), SamplingParams(max_tokens=12, temperature=0)
    prompts = prompts_of(3, 0)
    before = answers(model, prompts, greedy)
    layer = model.blocks[1].mlp.down  # type: ignore[union-attr]
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        if change == "in place":
            layer.weight.mul_(-3)
        elif change == "replaced":
            layer.weight = nn.Parameter(layer.weight * -3, requires_grad=False)
        elif change == "data":
            layer.weight.data = layer.weight * -3
        else:
            model.final_norm.weight.mul_(-1)  # type: ignore[operator,union-attr]
    after = answers(model, prompts, greedy)
    assert after != before
    monkeypatch.setenv(PLAIN_WAY, "1")
    assert [tokens for tokens, _ in answers(model, prompts, greedy)] == [tokens for tokens, _ in after]
    assert steps


def test_a_weight_changed_between_steps_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def generated(change: bool) -> list[int]:
        model, tokens = made(), [0]
        for step, moved in enumerate(
            decode(model, [[1, 2, 3]], SamplingParams(max_tokens=9, temperature=0), frozenset())
        ):
            tokens = list(moved[0].tokens)
            if change and step == 3:
                model.final_norm.weight.mul_(-1)  # type: ignore[operator,union-attr]
        return tokens

    unchanged, changed = generated(False), generated(True)
    assert unchanged[:4] == changed[:4]
    assert unchanged[5:] != changed[5:]
    monkeypatch.setenv(PLAIN_WAY, "1")
    assert generated(True) == changed


def test_adapters_run_compiled_whether_merged_or_not(steps: list[int]) -> None:
    model, greedy = made(), SamplingParams(max_tokens=8, temperature=0)
    prompts = prompts_of(3, 0)
    base = answers(model, prompts, greedy)
    add_lora(model, LoraConfig(rank=4, targets=("q", "down")))
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.5, generator=torch.Generator().manual_seed(0))
    steps.clear()
    adapted = answers(model, prompts, greedy)
    assert steps
    steps.clear()
    with lora_disabled(model):
        assert answers(model, prompts, greedy) == base
    assert steps
    merge_lora(model)
    steps.clear()
    merged = answers(model, prompts, greedy)
    assert steps
    assert [tokens for tokens, _ in merged] == [tokens for tokens, _ in adapted] != [tokens for tokens, _ in base]


@torch.no_grad()
def test_listeners_are_served(steps: list[int]) -> None:
    model, heard = made(), []
    with listen(model, {"blocks.0.hook_mlp_out": lambda x, name: heard.append(name)}):
        answers(model, [[1, 2]], SamplingParams(max_tokens=4, temperature=0))
    assert len(heard) == 4
    assert not steps
    handle = model.blocks[0].register_forward_hook(lambda *_: None)
    assert open_step(model) is None
    handle.remove()
    assert open_step(model) is not None


class Another(GPTModel):
    """A model that may do anything."""


@torch.no_grad()
@pytest.mark.parametrize(
    "fields",
    [
        {"positions": "alibi"}, {"norm_position": "post"}, {"activation": "solu", "gated_mlp": False},
        {"d_head": 12}, {"d_model": 36, "d_head": 16}, {"d_mlp": 100},
    ],
)  # fmt: skip
def test_others_are_left_to_torch(fields: dict[str, Any]) -> None:
    assert open_step(made(**fields)) is None


@torch.no_grad()
def test_other_circumstances_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    assert Stepper(model).compiled is not None
    assert open_step(made().half()) is None
    assert open_step(made().double()) is None
    assert open_step(Another(model.config)) is None
    assert open_step(GPTModel(model.config).to("meta")) is None
    with torch.enable_grad():
        assert open_step(model) is None
        assert Stepper(model).compiled is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert open_step(model) is None
    monkeypatch.setenv(PLAIN_WAY, "1")
    assert open_step(model) is None


def test_rows_that_are_not_finite_fail_alone(steps: list[int]) -> None:
    model = made()
    with torch.no_grad():
        model.embed.weight[9] = float("inf")
    prompts = [[1, 2], [3, 9], [4, 5]]
    with pytest.raises(GenerationError) as raised:
        answers(model, prompts, SamplingParams(max_tokens=6, temperature=0, logit_bias=((9, -1e9),)))
    assert 1 in raised.value.errors


def test_a_model_is_not_kept_alive() -> None:
    import gc
    import weakref

    model = made()
    answers(model, [[1]], SamplingParams(max_tokens=2, temperature=0))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.slow
@pytest.mark.skipif(GGUF is None, reason="ALIGNLAB_TEST_GGUF names no model file")
@pytest.mark.parametrize("packed", [False, True])
def test_a_real_models_greedy_text_is_that_of_the_plain_way(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignlab.lm.language_model import load
    from alignlab.lm.quant.gguf_packed import load_packed

    assert GGUF is not None
    reader: Callable[..., Any] = load_packed if packed else load
    lm = reader(GGUF, dtype="float32", device="cpu")
    questions = ["What is a tide?", "Name three rivers of Europe.", "Why is the sky blue?"]
    prompts = [lm.tokenizer.encode_prompt([{"role": "user", "content": text}]) for text in questions]
    greedy = SamplingParams(max_tokens=48, temperature=0)
    found = answers(lm.model, prompts, greedy)
    monkeypatch.setenv(PLAIN_WAY, "1")
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in answers(lm.model, prompts, greedy)]
    assert "alignlab.lm.cpu_step.step" in sys.modules
