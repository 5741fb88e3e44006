"""PPO: problems whose solution is known, exact resume, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from alignlab.align.adapters import merged_for_decoding, reference_mode
from alignlab.align.ppo import PPOTrainer
from alignlab.align.ppo_config import PPOConfig
from alignlab.align.preference_model import PreferenceModel
from alignlab.align.rollout import check_mismatch, stack_responses
from alignlab.core.errors import ConfigError, DataError, TrainingError
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler
from alignlab.lm.lora import LoraConfig
from alignlab.lm.types import Completion, SamplingParams
from alignlab.train.checkpoint import Checkpoint, write_checkpoint

LORA = LoraConfig(rank=8, targets=("all-linear",))
SMALL = PPOConfig(
    steps=4,
    batch_size=8,
    minibatch_size=4,
    microbatch_size=4,
    max_tokens=6,
    learning_rate=0.003,
    lora=LORA,
    checkpoint_every=2,
    max_policy_kl=None,
)


def vowels(prompts: list, responses: list[str]) -> list[float]:
    """Share of vowels, and a little for length so that two empty answers need not tie."""
    return [sum(c in "aeiou" for c in text) + 0.01 * len(text) for text in responses]


def weights(trainer: PPOTrainer) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.parameters.items()}


# A bandit: one token, a reward for each, and the optimum in closed form


@pytest.mark.parametrize(
    ("own_reference", "whiten"), [pytest.param(True, True, marks=pytest.mark.slow), (False, False)]
)
@pytest.mark.no_cover
def test_ppo_solves_the_kl_bandit(make_lm: Callable[..., LanguageModel], own_reference: bool, whiten: bool) -> None:
    """The maximum of E[r] - beta KL(pi || ref) is pi = ref exp(r / beta) / Z; total variation to it ends below 0.03.

    `own_reference` is LoRA with the adapter off as reference; otherwise every weight is trained beside a frozen twin.
    """
    lm, reference = (make_lm(seed=1, letters="abcdefg") for _ in range(2))
    with torch.no_grad():  # a frozen head must be able to express the optimum
        for model in (lm.model, reference.model):
            model.head.weight.mul_(2)
    prompt = torch.tensor([lm.tokenizer.encode_prompt("a")])
    rewards = torch.randn(lm.tokenizer.vocab_size, generator=torch.Generator().manual_seed(5))
    rewards[1:3] = rewards[0]  # the control tokens decode to nothing and so share a reward
    beta = 0.5

    def reward(prompts: list, responses: list[str]) -> list[float]:
        return [float(rewards[lm.tokenizer.encode(text)[0] if text else 0]) for text in responses]

    start = lm.model(prompt)[0, -1].detach().log_softmax(-1)
    optimum = (start + rewards / beta).softmax(-1)

    def distance() -> float:
        return float((lm.model(prompt)[0, -1].detach().softmax(-1) - optimum).abs().sum() / 2)

    config = PPOConfig(
        steps=40,
        batch_size=256,
        minibatch_size=256,
        microbatch_size=256,
        epochs=2,
        max_tokens=1,
        learning_rate=0.005 if own_reference else 0.003,
        value_learning_rate=0.01,
        schedule="linear",
        kl_coefficient=beta,
        whiten_advantages=whiten,
        value_clip=None,
        max_policy_kl=None,
        lora=LORA if own_reference else None,
    )
    assert distance() > 0.3
    result = PPOTrainer(lm, reward, None if own_reference else reference, config).train(["a"])
    assert distance() < 0.03
    # The value of the optimum is beta log Z.
    best = beta * float((start + rewards / beta).logsumexp(-1))
    assert result.history[-1]["objective"] == pytest.approx(best, abs=0.05)


def test_longer_responses_improve_and_metrics_make_sense(make_lm) -> None:
    config = replace(SMALL, steps=25, batch_size=32, minibatch_size=16, microbatch_size=16, learning_rate=0.01)
    result = PPOTrainer(make_lm(), vowels, None, replace(config, kl_coefficient=0.01)).train(["a", "b", "c", "d"])
    first, last = result.history[0], result.history[-1]
    assert last["reward"] > first["reward"] + 1.5
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert last["kl"] > 0.5
    assert 0 < last["entropy"] < 4
    assert 0 <= last["clip_fraction"] <= 1
    assert last["explained_variance"] <= 1
    assert 1 <= last["response_length"] <= 6
    assert last["mismatch_max"] < 1e-3
    assert all(metrics["updates"] == 4 for metrics in result.history)


def test_a_preference_model_can_be_the_reward_on_the_same_base_weights(make_lm) -> None:
    lm = make_lm()
    judge = PreferenceModel(lm, lora=LORA)
    trainer = PPOTrainer(lm, judge, None, replace(SMALL, steps=2))
    before = judge.score(["a"], ["bcd"])
    trainer.train(["a", "b"])
    assert torch.equal(judge.score(["a"], ["bcd"]), before)  # the policy moved, the judge did not
    responses = trainer.generate(["a", "b"])
    expected = judge.score(["a", "b"], [r.completion.text for r in responses])
    torch.testing.assert_close(trainer.compute_rewards(responses), expected)


# Resume, determinism, memory


def test_killed_and_resumed_it_ends_in_the_same_bits(make_lm, tmp_path) -> None:
    config = replace(SMALL, steps=6, kl_target=0.5, warmup_steps=3)
    straight = PPOTrainer(make_lm(), vowels, None, config, checkpoint_dir=tmp_path / "a")
    whole = straight.train(["a", "b", "c"])

    def stop(step: int, responses: list, metrics: dict[str, float]) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PPOTrainer(make_lm(), vowels, None, config, checkpoint_dir=tmp_path / "b").train(["a", "b", "c"], on_step=stop)
    resumed = PPOTrainer(make_lm(), vowels, None, config, checkpoint_dir=tmp_path / "b")
    steps: list[int] = []
    rest = resumed.train(["a", "b", "c"], on_step=lambda step, *_: steps.append(step))
    assert steps == [5, 6]
    assert rest == whole
    assert resumed.kl_controller.coefficient == straight.kl_controller.coefficient != config.kl_coefficient
    ends = weights(straight), weights(resumed)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    with pytest.raises(TrainingError, match="another training configuration: clip"):
        PPOTrainer(make_lm(), vowels, None, replace(config, clip=0.1), checkpoint_dir=tmp_path / "b").train(["a"])
    with pytest.raises(TrainingError, match="another model"):
        PPOTrainer(make_lm(seed=9), vowels, None, config, checkpoint_dir=tmp_path / "b").train(["a"])


def test_a_checkpoint_of_other_training_is_refused(make_lm, tmp_path) -> None:
    write_checkpoint(tmp_path, Checkpoint(3, {"w": torch.ones(1)}, {"w": torch.ones(1)}, {"history": []}))
    with pytest.raises(TrainingError, match="not one of PPO"):
        PPOTrainer(make_lm(), vowels, None, SMALL, checkpoint_dir=tmp_path).train(["a"])


def test_same_seed_same_policy_and_another_seed_another(make_lm) -> None:
    ends = []
    for seed in (0, 0, 1):
        trainer = PPOTrainer(make_lm(), vowels, None, replace(SMALL, steps=2, seed=seed))
        trainer.train(["a", "b", "c"])
        ends.append(weights(trainer))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert any(not torch.equal(ends[0][name], ends[2][name]) for name in ends[0])
    lm = make_lm()  # a bare model with its parts given apart is the same
    parts = {"sampler": LocalSampler(lm), "tokenizer": lm.tokenizer}
    trainer = PPOTrainer(lm.model, vowels, None, replace(SMALL, steps=2), **parts)
    trainer.train(["a", "b", "c"])
    assert all(torch.equal(ends[0][name], value) for name, value in weights(trainer).items())


def test_the_microbatch_size_changes_nothing_but_memory(make_lm) -> None:
    ends = []
    for size in (1, 3, 8):
        config = replace(SMALL, minibatch_size=8, microbatch_size=size, entropy_coefficient=0.01, detach_value=False)
        trainer = PPOTrainer(make_lm(), vowels, None, config)
        responses = trainer.generate(["a", "bcd", "c", "d", "efghi", "f", "g", "h"])
        trainer.ppo_step(trainer.prepare(responses, trainer.compute_rewards(responses)))
        ends.append(weights(trainer))
    for name, value in ends[0].items():
        # AdamW's first steps are of the size of the learning rate whatever the gradient, so noise near 0 shows.
        for other in ends[1:]:
            assert float((other[name] - value).abs().mean()) < 1e-5, name


def test_every_prompt_comes_once_an_epoch(make_lm) -> None:
    trainer = PPOTrainer(make_lm(), vowels, None, replace(SMALL, batch_size=6))
    prompts = [f"p{i}" for i in range(9)]
    drawn = [prompt for step in range(3) for prompt in trainer.prompts_at(prompts, step)]
    assert sorted(drawn[:9]) == sorted(drawn[9:]) == prompts
    assert drawn[:9] != drawn[9:]
    assert trainer.prompts_at(prompts, 1) == drawn[6:12]


def test_repeated_prompts_get_different_responses(make_lm) -> None:
    trainer = PPOTrainer(make_lm(), vowels, None, SMALL)
    texts = [response.completion.text for response in trainer.generate(["a"] * 8)]
    assert len(set(texts)) > 5  # 40 characters, up to 6 tokens
    trainer.step = 1
    assert [response.completion.text for response in trainer.generate(["a"] * 8)] != texts


def test_merging_for_decoding_leaves_no_trace(make_lm) -> None:
    trainer = PPOTrainer(make_lm(), vowels, None, SMALL)
    trainer.train(["a", "b"])
    tokens = torch.tensor([[0, 5, 6, 7]])
    before, state = trainer.model(tokens).detach(), weights(trainer)
    with merged_for_decoding(trainer.model):
        torch.testing.assert_close(trainer.model(tokens).detach(), before, rtol=0, atol=1e-4)
        with reference_mode(trainer.model):
            torch.testing.assert_close(trainer.model(tokens).detach(), make_lm().model(tokens).detach())
    assert torch.equal(trainer.model(tokens).detach(), before)
    assert all(torch.equal(state[name], value) for name, value in weights(trainer).items())


def test_options_do_what_they_say(make_lm) -> None:
    trainer = PPOTrainer(
        make_lm(), lambda p, r: [9.0, -9.0], None, replace(SMALL, reward_clip=2.0, missing_end_penalty=0.5)
    )
    responses = trainer.generate(["a", "b"])
    ended = [r.completion.finish_reason == "stop" for r in responses]
    expected = [2.0 - 0.5 * (not ended[0]), -2.0 - 0.5 * (not ended[1])]
    assert trainer.compute_rewards(responses).tolist() == expected
    early = PPOTrainer(make_lm(), vowels, None, replace(SMALL, steps=1, max_policy_kl=1e-6)).train(["a", "b"])
    assert early.history[0]["updates"] == 1  # the second saw that the first had moved the policy, and stopped
    narrow = PPOTrainer(make_lm(), vowels, None, replace(SMALL, steps=2, precision="bf16", max_mismatch=0.2))
    assert len(narrow.train(["a", "b"]).history) == 2


def test_metrics_go_to_the_run(make_lm, tmp_path) -> None:
    from alignlab.core.runs import Run

    with Run.create(SMALL, name="ppo", path=tmp_path / "run") as run:
        result = PPOTrainer(make_lm(), vowels, None, SMALL, run=run).train(["a", "b"])
        logged = run.metrics()
        assert (run.checkpoints / "ppo").is_dir()
    rewards = [row["ppo/reward"] for row in logged if "ppo/reward" in row]
    assert rewards == [metrics["reward"] for metrics in result.history]


# Bad input


class WrongSampler(LocalSampler):
    """Draws at temperature 0.3 and claims the probabilities it drew with."""

    def generate(self, prompts: list, sampling: SamplingParams) -> list[Completion]:
        return [
            replace(c, logprobs=tuple(min(0.0, p / 2) for p in c.logprobs))
            for c in super().generate(prompts, replace(sampling, temperature=0.3))
        ]


def test_a_sampler_that_is_not_the_policy_is_refused_with_numbers(make_lm) -> None:
    lm = make_lm()
    trainer = PPOTrainer(lm, vowels, None, SMALL, sampler=WrongSampler(lm))
    with pytest.raises(TrainingError, match=r"differ by \d\.\d{4} nats per token on average, allowed: 0\.1"):
        trainer.train(["a", "b"])
    sampled, recomputed = torch.tensor([[0.0, -1.0]]), torch.tensor([[0.0, float("nan")]])
    with pytest.raises(TrainingError, match="at token 2 of response 0"):
        check_mismatch(sampled, recomputed, torch.tensor([[False, True]]), limit=0.1)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda p, r: [1.0] * len(r), "all 1"),
        (lambda p, r: [float("nan")] + [1.0] * (len(r) - 1), "reward of response 0 is nan"),
        (lambda p, r: [1.0], r"shape \(1,\) for 8 responses"),
        (lambda p, r: ["good"] * len(r), "one number per response"),
        (lambda p, r: None, "one number per response"),
    ],
)
def test_rewards_that_cannot_be_learned_from_are_refused(make_lm, reward: Callable, message: str) -> None:
    trainer = PPOTrainer(make_lm(), reward, None, SMALL)
    before = weights(trainer)
    with pytest.raises(TrainingError, match=message):
        trainer.train(["a", "b"])
    assert all(torch.equal(before[name], value) for name, value in weights(trainer).items())


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_touched(make_lm) -> None:
    def reward(prompts: list, responses: list[str]) -> list[float]:
        return [3e38 if i % 2 else -3e38 for i in range(len(responses))]

    trainer = PPOTrainer(make_lm(), reward, None, replace(SMALL, whiten_advantages=False))
    before = weights(trainer)
    with pytest.raises(TrainingError, match="gradient of PPO step 1 is not finite"):
        trainer.train(["a", "b"])
    assert all(torch.equal(before[name], value) for name, value in weights(trainer).items())


def test_equal_rewards_can_be_skipped(make_lm) -> None:
    trainer = PPOTrainer(make_lm(), lambda p, r: [1.0] * len(r), None, replace(SMALL, on_equal_rewards="skip"))
    before = weights(trainer)
    result = trainer.train(["a", "b"])
    assert [metrics["skipped"] for metrics in result.history] == [1.0] * 4
    assert all(torch.equal(before[name], value) for name, value in weights(trainer).items())


def test_bad_input(make_lm) -> None:
    lm = make_lm()
    with pytest.raises(DataError, match="empty list of prompts"):
        PPOTrainer(lm, vowels, None, SMALL).train([])
    with pytest.raises(ConfigError, match="no LoRA adapter to switch off"):
        PPOTrainer(make_lm(), vowels, None, replace(SMALL, lora=None))
    with pytest.raises(ConfigError, match="needs sampler= and tokenizer="):
        PPOTrainer(make_lm().model, vowels, None, SMALL)
    with pytest.raises(ConfigError, match="minibatch_size is 9"):
        replace(SMALL, minibatch_size=9)
    with pytest.raises(ConfigError, match="kl_estimator is 'k9', allowed: k1 or k2 or k3"):
        replace(SMALL, kl_estimator="k9")  # type: ignore[arg-type]
    trainer = PPOTrainer(make_lm(), vowels, None, SMALL)
    response = trainer.generate(["a"])[0]
    for completion, message in [
        (replace(response.completion, tokens=(), logprobs=()), "response of item 0 has no tokens"),
        (replace(response.completion, logprobs=()), "0 log-probabilities"),
        (replace(response.completion, prompt_tokens=7), "7 tokens and the trainer as 2"),
    ]:
        with pytest.raises(TrainingError, match=message):
            stack_responses([replace(response, completion=completion)])
