"""A comparison, how far a collection is, and what its people agree on, as HTML for the page *Preferences*."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from alignlab.app.clip_drawing import drawing
from alignlab.app.markup import Html, interval, notice, table, text, verbatim

if TYPE_CHECKING:
    from alignlab.align.preference_data.agreement import AgreementReport
    from alignlab.align.preference_data.collector import CollectionProgress
    from alignlab.align.preference_data.judgement import Comparison
    from alignlab.stats.interval import Interval

GRADES = (1, 2, 3, 4, 5)
"""What an answer can be rated, from worst to best."""
_QUESTIONS = {
    "pair": "Which answer is better?",
    "ranking": "Put the answers in order, the best first.",
    "rating": "How good is each answer? 1 is worst, 5 is best.",
}
_HINTS = {
    "pair": "Press the number of the better answer, 0 if they are equal, s to skip, u to undo.",
    "ranking": "Press the numbers of the answers from best to worst, = between two that are equal, Enter to save; "
    "Backspace begins again, 0: all equal, s: skip, u: undo.",
    "rating": "Press 1 to 5 for the answer that is marked, Enter to save; Backspace begins again, s: skip, u: undo.",
}


def comparison(task: Comparison) -> str:
    """The prompt and its answers as they are, in the order of the comparison, with the controls of its kind."""
    asked = [{"role": "prompt", "content": task.prompt}] if isinstance(task.prompt, str) else task.prompt
    turns = "".join(verbatim(message["role"], message["content"]) for message in asked)
    answers = "".join(_answer(task, place) for place in range(1, len(task.answers) + 1))
    return (
        f'<section class="box" aria-label="Prompt">{turns}</section>'
        f'<h2 class="question" tabindex="-1">{_QUESTIONS[task.kind]}</h2>'
        f'<div class="answers">{answers}</div>'
        f'<div class="actions" role="group" aria-label="Your judgement">{_actions(task)}</div>'
        f'<p class="soft hint">{text(_HINTS[task.kind])}</p>'
    )


def _answer(task: Comparison, place: int) -> str:
    content = task.answers[place - 1].text
    shown = drawing(content) or f'<p class="verbatim">{text(content)}</p>'
    controls = {"pair": "", "ranking": _place_control(task, place), "rating": _grade_control(place)}[task.kind]
    return (
        f'<article class="answer" data-place="{place}" aria-label="Answer {place}"><h3>Answer {place}</h3>'
        f"{shown}{controls}</article>"
    )


def _place_control(task: Comparison, place: int) -> str:
    options = "".join(f'<option value="{i}">{i}</option>' for i in range(1, len(task.answers) + 1))
    return (
        f'<p class="control"><label>Rank of answer {place} <select data-rank="{place}">'
        f'<option value="">–</option>{options}</select></label></p>'
    )


def _grade_control(place: int) -> str:
    marks = "".join(
        f'<label><input type="radio" name="grade-{place}" data-grade="{place}" value="{value}"> {value}</label>'
        for value in GRADES
    )
    return f'<fieldset class="control grades"><legend>Rating of answer {place}</legend>{marks}</fieldset>'


def _actions(task: Comparison) -> str:
    buttons = []
    if task.kind == "pair":
        for place in range(1, len(task.answers) + 1):
            key = str(place) if place <= 9 else ""
            buttons.append(_button(f"choose:{place}", f"Answer {place}", key, main=True))
    else:
        buttons.append(_button("save", "Save", "Enter", main=True))
    if task.kind != "rating":
        buttons.append(_button("choose:0", "Equal" if task.kind == "pair" else "All equal", "0"))
    return "".join(buttons) + _button("choose:skip", "Skip", "s") + _button("undo", "Undo", "u")


def _button(act: str, words: str, key: str, *, main: bool = False) -> str:
    shown = f'<kbd aria-hidden="true">{key}</kbd>' if key else ""
    keys = f' aria-keyshortcuts="{key}"' if key else ""
    return f'<button type="button" class="{"main" if main else ""}" data-act="{act}"{keys}>{shown}{words}</button>'


def nothing_left(progress: CollectionProgress) -> str:
    """What is shown instead of a comparison when this person has judged all."""
    if not progress.comparisons:
        said = "This project has no questions yet: add some below."
    else:
        said = "Nothing is left to ask you here. Thank you. You can export the judgements below, or add questions."
    undo = f'<div class="actions">{_button("undo", "Undo", "u")}</div>' if progress.judged else ""
    return f'<div class="box next"><h2 class="question" tabindex="-1">All done</h2><p>{said}</p></div>{undo}'


def progress_line(progress: CollectionProgress) -> str:
    """How far this person is, and what all have given so far."""
    total = progress.judged + progress.left
    parts = [
        f"{_count(progress.judgements, 'judgement')} of {_count(len(progress.annotators), 'person', 'people')}",
        _count(progress.ties, "tie"),
        _count(progress.skips, "skip"),
    ]
    if progress.withdrawn:
        parts.append(f"{progress.withdrawn:,} withdrawn")
    return (
        f'<label class="far"><span>You have judged <b>{progress.judged:,}</b> of {total:,}</span>'
        f'<progress max="{max(total, 1)}" value="{progress.judged}"></progress></label>'
        f'<p class="soft">All together: {", ".join(parts)}.</p>'
    )


def _count(number: int, one: str, more: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def agreement(report: AgreementReport) -> str:
    """What is known of the people's agreement, with 95 % intervals."""
    rows: list[tuple[object, ...]] = []
    summary = report.summary
    if summary is not None:
        rows += [
            ("equal judgements", _shown(summary.agreement), summary.n_items),
            ("Fleiss' kappa", _shown(summary.fleiss), summary.n_items),
            ("Krippendorff's alpha", _shown(summary.alpha), summary.n_items),
        ]
        rows += [(f"Cohen's kappa, {one} and {other}", _shown(kappa), kappa.n if kappa else None)
                 for (one, other), kappa in summary.pairs.items()]  # fmt: skip
    rows += [(f"{person} is right", _shown(found), found.n) for person, found in (report.accuracies or {}).items()]
    if report.shown_first is not None:
        rows.append(("chose the answer shown first", _shown(report.shown_first), report.shown_first.n))
    missing = notice(f"No agreement yet: {report.summary_missing}.") if report.summary_missing else ""
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.median_seconds.items())
    told = f'<p class="soft">Median time for one: {text(times)}.</p>' if times else ""
    return missing + table(("", "value, 95 % interval", "n"), rows, caption="Agreement of the people") + told


def _shown(found: Interval | None) -> Html | None:
    return None if found is None else interval(asdict(found))
