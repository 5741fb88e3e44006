"""Runs: what is recorded comes back, stages run once, and mistakes are one sentence."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from alignlab.core.environment import git_state, package_versions
from alignlab.core.errors import ConfigError, DataError, RunError
from alignlab.core.files import read_jsonl
from alignlab.core.run_status import read_status, summarise
from alignlab.core.runs import Run, find_run, list_runs


@dataclass(frozen=True)
class Part:
    size: int = 3
    """Size."""


@dataclass(frozen=True)
class Config:
    rate: float = 1e-4
    """Rate."""
    words: tuple[str, ...] = ("a",)
    """Words."""
    part: Part = field(default_factory=Part)
    """Part."""


def make(tmp_path: Path, **options: Any) -> Run:
    return Run.create(Config(), name="trial", seed=7, path=tmp_path / "run", **options)


def test_a_new_run_has_all_its_files(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        assert run.state == "running"
    present = {path.name for path in run.path.iterdir()}
    files = {"config.yaml", "status.json", "environment.json", "events.jsonl", "run.lock"}
    assert present == files | {"artifacts", "checkpoints", "stages"}
    assert os.listdir(tmp_path) == ["run"]
    back = Run.read(run.path)
    assert (back.name, back.seed, back.state) == ("trial", 7, "finished")
    assert back.config_dict == {"rate": 1e-4, "words": ["a"], "part": {"size": 3}}
    environment = back.environment()
    assert environment["seed"] == 7
    assert environment["packages"]["alignlab"]
    assert environment["packages"]["torch"]
    assert environment["hardware"]["cores"] >= 1


def test_default_place_is_unique_and_sorted(tmp_path: Path) -> None:
    runs = []
    for _ in range(3):
        with Run.create({}, name="trial", root=tmp_path / "deep" / "er") as run:
            runs.append(run)
    assert len({run.path for run in runs}) == 3
    assert [summary.path for summary in list_runs(tmp_path / "deep" / "er")] == [run.path for run in runs]
    assert list_runs(tmp_path / "none") == []


def test_metrics_last_write_wins(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        run.log(2, {"loss": 2.0, "reward": 0.5})
        run.log(1, {"loss": 1})
        run.log(2, {"loss": 2.5})
        run.log(3, {"loss": math.nan, "up": math.inf, "down": -math.inf})
    rows = Run.read(run.path).metrics()
    assert rows[:2] == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.5, "reward": 0.5}]
    assert math.isnan(rows[2]["loss"])
    assert (rows[2]["up"], rows[2]["down"]) == (math.inf, -math.inf)
    for line in (run.path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


@pytest.mark.parametrize("name", ["step", "time"])
def test_reserved_metric_names(tmp_path: Path, name: str) -> None:
    with make(tmp_path) as run, pytest.raises(RunError, match=f"a metric is named '{name}', allowed"):
        run.log(1, {name: 1.0})


def test_stage_runs_once_and_returns_what_json_returns(tmp_path: Path) -> None:
    calls = []

    def work() -> dict[str, Any]:
        calls.append(1)
        return {"pair": (1, 2), "value": 0.1, 3: None}

    with make(tmp_path) as run:
        first = run.stage("one", work)
        assert run.stage("one", work) == first
    with Run.open(run.path) as again:
        assert again.stage("one", work) == first
    assert first == {"pair": [1, 2], "value": 0.1, "3": None}
    assert len(calls) == 1
    record = Run.read(run.path).stages()["one"]
    assert record.attempts == 1
    assert record.seconds >= 0
    assert record.peak_memory_bytes > 2**20


def test_stage_that_fails_runs_again(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), make(tmp_path) as run:
        run.stage("zero", dict)
        run.stage("one", fail)
    summary = summarise(tmp_path / "run")
    assert (summary.state, summary.stage, summary.error) == ("failed", "one", "ValueError: broken")
    with Run.open(tmp_path / "run") as run:
        assert run.stage("one", lambda: {"ok": True}) == {"ok": True}
    stages = Run.read(tmp_path / "run").stages()
    assert [(name, record.attempts) for name, record in stages.items()] == [("zero", 1), ("one", 2)]
    assert summarise(tmp_path / "run").error is None


def test_stage_output_must_be_a_dict_of_json(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        with pytest.raises(TypeError, match="stage one returned list, allowed: a dict"):
            run.stage("one", list)  # type: ignore[arg-type,return-value]
        with pytest.raises(TypeError, match="not JSON serializable"):
            run.stage("one", lambda: {"a": {1}})
        assert run.stages() == {}
        with pytest.raises(RunError, match=r"the name of a stage is '\.\./x', allowed"):
            run.stage("../x", dict)


def test_damaged_stage_record(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        for content in ("{", "[]", "{}"):
            (run.path / "stages" / "one.json").write_text(content)
            with pytest.raises(RunError, match=r"one\.json is not the record of a stage"):
                run.stage("one", dict)


def test_interrupt_and_failure_are_recorded(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), make(tmp_path):
        raise KeyboardInterrupt
    assert Run.read(tmp_path / "run").state == "interrupted"


def test_artifacts(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        assert run.write_artifact("a.txt", "ä") == run.artifacts / "a.txt"
        run.write_artifact("deep/b.bin", b"\0")
        run.write_artifact("c.json", {"k": [1]})
        for name in ("", "/abs", "../out", "a/../../out"):
            with pytest.raises(RunError, match="the name of an artifact is"):
                run.write_artifact(name, "x")
    assert (run.artifacts / "a.txt").read_text() == "ä"
    assert (run.artifacts / "deep" / "b.bin").read_bytes() == b"\0"
    assert json.loads((run.artifacts / "c.json").read_text()) == {"k": [1]}


def test_existing_directory_is_never_reused(tmp_path: Path) -> None:
    make(tmp_path).close()
    before = (tmp_path / "run" / "status.json").read_bytes()
    with pytest.raises(RunError, match="exists already"):
        make(tmp_path)
    assert (tmp_path / "run" / "status.json").read_bytes() == before
    assert os.listdir(tmp_path) == ["run"]
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunError, match="exists already"):
        Run.create({}, name="trial", path=tmp_path / "link")


def test_two_creators_of_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second passes the look at the place, then loses the rename."""
    first = make(tmp_path)
    monkeypatch.setattr(Path, "exists", lambda self: False)
    with pytest.raises(RunError, match="directory not empty"):
        make(tmp_path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["run"]
    assert Run.read(first.path).state == "running"
    first.close()


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a" * 81])
def test_bad_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="the name of a run is"):
        Run.create({}, name=name, root=tmp_path)
    assert os.listdir(tmp_path) == []


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*file/run"):
        Run.create({}, name="trial", path=tmp_path / "file" / "run")


def test_open_with_another_config(tmp_path: Path) -> None:
    make(tmp_path).close()
    Run.open(tmp_path / "run", config=Config()).close()
    with pytest.raises(ConfigError) as caught:
        Run.open(tmp_path / "run", config=Config(rate=2e-4, part=Part(size=4)))
    assert str(caught.value).endswith("differs in rate (was 0.0001, now 0.0002), part.size (was 3, now 4)")
    with pytest.raises(ConfigError, match=r"differs in extra \(was 'missing', now 1\)"):
        Run.open(tmp_path / "run", config={**Run.read(tmp_path / "run").config_dict, "extra": 1})
    Run.open(tmp_path / "run").close()  # the failed attempts gave the lock back


def test_reading_does_not_write_and_needs_no_lock(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        reader = Run.read(run.path)
        assert reader.state == "running"
        for write in (
            lambda: reader.log(1, {"a": 1.0}),
            lambda: reader.event("x"),
            lambda: reader.write_artifact("a", "b"),
            lambda: reader.stage("new", dict),
        ):
            with pytest.raises(RunError, match="not open for writing"):
                write()
        reader.close()
        assert Run.read(run.path).state == "running"
    run.close()
    with pytest.raises(RunError, match="not open for writing"):
        run.log(1, {"a": 1.0})


def test_end_states(tmp_path: Path) -> None:
    run = make(tmp_path)
    with pytest.raises(RunError, match="the state of a run is 'done', allowed: finished, failed, interrupted"):
        run.close("done")
    run.close("interrupted")
    assert Run.read(run.path).state == "interrupted"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda p: shutil.rmtree(p), "is not a run: there is no such directory"),
        (lambda p: (p / "status.json").unlink(), "is not a run directory"),
        (lambda p: (p / "config.yaml").unlink(), "is not a run directory"),
        (lambda p: (p / "status.json").write_text("{"), "cannot be read: .*not valid JSON"),
        (lambda p: (p / "status.json").write_text("[]"), "holds no known state"),
        (lambda p: (p / "status.json").write_text('{"state": "odd", "name": "x"}'), "holds no known state"),
        (lambda p: (p / "status.json").write_text('{"state": "failed", "name": "x", "format": 9}'), "has format 9"),
        (lambda p: (p / "config.yaml").write_text("- a"), "its config.yaml holds no mapping"),
    ],
)
def test_what_is_no_run(tmp_path: Path, damage: Any, sentence: str) -> None:
    make(tmp_path).close()
    damage(tmp_path / "run")
    for opener in (Run.read, Run.open):
        with pytest.raises(RunError, match=sentence):
            opener(tmp_path / "run")


def test_list_shows_the_damaged_and_leaves_out_the_rest(tmp_path: Path) -> None:
    make(tmp_path).close()
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    shutil.copytree(tmp_path / "run", tmp_path / ".run.1234.creating")
    shutil.copytree(tmp_path / "run", tmp_path / "bad")
    (tmp_path / "bad" / "status.json").write_text("{")
    states = {summary.path.name: summary.state for summary in list_runs(tmp_path)}
    assert states == {"run": "finished", "bad": "unreadable"}


def test_metrics_without_a_step_are_damage(tmp_path: Path) -> None:
    make(tmp_path).close()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(DataError, match="holds a line without a step"):
        Run.read(tmp_path / "run").metrics()


def test_find_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has no runs"):
        find_run("latest", tmp_path)
    names = []
    for name in ("alpha", "beta", "beta"):
        with Run.create({}, name=name, root=tmp_path) as run:
            names.append(run.path.name)
    assert find_run("latest", tmp_path).name == names[-1]
    assert find_run("alpha", tmp_path).name == names[0]
    assert find_run(names[1], tmp_path).name == names[1]
    assert find_run(str(tmp_path / names[1])) == tmp_path / names[1]
    with pytest.raises(RunError, match="'beta' fits 2 runs, name one"):
        find_run("beta", tmp_path)
    with pytest.raises(RunError, match=r"there is no run 'gamma' in .*, the latest is"):
        find_run("gamma", tmp_path)


def test_events_are_in_order(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        run.event("note", text="x")
    Run.open(run.path).close()
    kinds = [event["kind"] for event in read_jsonl(run.path / "events.jsonl")]
    assert kinds == ["created", "note", "closed", "opened", "closed"]
    assert read_status(run.path)["started"] <= read_status(run.path)["updated"]


def test_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "f").write_text("1")
    git("add", "f")
    git("commit", "-qm", "one")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "modified": False}
    (tmp_path / "f").write_text("2")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "modified": True}


def test_versions_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignlab.core.environment.PACKAGES", ("numpy", "no-such-package"))
    versions = package_versions()
    assert versions["no-such-package"] is None
    assert versions["numpy"]
