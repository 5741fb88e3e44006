"""`alignlab rlhf`: the command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.align.rlhf.config import RLHFConfig
from alignlab.core.config import parse_cli, require
from alignlab.core.errors import DataError

if TYPE_CHECKING:
    from alignlab.lm.types import Prompt
    from alignlab.train.parallel import Parallel

LONGEST_WAIT = 86_400.0
"""Seconds: the other processes wait while one fine-tunes and trains the reward model."""


@dataclass(frozen=True)
class RLHFCommand(RLHFConfig):
    """Align a model with feedback: fine-tune on demonstrations, train a reward model on comparisons, improve the policy
    with PPO, GRPO, RLOO or REINFORCE, and measure what was gained. With a reward of yours, the last two alone.

    Started again with the same settings it goes on where it stopped; a finished run is shown, not repeated.
    """

    run: Path | None = None
    """Directory of the run; none makes one below ./runs, or goes on with the last unfinished one of these settings."""
    fresh: bool = False
    """Start a new run even where one of these settings exists."""
    sinks: tuple[str, ...] = ()
    """Where metrics go as well: tensorboard, wandb (offline), mlflow."""


def rlhf(argv: list[str]) -> int:
    """The `alignlab rlhf` command; returns its exit code."""
    command = parse_cli(RLHFCommand, argv, prog="alignlab rlhf", first="comparisons")
    config = RLHFConfig(**{name: getattr(command, name) for name in RLHFConfig.__dataclass_fields__})
    from alignlab.align.rlhf.models import assist
    from alignlab.train.parallel import leaving, parallel_from_env

    with leaving(parallel_from_env("auto", timeout_seconds=LONGEST_WAIT)) as parallel:
        if parallel.is_main:
            write(config, command, parallel)
        else:
            assist(config, parallel)
    return 0


def write(config: RLHFConfig, command: RLHFCommand, parallel: Parallel) -> None:
    """The process that has the run: every stage, the report, what to say at the end."""
    from alignlab.align.rlhf.pipeline import RLHFPipeline
    from alignlab.align.rlhf.report import build_report, summary_lines
    from alignlab.core.progress import Progress
    from alignlab.core.run_choice import open_or_create
    from alignlab.train.parallel import restarted

    progress = Progress()
    run = open_or_create(
        config, name="rlhf", seed=config.seed, path=command.run, fresh=command.fresh and not restarted(),
        sinks=command.sinks, check=lambda: check_inputs(config), progress=progress,
    )  # fmt: skip
    with run:
        RLHFPipeline(config, run, progress, parallel).execute()
        report = build_report(run).save(run.path / "report.html")
        progress.say("")
        print("\n".join([*summary_lines(run), f"report  {report}", f"talk to it:  alignlab chat {config.name}"]))


def check_inputs(config: RLHFConfig) -> None:
    """Raise what is wrong with files and names before there is a run directory."""
    from alignlab.align.rlhf.config import TRAINED
    from alignlab.align.rlhf.methods import method_config
    from alignlab.align.rlhf.rewards import RewardSpec, joined, named_parts, open_reward, prompts_of
    from alignlab.align.rlhf.sources import Asking, read_asked, read_comparisons, read_demonstrations
    from alignlab.core.device import pick_device
    from alignlab.lm.language_model import resolve
    from alignlab.tasks.judges.labelled import read_labels

    config.check_sources()
    method_config(config.method, config.rl, config.seed)
    pick_device(config.device)
    asking = Asking(config.template)
    if config.comparisons is not None:
        read_comparisons(config.comparisons, asking)
    if config.demonstrations is not None:
        read_demonstrations(config.demonstrations, asking)
    for path in (config.prompts, config.eval_prompts):
        if path is not None:
            read_asked(path, asking)
    labels = config.judge.labels
    if labels is not None and labels not in ("lab", "none"):
        if not Path(labels).is_file():
            raise DataError(f"judge.labels is {labels!r}, which is no file; allowed: a JSONL file, lab or none")
        read_labels(labels)
    resolve(config.model)
    if config.judge.model is not None and config.judge.url is None:
        resolve(config.judge.model)
    parts = named_parts(config.rewards)
    joined({name: (nothing_yet, spec.weight) for name, spec in parts.items()}, config.combine, 1.0)
    asked = any((config.prompts, config.comparisons, config.demonstrations))
    for text in (*config.rewards, config.gold, config.judge.reward):
        spec = None if text is None else RewardSpec.parse(text)
        if spec is not None and spec.spec not in (TRAINED, "comparisons") and not Path(spec.spec).expanduser().exists():
            reward = open_reward(spec.spec, config.task, dtype="auto", device=config.device, seed=config.seed)
            asked = asked or (text in config.rewards and bool(prompts_of(reward).train))
    require(asked, "prompts", config.prompts, "a file of prompts, because neither the reward nor another file has some")


def nothing_yet(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    """Stands for a reward that is not trained yet, where only names are checked."""
    return [0.0] * len(responses)
