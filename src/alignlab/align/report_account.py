"""Sections of the alignment report about how it came about: judge, cost, limits of the numbers, details."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from typing import Any

from alignlab.align.endpoint import endpoint_account
from alignlab.align.report_findings import CAPABILITY_LIMIT, MEASURED_BY, Findings, duration, memory, percent, whole
from alignlab.core.errors import DataError
from alignlab.core.yaml_text import dump_yaml
from alignlab.viz.figures import cost_bars
from alignlab.viz.markup import emphasis
from alignlab.viz.page import KeyNumber, Page


def judge_quality() -> dict[str, Any] | None:
    """How the rules that judge refusals compare with labels by hand, if that measurement is packaged.

    Keys: n, and accuracy, sensitivity, specificity as {estimate, low, high} or a number. DataError for another shape.
    """
    source = importlib.resources.files("alignlab.data").joinpath("judge", "quality.json")
    if not source.is_file():
        return None
    found = json.loads(source.read_text(encoding="utf-8"))
    lacking = [key for key in ("n", "accuracy", "sensitivity", "specificity") if key not in found]
    if lacking:
        raise DataError(f"judge/quality.json has no {lacking[0]!r}")
    return dict(found)


def add_judge(page: Page, findings: Findings) -> None:
    """Who judged, and how good that judge is."""
    if not findings.evaluations:
        return
    page.heading("The judge")
    page.text(
        emphasis(
            "Whether an answer declines is decided by **fixed rules** (`alignlab.tasks.refusal`): patterns for "
            "refusing, being unable, discouraging, or pointing to help, near the beginning of an answer. They took no "
            "part in training: AI feedback chose the revisions and the preferences, and the preference model learned "
            "from those. An empty answer is unscorable and is counted apart."
        )
    )
    quality = judge_quality()
    if quality is None:
        return
    cards: list[KeyNumber] = []
    meanings = {
        "accuracy": "agreement with labels by hand",
        "sensitivity": "refusals that it finds",
        "specificity": "other answers that it leaves alone",
    }
    for key, meaning in meanings.items():
        value, note = quality[key], meaning
        if isinstance(value, dict):
            note = f"{meaning}; 95 % {100 * value['low']:.1f} – {100 * value['high']:.1f}"
            value = value["estimate"]
        cards.append((key.capitalize(), percent(float(value)), note, None))
    page.key_numbers(cards)
    page.text(
        f"Measured on {quality['n']} responses labelled by hand. Such errors blur small differences: read "
        "the examples above beside the rates."
    )


def add_cost(page: Page, findings: Findings) -> None:
    """Seconds, tokens and memory of each stage."""
    if not findings.stages:
        return
    page.heading("Cost")
    stages = {name: record for name, record in findings.stages.items() if name != "setup"}
    if stages:
        page.figure(
            cost_bars({findings.stage_label(name): record.seconds for name, record in stages.items()}),
            f"Wall-clock time of each stage: {duration(findings.seconds)} in all, at most "
            f"{memory(findings.peak_memory_bytes)} of memory.",
        )
    rows: list[Sequence[object]] = []
    for name, record in findings.stages.items():
        tokens = stage_tokens(findings, name)
        speed = round(tokens / record.seconds) if tokens and record.seconds >= 1 else None
        peak = memory(record.peak_memory_bytes)
        rows.append([findings.stage_label(name), duration(record.seconds), tokens, speed, peak, record.attempts])
    again = any(record.attempts > 1 for record in findings.stages.values())
    page.text(
        "Tokens written, or learned from; – where the stage does not record them. Tokens a second count all that a "
        "stage does, loading and scoring too."
        + (" Time is that of the attempt that finished; earlier ones were stopped." if again else "")
    )
    page.table(["Stage", "Time", "Tokens", "Tokens/s", "Peak memory", "Attempts"], rows)
    account = endpoint_account(findings.run)
    if account is not None:
        page.text(
            f"The endpoint {findings.config.get('critic_url')} ({findings.config.get('critic_model')}): {account}."
        )


def stage_tokens(findings: Findings, stage: str) -> int | None:
    """Tokens that a stage wrote or learned from, where it is known."""
    recorded = findings.output(stage).get("tokens")
    if recorded is not None:
        return int(recorded)
    if stage == "supervised":
        return round(sum(value for _, value in findings.series("supervised/tokens"))) or None
    model = next((model for model, measured in MEASURED_BY.items() if measured == stage), None)
    found = [by_model[model] for by_model in findings.evaluations.values() if model in by_model] if model else []
    return sum(evaluation.tokens for evaluation in found) or None


def add_limits(page: Page, findings: Findings) -> None:
    """What the numbers do not show."""
    if not findings.evaluations:
        return
    page.heading("What these numbers do not show")
    limits = [
        f"**Small models.** What holds for {findings.config.get('model', 'this model')} need not hold for a larger "
        "one. A small model often declines, or answers, without making sense; examples show that, rates do not.",
        "**Rules as judge.** Harmlessness counts answers that decline. An answer that complies but helps nobody counts "
        "as harmful, one that declines and then helps may count as harmless. It says nothing about attacks: "
        "jailbreaks, long conversations, other languages.",
        "**Keywords as helpfulness.** An answer counts as helpful when it mentions a keyword of a correct one and does "
        "not decline; the rest of it may be wrong, and a right answer in other words is missed.",
        f"**One run.** Intervals cover the choice of prompts, not of the training seed ({findings.run.seed}): another "
        "seed gives another model. Each prompt is answered once, greedily, in at most "
        f"{findings.config.get('max_tokens', '?')} tokens. Prompts for measuring and for training differ but were "
        "written alike.",
        f"**Capability.** Bits per byte on a little prose of ours is a coarse check: {whole(CAPABILITY_LIMIT)} is a "
        "limit that we chose, and abilities that prose does not need may have changed more.",
    ]
    for sentence in limits:
        page.text(emphasis(sentence))


def add_details(page: Page, findings: Findings) -> None:
    """Configuration, environment, and how to repeat the run."""
    page.heading("Details")
    page.text(
        emphasis(
            "To repeat this run, save the configuration below as `config.yaml` (it is also in the run's directory) and "
            "start `alignlab align --config config.yaml --fresh`. The same seed, versions and processor "
            "give the same numbers."
        )
    )
    page.details("Configuration", dump_yaml(findings.config))
    page.details("Environment", json.dumps(findings.run.environment(), indent=2, ensure_ascii=False))
