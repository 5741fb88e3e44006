"""`alignlab reward atari`: learn an Atari game from demonstrations and preferences, beside its baselines."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignlab.core.config import parse_cli, require

if TYPE_CHECKING:
    from alignlab.align.atari.settings import AtariSettings
    from alignlab.core.runs import Run


@dataclass(frozen=True)
class AtariTraining:
    """Learn an Atari game from demonstrations and preferences between clips (Ibarz et al. 2018), over several seeds."""

    game: Literal["boxing", "breakout", "pong"] = "boxing"
    """Games with a scripted demonstrator."""
    arms: tuple[str, ...] = ("preferences+demonstrations", "demonstrations")
    """What to learn from: preferences+demonstrations, demonstrations (imitation alone), 'true reward', preferences, or
    'frozen reward' (all questions at the beginning)."""
    scale: Literal["smoke", "small", "full"] = "small"
    """full: 84x84 frames, 2,000,000 steps, for a GPU; small: little networks and frames, for a CPU; smoke: seconds."""
    steps: int | None = None
    """Steps of each agent, four ticks each; none: what suits the scale."""
    labels: int | None = None
    """Comparisons; none: what suits the scale."""
    demonstrated: int | None = None
    """Steps of demonstrations; none: what suits the scale."""
    slips: float = 0.15
    """Share of the demonstrator's actions that are random."""
    automatic: int = 0
    """Comparisons made up: a demonstrated clip is preferred to one of the agent that imitates."""
    teacher_error: float = 0.0
    """Share of the synthetic teacher's answers that are turned round."""
    episodes: int = 20
    """Test episodes of each agent."""
    seeds: int = 1
    """Agents of each arm, each from its own seed and demonstrations."""
    seed: int = 0
    """The first seed."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int | None = None
    """That play the games of an agent, 0: one a core; none: what suits the scale."""
    minutes: float | None = None
    """For each agent's training; what is not done then is left, and said."""

    def __post_init__(self) -> None:
        from alignlab.align.atari.arms import ARMS

        for arm in self.arms:
            require(arm in ARMS, "arms", arm, ", ".join(ARMS))
        require(len(self.arms) > 0, "arms", self.arms, "at least one")
        for name in ("steps", "labels", "demonstrated", "seeds"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "a positive whole number")
        require(self.episodes >= 2, "episodes", self.episodes, "a whole number from 2")
        require(0 <= self.slips <= 1, "slips", self.slips, "a number from 0 to 1")
        require(self.automatic >= 0, "automatic", self.automatic, "0 or a positive whole number")
        require(0 <= self.teacher_error <= 0.5, "teacher_error", self.teacher_error, "a number from 0 to 0.5")
        require(self.threads is None or self.threads >= 0, "threads", self.threads, "none or a whole number from 0")
        require(self.minutes is None or self.minutes > 0, "minutes", self.minutes, "none or a positive number")


@dataclass(frozen=True)
class AtariCommand(AtariTraining):
    """Learn an Atari game from demonstrations and preferences between clips (Ibarz et al. 2018), over several seeds."""

    run: Path | None = None
    """Directory of the run; one that exists is gone on with."""
    sinks: tuple[str, ...] = ()
    """Where metrics go as well: tensorboard, wandb (offline), mlflow."""


def atari(argv: list[str]) -> int:
    """The `alignlab reward atari` command; returns its exit code."""
    command = parse_cli(AtariCommand, argv, prog="alignlab reward atari")
    from alignlab.align.atari.games import load_ale
    from alignlab.align.atari.measures import ArmResult, as_lines, as_record
    from alignlab.align.atari.page import atari_page
    from alignlab.core.device import pick_device
    from alignlab.core.run_choice import run_at

    load_ale()
    pick_device(command.device)  # what is missing is said before there is a run
    config = AtariTraining(**{f.name: getattr(command, f.name) for f in fields(AtariTraining)})
    settings = settings_of(config)
    with run_at(command.run, config, name="atari", sinks=command.sinks) as run:
        results = []
        for seed in range(config.seed, config.seed + config.seeds):
            for arm in config.arms:
                name = f"{arm.replace('+', '-').replace(' ', '-')}-{seed}"
                found = run.stage(name, lambda arm=arm, seed=seed: one_arm(config, settings, arm, seed, run))  # type: ignore[misc]
                results.append(ArmResult(**{f.name: found[f.name] for f in fields(ArmResult)}))
                score = sum(results[-1].scores) / len(results[-1].scores)
                print(
                    f"{config.game}, {arm}, seed {seed}: score {score:.1f} over {config.episodes} episodes", flush=True
                )
        run.write_artifact("results.json", as_record(results))
        report = atari_page(results, config.game).save(run.path / "report.html")
        print("\n".join(as_lines(results)))
        print(f"report  {report}\nrun     {run.path}")
    return 0


def settings_of(config: AtariTraining) -> AtariSettings:
    """How an agent learns, from the flags."""
    from alignlab.align.atari.settings import SCALES

    settings = SCALES[config.scale]()
    names = ("steps", "labels", "demonstrated", "threads")
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    if "steps" in given:
        given["first_steps"] = min(settings.first_steps, max(1, given["steps"] // 4))
    return replace(settings, game=config.game, slips=config.slips, automatic=config.automatic, **given)


def one_arm(config: AtariTraining, settings: AtariSettings, arm: str, seed: int, run: Run) -> dict[str, Any]:
    """Train and test one agent, keep its weights; what to record about it."""
    import torch
    from safetensors.torch import save

    from alignlab.align.atari.measures import measure_arm
    from alignlab.align.trajectories.teacher import SyntheticTeacher
    from alignlab.core.device import pick_device

    device = pick_device(config.device)
    if device.type == "cuda":
        torch.set_num_threads(1)  # the cores play the games
        torch.set_float32_matmul_precision("high")  # the convolutions' own precision
    found, learned = measure_arm(
        settings, arm, seed=seed, episodes=config.episodes, device=device,
        teacher=SyntheticTeacher(error_rate=config.teacher_error),
        log=lambda step, numbers: run.log(step, {f"{arm}/seed-{seed}/{k}": v for k, v in numbers.items()}),
        seconds=None if config.minutes is None else 60 * config.minutes,
    )  # fmt: skip
    weights = {name: value.detach().cpu().contiguous() for name, value in learned.agent.online.state_dict().items()}
    name = f"{arm.replace('+', '-').replace(' ', '-')}-{seed}.safetensors"
    run.write_artifact(name, save(weights))
    return asdict(found)
