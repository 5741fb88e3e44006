"""Filters of fine-tuning data: each record that goes is kept aside with the filter that caught it and its reason.

Filters run one after the other, each on what those before have left. A record goes when any of the turns it would teach
is bad. What a filter cannot judge (the language of three words) stays, and is counted as undecided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alignlab.align.conversations import Conversation
from alignlab.align.sft import SFTExample
from alignlab.align.sft_filter_settings import FilterSettings
from alignlab.core.config import unknown_name
from alignlab.core.errors import ConfigError, DataError
from alignlab.core.progress import SILENT, Progress
from alignlab.data import quality
from alignlab.data.contamination import Evaluated
from alignlab.data.dedup import find_duplicates

LANGUAGE_LEAST = 40
Verdict = str | None
"""Why a record goes; empty where it stays; None where that is undecided, and it stays as well."""


@dataclass(frozen=True)
class Record:
    """One line of a data file."""

    line: int
    """Its number, from 1, empty lines left out."""
    given: dict[str, Any]
    """As it was read."""
    examples: list[SFTExample | Conversation]
    """What it teaches."""

    @property
    def prompt(self) -> str:
        """All that is asked in it, system messages left out."""
        parts = []
        for example in self.examples:
            if isinstance(example, SFTExample):
                given = example.prompt
                parts += [given] if isinstance(given, str) else [m["content"] for m in given if m["role"] == "user"]
            else:
                parts += [m["content"] for m in example.messages if m["role"] == "user"]
        return "\n".join(parts)

    @property
    def answers(self) -> list[str]:
        """The turns that are learned."""
        found = []
        for example in self.examples:
            if isinstance(example, SFTExample):
                found.append(example.response)
            else:
                found += [example.messages[i]["content"] for i in example.learned]
        return found


@dataclass(frozen=True)
class Caught:
    """A record that goes."""

    record: Record
    """What it is."""
    filter: str
    """Which filter caught it."""
    reason: str
    """Why."""

    def row(self) -> dict[str, Any]:
        """For a file of what was dropped."""
        return {"line": self.record.line, "filter": self.filter, "reason": self.reason, "record": self.record.given}


@dataclass(frozen=True)
class FilterCount:
    """What one filter did."""

    name: str
    """Of the filter."""
    seen: int
    """Records that reached it."""
    dropped: int
    """Records that it caught."""
    undecided: int
    """Records that it could not judge; they stayed."""


@dataclass(frozen=True)
class Filtered:
    """What is left of the data, and what is not."""

    kept: list[Record]
    """In their order."""
    dropped: list[Caught] = field(repr=False)
    """In the order of the filters, then of the lines."""
    counts: list[FilterCount]
    """Of each filter, in the order in which they ran."""

    def summary(self) -> dict[str, Any]:
        """The counts, as plain values."""
        rows = [vars(count) for count in self.counts]
        return {"records": len(self.kept) + len(self.dropped), "kept": len(self.kept), "filters": rows}


Filter = Callable[[Sequence[Record], FilterSettings, Progress], list[Verdict]]


def run_filters(
    records: Sequence[Record],
    names: Sequence[str],
    settings: FilterSettings | None = None,
    *,
    progress: Progress | None = None,
) -> Filtered:
    """Put `records` through the filters `names` (see `FILTERS`), in that order.

    Raises ConfigError for an unknown filter, one that is named twice, or one that lacks what it needs; DataError where
    nothing is left.
    """
    settings, progress = settings or FilterSettings(), progress or SILENT
    check_filters(names, settings)
    kept, dropped, counts = list(records), list[Caught](), list[FilterCount]()
    for name in names:
        with progress.task(f"filter {name}", len(kept), unit="records") as task:
            verdicts = FILTERS[name](kept, settings, progress)
            task.advance(len(kept))
        caught = [Caught(record, name, why) for record, why in zip(kept, verdicts, strict=True) if why]
        counts.append(FilterCount(name, len(kept), len(caught), sum(why is None for why in verdicts)))
        dropped += caught
        kept = [record for record, why in zip(kept, verdicts, strict=True) if not why]
        if not kept:
            what = ", ".join(f"{count.name} {count.dropped}" for count in counts if count.dropped)
            raise DataError(f"the filters dropped all {len(records)} records: {what}; the first: {dropped[0].reason}")
    return Filtered(kept, dropped, counts)


def check_filters(names: Sequence[str], settings: FilterSettings) -> None:
    """Raise ConfigError for what `run_filters` would refuse, before anything is read."""
    for name in names:
        if name not in FILTERS:
            raise ConfigError(unknown_name(f"filter {name!r}", name, FILTERS))
        if list(names).count(name) > 1:
            raise ConfigError(f"the filter {name!r} is named twice, allowed: once")
        needs = _NEEDS.get(name, "")
        if needs and not getattr(settings, needs):
            raise ConfigError(f"the filter {name!r} needs --filter.{needs}, which is not given")
    for name, needs in _NEEDS.items():
        if getattr(settings, needs) and name not in names:
            raise ConfigError(f"--filter.{needs} is given, but the filter {name!r} is not named; add it to --filters")


def _exact(records: Sequence[Record], settings: FilterSettings, progress: Progress) -> list[Verdict]:
    return _repeated(records, None)


def _near(records: Sequence[Record], settings: FilterSettings, progress: Progress) -> list[Verdict]:
    return _repeated(records, settings.near)


def _repeated(records: Sequence[Record], threshold: float | None) -> list[Verdict]:
    texts = ("\n".join([record.prompt, *record.answers]) for record in records)
    found = find_duplicates(texts, threshold=threshold)
    words = "says what line {} says" if threshold is None else f"is at least {threshold:.0%} like line {{}}"
    return [
        "" if keep else words.format(records[first].line)
        for keep, first in zip(found.keep.tolist(), found.first.tolist(), strict=True)
    ]


def _of_answers(judge: Callable[[str, Record, FilterSettings], str]) -> Filter:
    """A filter that catches a record with the first of its answers that `judge` has something against."""

    def judged(records: Sequence[Record], settings: FilterSettings, progress: Progress) -> list[Verdict]:
        return [
            next((why for answer in record.answers if (why := judge(answer, record, settings))), "")
            for record in records
        ]

    return judged


def _characters(text: str, settings: FilterSettings) -> str:
    return quality.damaged(text) or (
        quality.foreign(text, settings.scripts, settings.foreign) if settings.scripts else ""
    )


def _language(records: Sequence[Record], settings: FilterSettings, progress: Progress) -> list[Verdict]:
    from alignlab.tasks.ifeval.language import is_language

    found: list[Verdict] = []
    for record in records:
        text = "\n".join(record.answers)
        if sum(map(str.isalpha, text)) < LANGUAGE_LEAST:
            found.append(None)
        else:
            found.append("" if is_language(text, settings.language) else f"is not taken for {settings.language!r}")
    return found


def _contamination(records: Sequence[Record], settings: FilterSettings, progress: Progress) -> list[Verdict]:
    from alignlab.align.sft_filter_sources import evaluation_texts

    sources = [
        (name, texts, Evaluated(texts, words=settings.ngram)) for name, texts in evaluation_texts(settings.against)
    ]
    found: list[Verdict] = []
    for record in records:
        text, why = "\n".join([record.prompt, *record.answers]), ""
        for name, texts, evaluated in sources:
            overlap = evaluated.find(text)
            if overlap is not None:
                shown = " ".join(texts[overlap.text].split())[:60]
                why = f"shares {overlap.words} words in a row with item {overlap.text + 1} of {name}: {shown!r}"
                break
        found.append(why)
    return found


def _perplexity(records: Sequence[Record], settings: FilterSettings, progress: Progress) -> list[Verdict]:
    from alignlab.align.sft_filter_sources import answer_nats

    nats = answer_nats(records, settings.perplexity, progress)
    low, high = settings.perplexity_quantiles
    return _outside(nats, low, high, "{:.3f} nats a token", f" under {settings.perplexity}")


def _reward(records: Sequence[Record], settings: FilterSettings, progress: Progress) -> list[Verdict]:
    from alignlab.align.sft_filter_sources import answer_rewards

    rewards = answer_rewards(records, settings.reward)
    return _outside(list(rewards), settings.reward_quantile, 1.0, "a reward of {:.3f}", "")


def _outside(values: Sequence[float | None], low: float, high: float, words: str, end: str) -> list[Verdict]:
    """What lies below the quantile `low` or above `high` of the values that there are."""
    there = [value for value in values if value is not None]
    if not there:
        return [None] * len(values)
    least, most = np.quantile(there, [low, high]).tolist()
    found: list[Verdict] = []
    for value in values:
        if value is None or least <= value <= most:
            found.append(None if value is None else "")
        else:
            bound = f"below {least:.3f}, quantile {low:g}" if value < least else f"above {most:.3f}, quantile {high:g}"
            found.append(f"{words.format(value)}{end}, {bound}")
    return found


FILTERS: dict[str, Filter] = {
    "exact": _exact,
    "near": _near,
    "length": _of_answers(lambda text, _, s: quality.bad_length(text, s.min_chars, s.max_chars)),
    "repetition": _of_answers(lambda text, _, s: quality.looping(text, s.repetition)),
    "characters": _of_answers(lambda text, _, s: _characters(text, s)),
    "language": _language,
    "ending": _of_answers(lambda text, _, s: quality.unfinished(text)),
    "copy": _of_answers(lambda text, record, s: quality.copying(text, record.prompt, s.copy)),
    "contamination": _contamination,
    "perplexity": _perplexity,
    "reward": _reward,
}
"""By name: a verdict for each record."""
_NEEDS = {"language": "language", "contamination": "against", "perplexity": "perplexity", "reward": "reward"}
