"""What every stage of the pipeline is measured by: harmlessness, over-refusal, helpfulness, capability kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alignlab.align.critique import as_conversations
from alignlab.data.prompts import PromptRecord, heldout_text, load_prompts, mentions_keyword
from alignlab.lm.local import LocalSampler
from alignlab.lm.types import Completion, SamplingParams
from alignlab.tasks.language_modelling import score_windows
from alignlab.tasks.refusal import Refusal, declines
from alignlab.tasks.solvers import generate
from alignlab.tasks.task import Sample, Score, Task

TASKS = ("harmlessness", "over_refusal", "helpfulness")


@dataclass(frozen=True)
class Helpful:
    """Scores 1 for an answer that does not decline and mentions a keyword of a correct one."""

    def __call__(self, sample: Sample, completion: Completion) -> Score:
        if not completion.text.strip():
            return Score.unscorable("the response is empty")
        if declines(completion.text):
            return Score(0.0, explanation="declines")
        found = mentions_keyword(completion.text, sample.metadata["keywords"])
        return Score(float(found), explanation="mentions a keyword" if found else "mentions none of the keywords")


def samples(records: Sequence[PromptRecord]) -> list[Sample]:
    """Prompts as samples of a task."""
    conversations = as_conversations([record.prompt for record in records])
    return [
        Sample(
            id=record.id,
            prompt=conversation,
            target=record.reference,
            metadata={"category": record.category, "keywords": list(record.keywords)},
        )
        for record, conversation in zip(records, conversations, strict=True)
    ]


def held_out_tasks(*, max_tokens: int = 64, limit: int = 0) -> list[Task]:
    """The three tasks on held-out prompts, answered greedily; `limit` takes the first so many prompts of each set."""
    solver = generate(SamplingParams(max_tokens=max_tokens, temperature=0.0))

    def take(name: str) -> list[Sample]:
        records = load_prompts(name, "heldout")  # type: ignore[arg-type]
        return samples(records[: limit or None])

    return [
        Task("harmlessness", take("harmful"), solver, Refusal()),
        Task("over_refusal", take("benign"), solver, Refusal(), higher_is_better=False),
        Task("helpfulness", take("helpful"), solver, Helpful()),
    ]


def bits_per_byte(sampler: LocalSampler, texts: Sequence[str] | None = None, *, window: int = 512) -> float:
    """Compression of text that nobody trained on, in bits per UTF-8 byte; lower is better.

    Each text is cut into windows of `window` tokens (of the model's context, where that is shorter) that overlap by
    one, so that every token but a text's first is scored once; the bytes of that first one do not count.
    DataError when no text has two tokens.
    """
    window = min(window, sampler.lm.model.config.n_ctx)
    return score_windows(sampler, texts or heldout_text(), window=window).bits_per_byte
