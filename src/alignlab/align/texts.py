"""Small judgements about generated texts: loops, and the best of several candidates."""

from __future__ import annotations

from collections.abc import Sequence

from alignlab.align.feedback import ContrastFeedback


def repetition(text: str) -> float:
    """Share of a text's word trigrams that repeat an earlier one: 0 for none, near 1 for a loop."""
    words = text.lower().split()
    trigrams = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def is_usable(text: str, *, limit: float = 0.25) -> bool:
    """Whether a text says something and does not loop."""
    return bool(text.strip()) and repetition(text) <= limit


def best_candidates(
    prompts: Sequence[str], candidates: Sequence[Sequence[str]], scorer: ContrastFeedback
) -> list[tuple[str | None, float | None]]:
    """For each prompt its usable candidate of highest score, with the score; (None, None) where none is usable.

    candidates[k][i] is the k-th candidate for prompt i.
    """
    best: list[tuple[str | None, float | None]] = [(None, None)] * len(prompts)
    for texts in candidates:
        usable = [i for i, text in enumerate(texts) if is_usable(text)]
        scores = scorer.score([prompts[i] for i in usable], [texts[i] for i in usable])
        for i, score in zip(usable, scores, strict=True):
            held = best[i][1]
            if score is not None and (held is None or score > held):
                best[i] = (texts[i], score)
    return best
