"""`Watched`: a reward that keeps an account of what it paid for, wherever a reward goes.

It adds to each step's metrics what the alarms read (`gold`, `repetition`, `distinct`, `length_correlation`), and to the
run a `responses.jsonl` that `alignlab diagnose` and the page *Training* show. The loops need no change for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from alignlab.align.diagnostics.attribution import leave_one_out
from alignlab.align.diagnostics.history import StepResponses
from alignlab.align.diagnostics.response_log import (
    FILE,
    LONGEST_TEXT,
    ResponseLog,
    Sample,
    StepRecord,
    clean,
    cleaned,
    prompt_key,
    prompt_text,
)
from alignlab.align.rl.rewards import Guarded, Reward, after_step, name_of
from alignlab.core.config import require
from alignlab.core.runs import Run
from alignlab.lm.types import Prompt
from alignlab.tasks.text_quality import distinct_n, ngrams, repetition_rate

REPEATED = 4
"""Words of the n-grams whose repetition counts."""
OPENING = 32
"""Words of each answer that are compared with the other answers'."""


@dataclass
class Watched:
    """A reward under observation.

    `gold` is a reward that is not optimised (a better model, a judge, a scorer), asked every `gold_every` steps about
    the same answers. With a `run` the answers are logged; `samples` of each step as texts, from the best to the worst
    paid, the first `attribute` of them with each part's contribution to the reward.
    """

    reward: Reward
    gold: Reward | None = None
    run: Run | None = None
    count_tokens: Callable[[str], int] | None = None
    """Tokens of an answer, such as `lambda text: len(tokenizer.encode(text))`; none: by the reward's own tokenizer, or
    not at all where it has none.
    """
    samples: int = 8
    attribute: int = 0
    gold_every: int = 1
    time_limit: float | None = None
    step: int = field(default=0, init=False)
    """Rollout batches seen."""

    def __post_init__(self) -> None:
        require(self.samples >= 0, "samples", self.samples, "0 or a positive whole number")
        require(0 <= self.attribute <= self.samples, "attribute", self.attribute, f"0 to samples ({self.samples})")
        require(self.gold_every >= 1, "gold_every", self.gold_every, "a positive whole number")
        self.name = name_of(self.reward)
        self.tokenizer = getattr(self.reward, "tokenizer", None)  # the loops compare it with the policy's
        self._reward = Guarded(self.reward, self.time_limit)
        self._gold = None if self.gold is None else Guarded(self.gold, self.time_limit)
        self._log = None if self.run is None else ResponseLog(self.run.path / FILE)
        self._seen: list[tuple[Prompt, str, float]] = []

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " batch"]:
        """The reward's own scores."""
        scores = self._reward.score(prompts, responses)
        self._seen += zip(prompts, responses, scores.tolist(), strict=True)
        return scores

    def after_step(self) -> dict[str, float]:
        """Close the step: ask the gold reward, write the log; what was measured, the reward's own account with it."""
        seen, self._seen = self._seen, []
        own = after_step(self.reward)
        if not seen:
            return own
        self.step += 1
        prompts, texts = [row[0] for row in seen], [row[1] for row in seen]
        gold: list[float] = []
        if self._gold is not None and self.step % self.gold_every == 0:
            gold = self._gold.score(prompts, texts).tolist()
            own |= after_step(self._gold.reward)
        if self._log is not None:
            self._log.write(self._record(seen, gold))
        measured = {"gold": math.fsum(gold) / len(gold)} if gold else {}
        return {**own, **measured, **text_measures(texts, [row[2] for row in seen])}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: how many steps were seen, and the rewards' own states."""
        gold = None if self._gold is None else self._gold.state_dict()
        return {"step": self.step, "reward": self._reward.state_dict(), "gold": gold}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.step, self._seen = int(state["step"]), []
        self._reward.load_state_dict(state["reward"])
        if self._gold is not None:
            self._gold.load_state_dict(state["gold"])

    def _record(self, seen: Sequence[tuple[Prompt, str, float]], gold: Sequence[float]) -> StepRecord:
        count = self.count_tokens
        if count is None and self.tokenizer is not None:
            encode = self.tokenizer.encode

            def count(text: str) -> int:
                return len(encode(text))

        numbers = StepResponses(
            self.step,
            tuple(prompt_key(prompt) for prompt, _, _ in seen),
            tuple(reward for _, _, reward in seen),
            () if count is None else tuple(float(count(text)) for _, text, _ in seen),
            tuple(gold),
        )
        return StepRecord(numbers, tuple(self._samples(seen, gold)))

    def _samples(self, seen: Sequence[tuple[Prompt, str, float]], gold: Sequence[float]) -> list[Sample]:
        order = sorted(range(len(seen)), key=lambda i: -seen[i][2])
        chosen = [order[i] for i in spread(len(order), self.samples)]
        found = []
        for place, i in enumerate(chosen):
            prompt, text, reward = seen[i]
            asked = prompt_text(prompt)
            spans: tuple[tuple[str, float], ...] = ()
            if place < self.attribute and text.strip():
                parts = leave_one_out(self._reward.score, prompt, text)
                spans = tuple((clean(span), value) for span, value in zip(parts.spans, parts.values, strict=True))
            cut = max(len(asked), len(text)) > LONGEST_TEXT
            kept = clean(asked) if cut or isinstance(prompt, str) else cleaned(prompt)
            one_gold = gold[i] if gold else None
            found.append(Sample(kept, clean(text), float(f"{reward:.6g}"), one_gold, spans, cut))
        return found


def text_measures(texts: Sequence[str], rewards: Sequence[float]) -> dict[str, float]:
    """Of the answers of one step, in words: `repetition` (4-grams said before in the same answer), `distinct`
    (different word pairs among the openings of all answers), `length_correlation` (Pearson, of reward and characters).

    Each is left out where the texts are too short or do not vary.
    """
    words = [text.split() for text in texts]
    found = {}
    if any(ngrams(text, REPEATED) for text in words):
        found["repetition"] = repetition_rate(words, REPEATED)
    openings = [text[:OPENING] for text in words]
    if any(ngrams(text, 2) for text in openings):
        found["distinct"] = distinct_n(openings, 2)
    lengths, paid = np.array([len(text) for text in texts], dtype=np.float64), np.array(rewards)
    if lengths.std() > 0 and paid.std() > 0:
        found["length_correlation"] = float(np.corrcoef(lengths, paid)[0, 1])
    return found


def spread(size: int, count: int) -> list[int]:
    """At most `count` of the positions 0 to size - 1, evenly spread, both ends among them."""
    if count >= size:
        return list(range(size))
    if count <= 1:
        return [0][:count]
    return sorted({round(i * (size - 1) / (count - 1)) for i in range(count)})
