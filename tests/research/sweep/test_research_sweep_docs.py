"""What docs/sweeps.md and docs/distributed.md (reinforcement learning) show is what the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignlab.align.shared_work import SharedWork, processes
from alignlab.core.config import from_dict
from alignlab.research.sweep import runners
from alignlab.research.sweep.calling import call
from alignlab.research.sweep.cli import SweepCommand
from alignlab.research.sweep.config import SweepConfig
from alignlab.research.sweep.jobs import jobs_of

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "sweeps.md").read_text()
SWEEPS: list[dict[str, Any]] = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)]


def test_the_sweeps_are_sweeps(tmp_path: Path) -> None:
    first, second = (from_dict(SweepConfig, sweep) for sweep in SWEEPS)
    assert len(jobs_of(first, tmp_path)) == 18
    assert "18 runs" in PAGE
    assert second.function == "mine.py:train"


def test_the_function_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (tmp_path / "mine.py").write_text(block)
    call(SWEEPS[1]["function"], {"rate": 0.1}, 0, tmp_path / "job")
    assert set(yaml.safe_load((tmp_path / "job" / "returned.json").read_text())) == {"score", "helpful", "harmless"}


def test_the_flags_exist() -> None:
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z-]*)", PAGE)} - {"seed", "run", "model"}
    assert {"jobs", "devices", "runner", "address", "cpus", "gpus", "time_limit", "table"} == flags
    assert flags <= set(SweepCommand.__dataclass_fields__)
    assert {"local", "ray"} == set(runners.Runner.__args__)  # type: ignore[attr-defined]
    fields = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M))
    assert fields == set(SweepConfig.__dataclass_fields__) - {"name"}


def test_the_distributed_example_compiles_and_names_what_exists() -> None:
    page = (DOCS / "distributed.md").read_text()
    block = next(block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "# train.py" in block)
    names: dict[str, Any] = {"__name__": "train"}
    exec(compile(block, "distributed.md", "exec"), names)
    assert names["processes"] is processes
    assert names["vowels"](["a"], ["sea"]) == [0.5]
    assert SharedWork.__doc__ is not None
    assert shlex.split("torchrun --standalone --nproc-per-node 2 train.py")[-1] in page
