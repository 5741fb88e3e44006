"""From questions to an agent: small and fast here, one seed of the real thing in the slow test."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from alignlab.align.preference_data.collector import PreferenceCollector
from alignlab.align.reward.cli import reward
from alignlab.align.trajectories.clips import Clip, clip_text, read_clip
from alignlab.align.trajectories.human import HumanTeacher
from alignlab.align.trajectories.learning import LearningSettings, learn_from_preferences, learn_with_true_reward
from alignlab.align.trajectories.measures import SeedResult, over_seeds, summarise
from alignlab.align.trajectories.policy import evaluate_agent
from alignlab.align.trajectories.policy_training import PPOSettings
from alignlab.align.trajectories.reward_nets import RewardSettings
from alignlab.align.trajectories.segments import Segments
from alignlab.align.trajectories.teacher import SyntheticTeacher
from alignlab.core.errors import ConfigError, DataError, FeedbackError
from alignlab.core.runs import Run
from alignlab.core.store import open_store

SMALL = LearningSettings(
    steps=1500, labels=30, length=5, round_size=5, pool_steps=400, evaluations=2,
    reward=RewardSettings(steps=5), ppo=PPOSettings(copies=8, horizon=16, epochs=1),
)  # fmt: skip


def test_every_comparison_that_was_asked_for_is_used_and_the_seed_decides_everything() -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    first = learn_from_preferences(SMALL, SyntheticTeacher(), seed=3, log=lambda step, row: logged.append((step, row)))
    again = learn_from_preferences(SMALL, SyntheticTeacher(), seed=3)
    assert first.comparisons is not None
    assert again.comparisons is not None
    assert len(first.comparisons) == 30
    np.testing.assert_array_equal(first.comparisons.first.inputs, again.comparisons.first.inputs)
    assert first.curve == again.curve
    assert next(row["labels"] for _, row in logged if "labels" in row) == 8
    assert len(first.curve) == 2
    assert learn_with_true_reward(SMALL, seed=3).comparisons is None


class Silent:
    def judge(self, first: Segments, second: Segments, rng: np.random.Generator) -> np.ndarray:
        return np.full(len(first), np.nan)


def test_a_teacher_who_says_nothing() -> None:
    with pytest.raises(FeedbackError, match="the teacher said nothing of the first 8 pairs"):
        learn_from_preferences(SMALL, Silent(), seed=0)


def test_the_summary_over_seeds() -> None:
    """Shares by hand: (180 - 20) / (220 - 20) = 0.8 and 1.0; Student's t with one degree of freedom."""
    results = [SeedResult(0, 180.0, 220.0, 20.0, 700, 0.9), SeedResult(1, 100.0, 100.0, 20.0, 700, None)]
    share = summarise(results)["share of the true reward's gain"]
    assert share.estimate == pytest.approx(0.9)
    assert share.high - share.estimate == pytest.approx(12.706 * 0.1, rel=1e-3)
    assert "correlation of learned and true returns of clips" not in summarise(results)
    assert over_seeds([1.0]).high == np.inf
    with pytest.raises(DataError, match="no more than random actions"):
        _ = SeedResult(0, 10.0, 5.0, 20.0, 700, None).share


def test_clips_as_text() -> None:
    cart = np.array([[0.1234567, 9, -0.05, 9, 0, 1], [0.2, 9, 0.1, 9, 1, 0]])
    assert read_clip(clip_text("CartPole-v1", cart)) == Clip("CartPole-v1", ((0.123, -0.05), (0.2, 0.1)))
    swing = np.array([[0.0, 1.0, 3.0, -0.5]])
    assert read_clip(clip_text("Pendulum-v1", swing)) == Clip("Pendulum-v1", ((1.571, -1.0),))
    for text in ("", "a text", '{"clip":"CartPole-v1","frames":[]}', '{"clip":"X","frames":[[1,2]]}', '[1]',
                 '{"clip":"CartPole-v1","frames":[[1,NaN]]}'):  # fmt: skip
        with pytest.raises(DataError, match="not a clip"):
            read_clip(text)


def some_clips(seed: int, n: int = 4) -> Segments:
    return Segments(np.random.default_rng(seed).normal(size=(n, 3, 6)), np.zeros((n, 3)))


def test_people_as_the_teacher(tmp_path: Path) -> None:
    """The training waits for judgements: a choice, opposite choices of two people, a tie, a skip by all."""
    first, second = some_clips(0), some_clips(1)
    texts = [clip_text("CartPole-v1", inputs) for inputs in first.inputs]

    def judge_all(person: PreferenceCollector, others: tuple[int, ...]) -> None:
        """Prefer the clip of `first`, but for those pairs of which the other is preferred."""
        while (task := person.next_task()) is not None:
            ids = {answer.text: answer.id for answer in task.answers}
            pair = next(i for i, text in enumerate(texts) if text in ids)
            other = next(own for text, own in ids.items() if text != texts[pair])
            preferred = other if pair in others else ids[texts[pair]]
            person.record(task, {2: "tie", 3: "skip"}.get(pair, preferred))

    with open_store(tmp_path / "lab.db") as store:
        rng, said = np.random.default_rng(0), []
        with pytest.raises(FeedbackError, match="nobody judged clips of the project 'clips-0' for"):
            HumanTeacher(store, "clips-0", "CartPole-v1", patience=1e-6, every=0.01, say=said.append).judge(
                first, second, rng
            )
        assert said == [
            "waiting for judgements: 4 of 4 clips to compare in the project 'clips-0' (alignlab app, page Clips)"
        ]
        judge_all(PreferenceCollector(store, project="clips-0", annotator="bob"), others=(1,))
        judge_all(PreferenceCollector(store, project="clips-0", annotator="ada"), others=())
        # The same training again asks the same, finds it answered, and goes on to a question that is open.
        teacher = HumanTeacher(store, "clips-0", "CartPole-v1", every=0.01, say=said.append)
        np.testing.assert_array_equal(teacher.judge(first, second, rng), [1.0, 0.5, 0.5, np.nan])
        same = teacher.judge(first, Segments(first.inputs, first.rewards), rng)
        np.testing.assert_array_equal(same, np.full(4, 0.5))  # one clip twice is nothing to ask
        found: list[np.ndarray] = []
        waiting = threading.Thread(target=lambda: found.append(teacher.judge(first, some_clips(2), rng)))
        waiting.start()
        while len(said) < 2:
            time.sleep(0.01)
        assert waiting.is_alive()
        judge_all(PreferenceCollector(store, project="clips-0", annotator="ada"), others=(0,))
        waiting.join(timeout=20)
        np.testing.assert_array_equal(found[0], [0.0, 1.0, 0.5, np.nan])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    flags = ["--steps", "1100", "--labels", "12", "--length", "5", "--seeds", "2", "--teacher-error", "0.1"]
    assert reward(["trajectories", "--env", "CartPole-v1", "--no-compare", *flags, "--run", str(run)]) == 0
    said = capsys.readouterr().out
    assert "seed 1: return" in said
    assert "correlation of learned and true returns of clips" in said
    record = json.loads((run / "artifacts" / "results.json").read_text())
    assert [one["labels"] for one in record["seeds"]] == [12, 12]
    assert record["summary"]["return, learned reward"]["n"] == 2
    names = {name for row in Run.read(run).metrics() for name in row}
    assert {"learned/seed-0/return", "learned/seed-1/labels", "learned/seed-0/reward/heldout_loss"} <= names
    assert reward(["trajectories", "--env", "CartPole-v1", "--no-compare", *flags, "--run", str(run)]) == 0
    assert capsys.readouterr().out == said  # every seed is a stage: done once


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="env is 'Acrobot-v1', allowed with a human teacher: CartPole-v1, Pendulum"):
        reward(["trajectories", "--env", "Acrobot-v1", "--teacher", "human", "--run", str(tmp_path / "run")])
    with pytest.raises(ConfigError, match=r"teacher_error is 0\.9"):
        reward(["trajectories", "--teacher-error", "0.9"])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_pendulum_from_700_comparisons() -> None:
    """One seed, a tenth of the answers wrong: 80,000 steps without a look at the reward; random actions get -1200."""
    settings = LearningSettings(env="Pendulum-v1", steps=80_000)
    learned = learn_from_preferences(settings, SyntheticTeacher(error_rate=0.1), seed=0)
    assert learned.comparisons is not None
    assert len(learned.comparisons) == 700
    assert learned.correlation is not None
    assert learned.correlation > 0.98
    assert evaluate_agent(learned.agent, "Pendulum-v1", episodes=50, seed=1).mean() > -450
