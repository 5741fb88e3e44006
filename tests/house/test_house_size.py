"""Files, functions and signatures stay short. An exception needs a line here, with its reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "alignlab"
FILE_LINES, FILE_HARD_STOP, FUNCTION_LINES, PARAMETERS = 300, 600, 60, 8

LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
MANY_PARAMETERS: dict[str, str] = {
    "train/trainer.py:Trainer.__init__": "it owns the loop; all but model, loss and config are optional keywords",
    "align/ppo.py:PPOTrainer.__init__": "it owns the loop; all but model, reward, reference are optional",
}
BANNED_NAMES = {"utils.py", "helpers.py", "common.py"}


def functions(tree: ast.AST, prefix: str = "", public: bool = True) -> Iterator[tuple[str, ast.FunctionDef, bool]]:
    """Each function with its dotted name and whether it is public: it and all around it without an underscore."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}{node.name}"
            is_public = public and (not node.name.startswith("_") or node.name == "__init__")
            if not isinstance(node, ast.ClassDef):
                yield name, node, is_public  # type: ignore[misc]
                is_public = False  # what is defined inside a function is nobody's interface
            yield from functions(node, f"{name}.", is_public)
        else:
            yield from functions(node, prefix, public)


def parameter_count(function: ast.FunctionDef, in_class: bool) -> int:
    arguments = function.args
    names = [a.arg for a in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]
    if in_class and names and names[0] in ("self", "cls"):
        names = names[1:]
    return len(names)


def violations(path: str, text: str) -> list[str]:
    """What breaks the size rule in one file."""
    found = []
    lines = text.count("\n")
    if lines > FILE_HARD_STOP or (lines > FILE_LINES and path not in LONG_FILES):
        found.append(f"{path} has {lines} lines, allowed: {FILE_LINES}")
    for name, function, is_public in functions(ast.parse(text)):
        where = f"{path}:{name}"
        length = (function.end_lineno or 0) - function.lineno + 1
        if length > FUNCTION_LINES and where not in LONG_FUNCTIONS:
            found.append(f"{where} has {length} lines, allowed: {FUNCTION_LINES}")
        count = parameter_count(function, "." in name)
        if is_public and count > PARAMETERS and where not in MANY_PARAMETERS:
            found.append(f"{where} takes {count} parameters, allowed: {PARAMETERS}")
    return found


def files() -> dict[str, str]:
    return {str(path.relative_to(SOURCE)): path.read_text() for path in sorted(SOURCE.rglob("*.py"))}


def test_everything_is_short() -> None:
    sources = files()
    assert "core/runs.py" in sources  # it looks in the right place
    found = [line for path, text in sources.items() for line in violations(path, text)]
    assert not found, "\n".join(found)


def test_no_room_for_odds_and_ends() -> None:
    assert not [path for path in files() if Path(path).name in BANNED_NAMES]


def test_exceptions_are_still_needed() -> None:
    """An exception whose reason is gone goes too."""
    sources = files()
    for path in LONG_FILES:
        assert sources.get(path, "").count("\n") > FILE_LINES, f"{path} is no longer long"
    for where in [*LONG_FUNCTIONS, *MANY_PARAMETERS]:
        path, _, name = where.partition(":")
        assert name in [found for found, _, _ in functions(ast.parse(sources[path]))], f"{where} does not exist"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("x = 1\n" * 300, 0),
        ("x = 1\n" * 301, 1),
        ("def f():\n" + "    x = 1\n" * 59, 0),
        ("def f():\n" + "    x = 1\n" * 60, 1),
        ("def f(a, b, c, d, e, f, g, h): ...\n", 0),
        ("def f(a, b, c, d, *, e, f, g, h, i): ...\n", 1),
        ("def _f(a, b, c, d, e, f, g, h, i): ...\n", 0),
        ("class A:\n    def f(self, a, b, c, d, e, f, g, h): ...\n", 0),
        ("class A:\n    def __init__(self, a, b, c, d, e, f, g, h, i): ...\n", 1),
        ("class _A:\n    def f(self, a, b, c, d, e, f, g, h, i): ...\n", 0),
        ("if True:\n    def f(a, b, c, d, e, f, g, h, i): ...\n", 1),
    ],
)
def test_the_rule_itself(text: str, count: int) -> None:
    assert len(violations("some.py", text)) == count
