"""Which language a text is in, as the `langdetect` package tells it."""

from __future__ import annotations

from functools import cache
from typing import Any

from alignlab.core.extras import import_extra

_NAMED = "en es pt ar hi fr ru de ja it bn uk th ur ta te bg ko pl he fa vi ne sw kn mr gu pa ml fi"
CODES = frozenset(_NAMED.split())
"""The languages that the benchmark names (ISO 639-1)."""


@cache
def _factory() -> Any:
    # A factory of our own: the module-wide one belongs to whoever else uses langdetect in this process.
    module = import_extra("langdetect.detector_factory", "ifeval")
    factory = module.DetectorFactory()
    factory.load_profile(module.PROFILES_DIRECTORY)
    factory.seed = 0
    return factory


def require_langdetect() -> None:
    """Raise MissingExtraError, naming the command that installs it, where langdetect is missing."""
    import_extra("langdetect", "ifeval")


def is_language(text: str, code: str) -> bool:
    """Whether langdetect takes `text` for `code`. A text without any letters that it knows counts as such.

    langdetect samples. The reference leaves it unseeded, so that short texts can get either verdict; here the seed is
    fixed, and one text has one verdict.
    """
    unknown = import_extra("langdetect.lang_detect_exception", "ifeval").LangDetectException
    detector = _factory().create()
    try:
        detector.append(text)
        return bool(detector.detect() == code)
    except unknown:
        return True
