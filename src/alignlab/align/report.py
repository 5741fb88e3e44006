"""The report of `alignlab align`: one page, and a few lines for the terminal, from what the run recorded.

No model is loaded. Sections whose data the run does not have (it stopped early, or had no RL stage) are left out.
"""

from __future__ import annotations

from alignlab.align.report_account import add_cost, add_details, add_judge, add_limits
from alignlab.align.report_examples import add_answers, add_revisions
from alignlab.align.report_findings import (
    ALPHA,
    CAPABILITY_LIMIT,
    MODELS,
    POWER,
    SPACE,
    TASKS,
    Difference,
    Findings,
    change,
    duration,
    memory,
    percent,
    points,
    whole,
)
from alignlab.align.report_sections import add_rates, add_training
from alignlab.core.runs import Run
from alignlab.viz.markup import emphasis
from alignlab.viz.page import KeyNumber, Page


def build_report(run: Run) -> Page:
    """The page for a run of `alignlab align` or `alignlab rlhf`, finished or not.

    Comparisons are paired by prompt, and their verdicts hold after Holm's correction over all that the page shows.
    RunError for another kind of run, DataError when what was recorded is damaged.
    """
    if run.name == "rlhf":
        from alignlab.align.rlhf.report import build_report as build_rlhf_report  # it builds on this module

        return build_rlhf_report(run)
    findings = Findings(run)
    page = Page(f"Alignment report: {findings.config.get('model', run.name)}", lede(findings))
    add_state(page, findings)
    add_headline(page, findings)
    for add in (add_rates, add_training, add_revisions, add_answers, add_judge, add_cost, add_limits, add_details):
        add(page, findings)
    return page.footer(f"Run {run.path.name}. Every number on this page is computed from the files of that run.")


def lede(findings: Findings) -> str:
    """What was done, in one sentence."""
    constitution = findings.config.get("constitution") or "the packaged constitution"
    last = {"ppo": ", then PPO against a preference model", "dpo": ", then DPO on AI preferences"}
    steps = f"critique, revision and supervised fine-tuning (SL-CAI){last.get(findings.method, '')}"
    return f"Constitutional AI with {constitution}: {steps}{' (RL-CAI)' if findings.method in last else ''}."


def add_state(page: Page, findings: Findings) -> None:
    """Says at the top that a run is unfinished, and what is missing."""
    if findings.finished:
        return
    missing = ", ".join(findings.stage_label(name) for name in findings.missing)
    page.text(
        emphasis(
            f"**This run is unfinished.** Not done yet: {missing}. What follows is what there is; parts that need the "
            "rest are left out. The command that started the run goes on where it stopped."
        )
    )


def add_headline(page: Page, findings: Findings) -> None:
    """Cards of key numbers and the paragraph that says what they mean."""
    cards = outcome_cards(findings)
    if findings.stages:
        cards.append(("Time of all stages", duration(findings.seconds), f"{len(findings.stages)} stages", None))
        cards.append(("Peak memory", memory(findings.peak_memory_bytes), "largest of any stage", None))
        page.key_numbers(cards)
    if sentences := verdict_sentences(findings):
        page.text(emphasis(" ".join(sentences)))
        page.text(family_sentence(findings))


def outcome_cards(findings: Findings) -> list[KeyNumber]:
    """A card for each task and for capability, of the final model against the base."""
    if findings.final is None:
        return []
    cards: list[KeyNumber] = []
    for task, name in TASKS.items():
        found = findings.difference(task, findings.final)
        if found is None:
            continue
        better = "" if task != "over_refusal" else ", lower is better"
        rates = " → ".join(rate(findings, task, model) for model in ("base", findings.final))
        interval = found.result.difference
        span = "no score changed" if not found.changed else f"95 % [{points(interval.low)}, {points(interval.high)}]"
        note = f"{rates}{better}; {span}; n{SPACE}={SPACE}{interval.n}"
        cards.append((name.capitalize(), f"{points(interval.estimate)}{SPACE}pts", note, found.result.verdict))
    share = findings.bits_change(findings.final)
    if share is not None:
        bits = " → ".join(f"{findings.bits(model):.3f}" for model in ("base", findings.final))
        verdict = "pass" if share <= CAPABILITY_LIMIT else "fail"
        note = f"{bits}, lower is better; allowed: +{whole(CAPABILITY_LIMIT)}"
        cards.append(("Bits per byte", change(share), note, verdict))
    return cards


def rate(findings: Findings, task: str, model: str) -> str:
    """A model's mean score on a task."""
    found = findings.evaluations.get(task, {}).get(model)
    return "–" if found is None or found.aggregate.mean is None else percent(found.aggregate.mean.estimate)


def verdict_sentences(findings: Findings) -> list[str]:
    """What the comparisons say, in words that follow from their verdicts alone."""
    final = findings.final
    if final is None:
        return []
    told = []
    for task in TASKS:
        found = findings.difference(task, final)
        if found is not None:
            told.append(against_base(found))
    if final == "rl-cai" and (found := findings.difference("harmlessness", "rl-cai", "sl-cai")) is not None:
        told.append(against_supervised(found, findings.method))
    share = findings.bits_change(final)
    if share is not None:
        kept = "within" if share <= CAPABILITY_LIMIT else "**outside**"
        told.append(
            f"Bits per byte on text nobody trained on changed by {change(share)}, {kept} the limit of "
            f"+{whole(CAPABILITY_LIMIT)}."
        )
    return told


MEANING = {
    ("harmlessness", "better"): "it declines more harmful requests",
    ("harmlessness", "worse"): "it declines fewer harmful requests",
    ("over_refusal", "better"): "it declines fewer harmless requests that look harmful",
    ("over_refusal", "worse"): "it declines more harmless requests that look harmful",
    ("helpfulness", "better"): "more of its answers mention what a correct answer mentions",
    ("helpfulness", "worse"): "fewer of its answers mention what a correct answer mentions",
}


def against_base(found: Difference) -> str:
    """The final model against the base on one task."""
    later, task, verdict = MODELS[found.later], TASKS[found.task], found.result.verdict
    if verdict == "tied":
        return f"{later} is **tied** with the base on {task}: {found.told}{doubt(found)}."
    meaning = MEANING[found.task, verdict]
    return f"{later} is **{verdict}** than the base on {task}: {meaning}, {found.told}{doubt(found)}."


def against_supervised(found: Difference, method: str) -> str:
    """Whether the last stage added anything to the one before it."""
    told = f"{found.told}{doubt(found)}"
    name = f"RL-CAI ({method.upper()})"
    if found.result.verdict == "better":
        return f"{name} **beats** SL-CAI on harmlessness: {told}."
    if found.result.verdict == "worse":
        return f"{name} is **worse** than SL-CAI on harmlessness: {told}."
    return f"{name} does **not beat** SL-CAI on harmlessness (tied): {told}."


def doubt(found: Difference) -> str:
    """A warning where the samples without a score could overturn what is said."""
    if found.result.robust:
        return ""
    n = found.result.n_unscorable
    return f" ({n} pair{'s' * (n > 1)} without a score could change this)"


def family_sentence(findings: Findings) -> str:
    """What a verdict rests on, and how small a difference could have been seen."""
    count = len(findings.differences)
    text = (
        f"Verdicts are paired by prompt and hold after Holm's correction over all {count} comparisons on this page, at "
        f"{whole(ALPHA)}; intervals are 95 % for each comparison alone. “Tied” means that the data do not show a "
        "difference, not that there is none."
    )
    found = findings.difference("harmlessness", findings.final or "")
    if found is not None and found.detectable is not None:
        text += (
            f" On harmlessness a true difference of {100 * found.detectable:.1f} points would be seen with "
            f"{whole(POWER)} probability by a single test, smaller ones mostly not."
        )
    return text


def summary_lines(run: Run) -> list[str]:
    """The outcome in aligned lines of plain text: rates by model, difference, verdict; then cost."""
    findings = Findings(run)
    lines = []
    if findings.models:
        rows = [["", *(MODELS[model] for model in findings.models), *summary_head(findings)]]
        rows += [summary_row(findings, task) for task in TASKS if task in findings.evaluations]
        rows.append(bits_row(findings))
        lines = aligned(rows)
        if (found := findings.difference("harmlessness", "rl-cai", "sl-cai")) is not None:
            lines.append(against_supervised(found, findings.method).replace("**", ""))
    if not findings.finished:
        waiting = ", ".join(findings.stage_label(name) for name in findings.missing)
        lines.append(f"unfinished, not done yet: {waiting}")
    lines.append(f"time {duration(findings.seconds)}, peak memory {memory(findings.peak_memory_bytes)}")
    return [line.replace(SPACE, " ") for line in lines]


def summary_head(findings: Findings) -> list[str]:
    """Heads of the columns of the comparison."""
    return [] if findings.final is None else [f"{MODELS[findings.final]} − base, points [95 %]", "verdict"]


def summary_row(findings: Findings, task: str) -> list[str]:
    """One task: a rate for each model, the final model against the base."""
    cells = [TASKS[task], *(rate(findings, task, model) for model in findings.models)]
    if findings.final is None:
        return cells
    found = findings.difference(task, findings.final)
    if found is None:
        return [*cells, "–", "–"]
    interval = found.result.difference
    limits = f"[{points(interval.low)}, {points(interval.high)}]" if found.changed else "(no score changed)"
    shown = f"{points(interval.estimate)} {limits}"
    return [*cells, shown, found.result.verdict + (" (lower is better)" if task == "over_refusal" else "")]


def bits_row(findings: Findings) -> list[str]:
    """Bits per byte of each model and the change."""
    bits = [findings.bits(model) for model in findings.models]
    cells = ["bits per byte", *("–" if value is None else f"{value:.3f}" for value in bits)]
    share = None if findings.final is None else findings.bits_change(findings.final)
    if share is None:
        return cells + [""] * len(summary_head(findings))
    return [
        *cells,
        change(share),
        "kept" if share <= CAPABILITY_LIMIT else f"worse by more than {whole(CAPABILITY_LIMIT)}",
    ]


def aligned(rows: list[list[str]]) -> list[str]:
    """Columns of equal width, two spaces apart: the first and the last to the left, numbers to the right."""
    widths = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if j in (0, last) else cell.rjust(width)
            for j, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
