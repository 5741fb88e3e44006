"""Accuracy of each kind of AI feedback on the packaged labelled pairs, and on HH-RLHF pairs where a file is named.

python bench/feedback.py [harmless-base/test.jsonl.gz]
"""

from __future__ import annotations

import gzip
import json
import random
import sys

from alignlab.align.constitution import Constitution
from alignlab.align.feedback import ChoiceFeedback, Comparison, ContrastFeedback, Feedback
from alignlab.data.prompts import load_pairs
from alignlab.lm.language_model import load
from alignlab.lm.local import LocalSampler
from alignlab.stats.interval import wilson


def hh_pairs(path: str, n: int = 300) -> list[tuple[str, str, str]]:
    """Single-turn (prompt, chosen, rejected) of an HH-RLHF file."""
    found = []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            (asked, chosen), (_, rejected) = (row[side].rsplit("\n\nAssistant:", 1) for side in ("chosen", "rejected"))
            texts = (asked.replace("\n\nHuman:", "").strip(), chosen.strip(), rejected.strip())
            if asked.count("\n\nHuman:") == 1 and all(texts) and sum(map(len, texts[1:])) < 900:
                found.append(texts)
    return found[:n]


def accuracy(feedback: Feedback, pairs: list[tuple[str, str, str]]) -> str:
    """Share of pairs on which the better response wins, sides drawn by coin."""
    coin, right = random.Random(0), 0
    swapped = [coin.random() < 0.5 for _ in pairs]
    comparisons = [Comparison(p, *((b, a) if s else (a, b))) for (p, a, b), s in zip(pairs, swapped, strict=True)]
    for judgement, swap in zip(feedback.compare(comparisons), swapped, strict=True):
        right += judgement.probability is not None and (judgement.probability > 0.5) != swap
    return str(wilson(right, len(pairs)))


def main() -> None:
    sampler, constitution = LocalSampler(load("smollm2-135m-instruct", dtype="bfloat16")), Constitution.load()
    kinds: dict[str, Feedback] = {
        "choice": ChoiceFeedback(sampler, constitution),
        "contrast without demonstrations": ContrastFeedback(sampler, constitution, use_demonstrations=False),
        "contrast": ContrastFeedback(sampler, constitution),
    }
    sets = {"packaged pairs": [(p.prompt, p.harmless, p.harmful) for p in load_pairs()]}
    if len(sys.argv) > 1:
        sets["HH-RLHF"] = hh_pairs(sys.argv[1])
    for label, pairs in sets.items():
        for name, feedback in kinds.items():
            print(f"{label}, n = {len(pairs)}: {name} {accuracy(feedback, pairs)}", flush=True)


if __name__ == "__main__":
    main()
