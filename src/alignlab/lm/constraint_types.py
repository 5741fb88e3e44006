"""`Constraint`: the form that an answer must have. It only describes; `alignlab.lm.constrained` enforces it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from alignlab.core.config import require
from alignlab.core.errors import ConfigError

KINDS = ("regex", "json_schema", "grammar")


@dataclass(frozen=True)
class Constraint:
    """A regular expression, a JSON schema or a grammar that the whole answer must match.

    Make one with `Constraint.regex`, `Constraint.json_schema` or `Constraint.grammar`. A constraint is plain, hashable
    data: whether anything can satisfy it is found out by whoever enforces it.
    """

    kind: Literal["regex", "json_schema", "grammar"]
    """What `source` is."""
    source: str
    """The pattern, the schema as JSON text, or the grammar in Lark's notation."""
    wrap_up: bool = True
    """Finish the answer by a short way while `max_tokens` still leaves room for it, instead of breaking off."""

    def __post_init__(self) -> None:
        require(self.kind in KINDS, "kind", self.kind, ", ".join(KINDS))
        require(isinstance(self.source, str), "source", self.source, "text")
        if self.kind == "json_schema":
            try:
                schema = json.loads(self.source)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"the JSON schema is not JSON: {error}") from None
            require(isinstance(schema, dict | bool), "the JSON schema", schema, "an object, true or false")

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """The answer matches `pattern` from its first to its last character (Rust's syntax; no look-around)."""
        return cls("regex", pattern)

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str) -> Constraint:
        """The answer is a JSON document that `schema` (an object, or its JSON text) accepts.

        It is written on one line with at most one space after commas and colons; properties keep the schema's order.
        """
        if isinstance(schema, str):
            return cls("json_schema", schema)
        try:
            return cls("json_schema", json.dumps(schema, ensure_ascii=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"the JSON schema cannot be written as JSON: {error}") from None

    @classmethod
    def grammar(cls, lark: str) -> Constraint:
        """The answer is derived from the rule `start` of a context-free grammar in Lark's notation."""
        return cls("grammar", lark)
