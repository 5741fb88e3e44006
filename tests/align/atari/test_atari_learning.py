"""Every arm at a size of seconds, the same twice, on time, and what the user is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from alignlab.align.atari.acting import Acting, LatestFrames
from alignlab.align.atari.agent import Agent, AgentSettings
from alignlab.align.atari.arms import ARMS
from alignlab.align.atari.cli import AtariTraining, atari, settings_of
from alignlab.align.atari.clip_reward import ClipReward
from alignlab.align.atari.learning import evaluate, learn_atari
from alignlab.align.atari.measures import ArmResult, as_lines, as_record, comparisons
from alignlab.align.atari.replay import Batch, Episodes, Replay, ReplaySettings
from alignlab.align.atari.settings import smoke
from alignlab.align.reward.cli import reward
from alignlab.core.errors import ConfigError, FeedbackError, MissingExtraError, TrainingError

pytest.importorskip("ale_py")
TINY = smoke()


def result(arm: str, seed: int, scores: list[float], **changes: object) -> ArmResult:
    round_ = {"step": 100, "labels": 9, "agreement": 0.9, "correlation": 0.5, "account": {"alarm": None}}
    rounds = [round_] if "preferences" in arm else []
    made = ArmResult(arm, seed, scores, [0.0, 1.0], [40.0], [(100, 1.0)], rounds, 100, 10, 60.0, True)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_imitation_learns_what_is_shown() -> None:
    """Two pictures, two actions: after 60 updates each picture has its action, with the margin or nearly."""
    frames = np.zeros((64, 36, 36), dtype=np.uint8)
    frames[::2, :18], frames[1::2, 18:] = 255, 255
    ends = np.ones(64, dtype=bool)
    shown = Episodes(frames, np.arange(64) % 2, np.zeros(64, dtype=np.float32), ends)
    replay = Replay(1, 36, ReplaySettings(capacity=20, n_step=1), shown)
    agent = Agent(4, replace(TINY.agent, learning_rate=3e-3), size=36, seed=0)
    first = float(agent.imitate(replay))
    for _ in range(60):
        loss = agent.imitate(replay)
    assert float(loss) < 0.25 * first
    slots = replay.own + torch.arange(4)
    assert agent.act(replay.stacks(slots), 0.0).tolist() == [0, 1, 0, 1]


def test_values_follow_the_rewards() -> None:
    """One state, each action pays its own amount and ends: Q-learning finds the amounts."""
    replay = Replay(1, 36, ReplaySettings(capacity=300, n_step=1))
    none, end = torch.zeros(1), torch.ones(1, dtype=torch.bool)
    for step in range(200):
        action = torch.tensor([step % 3])
        replay.add(torch.full((1, 36, 36), 200, dtype=torch.uint8), end, action, none, 0.3 * action - 0.3, end)
    agent = Agent(3, replace(TINY.agent, learning_rate=1e-2, weight_decay=0.0), size=36, seed=0)
    for _ in range(200):
        agent.learn(replay, "learned")
    values = agent.online(replay.stacks(torch.tensor([5])))[0]
    assert values.tolist() == pytest.approx([-0.3, 0.0, 0.3], abs=0.05)


def test_copies_explore_differently() -> None:
    shares = TINY.agent.random_shares(4)
    assert shares.tolist() == pytest.approx([0.4 * (0.002 / 0.4) ** (i / 3) for i in range(4)], rel=1e-5)
    with pytest.raises(ConfigError, match="exploration"):
        replace(TINY.agent, exploration=(0.4, 0.0))


def test_a_loss_that_is_no_number() -> None:
    agent = Agent(3, TINY.agent, size=36, seed=0)
    with pytest.raises(TrainingError, match="the agent's loss is nan after 0 updates"):
        agent.check(torch.tensor(float("nan")))


class Catch:
    """A ball falls through eight rows, a paddle below moves by one: +1 for a caught ball, -1 for another, each ends."""

    def __init__(self, copies: int) -> None:
        self.copies, self.rng = copies, np.random.default_rng(0)
        self.row, self.ball, self.paddle = (np.zeros(copies, dtype=np.int64) for _ in range(3))
        self.begin(np.ones(copies, dtype=bool))

    def begin(self, which: np.ndarray) -> None:
        self.row[which], self.ball[which], self.paddle[which] = 0, self.rng.integers(9, size=which.sum()), 4

    def frames(self) -> torch.Tensor:
        cells, copies = np.zeros((self.copies, 9, 9), dtype=np.uint8), np.arange(self.copies)
        cells[copies, self.row, self.ball] = cells[copies, 8, self.paddle] = 255
        return torch.from_numpy(cells.repeat(4, axis=1).repeat(4, axis=2))

    def step(self, actions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        self.paddle = np.clip(self.paddle + actions - 1, 0, 8)
        self.row += 1
        ends = self.row == 8
        rewards = np.where(ends, np.where(self.paddle == self.ball, 1.0, -1.0), 0.0).astype(np.float32)
        self.begin(ends)
        return torch.from_numpy(rewards), torch.from_numpy(ends)


@pytest.mark.slow
def test_catches_nearly_every_ball() -> None:
    """The reward comes eight steps after the first action; any policy blind to the ball is at -0.78 or below."""
    copies, caught = 16, []
    settings = AgentSettings(width=8, hidden=64, batch_size=64, target_every=200, learning_rate=5e-4)
    replay, games = Replay(copies, 36, ReplaySettings(capacity=50_000)), Catch(copies)
    agent, latest, first = Agent(3, settings, size=36, seed=0), LatestFrames(copies, 36, "cpu"), torch.ones(copies) > 0
    shares = settings.random_shares(copies)
    for step in range(1400):
        frames = games.frames()
        latest.take(frames.numpy(), first.numpy())
        actions = agent.act(latest.look(), shares if step < 1300 else 0.0)
        rewards, ends = games.step(actions.numpy())
        replay.add(frames, first, actions, rewards, rewards, ends)
        first = ends
        if 60 < step < 1300:
            agent.learn(replay, "true")
            agent.learn(replay, "true")
        if step > 1310:
            caught += rewards[ends].tolist()
    assert np.mean(caught) > 0.9


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are recorded on a GPU")
def test_recorded_updates_are_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws, the same weights, to the rounding of kernels that add up in no fixed order."""

    def trained() -> tuple[Agent, list[float]]:
        shown = Episodes(
            np.random.default_rng(0).integers(256, size=(60, 36, 36), dtype=np.uint8), np.arange(60) % 3,
            np.ones(60, dtype=np.float32), np.arange(60) % 20 == 19,
        )  # fmt: skip
        replay = Replay(1, 36, ReplaySettings(capacity=50, n_step=2), shown, device="cuda")
        agent = Agent(3, TINY.agent, size=36, seed=0, device="cuda")
        losses = [agent.imitate(replay).clone() for _ in range(6)]
        losses += [agent.learn(replay, "true").clone() for _ in range(20)]
        return agent, torch.stack(losses).tolist()

    recorded_agent, losses = trained()
    monkeypatch.setattr("alignlab.core.cuda_graphs.WARM_UP", 1000)
    plain, expected = trained()
    assert [work.replay is not None for work in recorded_agent._updates.values()] == [True, True]
    assert [work.replay is not None for work in plain._updates.values()] == [False, False]
    assert losses == pytest.approx(expected, rel=1e-3)
    for one, other in zip(recorded_agent.online.parameters(), plain.online.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)


def acted(device: str) -> tuple[Acting, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Eight steps of three copies, from the fourth on with a reward whose scale then changes; the reward net grows."""
    rng = np.random.default_rng(0)
    agent = Agent(4, TINY.agent, size=36, seed=0, device=device)
    model = ClipReward(TINY.reward, size=36, seed=0, device=device)
    acting = Acting(agent, 3, 36, torch.full((3,), 0.3, device=device), device)
    told = []
    for step in range(12):
        acting.latest.take(rng.integers(256, size=(3, 36, 36), dtype=np.uint8), rng.random(3) < 0.3)
        if step == 8:
            model.mean.fill_(0.5)
            with torch.no_grad():
                model.net.head[-1].weight.mul_(3.0)
        actions = acting.choose(model if step >= 4 else None)
        told.append((actions.cpu().clone(), acting.learned.cpu().clone()))
        if step >= 4:
            assert torch.allclose(acting.learned, model.rewards(acting.latest.stacks), atol=1e-6)
    return acting, told


def test_acting_tells_the_learned_reward() -> None:
    """Zero before there is a model, then its own of what is seen now, also after it was fitted anew."""
    _, told = acted("cpu")
    assert all(learned.eq(0).all() for _, learned in told[:4])
    assert all(learned.ne(0).all() for _, learned in told[4:])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are recorded on a GPU")
def test_recorded_acting_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    acting, told = acted("cuda")
    assert [work.replay is not None for work in acting._work.values()] == [True, True]
    monkeypatch.setattr("alignlab.core.cuda_graphs.WARM_UP", 1000)
    plain, expected = acted("cuda")
    assert [work.replay is not None for work in plain._work.values()] == [False, False]
    for (actions, learned), (others, same) in zip(told, expected, strict=True):
        assert actions.tolist() == others.tolist()
        torch.testing.assert_close(learned, same, rtol=1e-4, atol=1e-5)


def test_targets_take_both_networks() -> None:
    agent = Agent(3, TINY.agent, size=36, seed=0)
    with torch.no_grad():
        agent.target.advantage.bias += torch.tensor([0.0, 1.0, 2.0])
    stacks = torch.randint(256, (5, 4, 36, 36), dtype=torch.uint8)
    batch = Batch(torch.arange(5), stacks, torch.zeros(5, dtype=torch.int64), torch.ones(5), torch.full((5,), 0.5),
                  stacks, torch.ones(5), torch.zeros(5, dtype=torch.bool))  # fmt: skip
    online, target = agent.online(stacks), agent.target(stacks)
    naive = [1 + 0.5 * target[i, online[i].argmax()].item() for i in range(5)]
    assert agent.targets(batch).tolist() == pytest.approx(naive, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("arm", list(ARMS))
def test_every_arm(arm: str) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    learned = learn_atari(TINY, arm, seed=1, log=lambda step, numbers: told.append((step, numbers)))
    assert learned.in_time
    assert (learned.demonstrations is None) == (arm == "preferences")
    if arm == "demonstrations":
        assert learned.steps == 0
        assert learned.agent.updates == 10
        return
    assert learned.steps == 160
    assert learned.agent.updates == 10  # of ten steps of four copies each after the first 120
    labels = [r.labels for r in learned.rounds]
    if arm == "true reward":
        assert labels == []
    else:
        assert labels[0] == (12 if arm == "frozen reward" else 3)
        assert labels[-1] == 12
        assert all(r.loss is not None for r in learned.rounds[:-1])
        assert learned.rounds[-1].loss is None  # a last look, nothing fitted
        assert sum("reward/correlation" in numbers for _, numbers in told) == len(learned.rounds)


@pytest.mark.slow
def test_same_seed_same_agent_and_automatic_answers() -> None:
    settings = replace(TINY, automatic=4)
    one, two = (learn_atari(settings, "preferences+demonstrations", seed=2) for _ in range(2))
    assert one.rounds[0].labels == 3 + 4
    for a, b in zip(one.agent.online.parameters(), two.agent.online.parameters(), strict=True):
        assert torch.equal(a, b)
    scores = [evaluate(one.agent, TINY, episodes=2, seed=5) for _ in range(2)]
    assert np.array_equal(*scores)


@pytest.mark.slow
def test_the_time_is_up() -> None:
    learned = learn_atari(replace(TINY, steps=10**6), "true reward", seed=0, seconds=4.0)
    assert not learned.in_time
    assert learned.steps < 10**6


class Silent:
    """A teacher who says nothing."""

    def judge(self, first: object, second: object, rng: object) -> np.ndarray:
        return np.full(3, np.nan)


@pytest.mark.slow
def test_a_silent_teacher_is_refused() -> None:
    with pytest.raises(FeedbackError, match="there is no reward to learn"):
        learn_atari(TINY, "preferences", seed=0, teacher=Silent())


def test_comparisons_are_paired_and_corrected() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 20, 12)
    better = (base + rng.normal(9, 1, 12)).tolist()
    results = [
        result("preferences+demonstrations", 0, better),
        result("demonstrations", 0, base.tolist()),
        result("true reward", 0, (np.array(better) + rng.normal(0, 1, 12)).tolist()),
    ]
    found = comparisons(results)
    assert found["preferences+demonstrations against demonstrations"].verdict == "better"
    assert found["preferences+demonstrations against demonstrations"].difference.low > 7
    assert found["preferences+demonstrations against true reward"].verdict == "tied"
    text = "\n".join(as_lines(results))
    assert ", better" in text
    assert "right about 90% of fresh pairs" in text
    assert "no parting of learned and true reward" in text
    assert json.loads(json.dumps(as_record(results)))["comparisons"]


def test_what_went_wrong_is_told() -> None:
    alarm = {"step": 50, "labels": 9, "agreement": None, "correlation": None, "account": {"alarm": "rose and fell"}}
    results = [result("preferences+demonstrations", 0, [1.0, 2.0], rounds=[alarm], in_time=False)]
    text = "\n".join(as_lines(results))
    assert "ALARM preferences+demonstrations, seed 0, step 50: rose and fell" in text
    assert "the time was up after 100 steps" in text


@pytest.mark.slow
def test_the_command_is_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "atari",
        "--scale",
        "smoke",
        "--episodes",
        "2",
        "--device",
        "cpu",
        "--labels",
        "8",
        "--run",
        str(tmp_path / "run"),
    ]
    assert reward(flags) == 0
    first = capsys.readouterr().out
    assert "preferences+demonstrations against demonstrations" in first
    stored = json.loads((tmp_path / "run" / "artifacts" / "results.json").read_text())
    assert set(stored["arms"]) == {"preferences+demonstrations", "demonstrations"}
    assert (tmp_path / "run" / "artifacts" / "demonstrations-0.safetensors").stat().st_size > 1000
    assert "Boxing from demonstrations and preferences" in (tmp_path / "run" / "report.html").read_text()
    assert reward(flags) == 0  # nothing is done again
    assert capsys.readouterr().out == first


def test_bad_flags() -> None:
    with pytest.raises(ConfigError, match="arms is 'guessing', allowed: preferences\\+demonstrations, demonstrations"):
        AtariTraining(arms=("guessing",))
    with pytest.raises(ConfigError, match="episodes is 1, allowed: a whole number from 2"):
        AtariTraining(episodes=1)
    with pytest.raises(ConfigError, match="threads is -1, allowed: none or a whole number from 0"):
        AtariTraining(threads=-1)
    with pytest.raises(ConfigError, match="arm is 'guessing'"):
        learn_atari(TINY, "guessing", seed=0)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises((MissingExtraError, ModuleNotFoundError)):
        atari(["--device", "cpu"])


def test_scales() -> None:
    assert settings_of(AtariTraining(scale="full")).size == 84
    made = settings_of(AtariTraining(steps=1000, labels=50, game="pong"))
    assert (made.steps, made.labels, made.game, made.first_steps) == (1000, 50, "pong", 250)
    assert (made.threads, settings_of(AtariTraining(threads=3)).threads) == (1, 3)
