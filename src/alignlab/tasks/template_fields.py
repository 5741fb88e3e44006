"""Templates that a user may write: which fields they name in braces."""

from __future__ import annotations

import string
from collections.abc import Sequence

from alignlab.core.errors import ConfigError


def fields_in(name: str, text: str) -> set[str]:
    """Names in braces of the template `text`, which errors call `name`. Raises ConfigError for what is no template."""
    try:
        return {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}
    except ValueError as error:
        raise ConfigError(f"template {name} is {text!r}: {error}") from None


def check_fields(name: str, text: str, needed: Sequence[str], optional: Sequence[str] = ()) -> None:
    """ConfigError unless the template has every needed field and no other but the optional ones."""
    present = fields_in(name, text)
    missing = [field for field in needed if field not in present]
    if missing:
        raise ConfigError(f"template {name} is {text!r}, it leaves out {{{missing[0]}}}")
    allowed = dict.fromkeys([*needed, *optional])
    other = sorted(present - allowed.keys())
    if other:
        raise ConfigError(f"template {name} asks for {{{other[0]}}}, allowed: {', '.join(allowed)}")
