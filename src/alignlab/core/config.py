"""Configurations: frozen dataclasses that check themselves, to and from dictionaries and YAML.

A config is a frozen dataclass with a docstring under each field, validated in `__post_init__` with `require`. The
command line is made from it by `alignlab.core.cli.parse_cli`, re-exported here.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from alignlab.core.errors import ConfigError
from alignlab.core.files import atomic_write
from alignlab.core.yaml_text import dump_yaml, read_yaml

C = TypeVar("C")


def require(ok: bool, field: str, got: object, allowed: str) -> None:
    """Raise ConfigError naming the field, what came and what is allowed, unless `ok`."""
    if not ok:
        raise ConfigError(f"{field} is {got!r}, allowed: {allowed}")


def to_dict(config: object) -> dict[str, Any]:
    """The config as plain types (dict, list, str, int, float, bool, None): what YAML and JSON can hold."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"to_dict takes a dataclass instance, not {type(config).__name__}")
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config) if field.init}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a config holds plain values, not {type(value).__name__}")


def from_dict(cls: type[C], values: Mapping[str, Any], *, where: str = "") -> C:
    """Build the config `cls` from `values`, checking every type on the way down.

    Lists become tuples, an int is taken for a float, a str for a Path; nothing else is converted. Fields that are not
    given keep their defaults. `where` is the dotted path that errors start with. Raises ConfigError.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or cls.__name__} is {values!r}, allowed: a mapping of field names to values")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(unknown_name(f"key {_join(where, str(key))!r}", str(key), fields))
    hints = typing.get_type_hints(cls)
    given = {}
    for name, field in fields.items():
        path = _join(where, name)
        if name in values:
            given[name] = _convert(values[name], hints[name], path)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{path} is missing, allowed: {describe(hints[name])}")
    return cls(**given)


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """A sentence for an unknown name: the nearest known one if it looks like a slip, else all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(known) or 'none'}"
    return f"unknown {what}, {hint}"


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _convert(value: Any, hint: Any, path: str) -> Any:
    """`value` as the annotated type, or ConfigError naming `path`."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_dict(hint, value, where=path)
    if origin is typing.Literal:
        for choice in typing.get_args(hint):
            if type(choice) is type(value) and choice == value:  # True == 1, but True is not a choice of Literal[1]
                return value
    elif origin in (typing.Union, types.UnionType):
        return _convert_union(value, hint, path)
    elif origin in (tuple, list, Sequence):
        return _convert_sequence(value, hint, path)
    elif origin in (dict, Mapping):
        key_hint, item_hint = typing.get_args(hint)
        if isinstance(value, Mapping):
            return {
                _convert(key, key_hint, f"a key of {path}"): _convert(item, item_hint, _join(path, str(key)))
                for key, item in value.items()
            }
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif hint is Path:
        if isinstance(value, str | Path):
            return Path(value)
    elif hint in (bool, str, type(None)):
        if isinstance(value, hint):
            return value
    else:
        raise TypeError(f"{path} is annotated {hint!r}, which a config cannot hold")
    raise ConfigError(f"{path} is {value!r}, allowed: {describe(hint)}")


def _convert_union(value: Any, hint: Any, path: str) -> Any:
    members = typing.get_args(hint)
    for member in members:  # an exact type first: 3 is an int in `float | int`, whatever the order
        if isinstance(member, type) and type(value) is member:
            return value
    deeper: ConfigError | None = None
    for member in members:
        try:
            return _convert(value, member, path)
        except ConfigError as error:
            if isinstance(value, Mapping) and dataclasses.is_dataclass(member):
                deeper = error
    raise deeper or ConfigError(f"{path} is {value!r}, allowed: {describe(hint)}")


def _convert_sequence(value: Any, hint: Any, path: str) -> Any:
    arguments = typing.get_args(hint)
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{path} is {value!r}, allowed: {describe(hint)}")
    fixed = typing.get_origin(hint) is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis)
    if fixed and len(value) != len(arguments):
        raise ConfigError(f"{path} has {len(value)} values, allowed: {describe(hint)}")
    hints = arguments if fixed else [arguments[0]] * len(value)
    items = [_convert(item, item_hint, f"{path}[{i}]") for i, (item, item_hint) in enumerate(zip(value, hints))]
    return items if typing.get_origin(hint) is list else tuple(items)


def describe(hint: Any) -> str:
    """An annotation in words a user understands."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(member) for member in arguments)
    if origin in (tuple, list, Sequence):
        if origin is tuple and arguments[-1] is not Ellipsis:
            return f"a list of {len(arguments)}: " + ", ".join(describe(member) for member in arguments)
        return f"a list, each {describe(arguments[0])}"
    if origin in (dict, Mapping):
        return f"a mapping from {describe(arguments[0])} to {describe(arguments[1])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    if hint in words:
        return words[hint]
    return "null" if hint is type(None) else f"the fields of {hint.__name__}"


def load_yaml(cls: type[C], path: str | Path) -> C:
    """The config `cls` written in a YAML file; ConfigError names the file, the field, what came and what is allowed."""
    values = read_yaml(path)
    try:
        return from_dict(cls, {} if values is None else values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def save_yaml(config: object, path: str | Path) -> None:
    """Write a config so that `load_yaml` gives an equal one."""
    atomic_write(path, dump_yaml(to_dict(config)))


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """The dotted names whose values differ between two plain configs; those that only `old` has come last."""
    names = []
    for key in [*new, *(key for key in old if key not in new)]:
        path = _join(where, str(key))
        if key not in old or key not in new:
            names.append(path)
        elif isinstance(old[key], Mapping) and isinstance(new[key], Mapping):
            names += differing_fields(old[key], new[key], path)
        elif old[key] != new[key]:
            names.append(path)
    return names


def parse_cli(cls: type[C], args: Sequence[str], *, prog: str, first: str | None = None) -> C:
    """The config `cls` from command-line arguments; see `alignlab.core.cli.parse_cli`."""
    from alignlab.core.cli import parse_cli as parse  # tyro is imported only when a command line is parsed

    return parse(cls, args, prog=prog, first=first)
