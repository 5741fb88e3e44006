"""A person as the teacher: clips go into the store as comparisons, and the training waits for the judgements."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from alignlab.align.preference_data.collector import PreferenceCollector
from alignlab.align.preference_data.questions import Question, answer_id
from alignlab.align.trajectories.clips import check_drawable, clip_text
from alignlab.align.trajectories.segments import Segments
from alignlab.core.config import require
from alignlab.core.errors import FeedbackError
from alignlab.core.store import Store, open_store

PROMPT = "Which clip is closer to what {env} should do?"
NOBODY = "training"


class HumanTeacher:
    """Asks whoever opens the page Clips. See `alignlab.align.trajectories.teacher.Teacher`.

    A pair is answered once one person judged it; several give the mean of what they say. Pairs that everybody skipped
    say nothing. The questions depend on seed and answers alone, so that a training that is started again finds what was
    answered, and goes on where it stopped.
    """

    def __init__(
        self,
        store: Store,
        project: str,
        env: str,
        *,
        patience: float | None = None,
        every: float = 1.0,
        say: Callable[[str], None] = print,
    ) -> None:
        check_drawable(env)
        require(patience is None or patience > 0, "patience", patience, "none or a positive number")
        self.env, self.patience, self.every, self.say = env, patience, every, say
        self.collector = PreferenceCollector(store, project=project, annotator=NOBODY)

    @classmethod
    @contextmanager
    def open(cls, url: str | None, project: str, env: str, *, patience: float | None = None) -> Iterator[HumanTeacher]:
        """A teacher over the store at `url`, which is closed afterwards."""
        with open_store(url) as store:
            yield cls(store, project, env, patience=patience)

    def judge(self, first: Segments, second: Segments, rng: np.random.Generator) -> NDArray[np.float64]:
        """Put the pairs into the store and wait. Raises FeedbackError after `patience` minutes without an answer."""
        prompt, project = PROMPT.format(env=self.env), self.collector.project
        texts = [(clip_text(self.env, a), clip_text(self.env, b)) for a, b in zip(first.inputs, second.inputs)]
        labels = np.full(len(texts), np.nan)
        asked: dict[str, list[int]] = {}
        questions = []
        for i, (one, other) in enumerate(texts):
            if one == other:
                labels[i] = 0.5
                continue
            question = Question(prompt, (one, other), about={"clips": self.env})
            asked.setdefault(question.id(project), []).append(i)
            questions.append(question)
        self.collector.add(questions)
        for comparison, preferred in self._wait(set(asked)).items():
            for i in asked[comparison]:
                said = [preferred[answer_id(comparison, texts[i][0])]] if preferred else []
                labels[i] = said[0] if said else np.nan
        return labels

    def _wait(self, wanted: set[str]) -> dict[str, dict[str, float]]:
        """For each comparison, the mean preference for each of its answers; empty where all skipped."""
        told, began = -1, time.monotonic()
        while True:
            found: dict[str, list[dict[str, float]]] = {}
            for judgement in self.collector.judgements():
                if judgement.comparison_id in wanted:
                    outcomes = list(judgement.outcomes())
                    both = {one: p for one, _, p in outcomes} | {other: 1 - p for _, other, p in outcomes}
                    found.setdefault(judgement.comparison_id, []).append(both)
            if len(found) == len(wanted):
                break
            if len(found) != told:
                told, began = len(found), time.monotonic()
                self.say(
                    f"waiting for judgements: {len(wanted) - told} of {len(wanted)} clips to compare in the project "
                    f"{self.collector.project!r} (alignlab app, page Clips)"
                )
            if self.patience is not None and time.monotonic() - began > 60 * self.patience:
                raise FeedbackError(
                    f"nobody judged clips of the project {self.collector.project!r} for {self.patience:g} minutes; "
                    "what was judged is kept, the same command goes on with it"
                )
            time.sleep(self.every)
        means = {}
        for comparison, all_said in found.items():
            said = [one for one in all_said if one]
            means[comparison] = {a: float(np.mean([one[a] for one in said])) for a in said[0]} if said else {}
        return means
