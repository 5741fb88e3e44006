"""A policy that is really trained: a watched reward changes nothing, and a reward that is wrong is found out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_rl
import torch

from alignlab.__main__ import main
from alignlab.align.diagnostics.reading import read_training
from alignlab.align.diagnostics.watched import Watched
from alignlab.align.ppo import PPOTrainer
from alignlab.align.ppo_config import PPOConfig
from alignlab.align.preference_model import PreferenceModel
from alignlab.align.reward.saved import save_reward
from alignlab.align.rl.config import GRPOConfig
from alignlab.align.rl.grpo import train_grpo
from alignlab.core.runs import Run
from alignlab.lm.types import Prompt

pytestmark = pytest.mark.slow  # the first generation in a process compiles


PROMPTS = ["ab", "cd", "ef", "gh", "ij", "01", "23", "ba", "dc", "fe"]


def many_a(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    return [float(text.count("a")) for text in responses]


def varied(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    return [float(len(set(text))) for text in responses]


def grpo(steps: int, **more: Any) -> GRPOConfig:
    settings = {**tiny_rl.SHARED, "steps": steps, "warmup_steps": 0, "schedule": "constant", "prompts_per_step": 5}
    return GRPOConfig(**{**settings, "group_size": 4, "minibatch_size": 20, "checkpoint_every": 4, **more})


def test_a_watched_reward_changes_nothing_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    plain = train_grpo(tiny_rl.build_lm(), many_a, PROMPTS, grpo(6))
    with Run.create({}, name="rl", path=tmp_path / "run") as run:
        train_grpo(tiny_rl.build_lm(), Watched(many_a, varied, run), PROMPTS, grpo(4), run=run)
    # Another process goes on from the checkpoint of step 4; the config must be the same but for its length.
    with Run.create({}, name="rl", path=tmp_path / "whole") as run:
        whole = train_grpo(tiny_rl.build_lm(), Watched(many_a, varied, run, attribute=1), PROMPTS, grpo(6), run=run)
    for ours, theirs in zip(whole.history, plain.history, strict=True):
        assert {name: ours[name] for name in theirs} == theirs
        assert "gold" in ours
    training = read_training(tmp_path / "whole")
    assert (training.method, len(training.history), list(training.records)) == ("grpo", 6, [1, 2, 3, 4, 5, 6])
    assert all(record.samples[0].spans for record in training.records.values())
    step = training.history.steps.tolist().index(3)
    assert training.history.columns["gold"][step] == pytest.approx(
        sum(training.records[3].numbers.gold) / len(training.records[3].numbers.gold), rel=1e-5
    )


def test_a_resumed_training_numbers_its_steps_as_before(tmp_path: Path) -> None:
    def train(path: Path, stop_at: int | None) -> None:
        class Stop(Exception):
            pass

        def halt(step: int, *rest: object) -> None:
            if step == stop_at:
                raise Stop

        lm = tiny_rl.build_lm()
        run = Run.open(path) if (path / "status.json").exists() else Run.create({}, name="rl", path=path)
        with run:
            config = PPOConfig(
                **{**tiny_rl.SHARED, "steps": 7, "batch_size": 8, "checkpoint_every": 3, "on_equal_rewards": "skip"}
            )
            trainer = PPOTrainer(lm, Watched(many_a, varied, run), None, config, run=run)
            try:
                trainer.train(PROMPTS, on_step=halt)
            except Stop:
                return

    train(tmp_path / "stopped", 5)
    train(tmp_path / "stopped", None)
    train(tmp_path / "whole", None)
    stopped, whole = (read_training(tmp_path / name) for name in ("stopped", "whole"))
    assert list(stopped.records) == [1, 2, 3, 4, 5, 6, 7]
    assert stopped.records == whole.records


def test_a_reward_that_is_wrong_is_found_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counting one letter is the reward, different letters are what is wanted: the policy learns `aaaaaa`."""
    torch.manual_seed(0)
    with Run.create({"grpo": {"steps": 60}}, name="rl", path=tmp_path / "hacked") as run:
        free = {"kl_coefficient": 0.0, "lora": None, "learning_rate": 0.02, "max_policy_kl": None}
        config = grpo(60, on_equal_rewards="skip", group_size=8, **free)
        train_grpo(tiny_rl.build_lm(), Watched(many_a, varied, run), PROMPTS, config, run=run)
    assert main(["diagnose", str(tmp_path / "hacked"), "--gate"]) == 1
    out = capsys.readouterr().out
    assert "SERIOUS  step" in out
    assert "reward hacking: since the beginning" in out
    assert "entropy collapse" in out


@pytest.mark.parametrize("by", ["words", "tokens"])
def test_answers_are_attributed_by_a_saved_reward_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    lm = tiny_rl.build_lm()
    model = PreferenceModel(lm, seed=1)
    save_reward(model, tmp_path / "reward", {"base": "tiny"})
    monkeypatch.setattr("alignlab.align.reward.saved.load_base", lambda spec, **_: lm)
    with Run.create({}, name="rl", path=tmp_path / "run") as run:
        train_grpo(tiny_rl.build_lm(), Watched(many_a, run=run, samples=2), PROMPTS, grpo(2), run=run)
    assert main(["diagnose", str(tmp_path / "run"), "--reward", str(tmp_path / "reward"), "--by", by]) == 0
    assert capsys.readouterr().out.count("the parts add up to") == 2
    records = read_training(tmp_path / "run").records
    assert not records[1].samples[0].spans
    assert all(sample.spans for sample in records[2].samples)
    assert main(["diagnose", str(tmp_path / "run"), "--reward", str(tmp_path / "reward"), "--step", "9"]) == 2
    assert "--step is 9, allowed: a step with logged answers, here 1 to 2" in capsys.readouterr().err
