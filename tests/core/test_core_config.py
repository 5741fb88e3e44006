"""Configs: types are checked all the way down, errors name the field, and every way out leads back in."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alignlab.core.config import (
    differing_fields,
    from_dict,
    load_yaml,
    parse_cli,
    require,
    save_yaml,
    to_dict,
)
from alignlab.core.errors import ConfigError
from alignlab.core.yaml_text import MAX_BYTES, dump_yaml, parse_yaml, read_yaml


@dataclass(frozen=True)
class Inner:
    """Inner options."""

    size: int = 4
    """How large."""
    mode: Literal["fast", "slow"] = "fast"
    """How quickly."""

    def __post_init__(self) -> None:
        require(self.size > 0, "size", self.size, "at least 1")


@dataclass(frozen=True)
class Outer:
    """Outer options."""

    name: str = "x"
    """What to call it."""
    rate: float = 1e-4
    """How fast it learns."""
    flag: bool = False
    """Whether."""
    path: Path = Path("here")
    """Where."""
    limit: int | None = None
    """At most."""
    pair: tuple[int, float] = (1, 2.0)
    """Two numbers."""
    words: tuple[str, ...] = ()
    """Any words."""
    table: dict[str, float] = field(default_factory=dict)
    """Named numbers."""
    inner: Inner = field(default_factory=Inner)
    """More."""
    others: tuple[Inner, ...] = ()
    """Even more."""


finite = st.floats(allow_nan=False)
inners = st.builds(Inner, size=st.integers(1), mode=st.sampled_from(["fast", "slow"]))
outers = st.builds(
    Outer,
    name=st.text(),
    rate=finite,
    flag=st.booleans(),
    path=st.sampled_from([Path("a"), Path("/b/c d"), Path("1e-4")]),
    limit=st.none() | st.integers(),
    pair=st.tuples(st.integers(), finite),
    words=st.lists(st.text() | st.sampled_from(["1e-4", "yes", "~", "1_0", "0x1F", "2020-01-01", ""])).map(tuple),
    table=st.dictionaries(st.text(), finite),
    inner=inners,
    others=st.lists(inners).map(tuple),
)


@given(outers)
@example(Outer(name="a\x85b", words=("\u2028", "\r", "\r\n"), table={"\x85": 0.0}))
@pytest.mark.no_cover
def test_dict_and_yaml_round_trip(config: Outer) -> None:
    plain = to_dict(config)
    assert from_dict(Outer, plain) == config
    assert parse_yaml(dump_yaml(plain), "there") == plain
    assert from_dict(Outer, parse_yaml(dump_yaml(plain), "there")) == config


def test_file_round_trip(tmp_path: Path) -> None:
    config = Outer(name="äöü\n", words=("1e-4", "no"), inner=Inner(size=9), table={"a": 1e-9})
    save_yaml(config, tmp_path / "c.yaml")
    assert load_yaml(Outer, tmp_path / "c.yaml") == config
    (tmp_path / "empty.yaml").write_text("")
    assert load_yaml(Outer, tmp_path / "empty.yaml") == Outer()


def test_what_is_not_given_keeps_its_default() -> None:
    assert from_dict(Outer, {"inner": {"size": 7}}) == Outer(inner=Inner(size=7))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"rate": "fast"}, "rate is 'fast', allowed: a number"),
        ({"rate": True}, "rate is True, allowed: a number"),
        ({"inner": {"size": 1.0}}, "inner.size is 1.0, allowed: a whole number"),
        ({"inner": {"size": True}}, "inner.size is True, allowed: a whole number"),
        ({"inner": {"mode": "fats"}}, "inner.mode is 'fats', allowed: 'fast' or 'slow'"),
        ({"inner": 3}, "inner is 3, allowed: a mapping of field names to values"),
        ({"inner": {"size": 0}}, "size is 0, allowed: at least 1"),
        ({"flag": 1}, "flag is 1, allowed: true or false"),
        ({"name": 3}, "name is 3, allowed: text"),
        ({"path": 3}, "path is 3, allowed: a path"),
        ({"limit": "many"}, "limit is 'many', allowed: a whole number or null"),
        ({"pair": [1]}, "pair has 1 values, allowed: a list of 2: a whole number, a number"),
        ({"pair": [1, "b"]}, "pair[1] is 'b', allowed: a number"),
        ({"pair": "ab"}, "pair is 'ab', allowed: a list of 2: a whole number, a number"),
        ({"words": "abc"}, "words is 'abc', allowed: a list, each text"),
        ({"words": ["a", 2]}, "words[1] is 2, allowed: text"),
        ({"table": {"a": "b"}}, "table.a is 'b', allowed: a number"),
        ({"table": {1: 2.0}}, "a key of table is 1, allowed: text"),
        ({"table": [1]}, "table is [1], allowed: a mapping from text to a number"),
        ({"others": [{"size": "a"}]}, "others[0].size is 'a', allowed: a whole number"),
        ({"nmae": "x"}, "unknown key 'nmae', did you mean 'name'?"),
        ({"inner": {"sise": 1}}, "unknown key 'inner.sise', did you mean 'size'?"),
        ({"inner": {"zzz": 1}}, "unknown key 'inner.zzz', allowed: mode, size"),
        ({1: 1}, "unknown key '1', allowed: "),
    ],
)
def test_wrong_values_are_named(values: Mapping[Any, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Outer, values)
    assert str(caught.value).startswith(sentence)


def test_missing_and_unsupported_fields() -> None:
    @dataclass(frozen=True)
    class Needs:
        steps: int
        """Steps."""

    # get_type_hints looks names up in the module; the classes here are only annotated with builtins.
    with pytest.raises(ConfigError, match=r"^steps is missing, allowed: a whole number$"):
        from_dict(Needs, {})
    with pytest.raises(TypeError, match="dataclass instance"):
        to_dict(Needs)
    with pytest.raises(TypeError, match="plain values, not set"):
        to_dict(Needs(steps={1}))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Either:
    number: float | int | str = 0
    """Any of three."""
    inner: Inner | None = None
    """Perhaps."""


@pytest.mark.parametrize("value", [3, 3.0, "3"])
def test_union_keeps_the_exact_type(value: Any) -> None:
    assert type(from_dict(Either, {"number": value}).number) is type(value)


def test_union_reports_the_field_inside() -> None:
    with pytest.raises(ConfigError, match=r"^inner\.size is 'a', allowed: a whole number$"):
        from_dict(Either, {"inner": {"size": "a"}})


def test_load_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("rate: fast\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: rate is 'fast', allowed: a number$"):
        load_yaml(Outer, path)
    path.write_text("- a\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: Outer is \['a'\], allowed: a mapping"):
        load_yaml(Outer, path)


def test_differing_fields() -> None:
    old = {"a": 1, "b": {"c": 2, "d": 3}, "gone": 0}
    new = {"a": 1, "b": {"c": 9, "d": 3}, "new": 0}
    assert differing_fields(old, new) == ["b.c", "new", "gone"]
    assert differing_fields(old, old) == []


# YAML


def test_yaml_numbers_without_a_dot() -> None:
    values = parse_yaml("[1e-4, -2E5, 1.5e3, 1_000, 0x1F, abc, 1e, e4]", "x")
    assert values == [1e-4, -2e5, 1500.0, 1000, 31, "abc", "1e", "e4"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: 2\na: 3\n", "x, line 3 is not valid YAML: the key 'a' is there twice"),
        ("a: &b [1]\nc: *b\n", "x, line 2 is not valid YAML: aliases are not allowed"),
        ("a: [1\n", "x, line 2 is not valid YAML: "),
        ("a: !!python/object:os.system {}\n", "x, line 1 is not valid YAML: could not determine a constructor"),
        ("? [a]\n: 1\n", "x, line 1 is not valid YAML: a key is a list or mapping"),
        ("[" * 100 + "]" * 100, "x, line 1 is not valid YAML: nested deeper than 64 levels"),
        ("a: 2020-99-99\n", "x is not valid YAML: "),
        ("\0", "x is not valid YAML: "),
    ],
)
def test_bad_yaml_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "x")
    assert str(caught.value).startswith(sentence)


def test_yaml_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.yaml: no such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: Jérôme".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml is not UTF-8 text \(byte 7\)"):
        read_yaml(tmp_path / "latin.yaml")
    (tmp_path / "huge.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="allowed: at most"):
        read_yaml(tmp_path / "huge.yaml")


@given(st.text() | st.binary())
def test_any_text_is_a_value_or_a_config_error(text: str | bytes) -> None:
    with suppress(ConfigError):
        parse_yaml(text, "x")


# The command line


def test_flags_and_defaults() -> None:
    assert parse_cli(Outer, [], prog="p") == Outer()
    args = ["--rate", "1e-3", "--inner.size", "5", "--flag", "--words", "a", "b", "--limit", "3", "--path", "/q"]
    expected = Outer(rate=1e-3, inner=Inner(size=5), flag=True, words=("a", "b"), limit=3, path=Path("/q"))
    assert parse_cli(Outer, args, prog="p") == expected


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"]])
@pytest.mark.parametrize("before", [True, False])
def test_config_file_then_flags(tmp_path: Path, form: list[str], before: bool) -> None:
    saved = Outer(name="saved", rate=5.0, inner=Inner(size=8, mode="slow"))
    save_yaml(saved, tmp_path / "c.yaml")
    given_file = [part.format(tmp_path / "c.yaml") for part in form]
    flags = ["--inner.size", "9"]
    args = given_file + flags if before else flags + given_file
    assert parse_cli(Outer, args, prog="p") == Outer(name="saved", rate=5.0, inner=Inner(size=9, mode="slow"))


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--rat", "3"], "p: unknown flag '--rat', did you mean '--rate'? (see p --help)"),
        (["--inner.sise", "3"], "p: unknown flag '--inner.sise', did you mean '--inner.size'? (see p --help)"),
        (["--rate", "fast"], "p: --rate is 'fast', allowed: a number (see p --help)"),
        (["--inner.size", "1.5"], "p: --inner.size is '1.5', allowed: a whole number (see p --help)"),
        (["stray"], "p: unexpected argument 'stray' (see p --help)"),
        (["--inner.size", "0"], "size is 0, allowed: at least 1"),
        (["--config"], "--config has no value, allowed: the path of a YAML file"),
        (["--config", "a", "--config=b"], "--config is given twice, allowed: one file"),
        (["--config", "/nonexistent.yaml"], "cannot read /nonexistent.yaml: no such file or directory"),
    ],
)
def test_mistakes_are_one_sentence(args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_cli(Outer, args, prog="p")
    assert str(caught.value) == sentence
    assert capsys.readouterr() == ("", "")


def test_other_mistakes_name_the_flag() -> None:
    with pytest.raises(ConfigError, match=r"^p: .*'slwo'.*mode.*\(see p --help\)$"):
        parse_cli(Outer, ["--inner.mode", "slwo"], prog="p")
    with pytest.raises(ConfigError, match=r"^p: .*--rate.*\(see p --help\)$"):
        parse_cli(Outer, ["--rate"], prog="p")


@dataclass(frozen=True)
class Required:
    """Needs one."""

    steps: int
    """How many."""


def test_missing_flag_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^p: missing .*--steps.*\(see p --help\)$"):
        parse_cli(Required, [], prog="p")


def test_help_shows_the_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_cli(Outer, ["--help"], prog="p")
    assert not stop.value.code
    shown = capsys.readouterr().out
    for words in ("Outer options.", "How fast it learns.", "--inner.size", "How large.", "--config FILE.yaml"):
        assert words in shown
