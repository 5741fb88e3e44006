"""`alignlab diagnose` as a page: curves with alarms, the KL account, answers coloured by what they earned."""

from __future__ import annotations

import html

from alignlab.align.diagnostics.alarms import Alarm, Limits
from alignlab.align.diagnostics.kl_budget import KLBudget
from alignlab.align.diagnostics.reading import Training
from alignlab.align.diagnostics.response_log import Sample, prompt_text
from alignlab.align.diagnostics.text_report import (
    CURVES,
    budget_sentence,
    changes_of,
    length_sentence,
    not_looked_for,
)
from alignlab.viz.markup import Badge, Inline
from alignlab.viz.page import KeyNumber, Page
from alignlab.viz.training_figures import Points, coloured_spans, training_curves

SHOWN = 3
"""Answers of a step on the page."""


def curve_points(training: Training) -> list[tuple[str, Points]]:
    """The curves that were logged."""
    history = training.history
    found: list[tuple[str, Points]] = []
    for name, words in CURVES:
        column = history.columns.get(name)
        if column is not None:
            pairs = zip(history.steps.tolist(), column.tolist(), strict=True)
            found.append((words, [(step, value) for step, value in pairs if value == value]))
    return found


def marks(found: list[Alarm]) -> list[tuple[float, str]]:
    """Where alarms were first seen; those of one step together."""
    steps = dict.fromkeys(alarm.step for alarm in found)
    return [(step, ", ".join(alarm.name for alarm in found if alarm.step == step)) for step in steps]


def build_report(training: Training, limits: Limits) -> Page:
    """The page of one training."""
    found, summary = training.alarms(limits), training.summary
    how = training.method.upper() or "training against a reward"
    page = Page(
        f"Diagnosis: {summary.path.name}",
        f"{how}, {len(training.history)} steps logged, {summary.state}. What the reward paid for, and what went wrong.",
    )
    page.key_numbers(_cards(training, found))
    _alarms(page, training, found, limits)
    page.heading("Curves")
    page.figure(training_curves(curve_points(training), marks(found)), "Each step's mean; dotted lines are alarms.")
    _budget(page, training.kl_budget(limits.kl_budget))
    if sentence := length_sentence(training):
        page.heading("Length").text(sentence)
    _answers(page, training)
    broken = f" Lines left out because they cannot be read: {training.broken}." if training.broken else ""
    return page.footer(f"From metrics.jsonl and responses.jsonl of {summary.path.name}.{broken}")


def _cards(training: Training, found: list[Alarm]) -> list[KeyNumber]:
    standing = sum(alarm.standing for alarm in found)
    cards: list[KeyNumber] = [("Alarms", len(found), f"{standing} standing", None)]
    for words, first, last, change in changes_of(training):
        note = f"{first:.4g} in the first quarter"
        if change is not None:
            note += f"; change {change.estimate:+.3g} [{change.low:+.3g}, {change.high:+.3g}]"
        cards.append((f"{words}, last quarter", f"{last:.4g}", note, None))
    return cards


def _alarms(page: Page, training: Training, found: list[Alarm], limits: Limits) -> None:
    page.heading("Alarms")
    if found:
        rows = [
            (alarm.name, alarm.step, Badge(alarm.severity), "yes" if alarm.standing else "no", alarm.sentence)
            for alarm in found
        ]
        page.table(("alarm", "first seen at step", "severity", "still so", "what was found"), rows)
    else:
        page.text("No alarm." if len(training.history) >= 8 else "Too early: alarms need 8 steps.")
    page.text(
        f"Each kind of alarm is given by chance in at most {limits.alpha:.0%} of trainings, however long and however "
        "often one looks."
    )
    if missing := not_looked_for(training):
        page.details("What could not be looked for", "\n".join(missing))


def _budget(page: Page, account: KLBudget | None) -> None:
    page.heading("KL budget").text(budget_sentence(account))
    if account is not None and account.purchases:
        rows = [
            (f"{one.start} to {one.end}", one.spent, one.bought, one.rate)
            for one in account.purchases
        ]  # fmt: skip
        page.table(
            ("steps", "KL spent, nats a response", "reward bought", "reward for a nat"),
            rows,
            caption="Each quarter against the one before it, with 95 % intervals",
        )


def _answers(page: Page, training: Training) -> None:
    steps = [step for step, record in training.records.items() if record.samples]
    page.heading("Answers")
    if not steps:
        page.text("No answers were logged; a reward inside `Watched(reward, run=run)` logs some of every step.")
        return
    for step in dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1])):
        page.heading(f"Step {step}", 3)
        for sample in training.records[step].samples[:SHOWN]:
            page.text(Inline(answer_html(sample)))


def answer_html(sample: Sample) -> str:
    """One answer with its prompt and rewards, coloured where its parts were asked for."""
    body = coloured_spans(sample.spans) if sample.spans else html.escape(sample.response)
    gold = "" if sample.gold is None else f", gold {sample.gold:.3g}"
    cut = " (cut)" if sample.cut else ""
    asked = html.escape(prompt_text(sample.prompt))
    return (
        f"<strong>reward {sample.reward:.3g}{gold}</strong>{cut}<br><em>{asked}</em><br>"
        f'<span style="white-space: pre-wrap">{body}</span>'
    )
