"""What the page *Training* shows of a training against a reward: its state, alarms, KL account, and answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock

from alignlab.align.diagnostics.alarms import Alarm
from alignlab.align.diagnostics.history import METHODS
from alignlab.align.diagnostics.reading import Training, read_training
from alignlab.align.diagnostics.response_log import FILE, Sample, prompt_text
from alignlab.align.diagnostics.text_report import budget_sentence, changes_of, length_sentence, not_looked_for
from alignlab.app.markup import Html, ago, badge, number, table, text
from alignlab.app.run_data import fingerprint
from alignlab.core.run_status import list_runs
from alignlab.viz.training_figures import coloured_spans

MOST_RUNS = 500
_HEAD_BYTES = 65_536
_KINDS = {"serious": "bad", "warning": "even"}
_reading = Lock()


def choices(root: Path, asked: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Labels and names of the newest runs that train against a reward, and of those asked for whatever they are."""
    newest = list_runs(root)[: -MOST_RUNS - 1 : -1]
    return [
        (f"{run.path.name} · {run.state}", run.path.name)
        for run in newest
        if run.path.name in asked or looks_like_training(run.path)
    ]


def looks_like_training(path: Path) -> bool:
    """Whether the first lines of the metrics name a method's reward."""
    try:
        with open(path / "metrics.jsonl", "rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError:
        return False
    return any(f'"{method}/reward"'.encode() in head for method in METHODS)


def mark(path: Path) -> str:
    """Changes whenever something that the page shows of the run does."""
    try:
        state = (path / FILE).stat()
        own = f"{state.st_size} {state.st_mtime_ns}"
    except OSError:
        own = ""
    return f"{fingerprint([path])} {own}"


def training_of(path: Path) -> Training:
    """The training of a run, read again only when its files changed; RunError in one sentence where there is none."""
    with _reading:  # of several users who look at one run, the first reads it
        return _training(path, mark(path))


@lru_cache(maxsize=16)
def _training(path: Path, state: str) -> Training:
    return read_training(path)


def state_html(training: Training) -> str:
    """Where the training stands, and how its quantities changed."""
    summary, total = training.summary, training.total_steps
    steps = f"{len(training.history):,}" + (f" of {total:,}" if total else "")
    broken = f" · lines left out because they cannot be read: {training.broken}" if training.broken else ""
    how = training.method.upper() or "training"
    head = (
        f"<p>{badge(summary.state).text} {text(how)}, {steps} steps, last sign {text(ago(summary.updated))}"
        f"{text(broken)}</p>"
    )
    rows = [
        (words, number(first), number(last), _signed(change.low), _signed(change.high))
        if change is not None
        else (words, number(first), number(last), None, None)
        for words, first, last, change in changes_of(training)
    ]
    columns = ("quantity", "first quarter", "last quarter", "change from", "to")
    return head + (table(columns, rows, caption="Means, and the change with 95 % limits") if rows else "")


def alarms_html(training: Training, found: Sequence[Alarm]) -> str:
    """The alarms as a table, and what could not be looked for."""
    if not found:
        early = len(training.history) < 8
        said = "<p>Too early for alarms: they need 8 steps.</p>" if early else "<p>No alarm.</p>"
    else:
        rows = [
            (alarm.name, alarm.step, _pill(alarm.severity), "yes" if alarm.standing else "no", alarm.sentence)
            for alarm in found
        ]
        said = table(("alarm", "since step", "severity", "still so", "what was found"), rows, caption="Alarms")
    missing = not_looked_for(training)
    if missing:
        said += f'<p class="soft">Could not be looked for: {text("; ".join(missing))}.</p>'
    return said


def budget_html(training: Training, budget: float | None) -> str:
    """The KL account."""
    account = training.kl_budget(budget if budget and budget > 0 else None)
    said = f"<p>{text(budget_sentence(account))}</p>"
    if account is not None and account.purchases:
        rows = [
            (f"{one.start} to {one.end}", one.spent.estimate, one.bought.estimate, one.rate)
            for one in account.purchases
        ]  # fmt: skip
        columns = ("steps", "KL spent, nats a response", "reward bought", "reward for a nat")
        said += table(columns, rows, caption="Each quarter against the one before")
    if length := length_sentence(training):
        said += f"<p>{text(length)}</p>"
    return said


def sample_steps(training: Training) -> list[int]:
    """Steps whose answers were logged as texts."""
    return [step for step, record in training.records.items() if record.samples]


def answers_html(training: Training, step: int | None) -> str:
    """The logged answers of the step at or before `step` (the newest for None), coloured where parts are known."""
    steps = sample_steps(training)
    if not steps:
        return (
            '<p class="soft">No answers were logged: a reward inside <code>Watched(reward, run=run)</code> logs some '
            "of every step.</p>"
        )
    at = max((one for one in steps if step is None or one <= step), default=steps[0])
    samples = training.records[at].samples
    legend = ""
    if any(sample.spans for sample in samples):
        legend = (
            '<p class="soft">Green and underlined: leaving the part out lowers the reward. Red and dotted: it raises '
            "it. The number stands in the tooltip.</p>"
        )
    return f"<h3>Answers of step {at}</h3>{legend}" + "".join(_answer(sample) for sample in samples)


def _answer(sample: Sample) -> str:
    gold = "" if sample.gold is None else f" · gold {number(sample.gold)}"
    cut = " · cut" if sample.cut else ""
    body = coloured_spans(sample.spans, text) if sample.spans else text(sample.response)
    return (
        f'<div class="box answer"><p class="said">reward {number(sample.reward)}{gold}{cut}</p>'
        f'<p class="verbatim soft">{text(prompt_text(sample.prompt))}</p><p class="verbatim">{body}</p></div>'
    )


def _pill(severity: str) -> Html:
    return Html(f'<span class="badge {_KINDS[severity]}">{text(severity)}</span>')


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{number(value)}"
