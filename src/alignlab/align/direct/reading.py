"""Files to learn preferences from, as one of two kinds of data: pairs, or single answers that are good or bad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alignlab.align.direct.joint import Encoded
from alignlab.align.direct.kto import RatedExample, check_examples, is_rated, read_rated, train_kto
from alignlab.align.direct.measures import Gains, pair_gains, rated_gains
from alignlab.align.direct.objectives import OBJECTIVES, DirectConfig
from alignlab.align.direct.scoring import encode_pair
from alignlab.align.direct.training import train_direct
from alignlab.align.pairs import PreferencePair, check_pairs, encode_response
from alignlab.align.preference_data.formats import recognise
from alignlab.align.preference_data.reading import read_pairs as read_judged
from alignlab.align.reward.examples import RewardPair, dialogues, split_dialogues
from alignlab.align.reward.readers import as_text
from alignlab.align.reward.readers import read_pairs as read_plain
from alignlab.core.errors import DataError
from alignlab.core.progress import Progress
from alignlab.core.runs import Run
from alignlab.lm.language_model import LanguageModel
from alignlab.tasks.pair_rows import every_row
from alignlab.train.trainer import TrainResult

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class PairData:
    """Comparisons of two answers."""

    unit: ClassVar[str] = "pairs"
    items: Sequence[PreferencePair]

    def take(self, indices: Sequence[int]) -> PairData:
        """A part of it."""
        return PairData([self.items[i] for i in indices])

    def as_pairs(self) -> Sequence[PreferencePair]:
        """What tells which items are of one dialogue."""
        return self.items

    def for_model(self, lm: LanguageModel) -> PairData:
        """The same with dialogues as plain text where the model has no chat template."""
        if lm.tokenizer.chat_template is not None:
            return self
        return PairData([replace(pair, prompt=as_text(pair.prompt)) for pair in self.items])

    def encoded(self, lm: LanguageModel, length: int) -> list[Encoded]:
        """Chosen and rejected of each pair, one after the other."""
        return [side for pair in self.items for side in encode_pair(lm, pair, length)]

    def train(self, lm: LanguageModel, config: DirectConfig, *, run: Run, name: str, progress: Progress) -> TrainResult:
        """Tune `lm` on all of it."""
        return train_direct(lm, self.items, config, run=run, name=name, progress=progress)

    def gains(self, rows: Sequence[Encoded], before: FloatArray, after: FloatArray, method: str) -> Gains | None:
        """What the training did to these pairs, from the log-probabilities of `encoded`; None where there are none."""
        if not any(pair.probability != 0.5 for pair in self.items):
            return None
        per_token = method in OBJECTIVES and OBJECTIVES[method].per_token
        was, now, tokens = (array.reshape(-1, 2) for array in (before, after, token_counts(rows)))
        return pair_gains(was, now, tokens, self.items, per_token=per_token)


@dataclass(frozen=True)
class RatedData:
    """Single answers, each good or bad."""

    unit: ClassVar[str] = "rated answers"
    items: Sequence[RatedExample]

    def take(self, indices: Sequence[int]) -> RatedData:
        """A part of it."""
        return RatedData([self.items[i] for i in indices])

    def as_pairs(self) -> Sequence[PreferencePair]:
        """What tells which items are of one dialogue."""
        return [PreferencePair(example.prompt, example.response, "") for example in self.items]

    def for_model(self, lm: LanguageModel) -> RatedData:
        """The same with dialogues as plain text where the model has no chat template."""
        if lm.tokenizer.chat_template is not None:
            return self
        return RatedData([replace(example, prompt=as_text(example.prompt)) for example in self.items])

    def encoded(self, lm: LanguageModel, length: int) -> list[Encoded]:
        """Each prompt with its answer."""
        return [encode_response(lm.tokenizer, e.prompt, e.response, max_length=length) for e in self.items]

    def train(self, lm: LanguageModel, config: DirectConfig, *, run: Run, name: str, progress: Progress) -> TrainResult:
        """Tune `lm` on all of it."""
        return train_kto(lm, self.items, config, run=run, name=name, progress=progress)

    def gains(self, rows: Sequence[Encoded], before: FloatArray, after: FloatArray, method: str) -> Gains | None:
        """What the training did to these answers, from the log-probabilities of `encoded`; None without any."""
        if not self.items:
            return None
        good = [example.good for example in self.items]
        return rated_gains(before, after, token_counts(rows), good, dialogues(self.as_pairs()))


Data = PairData | RatedData


def read_data(path: str | Path, method: str) -> Data:
    """The pairs of a file, in any format that is known, or for `kto` its rated answers.

    Raises DataError for a file that is missing, damaged or empty, for rated answers with another method, and for data
    that teach nothing.
    """
    first = next((row for _, row in every_row(path) if isinstance(row, dict)), {})
    if is_rated(first):
        if method != "kto":
            raise DataError(f"{path} has rated answers, which only kto learns from; {method} needs pairs")
        rated = RatedData(read_rated(path))
        check_examples(rated.items)
        return rated
    # Files of plain pairs may say how sure a label is; those of judgements have verdicts.
    plain = recognise(first) in (None, "trl", "hh-rlhf")
    pairs = [_soft(pair) for pair in read_plain(path)] if plain else read_judged(path)
    check_pairs(pairs)
    return PairData(pairs)


def _soft(pair: RewardPair) -> PreferencePair:
    """A tie as a label of probability one half."""
    return PreferencePair(pair.prompt, pair.chosen, pair.rejected, 0.5 if pair.tie else pair.probability)


def split(data: Data, heldout: float, *, seed: int) -> tuple[Data, Data]:
    """(To learn from, kept back): whole dialogues; `heldout` 0 keeps none."""
    if heldout == 0:
        return data, data.take([])
    learn, kept = split_dialogues(data.as_pairs(), heldout, seed=seed)
    return data.take(learn), data.take(kept)


def token_counts(rows: Sequence[Encoded]) -> FloatArray:
    """Tokens of each response."""
    return np.array([sum(mask) for _, mask in rows], dtype=np.float64)
