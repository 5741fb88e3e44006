"""`alignlab align` and `alignlab report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alignlab.align.config import AlignConfig
from alignlab.core.config import parse_cli, require
from alignlab.core.progress import Progress
from alignlab.core.run_choice import open_or_create
from alignlab.core.run_status import find_run
from alignlab.core.runs import Run


@dataclass(frozen=True)
class AlignCommand(AlignConfig):
    """Align a model with a constitution: baseline, critique, revision, SL, AI preferences, RL, report.

    Started again with the same settings it goes on where it stopped; a finished run is shown, not repeated.
    """

    run: Path | None = None
    """Directory of the run; none makes one below ./runs, or goes on with the last unfinished one of these settings."""
    fresh: bool = False
    """Start a new run even where one of these settings exists."""
    sinks: tuple[str, ...] = ()
    """Where metrics go as well: tensorboard, wandb (offline), mlflow."""


def align(argv: list[str]) -> int:
    """The `alignlab align` command; returns its exit code."""
    command = parse_cli(AlignCommand, argv, prog="alignlab align")
    config = AlignConfig(**{name: getattr(command, name) for name in AlignConfig.__dataclass_fields__})
    progress = Progress()
    run = open_or_create(
        config, name="align", seed=config.seed, path=command.run, fresh=command.fresh, sinks=command.sinks,
        check=lambda: check_inputs(config), progress=progress,
    )  # fmt: skip
    with run:
        execute(config, run, progress)
        report = write_report(run)
        progress.say("")
        print(summary(run, report))
    return 0


def check_inputs(config: AlignConfig) -> None:
    """Raise what is wrong with the files and names in `config` before there is a run directory."""
    from alignlab.align.constitution import Constitution
    from alignlab.align.endpoint import open_endpoint
    from alignlab.core.device import pick_device
    from alignlab.data.prompts import read_prompt_file
    from alignlab.lm.language_model import refuse_unpackable, resolve

    constitution = Constitution.load(config.constitution)
    constitution.draw(0, category="harmlessness")  # critiques need a principle of it
    for name in ("preamble", "opposite"):
        text = getattr(constitution, name)
        require(bool(text), f"{name} of the constitution", text, "a text, which choosing revisions needs")
    if config.prompts is not None:
        read_prompt_file(config.prompts)
    pick_device(config.device)
    open_endpoint(config)
    path = resolve(config.model)
    if config.packed:
        refuse_unpackable(path)


def execute(config: AlignConfig, run: Run, progress: Progress) -> None:
    """The stages; imported late, so that `--help` and mistakes in flags cost no second."""
    from alignlab.align.pipeline import AlignmentPipeline

    AlignmentPipeline(config, run, progress).execute()


def write_report(run: Run) -> Path:
    """Make `report.html` from what the run recorded."""
    from alignlab.align.report import build_report

    return build_report(run).save(run.path / "report.html")


def summary(run: Run, report: Path) -> str:
    """What happened, in a few lines."""
    from alignlab.align.endpoint import endpoint_account
    from alignlab.align.report import summary_lines

    account = endpoint_account(run)
    exported = run.stages()["export"].output
    lines = [
        *summary_lines(run),
        *([] if account is None else [f"endpoint  {account}"]),
        f"report  {report}",
        f"talk to it:  alignlab chat {exported['name']}",
        f"beside the base:  alignlab compare {run.config_dict['model']} {exported['name']}",
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class ReportCommand:
    """Write the report of an alignment run again."""

    run: str = "latest"
    """Path, name or part of the name of the run."""


def report(argv: list[str]) -> int:
    """The `alignlab report` command; returns its exit code."""
    command = parse_cli(ReportCommand, argv, prog="alignlab report", first="run")
    run = Run.read(find_run(command.run))
    print(write_report(run))
    return 0
