"""Edits that should not matter: the same said a little differently, and length that says nothing.

They are deterministic, so that two reward models face the same texts. What they keep is checked by reading, not by a
judge: contractions, spacing, case and politeness leave what is said as it was; the padding adds nothing to it. A
paraphrase by a model (`ModelParaphrase`) goes further and may change the meaning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from alignlab.core.rng import derive_seed
from alignlab.lm.types import Message, Sampler, SamplingParams

EditKind = Literal["paraphrase", "length"]

CONTRACTIONS = {
    "I'm": "I am", "I'd": "I would", "I'll": "I will", "I've": "I have", "you're": "you are", "you'll": "you will",
    "you've": "you have", "you'd": "you would", "it's": "it is", "that's": "that is", "there's": "there is",
    "what's": "what is", "we're": "we are", "we've": "we have", "they're": "they are", "they've": "they have",
    "don't": "do not", "doesn't": "does not", "didn't": "did not", "isn't": "is not", "aren't": "are not",
    "wasn't": "was not", "weren't": "were not", "won't": "will not", "wouldn't": "would not", "can't": "cannot",
    "couldn't": "could not", "shouldn't": "should not", "haven't": "have not", "hasn't": "has not",
}  # fmt: skip
FUNCTION_WORDS = {
    "for example": "for instance", "for instance": "for example", "also": "too", "however": "still",
    "because": "since", "maybe": "perhaps", "perhaps": "maybe", "really": "truly", "often": "frequently",
    "usually": "normally", "almost": "nearly", "quickly": "rapidly", "many": "numerous", "big": "large",
}  # fmt: skip
NOTHING = (
    "That is what I have to say on this.",
    "I hope this answers what you asked.",
    "Please let me know if anything is unclear.",
)


@dataclass(frozen=True)
class Edit:
    """A way of changing answers."""

    name: str
    """What it does, in a word or two."""
    kind: EditKind
    """Whether it says the same in other words, or only changes the length."""
    apply: Callable[[Sequence[str]], list[str]]
    """Texts in, as many texts out; a text that it cannot change comes back as it was."""


def expand_contractions(text: str) -> str:
    """`don't` becomes `do not`; straight and curly apostrophes alike, capitals kept."""
    return _replace_words(text.replace("\u2019", "'"), CONTRACTIONS) if "'" in text or "\u2019" in text else text


def swap_function_words(text: str) -> str:
    """Common words by near synonyms."""
    return _replace_words(text, FUNCTION_WORDS)


def respace(text: str) -> str:
    """One space between words and single line breaks where there were paragraphs."""
    return re.sub(r"\n{2,}", "\n", re.sub(r"[ \t]{2,}", " ", text)).strip()


def double_space(text: str) -> str:
    """Two spaces after every sentence, as typewriters had it."""
    return re.sub(r"(?<=[.!?]) +(?=\S)", "  ", text)


def lower_case(text: str) -> str:
    """Everything in small letters."""
    return text.lower()


def polite_start(text: str) -> str:
    """Thanks for the question before the answer."""
    return f"Thank you for asking. {text}" if text.strip() else text


def pad(text: str) -> str:
    """Three sentences at the end that add nothing."""
    return f"{text.rstrip()} {' '.join(NOTHING)}" if text.strip() else text


def repeat_last(text: str) -> str:
    """The last sentence once more, in other words the same twice."""
    sentences = _sentences(text)
    return f"{text.rstrip()} {sentences[-1]}" if sentences else text


def first_half(text: str) -> str:
    """The first half of the sentences; one alone stays."""
    sentences = _sentences(text)
    return " ".join(sentences[: max(1, (len(sentences) + 1) // 2)]) if len(sentences) > 1 else text


def each(change: Callable[[str], str]) -> Callable[[Sequence[str]], list[str]]:
    """A change of one text as a change of many."""
    return lambda texts: [change(text) for text in texts]


EDITS: tuple[Edit, ...] = (
    Edit("contractions expanded", "paraphrase", each(expand_contractions)),
    Edit("function words swapped", "paraphrase", each(swap_function_words)),
    Edit("spacing tightened", "paraphrase", each(respace)),
    Edit("spacing widened", "paraphrase", each(double_space)),
    Edit("lower case", "paraphrase", each(lower_case)),
    Edit("polite start", "paraphrase", each(polite_start)),
    Edit("padding that adds nothing", "length", each(pad)),
    Edit("last sentence repeated", "length", each(repeat_last)),
    Edit("first half only", "length", each(first_half)),
)
"""The deterministic edits. `first half only` drops content: it shows what length is worth, not a fault by itself."""


class ModelParaphrase:
    """Paraphrases by a model, for `Edit.apply`; a text that it returns empty stays as it was."""

    def __init__(self, sampler: Sampler, *, max_tokens: int = 256, temperature: float = 0.7, seed: int = 0) -> None:
        self.sampler, self.seed = sampler, seed
        self.sampling = SamplingParams(
            max_tokens=max_tokens, temperature=temperature, seed=derive_seed(seed, "paraphrase") % 2**31
        )

    def __call__(self, texts: Sequence[str]) -> list[str]:
        asked: list[list[Message]] = [
            [
                {
                    "role": "user",
                    "content": "Say the following text in other words. Keep its meaning, tone and length, and write "
                    f"nothing but the new text.\n\n{text}",
                }
            ]
            for text in texts
        ]
        written = self.sampler.generate(asked, self.sampling)
        return [new.text.strip() or text for new, text in zip(written, texts, strict=True)]


def _sentences(text: str) -> list[str]:
    return [piece for piece in re.split(r"(?<=[.!?])\s+", text.strip()) if piece]


def _replace_words(text: str, words: dict[str, str]) -> str:
    known = {word.lower(): other for word, other in words.items()}
    pattern = r"\b(" + "|".join(map(re.escape, known)) + r")\b"

    def other(match: re.Match[str]) -> str:
        found, new = match[0], known[match[0].lower()]
        if new.startswith("I "):
            return new
        return new[0].upper() + new[1:] if found[0].isupper() else new

    return re.sub(pattern, other, text, flags=re.IGNORECASE)
