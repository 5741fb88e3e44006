"""`RLHFConfig`: everything that `alignlab rlhf` can be told."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alignlab.align.config import require_all
from alignlab.core.config import require

Method = Literal["ppo", "grpo", "rloo", "reinforce"]
TRAINED = "trained"
"""The reward specification that stands for the model this run trains on its comparisons."""


@dataclass(frozen=True)
class SFTSettings:
    """Supervised fine-tuning on demonstrations, or on the chosen answers of the comparisons."""

    source: Literal["auto", "demonstrations", "chosen", "none"] = "auto"
    """What is learned; auto takes the demonstrations where there are some, else the chosen answers, else nothing."""
    epochs: float = 1.0
    """Passes over the examples."""
    learning_rate: float = 5e-4
    """Peak learning rate of the adapter."""
    rank: int = 16
    """Rank of the LoRA adapter on every linear layer."""
    batch_size: int = 8
    """Packed rows per update."""
    row_length: int = 512
    """Tokens per packed row; a longer example loses the start of its prompt."""
    most: int = 0
    """Examples at most; 0 takes all."""

    def __post_init__(self) -> None:
        require_all(self, "sft.", counts=("rank", "batch_size"), positive=("epochs", "learning_rate"))
        require(self.row_length >= 2, "sft.row_length", self.row_length, "a whole number of at least 2")
        require(self.most >= 0, "sft.most", self.most, "0 or a positive whole number")


@dataclass(frozen=True)
class RewardSettings:
    """The reward model that is trained on the comparisons."""

    epochs: float = 1.0
    """Passes over the comparisons; more than one soon memorises them."""
    learning_rate: float = 5e-4
    """Peak learning rate of adapter and head."""
    rank: int = 16
    """Rank of the adapter."""
    batch_size: int = 8
    """Comparisons per update."""
    max_length: int = 512
    """Tokens of prompt and answer; a longer one loses the start of its prompt."""
    most: int = 0
    """Comparisons at most; 0 takes all."""

    def __post_init__(self) -> None:
        positive = ("epochs", "learning_rate")
        require_all(self, "reward_model.", counts=("rank", "batch_size"), positive=positive)
        require(self.max_length >= 8, "reward_model.max_length", self.max_length, "a whole number of at least 8")
        require(self.most >= 0, "reward_model.most", self.most, "0 or a positive whole number")


@dataclass(frozen=True)
class PolicySettings:
    """Reinforcement learning; what is not here can be said in `options`."""

    steps: int = 40
    """Rollout batches."""
    batch_size: int = 32
    """Answers per rollout batch."""
    group_size: int = 4
    """Answers to each prompt (grpo and rloo; the others take one)."""
    learning_rate: float = 2e-4
    """Peak learning rate of the policy's adapter."""
    kl_coefficient: float = 0.05
    """Reward lost per nat of KL to the model before reinforcement learning."""
    max_tokens: int = 64
    """Longest answer, in tokens."""
    stop: tuple[str, ...] = ()
    """An answer ends before the first of these strings."""
    missing_end_penalty: float = 0.0
    """Taken from the reward of an answer that ran into `max_tokens` without ending."""
    rank: int = 16
    """Rank of the policy's adapter."""
    microbatch_size: int = 8
    """Answers per forward and backward pass; smaller takes less memory and changes nothing else."""
    checkpoint_every: int = 5
    """Rollout batches between checkpoints."""
    reward_time_limit: float = 300.0
    """Seconds for one call of the reward."""
    reward_tokenizer: Literal["same", "any"] = "same"
    """`same` stops where a reward model reads the texts with another tokenizer than the policy's."""
    options: tuple[str, ...] = ()
    """Further settings of the method, NAME=VALUE each: see `PPOConfig`, `GRPOConfig`, `RLOOConfig`,
    `ReinforceConfig`; for example clip_high=0.28 aggregate=token."""

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "group_size", "max_tokens", "rank", "microbatch_size", "checkpoint_every")
        require_all(self, "rl.", counts=counts, positive=("learning_rate", "reward_time_limit"))
        for name in ("kl_coefficient", "missing_end_penalty"):
            value = getattr(self, name)
            require(0 <= value < math.inf, "rl." + name, value, "0 or a positive number")


@dataclass(frozen=True)
class JudgeSettings:
    """The held-out judge of the win rate: it takes no part in training."""

    model: str | None = None
    """A language model that is shown both answers, in both orders."""
    url: str | None = None
    """The OpenAI-compatible endpoint where `model` is asked; none: it is loaded here."""
    reward: str | None = None
    """A reward that judges (as in `reward`), or `comparisons`: a reward model trained for it on comparisons that the
    policy's reward never sees."""
    share: float = 0.4
    """Share of the comparisons that `comparisons` takes."""
    labels: str | None = None
    """Where the judge's own error is measured: a JSONL file of pairs with people's verdicts, `lab` (40 pairs of our
    own), or `none`; without it, the comparisons kept back, where there are some."""
    n_labels: int = 200
    """Pairs with verdicts at most; 0 takes all."""

    def __post_init__(self) -> None:
        both = self.model is None or self.reward is None
        require(both, "judge.reward", self.reward, "none where judge.model is given: one of them judges")
        alone = self.url is None or self.model is not None
        require(alone, "judge.url", self.url, "given together with judge.model")
        require(0 < self.share < 1, "judge.share", self.share, "a number between 0 and 1")
        require(self.n_labels >= 0, "judge.n_labels", self.n_labels, "0 (all) or a positive whole number")
        told = self.labels is None or self.model is not None or self.reward is not None
        require(told, "judge.labels", self.labels, "none without a judge")


@dataclass(frozen=True)
class CombineSettings:
    """Several rewards as one, as `ObjectivesConfig` of `alignlab.align.objectives` has it (which checks it)."""

    method: Literal["weighted", "constrained", "lexicographic"] = "weighted"
    """The weighted sum; one reward with lower bounds on the means of others; or a strict order."""
    normalise: Literal["none", "batch", "running"] = "none"
    """Bring each reward to mean 0 and deviation 1 first, but for those under a bound."""
    maximise: str = ""
    """constrained: the name of the reward that is to be large."""
    bounds: dict[str, float] = field(default_factory=dict)
    """constrained: the least mean of the others."""
    order: tuple[str, ...] = ()
    """lexicographic: the names, the weightiest first."""
    tolerances: dict[str, float] = field(default_factory=dict)
    """lexicographic: how far behind the best is as good as equal, in deviations."""
    rate: float = 0.3
    """constrained: how fast multipliers follow violations."""
    proportional: float = 0.5
    """constrained: how much of the present violation they add."""
    derivative: float = 0.0
    """constrained: how much of the violation's growth they add, against overshooting."""
    smoothing: float = 0.0
    """constrained: share of its past in the violation that those two read."""


@dataclass(frozen=True)
class TaskSettingsOfReward:
    """How the task of a reward `task:NAME` is made."""

    data: Path | None = None
    """Its file, where it needs one."""
    shots: int = 0
    """Solved examples before each item."""
    limit: int = 0
    """Most items; 0 takes all."""
    chat: bool | None = None
    """Ask as a conversation, or as raw text; none: as the task has it."""

    def __post_init__(self) -> None:
        for name in ("shots", "limit"):
            require(getattr(self, name) >= 0, f"task.{name}", getattr(self, name), "0 or a positive whole number")


@dataclass(frozen=True)
class RLHFConfig:
    """Reinforcement learning from feedback, in one run: fine-tuning, a reward model, PPO, GRPO, RLOO or REINFORCE, and
    a report of what was gained. Without comparisons, reinforcement learning on a reward that there is already."""

    comparisons: Path | None = None
    """Comparisons of answers: HH-RLHF's, Stiennon's summaries, TRL's, UltraFeedback's, our own export."""
    demonstrations: Path | None = None
    """Examples to learn first: conversations, prompts with answers, posts with summaries."""
    prompts: Path | None = None
    """What the policy is asked (.txt or rows with prompt, messages or a document); none: the prompts of the reward's
    task, of the comparisons or of the demonstrations."""
    eval_prompts: Path | None = None
    """Held-out prompts to measure on; none: a share `heldout` of the others, whole dialogues."""
    reward: tuple[str, ...] = ()
    """What is maximised, [NAME=][WEIGHT*]REWARD each: `trained`, a reward model or its run, FILE.py:NAME, MODULE:NAME,
    task:NAME or a web address; none: `trained`, where there are comparisons."""
    combine: CombineSettings = field(default_factory=CombineSettings)
    """Several rewards as one: weighted, constrained or lexicographic."""
    gold: str | None = None
    """A reward that is only measured, never maximised."""
    method: Method = "ppo"
    """How the policy is improved."""
    model: str = "smollm2-135m-instruct"
    """The model to start from: a catalogue or registered name, a directory, a .gguf file or a hub id."""
    name: str = "rlhf"
    """Name under which the result is registered."""
    template: str = "{text}\n\nTL;DR:"
    """How a document becomes a prompt, with {text}."""
    raw: bool = False
    """Let the model go on with prompts that are plain text; else a chat model is asked them in a conversation."""
    heldout: float = 0.1
    """Share of comparisons, and of prompts, that is kept back to measure on."""
    n_prompts: int = 0
    """Training prompts to use; 0 takes all."""
    n_eval: int = 64
    """Held-out prompts to measure on; 0 takes all."""
    max_prompt_tokens: int = 384
    """Longer prompts are left out, and counted."""
    temperature: float = 1.0
    """Of the answers that are measured; 1 is the distribution that is trained, 0 greedy."""
    batch_size: int = 32
    """Prompts decoded together when measuring."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the base weights."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    seed: int = 0
    """Everything random derives from it, but for what is held out."""
    split_seed: int = 0
    """Of what is held out: runs that differ in `seed` alone are measured on the same prompts."""
    sft: SFTSettings = field(default_factory=SFTSettings)
    """Supervised stage."""
    reward_model: RewardSettings = field(default_factory=RewardSettings)
    """Reward model."""
    rl: PolicySettings = field(default_factory=PolicySettings)
    """Reinforcement stage."""
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    """Win rate."""
    task: TaskSettingsOfReward = field(default_factory=TaskSettingsOfReward)
    """The task behind a reward `task:NAME`."""

    def __post_init__(self) -> None:
        require_all(self, "", counts=("batch_size", "max_prompt_tokens"))
        plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name) is not None and self.name != "latest"
        require(plain, "name", self.name, "letters, digits, '.', '_' and '-', not 'latest'")
        for name in ("n_prompts", "n_eval"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 (all) or a positive whole number")
        require(0 < self.heldout < 1, "heldout", self.heldout, "a number between 0 and 1")
        require(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 (greedy) or a positive number")
        require("{text}" in self.template, "template", self.template, "a text with {text} in it")
        groups = self.method in ("grpo", "rloo")
        fits = not groups or (self.rl.group_size >= 2 and self.rl.batch_size % self.rl.group_size == 0)
        size = self.rl.group_size
        require(fits, "rl.batch_size", self.rl.batch_size, f"a multiple of rl.group_size ({size}), which is 2 or more")

    def check_sources(self) -> None:
        """ConfigError where what needs comparisons, or demonstrations, has none.

        Not a check of every configuration: a recipe may leave the files to the command line.
        """
        have = self.comparisons is not None
        require(have or bool(self.reward), "reward", self.reward, "a reward, or comparisons to train one on")
        for spec in self.reward:
            wants = is_trained(spec)
            require(have or not wants, "reward", spec, "another one without comparisons to train it on")
        require(self.gold != TRAINED, "gold", self.gold, "a reward that the policy is not trained on")
        judged = self.judge.reward == "comparisons"
        require(have or not judged, "judge.reward", self.judge.reward, "another one without comparisons")
        source = self.sft.source
        require(source != "chosen" or have, "sft.source", source, "chosen only with comparisons")
        shown = source != "demonstrations" or self.demonstrations is not None
        require(shown, "sft.source", source, "demonstrations only with a file of them")

    @property
    def sft_source(self) -> Literal["demonstrations", "chosen", "none"]:
        """What the supervised stage learns."""
        if self.sft.source != "auto":
            return self.sft.source
        if self.demonstrations is not None:
            return "demonstrations"
        return "none" if self.comparisons is None else "chosen"

    @property
    def rewards(self) -> tuple[str, ...]:
        """What is maximised."""
        return self.reward or (TRAINED,)

    @property
    def trains_reward(self) -> bool:
        """Whether a reward model is trained in this run."""
        return any(map(is_trained, self.rewards))


def is_trained(spec: str) -> bool:
    """Whether a specification stands for the reward model of this run."""
    return re.split(r"[*=]", spec)[-1].strip() == TRAINED
