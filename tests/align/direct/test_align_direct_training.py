"""The loop over pairs and the one over rated responses: what they minimise, learn, resume and refuse."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.align.direct import kto, training
from alignlab.align.direct.joint import joint_pairs, may_share
from alignlab.align.direct.kto import (
    RatedExample,
    kto_objective,
    mismatches,
    rated_of,
    rated_of_pairs,
    read_rated,
    train_kto,
)
from alignlab.align.direct.objectives import DEFAULT_BETA, OBJECTIVES, DirectConfig
from alignlab.align.direct.scoring import batch_pairs, encode_pair, pair_logprobs, stack_pairs
from alignlab.align.direct.training import train_direct
from alignlab.align.dpo import DPOConfig, train_dpo
from alignlab.align.pairs import PreferencePair, encode_response
from alignlab.core.errors import ConfigError, DataError
from alignlab.core.runs import Run
from alignlab.lm.lora import LoraConfig, lora_parameters
from alignlab.train.config import TrainConfig

PAIRS = [
    PreferencePair("ask", "yes please", "no"),
    PreferencePair("why", "because", "dunno at all"),
    PreferencePair("who", "me", "you", probability=0.8),
    PreferencePair("how", "so", "not so"),
]
LORA = LoraConfig(rank=4, targets=("all-linear",))


def config(method: str, steps: int = 20, **changes: object) -> DirectConfig:
    train = TrainConfig(steps=steps, learning_rate=0.01, schedule="linear", checkpoint_every=2)
    return DirectConfig(
        **{"method": method, "epochs": None, "batch_size": 2, "max_length": 32, "lora": LORA, "train": train, **changes}  # type: ignore[arg-type]
    )


def naive_logprob(lm, prompt: str, response: str) -> float:
    """Full logits of one unpadded row, one token after the other."""
    before, after = lm.tokenizer.encode_prompt(prompt), [*lm.tokenizer.encode(response), 1]
    logits = lm.model(torch.tensor([before + after]))[0].detach()
    return sum(float(logits[len(before) - 1 + i].log_softmax(-1)[token]) for i, token in enumerate(after))


def mean_gap(lm) -> float:
    """By how much the chosen answers are likelier per token, on average."""
    sides = [[naive_logprob(lm, p.prompt, text) / (len(text) + 1) for text in (p.chosen, p.rejected)] for p in PAIRS]
    return sum(chosen - rejected for chosen, rejected in sides) / len(sides)


@pytest.mark.parametrize("method", [*OBJECTIVES, "kto"])
def test_every_method_starts_where_theory_says_and_learns(make_lm, method: str) -> None:
    lm = make_lm()
    before = mean_gap(lm)
    history = train_direct(lm, PAIRS, config(method, batch_size=4 if method != "kto" else 8)).history
    starts = {"dpo": math.log(2), "robust-dpo": math.log(2), "length-dpo": math.log(2), "kto": 0.5}
    wanted = starts | {"ipo": (1 / (2 * 0.1)) ** 2}
    if method in wanted:
        assert history[0]["loss"] == pytest.approx(wanted[method], abs=1e-4)
    if method == "kto":
        assert history[0]["baseline"] == pytest.approx(0, abs=1e-5)
    assert mean_gap(lm) > before + 0.3
    assert history[-1]["loss"] < history[0]["loss"]


def test_simpo_and_orpo_start_at_naive_values(make_lm) -> None:
    lm, orpo, simpo = make_lm(), [], []
    tokens, total = 0, 0.0
    for pair in PAIRS:
        chosen, rejected = (naive_logprob(lm, pair.prompt, t) / (len(t) + 1) for t in (pair.chosen, pair.rejected))
        odds = math.log(math.exp(chosen) / (1 - math.exp(chosen))) - math.log(
            math.exp(rejected) / (1 - math.exp(rejected))
        )
        p, scaled = pair.probability, 2.5 * (chosen - rejected) - 0.7
        orpo.append(p * math.log(1 + math.exp(-odds)) + (1 - p) * math.log(1 + math.exp(odds)))
        simpo.append(p * math.log(1 + math.exp(-scaled)) + (1 - p) * math.log(1 + math.exp(scaled)))
        tokens += len(pair.chosen) + 1
        total -= chosen * (len(pair.chosen) + 1)
    found = train_direct(make_lm(), PAIRS, config("simpo", 1, batch_size=4, beta=2.5, margin=0.7)).history[0]["loss"]
    assert found == pytest.approx(sum(simpo) / 4, abs=1e-4)
    found = train_direct(make_lm(), PAIRS, config("orpo", 1, batch_size=4, beta=0.3)).history[0]["loss"]
    assert found == pytest.approx(total / tokens + 0.3 * sum(orpo) / 4, abs=1e-4)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_train_dpo_is_the_same_loop(make_lm, kind: str) -> None:
    direct = config("dpo" if kind == "sigmoid" else "ipo", 4, label_smoothing=0.1, beta=0.3)
    same = {name: getattr(direct, name) for name in ("epochs", "batch_size", "max_length", "lora", "train")}
    old = train_dpo(make_lm(), PAIRS, DPOConfig(beta=0.3, kind=kind, label_smoothing=0.1, **same))  # type: ignore[arg-type]
    assert old.history == train_direct(make_lm(), PAIRS, direct).history


def test_joint_rows_give_the_log_probabilities_and_gradients_of_two_rows(make_lm) -> None:
    """Also where the answers begin alike, where one is a part of the other, and where the prompts were cut apart."""
    lm = make_lm(n_layers=2)
    model = lm.model.double()
    texts = [("how so", "yes please", "yes"), ("a", "b", "bb"), ("why", "no", "dunno"), ("q" * 9, "a" * 9, "b" * 3)]
    rows = [encode_pair(lm, PreferencePair(*text), 16) for text in texts]
    assert may_share(model)
    joint, counts = pair_logprobs(model, joint_pairs(rows))
    apart, lengths = pair_logprobs(model, stack_pairs(rows))
    torch.testing.assert_close(joint, apart, rtol=0, atol=1e-5)
    assert counts.tolist() == lengths.tolist()
    weights = torch.linspace(-1, 1, len(joint), dtype=joint.dtype)
    one, other = (torch.autograd.grad((weights * x).sum(), list(model.parameters())) for x in (joint, apart))
    for found, wanted in zip(one, other, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_trunk_that_drops_out_has_two_rows_a_pair(make_lm) -> None:
    lm = make_lm()
    rows = [encode_pair(lm, pair, 32) for pair in PAIRS]
    assert "parts" in batch_pairs(lm.model, rows)
    lm.model.config = replace(lm.model.config, dropout=0.1)
    assert "parts" not in batch_pairs(lm.model, rows)


def test_methods_without_a_reference_do_not_score_one(make_lm, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the reference was scored")

    monkeypatch.setattr(training, "reference_scores", refuse)
    train_direct(make_lm(), PAIRS, config("simpo", 1))
    train_direct(make_lm(), PAIRS, config("orpo", 1))
    with pytest.raises(AssertionError, match="was scored"):
        train_direct(make_lm(), PAIRS, config("length-dpo", 1))


# KTO ------------------------------------------------------------------------------------------------------------------

RATED = [
    RatedExample("ask", "yes please", True),
    RatedExample("why", "dunno", False),
    RatedExample("who", "me", True),
    RatedExample("how", "no", False),
    RatedExample("when", "now", True),
    RatedExample("so", "what", False),
]


def test_kto_learns_from_unpaired_answers(make_lm) -> None:
    lm = make_lm()
    before = [naive_logprob(lm, e.prompt, e.response) for e in RATED]
    result = train_kto(lm, RATED, config("kto", 30, batch_size=3))
    for example, was in zip(RATED, before, strict=True):
        gained = naive_logprob(lm, example.prompt, example.response) - was
        assert (gained > 0.5) if example.good else (gained < -0.5)
    assert result.history[-1]["accuracy"] == 1
    assert all(row["baseline"] >= 0 for row in result.history)


def test_a_batch_of_kto_equals_a_naive_loop(make_lm) -> None:
    """Policy is one model, reference another; the baseline comes from the mismatched half alone."""
    policy, reference = make_lm(seed=1), make_lm(seed=0)
    other = [1, 2, 3, 4, 5, 0]
    encoded = [
        [encode_response(policy.tokenizer, RATED[i].prompt, RATED[j].response) for j in (i, other[i])] for i in range(6)
    ]
    ratios = torch.tensor(
        [[naive_logprob(policy, RATED[i].prompt, RATED[j].response) for j in (i, other[i])] for i in range(6)]
    )
    held = torch.tensor(
        [[naive_logprob(reference, RATED[i].prompt, RATED[j].response) for j in (i, other[i])] for i in range(6)]
    )
    good = torch.tensor([e.good for e in RATED])
    batch = stack_pairs([(a, b) for a, b in encoded]) | {"reference": held, "good": good}
    loss, metrics = kto_objective(0.2, 1.5, 0.5)(policy.model, batch)
    level = max(0.0, float((ratios - held)[:, 1].mean()))
    assert level > 0
    assert float(metrics["baseline"]) == pytest.approx(level, abs=1e-4)
    own = (ratios - held)[:, 0]
    each = [
        1.5 * (1 - 1 / (1 + math.exp(-0.2 * (float(r) - level))))
        if g
        else 0.5 * (1 - 1 / (1 + math.exp(-0.2 * (level - float(r)))))
        for r, g in zip(own, good.tolist(), strict=True)
    ]
    assert float(loss.detach()) == pytest.approx(sum(each) / 6, abs=1e-5)


@settings(max_examples=30, derandomize=True)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.integers(0, 99))
def test_mismatches_take_every_example_once_and_another_prompt(names: list[int], seed: int) -> None:
    prompts = [str(name) for name in names]
    found = mismatches(prompts, seed=seed)
    assert sorted(found) == list(range(len(prompts)))
    assert all(i != j for i, j in enumerate(found))
    most = max(prompts.count(name) for name in prompts)
    if 2 * most <= len(prompts):
        assert all(prompts[i] != prompts[j] for i, j in enumerate(found))


def test_weights_are_balanced_unless_given(make_lm, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, ...]] = []
    real = kto_objective
    monkeypatch.setattr(kto, "kto_objective", lambda *args: seen.append(args) or real(*args))
    train_kto(make_lm(), RATED[:3], config("kto", 1))
    train_kto(make_lm(), RATED[:3], config("kto", 1, good_weight=1.0, bad_weight=1.2))
    assert seen == [(0.1, 0.5, 1.0), (0.1, 1.0, 1.2)]


# resuming -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dpo", "kto", "simpo"])
def test_a_training_that_stops_ends_in_the_same_bits(
    make_lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    whole = make_lm()
    train_direct(whole, PAIRS, config(method, 6), run=Run.create({}, name="whole", path=tmp_path / "whole"))
    calls, module = 0, kto if method == "kto" else training
    name = "kto_loss" if method == "kto" else "pair_scores"
    real = getattr(module, name)

    def stopped(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(*args, **named)

    monkeypatch.setattr(module, name, stopped)
    with (
        pytest.raises(KeyboardInterrupt),
        Run.create({}, name="part", path=tmp_path / "part") as run,
    ):
        train_direct(make_lm(), PAIRS, config(method, 6), run=run)
    again = make_lm()
    with Run.open(tmp_path / "part") as run:
        train_direct(again, PAIRS, config(method, 6), run=run)
    for one, other in zip(lora_parameters(whole.model), lora_parameters(again.model), strict=True):
        assert torch.equal(one, other)


# bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "hinge"}, "method is 'hinge'"),
        ({"beta": 0.0}, r"beta is 0\.0"),
        ({"margin": -1.0}, "margin is"),
        ({"label_smoothing": 0.5}, "label_smoothing is"),
        ({"method": "kto", "label_smoothing": 0.1}, "kto, which has no pairs"),
        ({"method": "kto", "batch_size": 1}, "at least 2 for kto"),
        ({"good_weight": 1.0}, "given together with good_weight"),
        ({"bad_weight": 0.0, "good_weight": 1.0}, "bad_weight is"),
    ],
)
def test_a_configuration_out_of_range_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DirectConfig(**changes)


def test_pairs_and_examples_that_teach_nothing_are_refused(make_lm) -> None:
    with pytest.raises(DataError, match="list of preference pairs is empty"):
        train_direct(make_lm(), [], config("simpo"))
    with pytest.raises(DataError, match="same text in all 1"):
        train_direct(make_lm(), [PreferencePair("a", "b", "b")], config("kto"))
    with pytest.raises(DataError, match="KTO got 1 examples"):
        train_kto(make_lm(), RATED[:1])
    with pytest.raises(DataError, match="all 2 examples are good"):
        train_kto(make_lm(), [RATED[0], RATED[2]])
    assert rated_of_pairs(PAIRS[:1]) == [RatedExample("ask", "yes please", True), RatedExample("ask", "no", False)]
    assert set(DEFAULT_BETA) == {*OBJECTIVES, "kto"}


def test_files_of_rated_answers(tmp_path: Path) -> None:
    path = tmp_path / "rated.jsonl"
    talk = [{"role": "user", "content": "a?"}]
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "response": "b", "good": True},
        {"prompt": talk, "completion": [{"role": "assistant", "content": "c"}], "label": False},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_rated(path) == [RatedExample("a", "b", True), RatedExample(talk, "c", False)]
    path.write_text(json.dumps(rows[0]) + "\n" + json.dumps({"prompt": "a", "response": "b", "label": 1}) + "\n")
    with pytest.raises(DataError, match=r"line 2: label is 1, allowed: true or false"):
        read_rated(path)
    with pytest.raises(DataError, match='"prompt" with "response"'):
        rated_of({"response": "b", "label": True})
