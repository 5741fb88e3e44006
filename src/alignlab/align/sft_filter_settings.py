"""Where the filters of fine-tuning data draw their lines."""

from __future__ import annotations

from dataclasses import dataclass

from alignlab.core.config import require

DEFAULT = ("exact", "near", "length", "repetition", "characters", "ending", "copy")
"""The filters that need nothing but the data."""


@dataclass(frozen=True)
class FilterSettings:
    """Where the filters draw their lines."""

    near: float = 0.8
    """Least similarity of two records (Jaccard, of their five-word runs) at which the later one goes."""
    min_chars: int = 1
    """Fewest characters of an answer."""
    max_chars: int = 20000
    """Most characters of an answer."""
    repetition: float = 0.3
    """Largest share of an answer's four-word runs that may repeat earlier ones."""
    scripts: tuple[str, ...] = ()
    """characters: the scripts that letters may be of (latin, cyrillic, greek, cjk, ...); none given: all."""
    foreign: float = 0.2
    """characters: largest share of letters of other scripts."""
    language: str = ""
    """language: the code of the only one wanted (en, de, fr, ...); needs alignlab[ifeval]."""
    copy: float = 0.8
    """Largest share of an answer's five-word runs that may be the prompt's."""
    against: tuple[str, ...] = ()
    """contamination: built-in tasks (`gsm8k=FILE` where a task reads one) or JSONL files of what is evaluated on."""
    ngram: int = 13
    """contamination: words in a row that a record and an evaluation have in common."""
    perplexity: str = ""
    """perplexity: the model that says how likely the answers are."""
    perplexity_quantiles: tuple[float, float] = (0.0, 0.98)
    """perplexity: the part of the records that stays, from the likeliest to the unlikeliest."""
    reward: str = ""
    """reward: directory of the reward model, or the run that trained one."""
    reward_quantile: float = 0.1
    """reward: the share of records with the lowest reward that goes."""

    def __post_init__(self) -> None:
        for name in ("near", "repetition", "foreign", "copy"):
            value = getattr(self, name)
            require(0 < value <= 1, f"filter.{name}", value, "a number above 0 and up to 1")
        require(self.min_chars >= 0, "filter.min_chars", self.min_chars, "0 or a positive whole number")
        require(self.max_chars >= self.min_chars, "filter.max_chars", self.max_chars, "at least filter.min_chars")
        require(self.ngram >= 6, "filter.ngram", self.ngram, "a whole number of at least 6")
        low, high = self.perplexity_quantiles
        require(0 <= low < high <= 1, "filter.perplexity_quantiles", (low, high), "two rising numbers from 0 to 1")
        require(0 <= self.reward_quantile < 1, "filter.reward_quantile", self.reward_quantile, "from 0 to below 1")
