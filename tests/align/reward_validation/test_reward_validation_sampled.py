"""Rewards of sampled answers, and a policy measured while PPO optimises it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from alignlab.align.ppo import PPOTrainer
from alignlab.align.ppo_config import PPOConfig
from alignlab.align.preference_model import PreferenceModel
from alignlab.align.reward.length_bias import LengthCorrection
from alignlab.align.reward_validation.overoptimisation import measure_overoptimisation
from alignlab.align.reward_validation.policy_probe import PolicyProbe, probe_curve
from alignlab.align.reward_validation.sampled import (
    pair_agreement,
    reward_function,
    sample_rewards,
    score_answers,
    within_deviation,
)
from alignlab.core.errors import ConfigError, DataError
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler
from alignlab.lm.lora import LoraConfig
from alignlab.lm.types import SamplingParams
from alignlab.viz import Page

MakeLM = Callable[..., LanguageModel]
CONFIG = PPOConfig(
    steps=4, batch_size=8, minibatch_size=8, microbatch_size=8, max_tokens=5, learning_rate=0.02, kl_coefficient=0.0,
    lora=LoraConfig(rank=4, targets=("all-linear",)), checkpoint_every=2, max_policy_kl=None,
)  # fmt: skip


def vowels(prompts: list, responses: list[str]) -> list[float]:
    return [sum(c in "aeiou" for c in text) + 0.01 * len(text) for text in responses]


def short(prompts: list, responses: list[str]) -> list[float]:
    return [-float(len(text)) for text in responses]


def test_scores_are_the_model_s_own(make_lm: MakeLM) -> None:
    """Encoding each prompt once changes nothing, also where prompt or answer are cut to length."""
    model = PreferenceModel(make_lm(chat=True), max_length=20)
    model.correction = LengthCorrection(slope=0.3)
    prompts = [
        [{"role": "user", "content": "hi"}],
        [{"role": "user", "content": "a long request of many words"}],
        "raw",
    ]
    answers = [["yes", "no", "yes"], ["an answer that is longer than the context is", "b", ""], ["c", "d", "e"]]
    model.fit_normalisation(["raw", "raw"], ["a", "bcd"])
    found = score_answers(model, prompts, answers)
    assert found.shape == (3, 3)
    for prompt, texts, row in zip(prompts, answers, found, strict=True):
        torch.testing.assert_close(torch.tensor(row).float(), model.score([prompt] * 3, texts), rtol=1e-5, atol=1e-5)
    assert found[0, 0] == found[0, 2]
    flat = reward_function(model)(prompts, ["yes", "b", "e"])
    assert flat == pytest.approx([found[0, 0], found[1, 1], found[2, 2]], abs=1e-5)
    with pytest.raises(DataError, match="each needs as many"):
        score_answers(vowels, ["a", "b"], [["c"], ["d", "e"]])


def test_answers_and_rewards_by_prompt(make_lm: MakeLM) -> None:
    sampler = LocalSampler(make_lm())
    sampling = SamplingParams(max_tokens=5, n=6, seed=3)
    drawn = sample_rewards(sampler, ["a", "b", "c"], {"v": vowels, "s": short}, sampling, at_a_time=2)
    assert [len(texts) for texts in drawn.answers] == [6, 6, 6]
    for name, reward in (("v", vowels), ("s", short)):
        expected = [reward([], texts) for texts in drawn.answers]
        np.testing.assert_allclose(drawn.rewards[name], expected)
    again = sample_rewards(sampler, ["a", "b"], {}, sampling, at_a_time=2)
    assert again.answers == drawn.answers[:2]
    with pytest.raises(DataError, match="list of prompts is empty"):
        sample_rewards(sampler, [], {}, sampling)


def test_agreement_and_units() -> None:
    gold = np.array([[1.0, 2, 3], [1, 1, 2], [1, 1, 1]])
    proxy = np.array([[1.0, 3, 2], [5, 4, 5], [1, 2, 3]])
    # Prompt 1: 2 of 3 pairs alike. Prompt 2: (0, 2) is a tie of the proxy, (1, 2) alike, (0, 1) a tie of gold.
    assert pair_agreement(proxy, gold)[:2].tolist() == pytest.approx([2 / 3, 0.75])
    assert np.isnan(pair_agreement(proxy, gold)[2])
    assert within_deviation(np.array([[0.0, 2], [10, 14]])) == pytest.approx(np.sqrt((2 + 8) / 2))
    with pytest.raises(DataError, match="do not differ"):
        within_deviation(np.ones((3, 2)))
    with pytest.raises(DataError, match="no proxy"):
        measure_overoptimisation({}, gold)


def test_a_policy_is_measured_as_it_moves(make_lm: MakeLM, tmp_path: Path) -> None:
    """Its KL starts at 0 exactly and grows; a restart keeps the points."""
    rewards, prompts, file = {"proxy": vowels, "gold": short}, ["a", "b", "c"], tmp_path / "rl.jsonl"

    def probed(steps: int) -> PolicyProbe:
        trainer = PPOTrainer(make_lm(), vowels, None, replace(CONFIG, steps=4), checkpoint_dir=tmp_path / "ppo")
        probe = PolicyProbe(trainer, prompts, rewards, samples=8, every=2, file=file)
        if not probe.points:
            probe.measure(0)
            assert probe.points[0]["kl"] == [0, 0, 0]

        def stop(step: int, *rest: object) -> None:
            probe(step, *rest)  # type: ignore[arg-type]
            if step == steps:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            trainer.train(prompts, on_step=stop)
        return probe

    assert sorted(probed(3).points) == [0, 2]
    probe = probed(9)
    assert sorted(probe.points) == [0, 2, 4]
    curve = probe_curve(probe.points.values())
    assert curve.kl[:, -1].mean() > 0.05
    given = probe_curve(probe.points.values(), {"proxy": np.ones(3), "gold": np.zeros(3)})
    assert given.proxy[:, 0].tolist() == [1, 1, 1]
    with pytest.raises(DataError, match="step 0 was not measured"):
        probe_curve([probe.points[2]])
    with pytest.raises(DataError, match="'proxy' and 'gold'"):
        PolicyProbe(probe.trainer, prompts, {"proxy": vowels})
    with pytest.raises(ConfigError, match="every is 0"):
        PolicyProbe(probe.trainer, prompts, rewards, every=0)


def test_the_kl_of_a_probe_is_the_policy_s(make_lm: MakeLM) -> None:
    """One token from a known distribution: the estimate's mean is the sum over the vocabulary; five standard errors."""
    trainer = PPOTrainer(make_lm(letters="abcdefg"), vowels, None, replace(CONFIG, max_tokens=1))
    with torch.no_grad():
        for name, parameter in trainer.parameters.items():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    prompt = torch.tensor([trainer.tokenizer.encode_prompt("a")])
    with torch.no_grad():
        policy = trainer.model(prompt)[0, -1].log_softmax(-1)
    reference = make_lm(letters="abcdefg").model(prompt)[0, -1].detach().log_softmax(-1)
    exact = float((policy.exp() * (policy - reference)).sum())
    assert exact > 0.02
    probe = PolicyProbe(trainer, ["a"], {"proxy": vowels, "gold": short}, samples=400)
    deviation = float((policy.exp() * (policy - reference - exact) ** 2).sum()) ** 0.5
    assert probe.measure(0)["kl"][0] == pytest.approx(exact, abs=5 * deviation / 400**0.5)


def test_the_account_of_an_optimisation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    proxy = rng.normal(size=(60, 64))
    gold = 0.8 * proxy - 0.5 * np.maximum(proxy, 0) ** 2 + 0.1 * rng.normal(size=(60, 64))
    steps, kl = np.arange(5), np.linspace(0, 9, 5)
    table = np.sqrt(kl) * np.ones((60, 1))
    points = [
        {"step": int(s), "kl": [k] * 60, "proxy": table[:, i].tolist(), "gold": (-table[:, i]).tolist()}
        for i, (s, k) in enumerate(zip(steps, kl, strict=True))
    ]
    found = measure_overoptimisation({"small": proxy}, gold, {"PPO": ("small", probe_curve(points))})
    assert list(found.curves) == ["best of n, small", "PPO"]
    fit = found.fits["best of n, small"]
    assert fit is not None
    assert fit.verdict == "turned"
    assert found.falls["best of n, small"].high < 0
    assert 0.6 < found.agreement["small"].estimate < 0.9
    page = found.add_to(Page("<b>")).save(tmp_path / "page.html").read_text()
    assert "best of n, small" in page
    assert "http" not in page.partition("<script>")[0].replace("http-equiv", "")
    assert any("turns at" in line for line in found.lines())
