"""Supervised fine-tuning: which tokens count, how much, and that it learns."""

from __future__ import annotations

import pytest
import torch

from alignlab.align.pairs import encode_response, end_token
from alignlab.align.sft import SFTConfig, SFTExample, encode_example, sft, with_epochs
from alignlab.core.errors import ConfigError, DataError
from alignlab.data.packing import pack
from alignlab.lm.local import LocalSampler
from alignlab.lm.lora import LoraConfig
from alignlab.lm.types import SamplingParams
from alignlab.train.config import TrainConfig
from alignlab.train.language import language_model_loss

EXAMPLES = [
    SFTExample("one", "uno"),
    SFTExample("two", "due"),
    SFTExample("three", "tre"),
    SFTExample("four", "quattro"),
]


def config(steps: int, **changes: object) -> SFTConfig:
    train = TrainConfig(steps=steps, learning_rate=0.01, schedule="constant")
    return SFTConfig(**{"epochs": None, "row_length": 32, "train": train, **changes})  # type: ignore[arg-type]


def test_the_model_learns_its_answers_and_where_to_stop(make_lm) -> None:
    lm = make_lm(d_model=48)
    result = sft(lm, EXAMPLES, config(150, lora=LoraConfig(rank=8, targets=("all-linear",))))
    assert result.final_loss < 0.1
    answers = LocalSampler(lm).generate([e.prompt for e in EXAMPLES], SamplingParams(max_tokens=12, temperature=0))
    assert [(a.text, a.finish_reason) for a in answers] == [(e.response, "stop") for e in EXAMPLES]


def test_loss_is_the_mean_over_response_and_end_tokens_whatever_the_packing(make_lm) -> None:
    lm = make_lm()
    rows = pack([encode_example(lm, example, 32) for example in EXAMPLES], 32)
    assert len(rows) < len(EXAMPLES)  # some share a row
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    packed, metrics = language_model_loss(lm.model, batch)
    total, count = 0.0, 0
    for example in EXAMPLES:
        prompt, answer = lm.tokenizer.encode_prompt(example.prompt), [*lm.tokenizer.encode(example.response), 1]
        logprobs = lm.model(torch.tensor([prompt + answer]))[0].log_softmax(-1).detach()
        for i, token in enumerate(answer):
            total -= float(logprobs[len(prompt) - 1 + i, token])
            count += 1
    assert metrics["tokens"] == count
    assert float(packed.detach()) == pytest.approx(total / count, abs=1e-5)


def test_only_the_adapter_changes(make_lm) -> None:
    lm, before = make_lm(), make_lm().model.state_dict()
    sft(lm, EXAMPLES, config(3))
    after = lm.model.state_dict()
    for name, value in before.items():
        own = after.get(name, after.get(name.replace(".weight", ".base.weight")))
        assert torch.equal(own, value), name
    assert any("lora_B" in name and bool(value.any()) for name, value in after.items())


def test_same_seed_same_weights(make_lm) -> None:
    runs = []
    for _ in range(2):
        lm = make_lm()
        sft(lm, EXAMPLES, config(5))
        runs.append(lm.model.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_a_response_closes_as_the_chat_template_closes_it(make_lm) -> None:
    raw, chat = make_lm().tokenizer, make_lm(chat=True).tokenizer
    assert end_token(raw, "hi") == 1
    assert end_token(chat, [{"role": "user", "content": "hi"}]) == 2
    tokens, mask = encode_response(chat, [{"role": "user", "content": "hi"}], "yo")
    assert tokens == chat.encode_prompt([{"role": "user", "content": "hi"}]) + chat.encode("yo") + [2]
    assert sum(mask) == 3
    assert all(mask[-3:])


def test_long_examples_lose_the_start_of_the_prompt_first(make_lm) -> None:
    tokenizer = make_lm().tokenizer
    full, _ = encode_response(tokenizer, "abcdefgh", "xyz")
    cut, mask = encode_response(tokenizer, "abcdefgh", "xyz", max_length=6)
    assert cut == full[-6:]
    assert mask == [False, False, True, True, True, True]
    tight, mask = encode_response(tokenizer, "abcdefgh", "xyz", max_length=3)
    assert (tight, mask) == (tokenizer.encode("hxy"), [False, True, True])


def test_epochs_set_the_steps() -> None:
    train = TrainConfig(steps=7, accumulate=2)
    assert with_epochs(train, 3.0, 5).steps == 8  # 15 micro-batches, two an update
    assert with_epochs(train, 0.01, 5).steps == 1
    assert with_epochs(train, None, 5).steps == 7


def test_bad_input(make_lm) -> None:
    with pytest.raises(DataError, match="empty list of examples"):
        sft(make_lm(), [])
    with pytest.raises(ConfigError, match="row_length is 1, allowed"):
        SFTConfig(row_length=1)
    with pytest.raises(ConfigError, match="epochs is -1"):
        SFTConfig(epochs=-1)
    lm = make_lm()
    lm.tokenizer.eos_ids = frozenset()
    with pytest.raises(DataError, match="no end-of-sequence token"):
        sft(lm, EXAMPLES, config(1))
