"""Imports point one way, and `import alignlab` and the command line's help stay light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import alignlab
from alignlab.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
HEAVY = {
    "torch", "numpy", "scipy", "sklearn", "polars", "plotly", "tokenizers", "safetensors", "gguf", "huggingface_hub",
    "transformers", "jinja2", "tyro", "rich", "yaml",
}  # fmt: skip


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `code`."""
    report = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import alignlab",
        "from alignlab.__main__ import main; main(['--help'])",
        "from alignlab.__main__ import main; main(['--version'])",
        "from alignlab.__main__ import main; main(['nonsense'])",
        "import alignlab.core.config",
    ],
)
def test_light_doors_stay_light(code: str) -> None:
    allowed = {"yaml"} if "config" in code else set()
    loaded = modules_after(code)
    assert "alignlab" in loaded
    assert not (loaded & HEAVY) - allowed


def test_heavy_modules_would_be_seen() -> None:
    assert "numpy" in modules_after("import alignlab, numpy")


def test_import_contract_holds() -> None:
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_public_names_are_listed_and_load() -> None:
    assert sorted(alignlab.__all__) == sorted(alignlab._EXPORTS)
    assert set(alignlab.__all__) <= set(dir(alignlab))
    for name in alignlab.__all__:
        value = getattr(alignlab, name)
        assert value.__name__ == name
        assert getattr(alignlab, name) is value


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'GPTModle'"):
        _ = alignlab.GPTModle


def test_every_command_exists_and_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    from alignlab.__main__ import main

    for name in COMMANDS:
        try:
            code = main([name, "--help"])
        except SystemExit as stop:  # argparse and tyro leave this way after help
            code = int(stop.code or 0)
        assert code == 0, name
        assert "usage" in capsys.readouterr().out, name
