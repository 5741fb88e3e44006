"""From a config class to a command line: tyro's flags and help, one sentence for a mistake."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import re
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from alignlab.core.config import describe, load_yaml, unknown_name
from alignlab.core.errors import ConfigError

C = TypeVar("C")
_RULE = re.compile(r"[─-]{3,}")


def parse_cli(cls: type[C], args: Sequence[str], *, prog: str, first: str | None = None) -> C:
    """The config `cls` from command-line arguments; flags and help come from its fields and their docstrings.

    `--config FILE.yaml` loads a saved config whose values take the place of the defaults; flags override them.
    A first argument that is no flag is the value of the field `first`. `--help` prints and raises SystemExit(0). A
    wrong flag, value or file raises ConfigError with one sentence.
    """
    if first is not None and args and not args[0].startswith("-"):
        args = [f"--{first}", *args]
    path, rest = _take_config(list(args))
    default = _default(cls) if path is None else load_yaml(cls, path)
    extra: dict[str, Any] = {} if default is None else {"default": _as_given(default)}
    import tyro

    footer = "--config FILE.yaml loads a saved config; flags override its values."
    description = f"{(cls.__doc__ or '').strip()}\n\n{footer}"
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return typing.cast(C, tyro.cli(cls, args=rest, prog=prog, description=description, **extra))
    except SystemExit as stop:
        if not stop.code:
            raise
        sentence = _sentence(captured.getvalue(), cls)
    raise ConfigError(f"{prog}: {sentence} (see {prog} --help)")


def _default(cls: type[C]) -> C | None:
    """The config without any argument; None where some are required."""
    needed = (f for f in dataclasses.fields(cls) if f.init)  # type: ignore[arg-type]
    missing = dataclasses.MISSING
    return None if any(f.default is missing and f.default_factory is missing for f in needed) else cls()


def _as_given(config: Any) -> Any:
    """A copy in which every config that derives fields from others (it has `as_given`) leaves them open again."""
    given = config.as_given() if hasattr(config, "as_given") else copy.copy(config)
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            object.__setattr__(given, field.name, _as_given(value))
    return given


def _take_config(args: list[str]) -> tuple[str | None, list[str]]:
    """Split off `--config FILE` or `--config=FILE`; what follows a lone `--` is left alone."""
    path: str | None = None
    rest: list[str] = []
    while args:
        argument = args.pop(0)
        if argument == "--":
            return path, [*rest, argument, *args]
        name, equals, value = argument.partition("=")
        if name != "--config":
            rest.append(argument)
            continue
        if path is not None:
            raise ConfigError("--config is given twice, allowed: one file")
        if not equals:
            if not args:
                raise ConfigError("--config has no value, allowed: the path of a YAML file")
            value = args.pop(0)
        path = value
    return path, rest


def _sentence(box: str, cls: type) -> str:
    """The message of tyro's error box, without frame and help texts, as one sentence."""
    # The first line is the title; rules part the message from help texts. Frames are drawn with box characters only if
    # stdout is UTF-8.
    lines: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip("╭╮╰╯│ ")
        if not _RULE.fullmatch(text):
            lines.append(text)
        elif any(lines):
            break
    message = " ".join(" ".join(lines).split())
    unrecognized = re.match(r"Unrecognized options: (.*)", message)
    if unrecognized:
        first = unrecognized[1].split(", ")[0]
        if not first.startswith("-"):
            return f"unexpected argument {first!r}"
        return unknown_name(f"flag {first!r}", first.partition("=")[0], [*_flags(cls), "--config", "--help"])
    bad_value = re.match(r"Error parsing (--\S+): .*?('[^']*')$", message)
    if bad_value:
        hint = _flags(cls).get(bad_value[1])
        if hint is not None:
            return f"{bad_value[1]} is {bad_value[2]}, allowed: {describe(hint)}"
    missing = re.match(r"Missing from [^:]*: (.*)", message)
    if missing:
        return f"missing {re.sub(r' [(]required[)]', '', missing[1])}"
    return message.rstrip(".") or "the arguments cannot be understood"


def _flags(cls: Any, prefix: str = "") -> dict[str, Any]:
    """The long flags of a config class and their types; nested ones are dotted."""
    hints = typing.get_type_hints(cls)
    flags: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        name, hint = field.name.replace("_", "-"), hints[field.name]
        if dataclasses.is_dataclass(hint):
            flags |= _flags(hint, f"{prefix}{name}.")
        else:
            flags[f"--{prefix}{name}"] = hint
            if hint is bool:
                flags[f"--{prefix}no-{name}"] = hint
    return flags
