"""`alignlab reward`: train a reward model on comparisons, validate it on others, score answers with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignlab.core.actions import call, listed
from alignlab.core.config import parse_cli, require
from alignlab.core.errors import ConfigError

ACTIONS: dict[str, tuple[str, str]] = {
    "train": ("alignlab.align.reward.train_cli:train", "learn a reward from a file of comparisons"),
    "validate": ("alignlab.align.reward_validation.cli:validate", "agreement by slice, robustness, over-optimisation"),
    "score": ("alignlab.align.reward.cli:score", "the reward of answers, in a file or given here"),
    "trajectories": ("alignlab.align.trajectories.cli:trajectories", "learn a control task from comparisons of clips"),
    "atari": ("alignlab.align.atari.cli:atari", "learn an Atari game from demonstrations and comparisons of clips"),
}
"""Where each action is: `module:function`, a function of its arguments that returns an exit code."""


def usage() -> str:
    """The text of `alignlab reward --help`."""
    return (
        "usage: alignlab reward ACTION ...\n\n"
        "Reward models: what people (or an AI) prefer, as a number.\n\n"
        f"{listed(ACTIONS)}\n\n"
        "`alignlab reward ACTION --help` lists the options of one."
    )


def reward(argv: list[str]) -> int:
    """The `alignlab reward` command; returns its exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, *rest = argv
    if name not in ACTIONS:
        raise ConfigError(f"unknown action {name!r} of alignlab reward, allowed: {', '.join(ACTIONS)}")
    return call(ACTIONS[name][0], rest)


@dataclass(frozen=True)
class ScoreCommand:
    """Score answers with a reward model: those in a JSONL file, or one prompt's given here."""

    model: Path
    """The directory of a reward model, or the run that trained one."""
    data: Path | None = None
    """JSONL with prompt (text or messages) and response in each line."""
    prompt: str | None = None
    """A request, in place of `data`."""
    response: tuple[str, ...] = ()
    """Answers to it."""
    out: Path | None = None
    """Where to write the lines with their reward; none: the terminal."""
    pessimism: float = 0.0
    """Deviations of the members that are subtracted from the mean of an ensemble."""
    batch_size: int = 16
    """Responses per forward pass."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the trunk's weights."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size", self.batch_size, "a positive whole number")
        require(self.pessimism >= 0, "pessimism", self.pessimism, "0 or a positive number")
        asked = self.prompt is not None and bool(self.response)
        if (self.data is not None) == asked:
            raise ConfigError("give either --data FILE, or --prompt TEXT with --response TEXT ...")


def score(argv: list[str]) -> int:
    """The `alignlab reward score` command; returns its exit code."""
    command = parse_cli(ScoreCommand, argv, prog="alignlab reward score", first="model")
    import json

    from alignlab.align.reward.ensemble import RewardEnsemble
    from alignlab.align.reward.saved import load_reward, read_answers, scored
    from alignlab.core.files import atomic_write

    if command.data is not None:
        rows = read_answers(command.data)
    else:
        rows = [{"prompt": command.prompt, "response": text} for text in command.response]
    model, _ = load_reward(command.model, dtype=command.dtype, device=command.device, batch_size=command.batch_size)
    if command.prompt is not None:
        rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    ensemble = model if isinstance(model, RewardEnsemble) else RewardEnsemble([model], pessimism=command.pessimism)
    ensemble.pessimism = command.pessimism
    found = scored(ensemble, rows)
    if command.out is not None:
        atomic_write(command.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
        print(f"{len(found)} answers scored: {command.out}")
        return 0
    for row in found:
        spread = f" ± {row['uncertainty']:.3f}" if "uncertainty" in row else ""
        print(f"{row['reward']:+.3f}{spread}  {' '.join(str(row['response']).split())[:100]}")
    return 0
