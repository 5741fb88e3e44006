"""The stages that make preferences: sample two responses to each prompt, and let the feedback judge them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignlab.align.critique import as_conversations
from alignlab.align.feedback import Comparison
from alignlab.align.pairs import PreferencePair
from alignlab.core.errors import FeedbackError
from alignlab.core.files import append_jsonl, read_jsonl
from alignlab.core.rng import derive_seed
from alignlab.lm.types import SamplingParams

if TYPE_CHECKING:
    from alignlab.align.pipeline import AlignmentPipeline

REFERENCE_CONFIDENCE = 0.95
"""Label of a pair of a reference answer and a sampled one: references are better, but not without exception."""


def sample_pairs(pipeline: AlignmentPipeline) -> dict[str, Any]:
    """Responses of the supervised model: two to each red-team prompt, one to each benign or helpful prompt."""
    config, sampler = pipeline.config, pipeline.sampler(pipeline.model_after("sl-cai"))
    tokens = 0
    for name in ("harmful", "benign", "helpful"):
        asked = as_conversations([record.prompt for record in pipeline.prompts[name]])
        for number in range(2 * config.preference.pairs_per_prompt if name == "harmful" else 1):
            sampling = SamplingParams(
                max_tokens=config.max_tokens,
                temperature=config.preference.temperature,
                seed=derive_seed(config.seed, "pairs", name, number),
            )
            rows = pipeline.generate(sampler, asked, sampling, f"pairs-{name}-{number}")
            tokens += sum(row["tokens"] for row in rows)
    return {"tokens": tokens}


def judge_pairs(pipeline: AlignmentPipeline) -> dict[str, Any]:
    """Preference pairs: AI feedback on red-team prompts, reference answers against samples on the others.

    A pair that the feedback cannot judge, or whose sides are equal, is left out and counted.
    """
    comparisons = harmful_comparisons(pipeline)
    with pipeline.progress.task("AI feedback", len(comparisons), unit="pairs") as task:
        judgements = pipeline.feedback().compare(comparisons)
        task.advance(len(comparisons))
    rows, unscorable = [], 0
    for comparison, judgement in zip(comparisons, judgements, strict=True):
        if judgement.probability is None:
            unscorable += 1
            continue
        ordered = (comparison.first, comparison.second)
        chosen, rejected = ordered if judgement.probability >= 0.5 else ordered[::-1]
        confidence = max(judgement.probability, 1 - judgement.probability)
        rows.append(pair_row("harmful", comparison.prompt, chosen, rejected, confidence))
    if not rows:
        raise FeedbackError(f"the feedback could judge none of {len(comparisons)} pairs, there is nothing to learn")
    n_ai = len(rows)
    for name in ("benign", "helpful"):
        sampled = read_texts(pipeline, f"pairs-{name}-0")
        for record, text in zip(pipeline.prompts[name], sampled, strict=True):
            if record.reference and text and text != record.reference:
                rows.append(pair_row(name, record.prompt, record.reference, text, REFERENCE_CONFIDENCE))
    path = pipeline.run.artifacts / "preferences.jsonl"
    path.unlink(missing_ok=True)
    append_jsonl(path, rows)
    return {"ai_pairs": n_ai, "reference_pairs": len(rows) - n_ai, "unscorable": unscorable}


def harmful_comparisons(pipeline: AlignmentPipeline) -> list[Comparison]:
    """Pairs for each red-team prompt, where both say something and they differ.

    Two samples of the supervised model, and one of them against what the model answered at first: after supervised
    learning a small model declines nearly everything, and its own samples alone say little about what to decline.
    """
    n = pipeline.config.preference.pairs_per_prompt
    names = [(f"pairs-harmful-{2 * pair}", f"pairs-harmful-{2 * pair + 1}") for pair in range(n)]
    found = []
    for first_name, second_name in [*names, ("pairs-harmful-0", "responses")]:
        sides = read_texts(pipeline, first_name), read_texts(pipeline, second_name)
        for record, first, second in zip(pipeline.prompts["harmful"], *sides, strict=True):
            if first and second and first != second:
                found.append(Comparison(record.prompt, first, second))
    return found


def read_texts(pipeline: AlignmentPipeline, name: str) -> list[str]:
    """The texts of a generating stage in order."""
    rows = {row["index"]: row["text"] for row in read_jsonl(pipeline.run.artifacts / f"{name}.jsonl")}
    return [rows[i] for i in range(len(rows))]


def pair_row(kind: str, prompt: str, chosen: str, rejected: str, probability: float) -> dict[str, Any]:
    """One line of `preferences.jsonl`."""
    return {"kind": kind, "prompt": prompt, "chosen": chosen, "rejected": rejected, "probability": probability}


def read_pairs(pipeline: AlignmentPipeline) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """The pairs to learn from and those kept back; which is which depends on the prompt alone."""
    learn: list[PreferencePair] = []
    keep: list[PreferencePair] = []
    held = pipeline.config.preference.heldout_fraction
    for row in read_jsonl(pipeline.run.artifacts / "preferences.jsonl"):
        pair = PreferencePair(as_conversations([row["prompt"]])[0], row["chosen"], row["rejected"], row["probability"])
        drawn = derive_seed(pipeline.config.seed, "keep", row["prompt"]) % 10_000 / 10_000
        (keep if drawn < held else learn).append(pair)
    if not keep:
        learn, keep = learn[1:], learn[:1]
    return learn, keep
