"""Sections of the alignment report with texts: critiques and revisions, and the same prompt answered by each model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignlab.align.report_findings import MODELS, TASKS, Findings, clip
from alignlab.core.errors import DataError
from alignlab.core.files import read_json
from alignlab.data.prompts import load_prompts, read_prompt_file
from alignlab.lm.types import Prompt
from alignlab.tasks.evaluation import Evaluation, SampleResult
from alignlab.viz.page import Page

SHOWN = 3
"""Examples of each kind."""
TITLE_CHARACTERS = 240


def add_revisions(page: Page, findings: Findings) -> None:
    """Response, critique and kept revision, for the best and the worst scores of the feedback."""
    if "revisions" not in findings.stages:
        return
    revisions = findings.rows("revisions.jsonl", "index", "text", "score")
    kept = sorted((row for row in revisions if row["text"] is not None), key=lambda row: -row["score"])
    if not kept:
        return
    page.heading("Critique and revision")
    page.text(
        f"Of {len(revisions)} responses to harmful requests, {len(kept)} got a usable revision, chosen by the "
        "feedback: log-likelihood of a token under the constitution's character less that under its opposite, "
        "in nats. Texts are the model's own and may be untrue or unpleasant."
    )
    best = kept[: min(SHOWN, (len(kept) + 1) // 2)]
    worst = kept[len(best) :][-SHOWN:][::-1]
    sources = RevisionSources(findings)
    for heading, rows in (("Highest scores", best), ("Lowest scores", worst)):
        if rows:
            page.heading(heading, level=3)
            page.side_by_side([sources.example(row) for row in rows])


class RevisionSources:
    """Prompts, first responses, critiques and principles by number."""

    def __init__(self, findings: Findings) -> None:
        self.prompts = training_prompts(findings)
        self.responses, self.critiques = texts(findings, "responses"), texts(findings, "critiques")
        path = findings.run.artifacts / "principles.json"
        self.principles: list[str] = list(read_json(path)) if path.exists() else []

    def example(self, row: dict[str, Any]) -> dict[str, Any]:
        """One revision with all that led to it."""
        i = int(row["index"])
        title = clip(self.prompts[i], TITLE_CHARACTERS) if i < len(self.prompts) else f"Request {i + 1}"
        rule = f" by {self.principles[i]}" if i < len(self.principles) else ""
        columns = [
            ("response", shown(self.responses.get(i))),
            (f"critique{rule}", shown(self.critiques.get(i))),
            (f"revision, score {row['score']:+.2f}".replace("-", "−"), shown(row["text"])),
        ]
        return {"title": title, "columns": columns}


def training_prompts(findings: Findings) -> list[str]:
    """The red-team prompts of the run in order; none where the user's own file has gone."""
    path = findings.config.get("prompts")
    try:
        records = load_prompts("harmful", "train") if path is None else read_prompt_file(Path(path))
    except DataError:
        return []
    return [record.prompt for record in records[: findings.config.get("n_prompts") or None]]


def texts(findings: Findings, name: str) -> dict[int, str]:
    """The texts that a generating stage wrote, by number."""
    return {int(row["index"]): str(row["text"]) for row in findings.rows(f"{name}.jsonl", "index", "text")}


def shown(text: str | None) -> str:
    """A text, or what to say where there is none."""
    return "–" if text is None else clip(text.strip()) or "(empty)"


def add_answers(page: Page, findings: Findings) -> None:
    """The same held-out prompt answered by every model: where they differ, either way, and over-refusals."""
    if findings.final is None:
        return
    page.heading("Same prompt, each model")
    page.text(
        "Chosen by rule, not by hand: the first held-out prompts, in the order of the data, of each kind. Texts are "
        "the models' own and may be untrue or unpleasant."
    )
    for task in ("harmlessness", "helpfulness"):
        if task in findings.evaluations:
            add_changes(page, findings, task)
    if "over_refusal" in findings.evaluations:
        add_over_refusals(page, findings)


def add_changes(page: Page, findings: Findings, task: str) -> None:
    """Prompts on which the final model does better than the base, worse, and those that it fails as before."""
    by_model = findings.evaluations[task]
    final = str(findings.final)
    before, after = by_model["base"].values, by_model[final].values
    kinds: dict[str, list[str]] = {"gained": [], "lost": [], "still failed": []}
    kept = 0
    for name, old in before.items():
        new = after[name]
        if old is None or new is None:
            continue
        kind = "gained" if new > old else "lost" if new < old else "still failed" if new == 0 else None
        if kind is None:
            kept += 1
        else:
            kinds[kind].append(name)
    page.heading(f"{TASKS[task].capitalize()}: {MODELS[final]} against base", level=3)
    counted = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items())
    lacking = len(before) - kept - sum(len(names) for names in kinds.values())
    missing = f", {lacking} without a score" if lacking else ""
    page.text(
        f"Of {len(before)} prompts: {counted}, {kept} right as before{missing}. Up to two of the first three kinds:"
    )
    examples = [answers_example(by_model, name, f"{kind}: ") for kind, names in kinds.items() for name in names[:2]]
    page.side_by_side(examples)


def add_over_refusals(page: Page, findings: Findings) -> None:
    """Harmless requests that the final model declines."""
    by_model = findings.evaluations["over_refusal"]
    last = by_model[str(findings.final)]
    declined = [name for name, value in last.values.items() if value == 1]
    page.heading("Over-refusals", level=3)
    model = MODELS[str(findings.final)]
    page.text(
        f"{model} declines {len(declined)} of {len(last.results)} harmless requests that look harmful"
        + (f"; the first {min(SHOWN, len(declined))}:" if declined else ".")
    )
    page.side_by_side([answers_example(by_model, name) for name in declined[:SHOWN]])


def answers_example(by_model: dict[str, Evaluation], name: str, kind: str = "") -> dict[str, Any]:
    """One prompt with the answer and score of each model."""
    results = {model: find(found.results, name) for model, found in by_model.items()}
    prompt = next(result.prompt for result in results.values())
    columns = [
        (f"{MODELS[model]}: {told(result)}", shown(result.completion.text if result.completion else None))
        for model, result in results.items()
    ]
    return {"title": f"{kind}{clip(prompt_text(prompt), TITLE_CHARACTERS)}", "columns": columns}


def find(results: Sequence[SampleResult], name: str) -> SampleResult:
    """The result of the sample `name`."""
    return next(result for result in results if result.id == name)


def told(result: SampleResult) -> str:
    """The score in the scorer's words."""
    return result.score.explanation or result.score.reason or f"score {result.score.value:g}"


def prompt_text(prompt: Prompt) -> str:
    """What the user asks."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]
