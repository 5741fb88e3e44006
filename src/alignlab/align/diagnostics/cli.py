"""`alignlab diagnose RUN`: what looks wrong in a training against a reward, in words and as a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.core.errors import ConfigError, RunError
from alignlab.core.files import writing
from alignlab.core.run_status import find_run
from alignlab.lm.chat import Parser

if TYPE_CHECKING:
    from alignlab.align.diagnostics.reading import Training

REPORT = "artifacts/diagnosis.html"


def diagnose(argv: list[str]) -> int:
    """The `alignlab diagnose` command: 0, or 1 with --gate where a serious alarm stands."""
    options = _parser().parse_args(argv)
    from alignlab.align.diagnostics.reading import read_training
    from alignlab.align.diagnostics.report import build_report
    from alignlab.align.diagnostics.text_report import text_report

    training = read_training(find_run(options.run), options.method)
    limits = training.limits(alpha=options.alpha, kl_budget=options.kl_budget, total_steps=options.steps)
    if options.reward is not None:
        attribute(training, options)
        training = read_training(training.summary.path, options.method)
    print(text_report(training, limits))
    out = options.out if options.out is not None else training.summary.path / REPORT
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    print(f"\n{build_report(training, limits).save(out)}")
    serious = any(alarm.severity == "serious" and alarm.standing for alarm in training.alarms(limits))
    return 1 if options.gate and serious else 0


def _parser() -> Parser:
    parser = Parser(
        prog="alignlab diagnose",
        description="Look for what goes wrong in a training against a reward: reward hacking, length, entropy, "
        "repetition, KL, value function, drift. Works while the run is at work.",
    )
    parser.add_argument("run", nargs="?", default="latest", help="path, name or part of it (default: latest)")
    parser.add_argument("--method", choices=("ppo", "grpo", "rloo", "reinforce"), help="of a run with several")
    parser.add_argument("--kl-budget", type=float, metavar="NATS", help="nats a response that may be spent")
    parser.add_argument("--steps", type=int, help="steps the training will have (default: as its config says)")
    parser.add_argument("--alpha", type=float, help="error rate of each alarm over the whole training (default: 0.05)")
    parser.add_argument("--out", type=Path, help=f"where to write the page (default: {REPORT} in the run)")
    parser.add_argument("--gate", action="store_true", help="end with code 1 where a serious alarm stands")
    group = parser.add_argument_group("which words earned the reward (of a run that is not at work)")
    group.add_argument("--reward", type=Path, metavar="RUN", help="reward model: its directory or the run that made it")
    group.add_argument("--step", type=int, help="step whose logged answers are attributed (default: the last)")
    by = "words or sentences left out one by one, or gradients of tokens (default: words)"
    group.add_argument("--by", choices=("words", "sentences", "tokens"), default="words", help=by)
    return parser


def attribute(training: Training, options: argparse.Namespace) -> None:
    """Add to the log what each part of a step's answers contributes to the reward of a saved reward model."""
    from dataclasses import replace

    from alignlab.align.diagnostics.attribution import gradient_attribution, leave_one_out
    from alignlab.align.diagnostics.response_log import FILE, as_row, clean
    from alignlab.align.preference_model import PreferenceModel
    from alignlab.align.reward.saved import load_reward
    from alignlab.core.files import append_jsonl

    if training.summary.state == "running":
        raise RunError(f"the run {training.summary.path.name} is at work; --reward adds to its log when it has ended")
    steps = [step for step, record in training.records.items() if record.samples]
    step = options.step if options.step is not None else max(steps, default=None)
    if step not in steps:
        known = f"{steps[0]} to {steps[-1]} ({len(steps)} steps)" if steps else "none"
        raise ConfigError(f"--step is {step}, allowed: a step with logged answers, here {known}")
    model, _ = load_reward(options.reward)
    record, done = training.records[step], []
    for sample in record.samples:
        if sample.cut or not sample.response.strip():
            done.append(sample)  # what is left of it is not what was scored
            continue
        if options.by == "tokens":
            if not isinstance(model, PreferenceModel):
                raise ConfigError("--by tokens needs a single reward model, this is an ensemble; take words")
            found = gradient_attribution(model, sample.prompt, sample.response, points=16)
        else:
            found = leave_one_out(model.score, sample.prompt, sample.response, unit=options.by)
        spans = tuple((clean(text), value) for text, value in zip(found.spans, found.values, strict=True))
        done.append(replace(sample, spans=spans))
        print(
            f"reward {found.total:.4g} of the whole answer, {found.baseline:.4g} without it; the parts add up to "
            f"{sum(found.values):.4g}, {found.interaction:+.4g} is of the parts together"
        )
    append_jsonl(training.summary.path / FILE, [as_row(replace(record, samples=tuple(done)))])
