"""Random JSON schemas: every answer validates, by an independent validator; the fast test takes fewer than the slow."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from alignlab.lm.constraint_types import Constraint
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler
from alignlab.lm.types import SamplingParams

MakeLM = Callable[..., LanguageModel]
NAMES = ["a", "name", "size", "x y", 'quo"te', "é", "list", "back\\slash"]
PATTERNS = ["^[a-z]+$", "^[A-Z]{2}-\\d{3}$", "b+", "^(yes|no)$", "^\\w{1,5}$"]
FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "email"]
CHECKER = jsonschema.FormatChecker(formats=["date", "uuid", "ipv4", "email"])
CLOCK = r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)"


@CHECKER.checks("time")
def is_time(value: object) -> bool:
    """RFC 3339's full-time; the validator's own check knows no offset from UTC."""
    return not isinstance(value, str) or bool(re.fullmatch(CLOCK, value))


@CHECKER.checks("date-time")
def is_moment(value: object) -> bool:
    """RFC 3339's date-time."""
    return not isinstance(value, str) or bool(re.fullmatch(r"\d{4}-\d\d-\d\d[Tt ]" + CLOCK, value))


class Schemas:
    """Schemas drawn at random, each of which something satisfies."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def document(self) -> dict[str, Any]:
        """A whole schema, in one of four with a definition that may contain itself."""
        schema = self.schema(3)
        if self.draw.random() < 0.25:
            inner = {"type": "object", "properties": {"v": self.schema(0), "next": {"$ref": "#/$defs/node"}}}
            schema = {"$defs": {"node": inner | {"required": ["v"]}}, "anyOf": [schema, {"$ref": "#/$defs/node"}]}
        return schema

    def schema(self, depth: int) -> dict[str, Any]:
        simple = [self.string, self.integer, self.number, self.choice, self.constant, self.plain]
        kinds = simple if depth == 0 else [*simple, *[self.object, self.array] * 3, self.tuple, self.either]
        return self.draw.choice(kinds)(depth - 1)

    def string(self, depth: int) -> dict[str, Any]:
        kind = self.draw.randrange(4)
        if kind == 0:
            return {"type": "string", "pattern": self.draw.choice(PATTERNS)}
        if kind == 1:
            return {"type": "string", "format": self.draw.choice(FORMATS)}
        low = self.draw.randrange(4)
        return {"type": "string", "minLength": low} | ({"maxLength": low + self.draw.randrange(6)} if kind == 2 else {})

    def integer(self, depth: int) -> dict[str, Any]:
        low = self.draw.randrange(-2000, 2000)
        bounds = {"minimum": low, "maximum": low + self.draw.randrange(500)}
        if self.draw.random() < 0.2:
            return {"type": "integer", "multipleOf": self.draw.choice([2, 5, 10])}
        return {"type": "integer"} | {k: v for k, v in bounds.items() if self.draw.random() < 0.7}

    def number(self, depth: int) -> dict[str, Any]:
        low = self.draw.randrange(-50, 50)
        key = self.draw.choice(["minimum", "exclusiveMinimum"])
        return {"type": "number", key: low / 4} | ({"maximum": low / 4 + 1.5} if self.draw.random() < 0.5 else {})

    def choice(self, depth: int) -> dict[str, Any]:
        return {"enum": self.draw.sample(["red", "blüe", 1, -2.5, None, True, "", {"k": [1]}, []], 3)}

    def constant(self, depth: int) -> dict[str, Any]:
        return {"const": self.draw.choice(["fixed", 0, False, [1, "two"], {"a": None}])}

    def plain(self, depth: int) -> dict[str, Any]:
        return {"type": self.draw.choice(["boolean", "null", ["null", "boolean"], ["integer", "string"]])}

    def object(self, depth: int) -> dict[str, Any]:
        names = self.draw.sample(NAMES, self.draw.randrange(1, 5))
        schema: dict[str, Any] = {"type": "object", "properties": {name: self.schema(depth) for name in names}}
        schema["required"] = [name for name in names if self.draw.random() < 0.6]
        others = self.draw.choice([False, False, True, None, {"type": "integer"}])
        return schema if others is None else schema | {"additionalProperties": others}

    def array(self, depth: int) -> dict[str, Any]:
        low = self.draw.randrange(3)
        schema = {"type": "array", "items": self.schema(depth), "minItems": low}
        return schema | ({"maxItems": low + self.draw.randrange(3)} if self.draw.random() < 0.7 else {})

    def tuple(self, depth: int) -> dict[str, Any]:
        first = [self.schema(depth) for _ in range(self.draw.randrange(1, 3))]
        return {"type": "array", "prefixItems": first, "items": False, "minItems": len(first)}

    def either(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self.schema(depth) for _ in range(2)]}


def keywords(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(keywords, schema))
    return set(schema).union(*map(keywords, schema.values())) if isinstance(schema, dict) else set()


def check(lm: LanguageModel, count: int, temperatures: tuple[float, ...]) -> None:
    """Each schema answered at one of the temperatures; nothing may break off, and everything validates."""
    schemas, sampler, seen = Schemas(count), LocalSampler(lm), Counter[str]()
    for i in range(count):
        schema = schemas.document()
        jsonschema.Draft202012Validator.check_schema(schema)
        sampling = SamplingParams(
            max_tokens=400, temperature=temperatures[i % len(temperatures)], seed=i,
            constraint=Constraint.json_schema(schema),
        )  # fmt: skip
        done = sampler.generate(["ab"], sampling)[0]
        validator = jsonschema.Draft202012Validator(schema, format_checker=CHECKER)
        try:
            value = json.loads(done.text)
            validator.validate(value)
        except (ValueError, jsonschema.ValidationError) as error:
            said = f"{done.text!r} ({done.finish_reason}, {len(done.tokens)} tokens)"
            pytest.fail(f"schema {i}: {json.dumps(schema)}\nanswer: {said}\n{error}")
        seen.update(keywords(schema) | {type(value).__name__})
    if count < 100:
        return
    wanted = {"pattern", "format", "multipleOf", "exclusiveMinimum", "enum", "const", "prefixItems", "anyOf", "$ref"}
    assert wanted | {"dict", "list", "str"} <= {word for word in seen if seen[word] > count / 100}


@pytest.mark.no_cover
def test_answers_to_random_schemas_validate(make_lm: MakeLM) -> None:
    check(make_lm(n_ctx=512), 6, (0.0, 0.7, 1.0))


@pytest.mark.slow
def test_answers_to_a_thousand_random_schemas_validate(make_lm: MakeLM) -> None:
    check(make_lm(n_ctx=512), 1000, (0.0, 0.7, 1.0, 2.0))
