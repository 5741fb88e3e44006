"""`alignlab reward trajectories`: learn a control task from preferences between clips, beside its true reward."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignlab.core.config import parse_cli, require

if TYPE_CHECKING:
    from alignlab.align.trajectories.learning import Learned, LearningSettings
    from alignlab.align.trajectories.teacher import Teacher
    from alignlab.core.runs import Run

EPISODES = 100


@dataclass(frozen=True)
class TrajectoryTraining:
    """Learn a control task from preferences between clips (Christiano et al. 2017), over several seeds."""

    env: str = "Pendulum-v1"
    """A task of gymnasium; CartPole-v1 and Pendulum-v1 are built in and fast."""
    labels: int = 700
    """Comparisons a seed."""
    teacher: Literal["synthetic", "human"] = "synthetic"
    """synthetic knows the true reward; human waits for the page Clips of `alignlab app`."""
    teacher_error: float = 0.0
    """Share of the synthetic teacher's answers that are turned round."""
    rationality: float | None = None
    """Make the synthetic teacher noisy: Bradley-Terry with this factor on the difference of returns."""
    queries: Literal["disagreement", "random"] = "disagreement"
    """Ask where the reward networks disagree, or at random."""
    steps: int = 80_000
    """Steps of the task for each agent."""
    length: int = 25
    """Steps of a clip."""
    seeds: int = 5
    """Agents to train, each from its own seed."""
    compare: bool = True
    """Train an agent on the true reward beside each."""
    seed: int = 0
    """The first seed."""
    store: str | None = None
    """Database of the human teacher's judgements, a path or URL; none: the one of `alignlab preferences`."""
    project: str = "clips"
    """Its project there; each seed asks in PROJECT-SEED."""
    patience: float | None = None
    """Minutes to wait for an answer before giving up; none: for ever."""

    def __post_init__(self) -> None:
        for name in ("labels", "steps", "length", "seeds"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a positive whole number")
        require(0 <= self.teacher_error <= 0.5, "teacher_error", self.teacher_error, "a number from 0 to 0.5")
        require(self.patience is None or self.patience > 0, "patience", self.patience, "none or a positive number")


@dataclass(frozen=True)
class TrajectoryCommand(TrajectoryTraining):
    """Learn a control task from preferences between clips (Christiano et al. 2017), over several seeds."""

    run: Path | None = None
    """Directory of the run; one that exists is gone on with."""
    sinks: tuple[str, ...] = ()
    """Where metrics go as well: tensorboard, wandb (offline), mlflow."""


def trajectories(argv: list[str]) -> int:
    """The `alignlab reward trajectories` command; returns its exit code."""
    command = parse_cli(TrajectoryCommand, argv, prog="alignlab reward trajectories")
    from alignlab.align.trajectories.measures import SeedResult, as_lines, as_record, summarise
    from alignlab.core.run_choice import run_at

    config = TrajectoryTraining(**{f.name: getattr(command, f.name) for f in fields(TrajectoryTraining)})
    settings = settings_of(config)
    with run_at(command.run, config, name="trajectories", sinks=command.sinks) as run:
        results = []
        for seed in range(config.seed, config.seed + config.seeds):
            found = run.stage(f"seed-{seed}", lambda seed=seed: one_seed(config, settings, seed, run))  # type: ignore[misc]
            result = SeedResult(**{f.name: found[f.name] for f in fields(SeedResult)})
            results.append(result)
            share = "" if result.share is None else f", {result.share:.0%} of the true reward's gain"
            print(f"seed {seed}: return {result.learned:.1f} from {result.labels} comparisons{share}", flush=True)
        run.write_artifact("results.json", as_record(results))
        print("\n".join(as_lines(summarise(results))))
        print(f"run  {run.path}")
    return 0


def settings_of(config: TrajectoryTraining) -> LearningSettings:
    """How one agent learns, from the flags; ConfigError where the task cannot be made."""
    from alignlab.align.trajectories.clips import check_drawable
    from alignlab.align.trajectories.control import make_task
    from alignlab.align.trajectories.learning import LearningSettings

    if config.teacher == "human":
        check_drawable(config.env)
    make_task(config.env, 1)  # a task that cannot be made is refused before there is a run
    first = LearningSettings()
    return LearningSettings(
        env=config.env,
        steps=config.steps,
        labels=config.labels,
        length=config.length,
        queries=config.queries,
        round_size=max(1, round(first.round_size * config.labels / first.labels)),
    )


def one_seed(config: TrajectoryTraining, settings: LearningSettings, seed: int, run: Run) -> dict[str, Any]:
    """Train one agent on preferences, and one on the true reward; what to record about them."""
    from alignlab.align.trajectories.learning import learn_from_preferences, learn_with_true_reward
    from alignlab.align.trajectories.policy import evaluate_agent
    from alignlab.core.rng import derive_seed

    def log(step: int, numbers: dict[str, float], kind: str) -> None:
        run.log(step, {f"{kind}/seed-{seed}/{name}": value for name, value in numbers.items()})

    def final(learned: Learned | None) -> float:
        agent = None if learned is None else learned.agent
        test = derive_seed(seed, "test episodes")
        return float(evaluate_agent(agent, config.env, episodes=EPISODES, seed=test).mean())

    with _teacher(config, seed) as teacher:
        learned = learn_from_preferences(settings, teacher, seed=seed, log=lambda n, m: log(n, m, "learned"))
    true = None
    if config.compare:
        true = learn_with_true_reward(settings, seed=seed, log=lambda n, m: log(n, m, "true"))
    return {
        "seed": seed,
        "learned": final(learned),
        "true": None if true is None else final(true),
        "random": final(None),
        "labels": 0 if learned.comparisons is None else len(learned.comparisons),
        "correlation": learned.correlation,
        "curve": learned.curve,
        "true_curve": None if true is None else true.curve,
    }


def _teacher(config: TrajectoryTraining, seed: int) -> Any:
    """The teacher, as a context that ends with its database."""
    from contextlib import nullcontext

    from alignlab.align.trajectories.teacher import SyntheticTeacher

    if config.teacher == "synthetic":
        teacher: Teacher = SyntheticTeacher(error_rate=config.teacher_error, rationality=config.rationality)
        return nullcontext(teacher)
    from alignlab.align.trajectories.human import HumanTeacher

    return HumanTeacher.open(config.store, f"{config.project}-{seed}", config.env, patience=config.patience)
