"""Running a study: the record, going on after a stop, the report, the registry and the command."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from alignlab.core.errors import ConfigError, RunError
from alignlab.core.progress import Progress
from alignlab.core.runs import Run
from alignlab.stats.interval import Interval
from alignlab.studies import study as registry
from alignlab.studies.cli import study as command
from alignlab.studies.findings import Claim, Findings
from alignlab.studies.runner import read_findings, run_study
from alignlab.studies.study import Scale, Stage, at_once, find_study, register, study_names

CALLS: list[str] = []


@dataclass(frozen=True)
class Toy:
    """Adds numbers."""

    name: ClassVar[str] = "toy-sum"
    question: ClassVar[str] = "Is <b>one</b> and one two?"
    claim: ClassVar[str] = "sums add up"
    source: ClassVar[str] = "Peano 1889"

    addend: int = 1
    """What is added."""

    def check(self, scale: Scale) -> None:
        if self.addend < 0:
            raise ConfigError(f"addend is {self.addend}, allowed: 0 or more")

    def run(self, scale: Scale, seed: int, progress: Progress, *, stage: Stage = at_once) -> Findings:
        def work(name: str) -> dict[str, Any]:
            CALLS.append(name)
            if (name, self.addend) == ("second", 13):
                raise RuntimeError("stopped here")
            return {"value": self.addend}

        total = sum(stage(name, lambda name=name: work(name))["value"] for name in ("first", "second"))
        observed = Interval(float(total), total - 0.5, total + 0.5, 4)
        verdict = "confirmed" if total == 2 else "failed"
        claim = Claim("1 + 1 = 2", "2", "Peano 1889", observed, "units", verdict)
        return Findings(f"The sum is {total} at {scale}, seed {seed}.", (claim,), method=("Adding.",))


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    CALLS.clear()
    monkeypatch.setattr(registry, "_ADDED", {})
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "runs"))
    register(Toy)


def test_a_run_records_findings_and_a_report(tmp_path: Path) -> None:
    path = run_study(Toy(), "smoke", seed=5, root=tmp_path)
    run = Run.read(path)
    assert run.state == "finished"
    assert run.config_dict == {"study": "toy-sum", "scale": "smoke", "seed": 5, "options": {"addend": 1}}
    assert list(run.stages()) == ["first", "second"]
    assert read_findings(path).claims[0].verdict == "confirmed"
    page = (path / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;one&lt;/b&gt; and one two?" in page
    assert "smoke scale" in page
    assert "Peano 1889" in page
    assert "http://" not in page.split("<script>")[0]


def test_a_failed_claim_is_a_finished_run(tmp_path: Path) -> None:
    path = run_study(Toy(addend=2), "cpu", root=tmp_path)
    assert Run.read(path).state == "finished"
    assert read_findings(path).claims[0].verdict == "failed"
    assert "✕ fail" in (path / "report.html").read_text(encoding="utf-8")


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "run"
    with pytest.raises(RuntimeError, match="stopped here"):
        run_study(Toy(addend=13), "smoke", path=place)
    assert Run.read(place).state == "failed"
    with pytest.raises(RunError, match="no findings yet, its state is failed"):
        read_findings(place)
    assert CALLS == ["first", "second"]
    with pytest.raises(ConfigError, match=r"options\.addend"):
        run_study(Toy(addend=1), "smoke", path=place)
    record = json.loads((place / "stages" / "first.json").read_text())
    (place / "stages" / "second.json").write_text(json.dumps({**record, "name": "second"}))
    run_study(Toy(addend=13), "smoke", path=place)
    assert CALLS == ["first", "second"]  # nothing was done twice
    assert read_findings(place).summary.startswith("The sum is 26")


def test_options_are_checked_before_there_is_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="addend is -1"):
        run_study(Toy(addend=-1), "smoke", root=tmp_path)
    with pytest.raises(ConfigError, match="scale is 'huge', allowed: smoke, cpu, gpu"):
        run_study(Toy(), "huge", root=tmp_path)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_findings_of_something_else(tmp_path: Path) -> None:
    with Run.create({"a": 1}, name="other", root=tmp_path) as run:
        pass
    with pytest.raises(RunError, match="is not of a study"):
        read_findings(run.path)


def test_registry() -> None:
    assert study_names() == [
        "alignment-and-calibration",
        "autoregressive-families",
        "reward-overoptimisation",
        "toy-sum",
    ]
    assert find_study("toy-sum") is Toy
    with pytest.raises(ConfigError, match="unknown study 'toy-som', did you mean 'toy-sum'"):
        find_study("toy-som")
    with pytest.raises(ConfigError, match="which another study has"):
        register(Toy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": " "}, "has no question"),
        ({"name": "Two Words"}, "lower-case words"),
        ({"run": None}, "no method 'run'"),
        ({"name": "autoregressive-families"}, "which another study has"),
    ],
)
def test_registering_half_a_study(change: dict, message: str) -> None:
    # A dataclass of its own, so that the change touches no other test.
    broken = dataclass(frozen=True)(type("Broken", (Toy,), {"name": "broken", **change}))
    with pytest.raises(ConfigError, match=message):
        register(broken)


def test_options_need_defaults_and_names_of_their_own() -> None:
    with pytest.raises(ConfigError, match="not a frozen dataclass"):
        register(
            type("Plain", (), {k: getattr(Toy, k) for k in ("question", "claim", "source", "run")} | {"name": "p"})
        )

    @dataclass(frozen=True)
    class Clash(Toy):
        name: ClassVar[str] = "clash"
        seed: int = 0

    with pytest.raises(ConfigError, match="option 'seed', which every study has"):
        register(Clash)


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command(["list"]) == 0
    listed = capsys.readouterr().out
    assert "toy-sum" in listed
    assert "autoregressive-families" in listed
    assert command(["run", "toy-sum", "--addend", "3", "--scale", "cpu", "--seed", "4"]) == 0
    ran = capsys.readouterr().out
    assert "The sum is 6 at cpu, seed 4." in ran
    assert "failed" in ran
    assert command(["show"]) == 0
    shown = capsys.readouterr().out
    assert "The sum is 6" in shown
    assert "report.html" in shown
    place = tmp_path / "mine"
    assert command(["run", "toy-sum", "--run", str(place)]) == 0
    assert command(["run", "toy-sum", "--run", str(place)]) == 0  # finished: shown again, not repeated
    assert command(["show", str(place)]) == 0
    assert CALLS == ["first", "second"] * 2


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["run", "--help"], ["show", "--help"]):
        assert command(argv) == 0
        assert "usage: alignlab study" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command(["run", "toy-sum", "--help"])
    out = capsys.readouterr().out
    for words in ("--addend", "What is added", "--scale", "--seed", "--run"):
        assert words in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["runs"], "unknown action 'runs'"),
        (["run"], "name of a study comes first"),
        (["run", "--scale", "cpu"], "name of a study comes first"),
        (["run", "toy"], "did you mean 'toy-sum'"),
        (["run", "toy-sum", "--scale", "vast"], "scale"),
        (["run", "toy-sum", "--addend", "x"], "addend"),
        (["list", "all"], "unexpected argument 'all'"),
        (["show"], "no run of a study yet"),
    ],
)
def test_mistakes_are_one_sentence(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        command(argv)
