"""The account of an Atari experiment as one page: scores, curves, and whether the reward told the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignlab.align.atari.measures import METHOD, ArmResult, arm_rows, by_arm, comparisons, over_episodes, random_scores
from alignlab.core.errors import DataError
from alignlab.viz.markup import Badge
from alignlab.viz.page import Page
from alignlab.viz.training_figures import Points, learning_curves, training_curves

_LEDE = (
    "Ibarz et al. 2018: demonstrations, comparisons of clips, a reward learned from them. Demonstrations are a "
    "scripted player's, comparisons a program's that sees the score; no agent but that of the true reward does."
)


def atari_page(results: Sequence[ArmResult], game: str) -> Page:
    """Scores with intervals, who is better, the curves, what the reward model made of the play, warnings.

    DataError without results.
    """
    if not results:
        raise DataError("results is empty; atari_page needs at least one agent")
    page = Page(f"{game.capitalize()} from demonstrations and preferences", _LEDE)
    rows, verdicts = arm_rows(results), comparisons(results)
    page.key_numbers([(row.arm, row.episodes.estimate, row.episodes, None) for row in rows])
    page.heading("Scores")
    cells: list[list[object]] = [
        [r.arm, len(r.seeds), r.episodes, r.over_seeds if r.seeds[1:] else None, round(r.steps), f"{r.minutes:.1f}"]
        for r in rows
    ]
    page.table(
        ("agent", "seeds", "score, over episodes", "over seeds", "steps", "minutes"),
        [*cells, ["random actions", None, random_scores(results), None, None, None]],
        caption="Mean scores of test episodes that no curve has seen; over episodes: of these agents",
    )
    if verdicts:
        page.table(
            (f"{METHOD} against", "difference", "p, Holm", ""),
            [
                [name.removeprefix(f"{METHOD} against "), one.difference, one.adjusted_p, Badge(one.verdict)]
                for name, one in verdicts.items()
            ],
            caption="Paired by the beginnings of the test episodes, of the seeds both have",
        )
    _curves(page, results)
    _rewards(page, results)
    notes = [f"{r.arm}, seed {r.seed}: the time was up after {r.steps:,} steps." for r in results if not r.in_time]
    if notes:
        page.heading("Left undone").text("\n\n".join(notes))
    return page


def _curves(page: Page, results: Sequence[ArmResult]) -> None:
    """Score over steps of those that play; those that only imitate are a level."""
    played = [r for r in results if r.steps and r.curve]
    if not played:
        return
    curves: dict[str, list[Points]] = {name: [r.curve for r in found] for name, found in by_arm(played).items()}
    levels = {name: over_episodes(found) for name, found in by_arm([r for r in results if not r.steps]).items()}
    levels["random actions"] = random_scores(results)
    page.heading("Learning").figure(
        learning_curves(curves, levels, x_label="steps", y_label="score"),
        "Score of a few episodes over the steps played, a line a seed; levels are the test scores of those that do "
        "not play to learn, with their intervals",
    )


def _rewards(page: Page, results: Sequence[ArmResult]) -> None:
    """What the reward model said over time beside the truth, agent by agent."""
    asked = [r for r in results if r.rounds]
    if not asked:
        return
    page.heading("The learned reward")
    alarms = [told for r in asked for told in r.alarms]
    page.text("\n\n".join(alarms) if alarms else "Learned and true reward did not part in any agent.")
    for result in asked:
        latest = [(r["step"], r["account"]["windows"][-1]) for r in result.rounds if r["account"]["windows"]]
        panels = [
            ("pairs right", _points(result.rounds, "agreement")),
            ("correlation", _points(result.rounds, "correlation")),
            ("true reward a step", [(step, window["true"]["estimate"]) for step, window in latest]),
            ("learned reward a step", [(step, window["learned"]["estimate"]) for step, window in latest]),
        ]
        marks = [(float(r["step"]), "parting") for r in result.rounds if r["account"]["alarm"]]
        if any(points for _, points in panels):
            page.figure(
                training_curves(panels, marks),
                f"{result.arm}, seed {result.seed}: after each round of questions, {result.rounds[-1]['labels']:,} "
                "comparisons in all. Rewards are of the latest fifth of what is kept, the learned one is brought to "
                "mean 0 over all of it",
            )


def _points(rounds: Sequence[dict[str, object]], name: str) -> list[tuple[float, float]]:
    return [(float(r["step"]), float(r[name]) if r[name] is not None else np.nan) for r in rounds]  # type: ignore[arg-type]
