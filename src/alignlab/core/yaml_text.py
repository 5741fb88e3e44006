"""YAML in and out: safe types only, 1e-4 is a number, a repeated key is an error, and size is limited."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from alignlab.core.errors import ConfigError

MAX_BYTES = 4 << 20
MAX_DEPTH = 64


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases (they can describe exponentially large values) and with strict mappings."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", self.peek_event().start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            message = f"nested deeper than {MAX_DEPTH} levels"
            raise yaml.constructor.ConstructorError(None, None, message, self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or mapping", key_node.start_mark)
            if key in seen:
                message = f"the key {key!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what `_Loader` would take for a number, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # PyYAML writes Unicode's rarer line ends bare and reads them back as a space, unless double quotes escape them.
        style = '"' if any(end in text for end in "\r\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)

# YAML 1.1 takes 1e-4 (no dot) for a string; people write learning rates that way.
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )


def parse_yaml(text: str | bytes, where: str) -> Any:
    """The value written in `text`; `where` names its origin in errors. Raises ConfigError with the line."""
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{where} is {len(text)} bytes long, allowed: at most {MAX_BYTES}")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 -- _Loader is a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not readable"
        raise ConfigError(f"{where}{place} is not valid YAML: {problem}") from error
    except (ValueError, OverflowError, RecursionError) as error:  # dates out of range, absurd numbers
        raise ConfigError(f"{where} is not valid YAML: {error}") from error


def read_yaml(path: str | Path) -> Any:
    """The value in a YAML file. Raises ConfigError naming the file, and the line where there is one."""
    path = Path(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    try:
        return parse_yaml(content.decode(), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})") from error


def dump_yaml(value: Any) -> str:
    """`value` (plain types) as YAML, keys in the given order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
