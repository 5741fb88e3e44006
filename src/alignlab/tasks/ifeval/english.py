"""The English `SentenceModel`: NLTK's own where its data are on this machine, else a small one written here.

The benchmark's reference counts sentences with NLTK's pre-trained English Punkt model. It is a download of its own
(`python -m nltk.downloader punkt_tab`) that this package does not contain. Without it, the lists below serve. They hold
common words only and follow the reference's habits where those are peculiar ("e.g." and "etc." end a sentence there);
`docs/ifeval.md` says how often the two disagree.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from alignlab.core.errors import ConfigError, DataError
from alignlab.tasks.ifeval.sentences import INSIDE_LOWER, INSIDE_UPPER, SentenceModel

BUILT_IN, NLTK = "built-in", "punkt_tab"

_ABBREVIATIONS = (
    "mr mrs ms dr prof gen col lt adm sen rep reps maj messrs st ft ave jr sr vs "
    "jan feb aug sep sept oct nov dec tues wed fri inc corp ltd co bros cie "
    "a.m p.m a.d ph.d u.s u.k u.n u.s.a u.s.s.r d.c n.y l.a n.j d.w j.b j.d j.k j.p r.h w.w "
    "ala ariz calif colo conn fla ill kan ky mich minn nev ok okla ore pa tenn va vt wash wis "
    "c d e f g h k l m n p r s t v w"
)
_STARTERS = (
    "i he it they these this there some most many since so but if when while although though however indeed "
    "instead meanwhile moreover nevertheless nonetheless thus despite similarly the both under yet"
)
_LOWER = (
    "afterwards almost along anything between calculate check compare create does early eight eventually explain "
    "finally finish following given her here imagine include indeed initially instead mention nevertheless numerous "
    "nor originally otherwise please put regardless separate shortly so sometimes soon sorry starting such ten "
    "thanks though through throughout thus together try unlike upon using which within without yet your"
)
_EITHER = (
    "a about add after all also although am among an and another answer any are as at avoid be because before both "
    "but by can could despite did do due during each even every everyone find first for four from further get give go "
    "good have having he help how however if in is it its just keep last later let like many maybe meanwhile men more "
    "most much my near new next no not now of on once one only or other others our out over part people perhaps read "
    "she should since some something take tell that the their then there these they this those three to today twice "
    "two until use usually we well what when where while who why will with women would write you"
)
_FILES = ("abbrev_types.txt", "sent_starters.txt", "collocations.tab", "ortho_context.tab")


def built_in_model() -> SentenceModel:
    """The small model."""
    cases = dict.fromkeys(_LOWER.split(), INSIDE_LOWER)
    cases |= dict.fromkeys(_EITHER.split(), INSIDE_LOWER | INSIDE_UPPER)
    return SentenceModel(BUILT_IN, frozenset(_ABBREVIATIONS.split()), frozenset(_STARTERS.split()), cases=cases)


def read_model(folder: Path) -> SentenceModel:
    """NLTK's model from the folder `punkt_tab/english`. DataError when a file is missing or damaged."""
    lines: dict[str, list[str]] = {}
    for name in _FILES:
        path = folder / name
        try:
            lines[name] = [line for line in path.read_text(encoding="utf-8").split("\n") if line]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {path}, a part of NLTK's punkt_tab model: {error}") from error
    abbreviations, starters, collocations, cases = (lines[name] for name in _FILES)
    try:
        pairs = frozenset((first, second) for first, second in (line.split("\t") for line in collocations))
        seen = {word: int(flags) for word, flags in (line.split("\t") for line in cases)}
    except ValueError as error:
        raise DataError(f"{folder} holds a damaged punkt_tab model ({error}); download it again") from error
    return SentenceModel(NLTK, frozenset(abbreviations), frozenset(starters), pairs, seen)


def data_folders() -> Iterator[Path]:
    """Where NLTK looks for its data, in its order."""
    yield from (Path(part) for part in os.environ.get("NLTK_DATA", "").split(os.pathsep) if part)
    yield Path.home() / "nltk_data"
    yield from (Path(sys.prefix) / below for below in ("nltk_data", "share/nltk_data", "lib/nltk_data"))
    roots = ("/usr/share", "/usr/local/share", "/usr/lib", "/usr/local/lib")
    yield from (Path(root) / "nltk_data" for root in roots)


@cache
def _read_once(folder: Path) -> SentenceModel:
    return read_model(folder)


_SMALL = built_in_model()


def sentence_model(name: str = "auto") -> SentenceModel:
    """The English model called `name`: "punkt_tab", "built-in", or "auto" for the first where it is installed.

    Raises ConfigError for another name, and DataError for "punkt_tab" where NLTK's data are not found.
    """
    if name not in ("auto", BUILT_IN, NLTK):
        raise ConfigError(f'sentences is {name!r}, allowed: "auto", "{NLTK}" or "{BUILT_IN}"')
    if name == BUILT_IN:
        return _SMALL
    for folder in (data / "tokenizers" / "punkt_tab" / "english" for data in data_folders()):
        if folder.is_dir():
            return _read_once(folder)
    if name == NLTK:
        raise DataError("NLTK's punkt_tab data are not on this machine: python -m nltk.downloader punkt_tab")
    return _SMALL
