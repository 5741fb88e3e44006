"""The preference model: what it reads, what it shares, what it learns, and what it refuses."""

from __future__ import annotations

import math
import random

import pytest
import torch
from safetensors.torch import save_file

from alignlab.align.adapters import share_weights
from alignlab.align.losses import bradley_terry_loss
from alignlab.align.pairs import PreferencePair, last_index, pad_rows
from alignlab.align.preference_model import PreferenceModel
from alignlab.align.preference_training import (
    PreferenceConfig,
    preference_accuracy,
    preference_margins,
    train_preference_model,
)
from alignlab.core.errors import ConfigError, DataError, ModelError, TrainingError
from alignlab.lm.lora import LoraConfig, add_lora, lora_parameters
from alignlab.train.config import TrainConfig

LORA = LoraConfig(rank=4, targets=("all-linear",))


def planted_pairs(n: int, seed: int) -> list[PreferencePair]:
    """The response with more vowels is the better one."""
    rng = random.Random(seed)
    pairs: list[PreferencePair] = []
    while len(pairs) < n:
        first, second = ("".join(rng.choices("aeioubcdfgklm", k=rng.randint(4, 12))) for _ in range(2))
        count = [sum(c in "aeiou" for c in text) for text in (first, second)]
        if abs(count[0] - count[1]) >= 2:
            best = first if count[0] > count[1] else second
            pairs.append(PreferencePair("say", best, second if best == first else first))
    return pairs


def config(steps: int, rate: float = 0.01, batch_size: int = 16) -> PreferenceConfig:
    return PreferenceConfig(epochs=None, batch_size=batch_size, train=TrainConfig(steps=steps, learning_rate=rate))


@pytest.mark.parametrize("lora", [LORA, None])
@pytest.mark.no_cover
def test_it_learns_a_planted_preference_and_generalises(make_lm, lora: LoraConfig | None) -> None:
    model = PreferenceModel(make_lm(), lora=lora)
    unseen = planted_pairs(100, seed=2)
    before = preference_accuracy(model, unseen)
    result = train_preference_model(model, planted_pairs(200, seed=1), config(150 if lora else 400))
    # Without an adapter a linear head reads the last token's state; above 0.75 has probability 3e-7 by chance.
    assert preference_accuracy(model, unseen) > (0.93 if lora else 0.75)
    assert before < 0.75
    assert result.final_loss < math.log(2)


def test_a_soft_label_sets_the_log_odds(make_lm) -> None:
    pair = PreferencePair("say", "yes", "no", probability=0.8)
    model = PreferenceModel(make_lm())
    train_preference_model(model, [pair], config(200, rate=0.05, batch_size=1))
    assert float(preference_margins(model, [pair])[0]) == pytest.approx(math.log(4), abs=0.02)


def test_reward_reads_the_last_token_and_nothing_behind_it(make_lm) -> None:
    model = PreferenceModel(make_lm(n_layers=2))
    rows = [[0, 5, 6, 7, 1], [0, 9, 1], [0, 4, 4, 4, 4, 4, 4, 1]]
    together = model(pad_rows(rows), last_index([len(row) for row in rows]))
    for row, reward in zip(rows, together, strict=True):
        hidden = model.trunk.hidden_states(torch.tensor([row]))[0, -1]
        torch.testing.assert_close(reward, (model.head.weight[0] * hidden).sum(), rtol=0, atol=1e-5)


def test_preference_loss_is_bradley_terry_on_the_rewards_of_both_sides(make_lm) -> None:
    model = PreferenceModel(make_lm(), lora=LORA)
    sides = [[[0, 5, 6, 1], [0, 7, 1]], [[0, 8, 1], [0, 5, 5, 5, 5, 1]]]
    chosen, rejected = ({"tokens": pad_rows(s), "last_index": last_index([len(r) for r in s])} for s in sides)
    loss = model.compute_preference_loss(chosen, rejected, margin=0.3, label_probability=0.9)
    rewards = [model(side["tokens"], side["last_index"]) for side in (chosen, rejected)]
    torch.testing.assert_close(loss, bradley_terry_loss(*rewards, 0.3, 0.9))
    loss.backward()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {name for name, p in model.named_parameters() if p.grad is not None}
    assert trainable == {n for n, _ in model.named_parameters() if "lora_" in n or n == "head.weight"}


def test_base_weights_are_shared_and_untouched(make_lm) -> None:
    lm, before = make_lm(), make_lm().model.state_dict()
    models = [PreferenceModel(lm, lora=LORA), PreferenceModel(lm)]
    add_lora(lm.model, LoraConfig(targets=("q",)))  # the policy's own adapter
    for model in models:
        train_preference_model(model, planted_pairs(20, seed=1), config(3))
        pointer = model.trunk.embed.weight.data_ptr()
        assert pointer == lm.model.embed.weight.data_ptr()
    assert models[0].trunk.blocks[0].attn.q.base.weight.data_ptr() == lm.model.blocks[0].attn.q.base.weight.data_ptr()
    for name, value in before.items():
        own = lm.model.state_dict()
        assert torch.equal(own[name.replace("attn.q.weight", "attn.q.base.weight")], value), name
    assert models[0].trunk.taps is not lm.model.taps


def test_a_base_with_an_adapter_is_taken_as_it_is_now(make_lm) -> None:
    model = make_lm().model
    add_lora(model, LORA)
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.add_(0.05)
    tokens = torch.tensor([[0, 5, 6, 7]])
    wanted = model(tokens)
    twin = share_weights(model)
    torch.testing.assert_close(twin(tokens), wanted, rtol=0, atol=1e-4)
    assert torch.equal(model(tokens), wanted)
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.add_(0.05)
    torch.testing.assert_close(twin(tokens), wanted, rtol=0, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in twin.parameters())


def test_scores_do_not_depend_on_order_or_companions_and_are_normalised(make_lm) -> None:
    lm = make_lm()
    model = PreferenceModel(lm, lora=LORA, batch_size=3)
    prompts, texts = ["a", "bb", "ccc", "d", "e"], ["hello", "x", "yes it is", "no", "maybe"]
    raw = model.score(prompts, texts)
    alone = torch.cat([model.score([p], [t]) for p, t in zip(prompts, texts, strict=True)])
    torch.testing.assert_close(raw, alone, rtol=0, atol=1e-5)
    model.fit_normalisation(prompts, texts)
    scores = model.score(prompts, texts)
    assert abs(float(scores.mean())) < 1e-5
    assert float(scores.std(correction=0)) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(scores * raw.std(correction=0) + raw.mean(), raw)
    assert not scores.requires_grad


def test_saved_and_loaded_it_scores_alike(make_lm, tmp_path) -> None:
    model = PreferenceModel(make_lm(), lora=LORA)
    train_preference_model(model, planted_pairs(20, seed=1), config(5))
    model.fit_normalisation(["a", "b"], ["yes", "no"])
    path = model.save(tmp_path / "pm")
    loaded = PreferenceModel.load(tmp_path / "pm", make_lm())
    assert torch.equal(loaded.score(["q"], ["answer"]), model.score(["q"], ["answer"]))
    assert path.stat().st_size < 60_000  # adapter, head and probe, not the base
    with pytest.raises(ModelError, match="another base model"):
        PreferenceModel.load(tmp_path / "pm", make_lm(seed=1))
    with pytest.raises(ModelError, match="another base model"):
        PreferenceModel.load(tmp_path / "pm", make_lm(d_model=16))
    with pytest.raises(ModelError, match=r"does not fit this preference model, first difference: head\.weight"):
        loaded.put_learned({**loaded.learned(), "head.weight": torch.ones(1, 2)}, "file")
    other = tmp_path / "other" / path.name
    other.parent.mkdir()
    save_file({"x": torch.ones(1)}, other)
    with pytest.raises(ModelError, match="not a preference model: its format is None"):
        PreferenceModel.load(other.parent, make_lm())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot read the preference model"):
        PreferenceModel.load(tmp_path / "pm", make_lm())
    with pytest.raises(ModelError, match="cannot read the preference model"):
        PreferenceModel.load(tmp_path / "nowhere", make_lm())


def test_bad_input(make_lm) -> None:
    model = PreferenceModel(make_lm())
    with pytest.raises(DataError, match="list of preference pairs is empty"):
        train_preference_model(model, [])
    with pytest.raises(DataError, match="same text in all 1 preference pairs"):
        train_preference_model(model, [PreferencePair("a", "b", "b")])
    with pytest.raises(DataError, match="2 prompts and 1 responses"):
        model.score(["a", "b"], ["c"])
    with pytest.raises(DataError, match="must vary"):
        model.fit_normalisation(["a"], ["b"])
    one, two = ({"tokens": torch.ones(n, 3, dtype=torch.long), "last_index": torch.full((n,), 2)} for n in (1, 2))
    with pytest.raises(TrainingError, match="chosen has 1 rows and rejected 2"):
        model.compute_preference_loss(one, two)
    with pytest.raises(TrainingError, match="equal in all 1 rows"):
        model.compute_preference_loss(one, {**one})
    with pytest.raises(TrainingError, match="both need tokens"):
        model.compute_preference_loss({}, one)
    with pytest.raises(TrainingError, match=r"last_index is \[3\]"):
        model(one["tokens"], torch.tensor([3]))
    with pytest.raises(TrainingError, match="right are"):
        model(one["tokens"], torch.tensor([1, 1]))
    with pytest.raises(ModelError, match="no tokenizer"):
        PreferenceModel(make_lm().model).score(["a"], ["b"])
    with pytest.raises(ConfigError, match="names no linear layer"):
        PreferenceModel(make_lm(), lora=LoraConfig(targets=("nothing",)))
