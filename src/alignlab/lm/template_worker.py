"""Renders chat templates. Run as a program it does so under limits of memory, for templates nobody vouches for.

A chat template comes with a model file and is a program. Jinja's sandbox keeps it from reaching Python, not from
looping or from building a string of a terabyte; a process of its own that can be killed does. The program reads one
JSON request a line and answers one JSON line. It imports nothing of the package, so that it starts quickly.
"""

from __future__ import annotations

import datetime
import functools
import json
import sys
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT = 4 * 2**20
MAX_MEMORY = 768 * 2**20


OPENS, CLOSES = "generation_opens", "generation_closes"
"""Variables printed around what a template marks as the assistant's; nothing where they are not given."""


class GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks assistant text for training; it is printed between `OPENS` and
    `CLOSES`."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares it so)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        inside = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        opens, closes = (nodes.Output([nodes.Name(name, "load")], lineno=line) for name in (OPENS, CLOSES))
        return [opens, *inside, closes]


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


@functools.lru_cache(maxsize=32)
def compiled(source: str) -> jinja2.Template:
    """The template with the globals and filters that model files expect."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlock]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


def render(source: str, variables: dict[str, Any]) -> str:
    """The rendered text, at most `MAX_OUTPUT` characters. Raises whatever the template raises."""
    parts, size = [], 0
    for part in compiled(source).generate(**variables):
        size += len(part)
        if size > MAX_OUTPUT:
            raise ValueError(f"the result is longer than {MAX_OUTPUT} characters")
        parts.append(part)
    return "".join(parts)


def answer(line: bytes) -> dict[str, str]:
    """`{"text": …}` or `{"error": …}` for one request."""
    try:
        request = json.loads(line)
        return {"text": render(request["template"], request["variables"])}
    except MemoryError:
        return {"error": f"it needs more than {MAX_MEMORY // 2**20} MiB of memory"}
    except RecursionError:
        return {"error": "it nests or recurses too deeply"}
    except Exception as error:
        return {"error": f"{str(error)[:500] or type(error).__name__}"}


def main() -> None:
    """Answer requests until the input closes."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # no such limits here: the time limit of the parent remains
        pass
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(json.dumps(answer(line)).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
