"""How an agent learns a game: everything that may be set, and what suits a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from alignlab.align.atari.agent import AgentSettings
from alignlab.align.atari.clip_reward import ClipRewardSettings
from alignlab.align.atari.environments import MOST_STEPS
from alignlab.align.atari.games import named
from alignlab.align.atari.replay import ReplaySettings
from alignlab.core.config import require


@dataclass(frozen=True)
class AtariSettings:
    """One agent that learns a game."""

    game: str = "boxing"
    """Which."""
    steps: int = 2_000_000
    """Steps of the agent, of four ticks each."""
    copies: int = 32
    """Of the game, side by side."""
    updates: int = 2
    """Of the agent after each step of all copies."""
    size: int = 84
    """Rows and columns of a frame."""
    threads: int = 0
    """That play the games; 0: one a core."""
    demonstrated: int = 5_000
    """Steps of demonstrations."""
    slips: float = 0.15
    """Share of the demonstrator's actions that are random."""
    imitation: int = 5_000
    """Updates by the margin's loss before the agent plays."""
    imitation_alone: int = 20_000
    """The same where nothing else is learned from."""
    first_steps: int = 10_000
    """Steps of the agent that imitates which the first questions are about."""
    labels: int = 4_000
    """Comparisons to ask for."""
    automatic: int = 0
    """Comparisons nobody is asked: a demonstrated clip is preferred to one of the agent that imitates."""
    initial: float = 0.25
    """Share of the comparisons asked at the beginning."""
    annealing: float = 0.2
    """How slowly the rate of questions falls, as a share of the steps."""
    round_size: int = 150
    """Comparisons asked at once after the first."""
    length: int = 25
    """Steps of a clip."""
    pool_steps: int = 50_000
    """Latest steps that questions are about."""
    test_pairs: int = 300
    """Fresh pairs on which the reward model is tested after every round; nobody is asked about them."""
    evaluations: int = 5
    """Points of the curve of scores."""
    curve_episodes: int = 8
    """Episodes of each point."""
    most_steps: int = MOST_STEPS
    """Steps after which an episode is cut."""
    agent: AgentSettings = field(default_factory=AgentSettings)
    """The agent."""
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    """What it learns from."""
    reward: ClipRewardSettings = field(default_factory=ClipRewardSettings)
    """The reward model."""

    def __post_init__(self) -> None:
        named(self.game)
        for name in (
            "steps", "copies", "updates", "size", "demonstrated", "imitation", "imitation_alone", "first_steps",
            "labels", "round_size", "length", "pool_steps", "test_pairs", "evaluations", "curve_episodes", "most_steps",
        ):  # fmt: skip
            require(getattr(self, name) >= 1, name, getattr(self, name), "a positive whole number")
        for name in ("threads", "automatic"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or a positive whole number")
        require(0 <= self.slips <= 1, "slips", self.slips, "a number from 0 to 1")
        require(0 < self.initial <= 1, "initial", self.initial, "a number above 0 and up to 1")
        require(self.annealing > 0, "annealing", self.annealing, "a positive number")
        require(self.size >= 36, "size", self.size, "a whole number from 36")


def small() -> AtariSettings:
    """Little networks and frames, few steps: minutes on a CPU, and no good player."""
    return AtariSettings(
        steps=40_000, copies=8, updates=1, size=42, threads=1, demonstrated=4000, imitation=1000, imitation_alone=4000,
        first_steps=2000, labels=400, round_size=60, pool_steps=5000, test_pairs=60, evaluations=4, curve_episodes=4,
        agent=AgentSettings(width=16, hidden=128, batch_size=32, target_every=300, learning_rate=3e-4),
        replay=ReplaySettings(capacity=40_000),
        reward=ClipRewardSettings(width=8, first_updates=150, updates=60, batch_size=8, learning_rate=1e-3, shift=2),
    )  # fmt: skip


def smoke() -> AtariSettings:
    """Seconds: that everything runs, not that anything is learned."""
    return AtariSettings(
        steps=160, copies=4, updates=1, size=36, threads=1, demonstrated=120, imitation=5, imitation_alone=10,
        first_steps=120, labels=12, round_size=4, pool_steps=160, length=5, test_pairs=20, evaluations=1,
        curve_episodes=2, most_steps=40,
        agent=AgentSettings(width=2, hidden=8, batch_size=8, target_every=4),
        replay=ReplaySettings(capacity=400, n_step=3),
        reward=ClipRewardSettings(width=2, first_updates=5, updates=2, batch_size=4, shift=1),
    )  # fmt: skip


SCALES: dict[str, Callable[[], AtariSettings]] = {"smoke": smoke, "small": small, "full": AtariSettings}
"""Settings by name."""
