"""DPO: the reference, naive log-probabilities, and a problem whose solution is known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from alignlab.align.adapters import reference_mode
from alignlab.align.batching import LengthBatches
from alignlab.align.direct.scoring import encode_pair, pair_scores, reference_scores, stack_pairs
from alignlab.align.dpo import DPOConfig, train_dpo
from alignlab.align.pairs import PreferencePair
from alignlab.align.policy import exact_entropy, response_states, sequence_logprobs, token_logprobs
from alignlab.core.errors import ConfigError, DataError, TrainingError
from alignlab.lm.lora import LoraConfig, add_lora, lora_parameters
from alignlab.train.config import TrainConfig

PAIRS = [
    PreferencePair("ask", "yes please", "no"),
    PreferencePair("why", "because", "dunno at all"),
    PreferencePair("who", "me", "you"),
]


def config(steps: int, rate: float = 0.01, **changes: object) -> DPOConfig:
    train = TrainConfig(steps=steps, learning_rate=rate, schedule="linear")
    lora = LoraConfig(rank=8, targets=("all-linear",))
    return DPOConfig(**{"epochs": None, "max_length": 32, "train": train, "lora": lora, **changes})  # type: ignore[arg-type]


def naive_logprob(lm, prompt: str, response: str) -> float:
    """Full logits of one unpadded row, one token after the other."""
    before, after = lm.tokenizer.encode_prompt(prompt), [*lm.tokenizer.encode(response), 1]
    logits = lm.model(torch.tensor([before + after]))[0].detach()
    return sum(float(logits[len(before) - 1 + i].log_softmax(-1)[token]) for i, token in enumerate(after))


def test_pair_scores_equal_full_logits_on_single_rows(make_lm) -> None:
    lm = make_lm(n_layers=2)
    batch = stack_pairs([encode_pair(lm, pair, 32) for pair in PAIRS])
    nothing = {"reference": torch.zeros(3, 2), "probability": torch.ones(3)}
    scores = pair_scores(lm.model, batch | nothing)
    chosen, rejected = scores.chosen, scores.rejected
    for i, pair in enumerate(PAIRS):
        assert float(chosen[i].detach()) == pytest.approx(naive_logprob(lm, pair.prompt, pair.chosen), abs=1e-4)
        assert float(rejected[i].detach()) == pytest.approx(naive_logprob(lm, pair.prompt, pair.rejected), abs=1e-4)
    assert float(scores.means().chosen[2].detach()) == pytest.approx(naive_logprob(lm, "who", "me") / 3, abs=1e-4)


def test_gradients_of_sequence_logprobs_equal_those_through_full_logits(make_lm) -> None:
    model = make_lm().model
    tokens = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[0, 2:5], mask[1, 4:], mask[2, 8] = True, True, True
    full = model(tokens)[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None]).squeeze(2) * mask[:, 1:]
    torch.testing.assert_close(token_logprobs(model, tokens, mask), full, rtol=0, atol=1e-5)
    wanted = torch.autograd.grad(full.sum(1).square().sum(), list(model.parameters()))
    found = torch.autograd.grad(sequence_logprobs(model, tokens, mask).square().sum(), list(model.parameters()))
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


def test_exact_entropy_and_its_gradient_equal_the_definition(make_lm) -> None:
    model = make_lm().model
    rows = torch.randn(7, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    p = model.unembed(rows).softmax(-1)
    wanted = -(p * p.log()).sum(-1)
    found = exact_entropy(model, rows, chunk=3)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), rows)[0] for x in (found, wanted)))


def test_the_reference_is_the_model_without_its_adapter_and_the_first_loss_is_log_two(make_lm) -> None:
    lm, plain = make_lm(), make_lm()
    add_lora(lm.model, LoraConfig(targets=("q", "v")))
    with torch.no_grad():
        for parameter in lora_parameters(lm.model):
            parameter.add_(0.1)
    rows = [encode_pair(lm, pair, 32) for pair in PAIRS]
    found = reference_scores(lm.model, rows, batch_size=2)
    for i, pair in enumerate(PAIRS):
        assert float(found[i, 0]) == pytest.approx(naive_logprob(plain, pair.prompt, pair.chosen), abs=1e-4)
        assert float(found[i, 1]) == pytest.approx(naive_logprob(plain, pair.prompt, pair.rejected), abs=1e-4)
        assert abs(float(found[i, 0]) - naive_logprob(lm, pair.prompt, pair.chosen)) > 1e-3
    first = train_dpo(plain, PAIRS, config(1)).history[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.no_cover
def test_dpo_recovers_the_planted_rewards(make_lm) -> None:
    """With labels drawn from Bradley-Terry rewards, the minimum has beta * log(policy / reference) = reward + constant
    (Rafailov et al. 2023, section 4): four answers, all pairs both ways round, soft labels."""
    rewards, beta = {"a": 0.0, "b": 0.8, "c": -0.6, "d": 0.3}, 0.5
    pairs = [
        PreferencePair("q", x, y, probability=1 / (1 + math.exp(rewards[y] - rewards[x])))
        for x, y in itertools.combinations(rewards, 2)
    ]
    lm = make_lm()
    train_dpo(lm, pairs, config(150, beta=beta))
    implicit = {}
    for answer in rewards:
        with reference_mode(lm.model):
            reference = naive_logprob(lm, "q", answer)
        implicit[answer] = beta * (naive_logprob(lm, "q", answer) - reference)
    for answer in "bcd":
        assert implicit[answer] - implicit["a"] == pytest.approx(rewards[answer], abs=0.03)


@pytest.mark.no_cover
def test_ipo_stops_at_its_margin(make_lm) -> None:
    lm = make_lm()
    train_dpo(lm, [PAIRS[2]], config(150, beta=0.5, kind="ipo"))
    policy = [naive_logprob(lm, "who", r) / (len(r) + 1) for r in ("me", "you")]
    with reference_mode(lm.model):
        reference = [naive_logprob(lm, "who", r) / (len(r) + 1) for r in ("me", "you")]
    assert policy[0] - reference[0] - policy[1] + reference[1] == pytest.approx(1 / (2 * 0.5), abs=0.02)


def test_batches_visit_every_pair_once_an_epoch_and_depend_on_their_number_alone() -> None:
    lengths = [7, 1, 5, 3, 9, 2, 8, 4, 6, 10, 12, 11, 13]
    order = LengthBatches(lengths, 4, seed=3)
    epochs = [[order(e * order.per_epoch + i) for i in range(order.per_epoch)] for e in range(2)]
    for epoch in epochs:
        assert sorted(i for batch in epoch for i in batch) == list(range(13))
    assert epochs[0] != epochs[1]
    assert LengthBatches(lengths, 4, seed=3)(5) == epochs[1][1]
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in epochs[0]]
    assert max(spread) <= 4  # 13 in a row of lengths 1 to 13, cut in pieces of 4


def test_bad_input(make_lm) -> None:
    with pytest.raises(DataError, match="list of preference pairs is empty"):
        train_dpo(make_lm(), [])
    with pytest.raises(DataError, match="same text in all 2"):
        train_dpo(make_lm(), [PreferencePair("a", "b", "b"), PreferencePair("c", "d", "d")])
    with pytest.raises(DataError, match=r"probability of a preference pair is 1\.5"):
        PreferencePair("a", "b", "c", probability=1.5)
    with pytest.raises(ConfigError, match="beta is 0, allowed"):
        DPOConfig(beta=0)
    with pytest.raises(ConfigError, match="kind is 'hinge'"):
        DPOConfig(kind="hinge")  # type: ignore[arg-type]
    model, tokens = make_lm().model, torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(TrainingError, match="first token of a row"):
        response_states(model, tokens, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(TrainingError, match="nothing to learn"):
        response_states(model, tokens, torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(TrainingError, match="must be equal"):
        response_states(model, tokens, torch.zeros(2, 5, dtype=torch.bool))
