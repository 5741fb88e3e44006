"""Sections of the alignment report with results: rates and paired differences, categories, training."""

from __future__ import annotations

import math
from typing import Any

from alignlab.align.report_findings import MODELS, TASKS, Difference, Findings, percent, points
from alignlab.stats.interval import Interval, wilson
from alignlab.tasks.evaluation import Evaluation
from alignlab.viz.figures import difference_plot, kl_reward, line, stage_bars
from alignlab.viz.markup import Badge
from alignlab.viz.page import KeyNumber, Page
from alignlab.viz.theme import COLOURWAY

COLOURS = {"better": COLOURWAY[2], "worse": COLOURWAY[5], "tied": COLOURWAY[0]}
MOST_POINTS = 400
"""Points drawn of a curve; a page must not grow with the length of training."""


def add_rates(page: Page, findings: Findings) -> None:
    """The three tasks for every measured model, and the paired differences."""
    if not findings.evaluations:
        return
    page.heading("What changed")
    shown = {
        TASKS[task]: {MODELS[model]: found.aggregate.mean for model, found in by_model.items()}
        for task, by_model in findings.evaluations.items()
    }
    page.figure(
        stage_bars(shown),
        "Held-out prompts, answered greedily; whiskers are 95 % intervals. Harmlessness: harmful requests declined. "
        "Over-refusal: harmless requests declined (lower is better). Helpfulness: questions answered with a keyword "
        "of a correct answer.",
    )
    if findings.differences:
        add_differences(page, findings)
    page.text(
        "Worst and best case: the mean if every unscorable answer had got the worst or the best score. Cut off: "
        "answers that ran into the token limit."
    )
    columns = ["Task", "Model", "Mean, 95 %", "n", "Unscorable", "Worst – best case", "Cut off"]
    page.table(
        columns,
        [
            rate_row(TASKS[task], MODELS[model], found)
            for task, by_model in findings.evaluations.items()
            for model, found in by_model.items()
        ],
    )
    add_categories(page, findings)


def rate_row(task: str, model: str, found: Evaluation) -> list[object]:
    """One model on one task."""
    totals = found.aggregate
    mean = "–" if totals.mean is None else f"{percent(totals.mean.estimate)} [{span(totals.mean)}]"
    bounds = " – ".join("?" if i is None else f"{100 * i.estimate:.1f}" for i in (totals.worst, totals.best))
    return [task, model, mean, totals.n, totals.n_unscorable, bounds, found.truncated]


def span(interval: Interval) -> str:
    """The limits of a rate in percent."""
    return f"{100 * interval.low:.1f}, {100 * interval.high:.1f}"


def add_differences(page: Page, findings: Findings) -> None:
    """Paired differences as dots and in numbers, with the smallest effect that could have been seen."""
    page.heading("Paired differences", level=3)
    intervals = {found.name: found.result.difference for found in findings.differences}
    falling = {found.name for found in findings.differences if found.task == "over_refusal"}
    figure = difference_plot(intervals, lower_is_better=falling)
    # By the corrected verdict rather than by the interval alone, so that the figure and the table never disagree.
    figure.update_traces(marker_color=[COLOURS[found.result.verdict] for found in findings.differences])
    # Task above models: a phone has no room for both in one line.
    lines = [f"{TASKS[found.task]}<br>{found.pair}" for found in findings.differences]
    figure.update_yaxes(tickmode="array", tickvals=list(intervals), ticktext=lines)
    page.figure(
        figure,
        "The same prompts answered by both models, later minus earlier, with 95 % intervals: green better, red worse, "
        "grey tied after correction. For over-refusal, left is better.",
    )
    page.text(
        "Changed: prompts whose score differs. Left out: pairs in which a score is missing; “not robust” where they "
        "could change the verdict. Detectable: the true difference in points that a single test at 5 % sees with 80 % "
        "probability, from the spread of the differences; Holm’s correction needs somewhat more."
    )
    columns = ["Task", "Models", "Points, 95 %", "Verdict", "p (Holm)", "Changed", "Left out", "Detectable"]
    page.table(columns, [difference_row(found) for found in findings.differences])


def difference_row(found: Difference) -> list[object]:
    """One comparison in numbers."""
    result = found.result
    limits = f" [{points(result.difference.low)}, {points(result.difference.high)}]" if found.changed else ""
    return [
        TASKS[found.task],
        found.pair,
        f"{points(result.difference.estimate)}{limits}",
        Badge(result.verdict if result.robust else f"{result.verdict}, not robust"),
        p_value(result.adjusted_p),
        f"{found.changed} of {result.difference.n}",
        result.n_unscorable,
        None if found.detectable is None else round(100 * found.detectable, 1),
    ]


def p_value(p: float | None) -> str | float | None:
    """A p-value to three decimals."""
    return "<0.001" if p is not None and p < 0.001 else p


def add_categories(page: Page, findings: Findings) -> None:
    """Harmlessness by category of request."""
    by_model = findings.evaluations.get("harmlessness", {})
    counts = {model: category_counts(found) for model, found in by_model.items()}
    names = list(dict.fromkeys(name for by_name in counts.values() for name in by_name))
    if not names:
        return
    page.heading("Harmlessness by category", level=3)
    page.text(
        "Harmful requests declined, of those scored. So few prompts a category show where to look, not more: no "
        "verdict is given."
    )
    rows = [[name, *("{}/{}".format(*counts[model].get(name, (0, 0))) for model in by_model)] for name in names]
    page.table(["Category", *(MODELS[model] for model in by_model)], rows)


def category_counts(found: Evaluation) -> dict[str, tuple[int, int]]:
    """Category -> (requests declined, requests scored), in the order of the dataset."""
    counts: dict[str, tuple[int, int]] = {}
    for result in found.results:
        name = str((result.metadata or {}).get("category", "other"))
        declined, scored = counts.get(name, (0, 0))
        value = result.score.value
        counts[name] = (declined + (value == 1), scored + (value is not None))
    return counts


def add_training(page: Page, findings: Findings) -> None:
    """KL against reward, loss curves, and how well the preference model judges pairs it did not learn from."""
    losses = {
        label: thinned(findings.series(name))
        for label, name in (
            ("supervised fine-tuning", "supervised/loss"),
            ("preference model", "preference_model/loss"),
            ("DPO", "dpo/loss"),
        )
    }
    losses = {label: curve for label, curve in losses.items() if curve}
    updates = [
        {"step": row["step"], "kl": float(row["ppo/kl"]), "reward": float(row["ppo/reward"])}
        for row in findings.metrics
        if row.get("ppo/kl") is not None and row.get("ppo/reward") is not None
    ]
    updates = [row for row in updates if math.isfinite(row["kl"]) and math.isfinite(row["reward"])]
    if not losses and not updates:
        return
    page.heading("Training")
    if updates:
        page.figure(
            kl_reward(thinned(updates)),
            "PPO: mean reward of a batch, by the preference model, against how far the policy has moved from SL-CAI "
            "(nats a response). Reward that rises with KL while harmlessness does not is a reward being exploited.",
        )
        skipped = sum(bool(row.get("ppo/skipped")) for row in findings.metrics)
        if skipped:
            page.text(f"{skipped} batches had equal rewards throughout and taught nothing; they were skipped.")
    if losses:
        page.figure(
            line(losses, x_label="step", y_label="loss (nats)"),
            "Supervised: mean negative log-likelihood of a token of the revisions and reference answers. Preference "
            f"model{' and DPO' if 'DPO' in losses else ''}: negative log-likelihood of the preferred side of a pair; "
            "0.693 is guessing.",
        )
    add_preference_model(page, findings)


def add_preference_model(page: Page, findings: Findings) -> None:
    """Pairs, and the accuracy on those kept back."""
    made, trained = findings.output("preferences"), findings.output("preference-model")
    if made:
        left_out = made.get("unscorable", 0)
        page.text(
            f"AI feedback ({findings.config.get('feedback', 'contrast')}) judged {made['ai_pairs']} pairs of sampled "
            f"answers to harmful requests{f' and could not judge {left_out}' if left_out else ''}; "
            f"{made['reference_pairs']} pairs set a reference answer above a sampled one."
        )
    if trained:
        n, accuracy = int(trained["heldout_pairs"]), float(trained["heldout_accuracy"])
        interval = wilson(round(accuracy * n), n)
        numbers: list[KeyNumber] = [
            ("Held-out accuracy", percent(accuracy), f"95 % [{span(interval)}]; n = {n} pairs; guessing: 50 %", None),
            ("Pairs learned from", trained["pairs"], f"{trained['steps']} updates", None),
        ]
        page.heading("Preference model", level=3)
        page.key_numbers(numbers)
        page.text("Its accuracy is agreement with the AI feedback and the references, not with people.")


def thinned(rows: list[Any], most: int = MOST_POINTS) -> list[Any]:
    """At most about `most` of the rows, evenly spaced, with the last."""
    if len(rows) <= most:
        return rows
    stride = -(-len(rows) // most)
    return [*rows[:-1:stride], rows[-1]]
