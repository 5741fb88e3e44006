"""Sweeps: what is tried, what becomes of a run, the table, and what is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_run
from scipy.stats import t, ttest_rel

from alignlab.align.objectives.points import point_set, read_records
from alignlab.core.config import from_dict
from alignlab.core.errors import ConfigError, MissingExtraError, RunError
from alignlab.core.runs import Run
from alignlab.research.sweep import runners
from alignlab.research.sweep.calling import call, function_of, main
from alignlab.research.sweep.cli import sweep
from alignlab.research.sweep.config import SweepConfig, combinations, flags, place_of
from alignlab.research.sweep.jobs import Job, Result, finished, jobs_of, last_words, run_job, summarised
from alignlab.research.sweep.runners import Places, results_of
from alignlab.research.sweep.table import point_rows, sweep_table

GRID = {
    "name": "g",
    "command": ["prefer", "p.jsonl"],
    "settings": {"beta": [0.1, 0.5], "rank": [4, 8]},
    "seeds": [0, 1],
}


def config_of(**changes: Any) -> SweepConfig:
    return from_dict(SweepConfig, {**GRID, **changes})


# What is tried


def test_every_combination_is_tried_with_every_seed(tmp_path: Path) -> None:
    config = config_of(points=[{"name": "big", "rank": 64}])
    assert list(combinations(config)) == [
        "beta=0.1, rank=4", "beta=0.1, rank=8", "beta=0.5, rank=4", "beta=0.5, rank=8", "big",
    ]  # fmt: skip
    jobs = jobs_of(config, tmp_path)
    assert [job.seed for job in jobs] == [0] * 5 + [1] * 5
    assert len({job.directory for job in jobs}) == 10
    assert jobs[3].command[1:] == (
        "-m", "alignlab", "prefer", "p.jsonl", "--beta", "0.5", "--rank", "8", "--seed", "0",
        "--run", str(tmp_path / "jobs" / "beta=0.5,rank=8" / "seed-0" / "run"),
    )  # fmt: skip


def test_settings_become_flags() -> None:
    given = {"learning_rate": 1e-3, "packed": True, "fresh": False, "a.b_c": False, "sizes": [1, 2], "stop": None}
    assert flags(given) == [
        "--learning-rate", "0.001", "--packed", "--no-fresh", "--a.no-b-c", "--sizes", "1", "2", "--stop", "None",
    ]  # fmt: skip


def test_names_that_make_no_directory_get_a_digest() -> None:
    assert place_of("rank=4, beta=0.1") == "rank=4,beta=0.1"
    places = [place_of(name) for name in ("a/b", "ab", "../x", "x" * 200, "data=/tmp/ü")]
    assert len(set(places)) == 5
    assert all("/" not in place and not place.startswith(".") and len(place) <= 80 for place in places)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"command": []}, "command is"),
        ({"function": "f.py:f"}, "a command or a function"),
        ({"settings": {}}, "settings or points to try"),
        ({"settings": {"rank": []}}, r"settings.rank is \[\]"),
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"baseline": "rank=4"}, "baseline is 'rank=4', allowed: one of beta=0.1, rank=4; "),
        ({"points": [{"name": "a", "rank": 1}, {"name": "a", "rank": 2}]}, "point 'a' comes twice"),
        ({"settings": {"run": ["x"]}}, "the sweep gives every run its own"),
        ({"settings": {"rank": [{"a": 1}]}}, "allowed: a number, text"),
        ({"setings": {}}, "did you mean 'settings'"),
        ({"command": "prefer p.jsonl"}, "command is 'prefer p.jsonl', allowed: a list"),
    ],
)
def test_wrong_sweeps_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of(**changes)


# One run


def shell(directory: Path, script: str, **fields: Any) -> Job:
    return Job("p", {}, 0, str(directory / "jobs" / "p" / "seed-0"), ("sh", "-c", script), "last", **fields)


def test_a_run_ends_in_a_result_that_is_found_again(tmp_path: Path) -> None:
    job = shell(tmp_path, "echo hello; echo warning >&2")
    assert finished(job) is None
    result = run_job(job)
    assert (result.state, result.error, result.run) == ("finished", "", "jobs/p/seed-0/run")
    assert finished(job) == result
    assert "hello" in (Path(job.directory) / "output.txt").read_text()
    job.result.write_text("{half")
    assert finished(job) is None


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo first; echo 'alignlab: no such model'; echo later; exit 2", "no such model"),
        ("echo 'ValueError: x' >&2; exit 1", "ValueError: x"),
        ("exit 3", "exit code 3"),
        ("echo far; kill -9 $$", "killed by SIGKILL; far"),
    ],
)
def test_a_failed_run_says_why(tmp_path: Path, script: str, said: str) -> None:
    run_job(shell(tmp_path, "echo 'alignlab: an error of an earlier attempt'"))
    result = run_job(shell(tmp_path, script))
    assert (result.state, result.error, result.metrics) == ("failed", said, {})


def test_a_run_past_its_time_is_stopped_with_its_children(tmp_path: Path) -> None:
    started = time.monotonic()
    result = run_job(shell(tmp_path, f"sleep 60 & echo $! > {tmp_path}/child; wait", time_limit=0.5))
    assert time.monotonic() - started < 20
    assert result.error == "not done after 0.5 s (time limit)"
    child = Path("/proc") / (tmp_path / "child").read_text().strip() / "status"
    assert not child.exists() or "zombie" in child.read_text()


def test_metrics_that_cannot_be_read_are_a_failure(tmp_path: Path) -> None:
    job = shell(tmp_path, "true")
    (Path(job.directory) / "run").mkdir(parents=True)
    assert run_job(job).error.startswith("its metrics cannot be read: ")


def test_numbers_of_a_run() -> None:
    assert summarised([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], "last") == 7
    assert summarised([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], "last_third") == 6.5
    assert summarised([1.0, 2.0], "last_third") == 2
    assert last_words("") == ""


# Functions

FUNCTION = """
def train(settings, seed, run):
    if settings["rate"] > 1:
        raise ValueError("rate is too high")
    for step in (1, 2, 3):
        run.log(step, {"loss": settings["rate"] / step + seed})
    return {"score": 10 * settings["rate"] + seed, "kind": [1.0, 2.0 + seed], "harm": [0.5, 0.0]}

def text(settings, seed, run):
    return {"score": "high"}

number = 3
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FUNCTION)
    return path


def test_a_function_runs_in_a_run_of_its_own(source: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second time it goes on in the same run
        call(f"{source}:train", {"rate": 0.5}, 1, tmp_path / "job")
    run = Run.read(tmp_path / "job" / "run")
    assert (run.state, run.seed, len(run.metrics())) == ("finished", 1, 3)
    assert json.loads((tmp_path / "job" / "returned.json").read_text()) == {"score": 6.0, "kind": 2.0, "harm": 0.25}
    kept = json.loads((run.artifacts / "objectives.json").read_text())
    assert kept["objectives"] == {"kind": [1.0, 3.0], "harm": [0.5, 0.0]}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("text", "returned score='high', allowed: a number"),
        ("number", "has no function number"),
        ("missing", "has no function missing"),
    ],
)
def test_functions_that_are_none_are_refused(
    source: Path, tmp_path: Path, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = json.dumps({"function": f"{source}:{name}", "settings": {}, "seed": 0})
    assert main([asked, str(tmp_path / "job")]) == 2
    assert said in capsys.readouterr().err


def test_places_without_a_function_are_refused() -> None:
    for spec, said in (("mine", "FILE.py:NAME"), ("no_such.py:f", "no file"), ("no.such.module:f", "no module 'no'")):
        with pytest.raises(ConfigError, match=said):
            function_of(spec)
    assert function_of("alignlab.research.sweep.jobs:last_words") is last_words


# Where they run


def test_as_many_at_a_time_as_asked_each_on_a_device(tmp_path: Path) -> None:
    """Two jobs wait for each other's file: they end only if both run at once."""
    script = "touch {here}/{a}; for i in $(seq 600); do [ -e {here}/{b} ] && break; sleep 0.05; done; " \
             "[ -e {here}/{b} ] && echo $CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS > {here}/device-{a}"  # fmt: skip
    jobs = [
        replace(shell(tmp_path, script.format(here=tmp_path, a=a, b=b)), directory=str(tmp_path / "jobs" / "p" / a))
        for a, b in (("one", "two"), ("two", "one"))
    ]
    found = list(results_of(jobs, Places(jobs=2, devices=(3, 5))))
    assert [result.state for result in found] == ["finished"] * 2
    said = {(tmp_path / f"device-{name}").read_text().split()[0] for name in ("one", "two")}
    assert said == {"3", "5"}


def test_stopping_kills_the_runs_and_leaves_no_result(tmp_path: Path) -> None:
    slow = replace(shell(tmp_path, "sleep 60"), directory=str(tmp_path / "jobs" / "p" / "slow"))
    results = results_of([shell(tmp_path, "true"), slow], Places(jobs=2))
    assert next(results).state == "finished"
    results.close()  # type: ignore[attr-defined]  # as Ctrl-C does
    assert finished(slow) is None
    assert not [thread for thread in threading.enumerate() if "serve" in thread.name]


def test_an_error_that_is_not_the_jobs_ends_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("in the way")
    with pytest.raises(OSError, match="jobs"):
        list(results_of([shell(tmp_path, "true")], Places()))


class FakeRay:
    """The part of ray that is used, in this process; one job is lost with its machine."""

    exceptions = SimpleNamespace(RayError=type("RayError", (Exception,), {}))

    def __init__(self, lose: int) -> None:
        self.lose, self.up, self.options = lose, False, {}  # type: ignore[var-annotated]

    def is_initialized(self) -> bool:
        return self.up

    def init(self, **options: Any) -> None:
        if options.get("address") == "nowhere:1":
            raise ConnectionError("Could not find any running Ray instance\nmore")
        self.up, self.options = True, options

    def remote(self, **options: Any) -> Any:
        assert options["max_retries"] == 0
        return lambda function: SimpleNamespace(remote=lambda job: (job.seed, lambda: function(job)))

    def wait(self, references: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return references[:1], references[1:]

    def get(self, reference: Any) -> Any:
        if reference[0] == self.lose:
            raise self.exceptions.RayError("long story\nthe node died")
        return reference[1]()

    def cancel(self, reference: Any, force: bool) -> None:
        raise AssertionError

    def shutdown(self) -> None:
        self.up = False


def test_ray_runs_them_and_a_lost_one_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(lose=1)
    monkeypatch.setattr(runners, "import_extra", lambda module, extra: ray)
    jobs = [replace(shell(tmp_path, "true"), seed=seed) for seed in range(3)]
    found = list(results_of(jobs, Places(runner="ray", jobs=2)))
    assert [result.state for result in found] == ["finished", "failed", "finished"]
    assert found[1].error == "ray lost the job: the node died"
    assert (ray.up, ray.options["num_cpus"]) == (False, 2)
    with pytest.raises(RunError, match=r"ray does not start at nowhere:1: Could not find any running Ray instance$"):
        list(results_of(jobs, Places(runner="ray", address="nowhere:1")))


def test_without_ray_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"alignlab\[ray\]"):
        list(results_of([], Places(runner="ray")))


# The table


def results(values: dict[str, list[float | None]]) -> Iterator[Result]:
    for point, own in values.items():
        for seed, value in enumerate(own):
            bad = value is None
            numbers = {} if value is None else {"score": value}
            yield Result(
                point, {"a": point}, seed, "failed" if bad else "finished", numbers, "boom" if bad else "", 1, ""
            )


def test_intervals_are_over_seeds_and_differences_paired() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 5, 6)  # what a seed does to all points: pairing takes it out
    values: dict[str, list[float | None]] = {
        "a=1": list(shared), "a=2": list(shared + 1 + rng.normal(0, 0.1, 6)),
        "a=3": list(shared + 0.1 * np.array([1, -1, 1, -1, 1, -1])),
        "a=4": [1.0, None, None, None, None, None],
    }  # fmt: skip
    config = config_of(settings={"a": [1, 2, 3, 4]}, seeds=list(range(6)))
    table = sweep_table(config, results(values))
    mean = table.cells["a=1"]["score"].mean
    half = t.ppf(0.975, 5) * np.std(shared, ddof=1) / np.sqrt(6)
    assert (mean.low, mean.high) == pytest.approx((shared.mean() - half, shared.mean() + half))
    p = [ttest_rel(values[point], values["a=1"]).pvalue for point in ("a=2", "a=3")]
    assert table.cells["a=2"]["score"].p_value == pytest.approx(2 * min(p))
    assert table.cells["a=3"]["score"].p_value == pytest.approx(max(p[1], 2 * min(p)))
    assert table.done["a=4"] == (1, 5, 6)
    assert math.isinf(table.cells["a=4"]["score"].mean.high)
    lines = "\n".join(table.lines())
    assert table.cells["a=2"]["score"].difference.estimate == pytest.approx(1, abs=0.3)  # type: ignore[union-attr]
    assert "higher" in lines
    assert "tied" in lines
    assert "5 run(s) failed:\na=4, seed 1: boom" in lines
    assert "1 (n=1)" in lines
    json.dumps(table.as_dict(), allow_nan=False)


def test_equal_differences_are_not_taken_for_certainty() -> None:
    config = config_of(settings={"a": [1, 2, 3]}, seeds=[0, 1, 2])
    table = sweep_table(config, results({"a=1": [1, 2, 3], "a=2": [2, 3, 4], "a=3": [1, 2, 3]}))
    assert table.cells["a=2"]["score"].p_value == 0.5  # 0.25 of three equal signs, corrected for two
    assert table.cells["a=3"]["score"].p_value == 1
    assert "higher" not in "\n".join(table.lines())


@pytest.mark.slow
def test_a_difference_is_claimed_as_often_as_it_should() -> None:
    """No difference between 4 points, 5 seeds: some claim in at most 5 % of sweeps (binomial limit of 1000: 6.8 %)."""
    rng, config = np.random.default_rng(1), config_of(settings={"a": [1, 2, 3, 4]}, seeds=list(range(5)))
    claims = 0
    for _ in range(1000):
        drawn = rng.normal(0, 1, (4, 5)) + rng.normal(0, 1, 5)
        table = sweep_table(config, results({f"a={i + 1}": list(row) for i, row in enumerate(drawn)}))
        claims += any("higher" in line or "lower" in line for line in table.lines())
    assert claims <= 68


def test_points_for_trade_offs(tmp_path: Path) -> None:
    config = config_of(settings={"a": [1, 2]}, metrics=["score"])
    first, second = results({"a=1": [1.5], "a=2": [2.5]})
    first = replace(first, run="one")
    (tmp_path / "one" / "artifacts").mkdir(parents=True)
    recorded = {"point": "", "seed": 9, "objectives": {"kind": [1, 2]}, "items": ["x", "y"]}
    (tmp_path / "one" / "artifacts" / "objectives.json").write_text(json.dumps(recorded))
    rows = point_rows(config, [first, second, replace(second, state="failed")], tmp_path)
    assert rows == [
        {"point": "a=1", "seed": 0, "settings": {"a": "a=1"}, "objectives": {"kind": [1, 2]}, "items": ["x", "y"]},
        {"point": "a=2", "seed": 0, "settings": {"a": "a=2"}, "item": "all", "objectives": {"score": 2.5}},
    ]


# The command


@contextmanager
def written(path: Path, content: dict[str, Any]) -> Iterator[str]:
    import yaml

    path.write_text(yaml.safe_dump(content))
    yield str(path)


def test_the_command_shows_what_is_there_and_refuses_another_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    sweep_file = {**GRID, "settings": {"rank": [4, 8]}}
    with written(tmp_path / "s.yaml", sweep_file) as file:
        with pytest.raises(RunError, match="has no finished run to show"):
            sweep([file, "--out", str(out), "--table"])
        for job in jobs_of(from_dict(SweepConfig, sweep_file), out):
            job.result.parent.mkdir(parents=True)
            result = Result(job.point, job.settings, job.seed, "finished", {"loss": job.settings["rank"]}, "", 1, "")
            job.result.write_text(json.dumps(asdict(result)))
        (out / "sweep.yaml").write_text((tmp_path / "s.yaml").read_text())
        assert sweep([file, "--out", str(out)]) == 0  # all are there: nothing is run
    said = capsys.readouterr().out
    assert "4 runs: 4 finished before, 0 to do" in said
    assert "rank=8" in said
    assert "alignlab pareto" in said
    assert json.loads((out / "table.json").read_text())["points"]["rank=4"]["finished"] == 2
    with (
        written(tmp_path / "t.yaml", {**sweep_file, "seeds": [0], "metrics": ["los"]}) as file,
        pytest.raises(ConfigError, match="did you mean 'loss'"),
    ):
        sweep([file, "--out", str(out), "--table"])
    with (
        written(tmp_path / "u.yaml", {**sweep_file, "command": ["sft", "x"]}) as file,
        pytest.raises(ConfigError, match="holds another sweep: its command is"),
    ):
        sweep([file, "--out", str(out)])


def test_wrong_calls_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ConfigError, match="a sweep needs its file"):
        sweep([])
    with pytest.raises(ConfigError, match="there is no file"):
        sweep([str(tmp_path / "none.yaml")])
    with written(tmp_path / "s.yaml", GRID) as file:
        for flags_, said in (
            (["--jobs", "0"], "jobs is 0"),
            (["--runner", "ray", "--devices", "0"], "devices"),
            (["--time-limit", "0"], "time_limit is 0"),
            (["--out", str(tmp_path / "full")], "is not empty and holds no sweep"),
        ):
            with pytest.raises(ConfigError, match=said):
                sweep([file, *flags_])


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["local", "ray"])
def test_a_sweep_of_a_function_from_the_command_line(source: Path, tmp_path: Path, runner: str) -> None:
    if runner == "ray":
        pytest.importorskip("ray")
    out = tmp_path / "out"
    content = {"function": f"{source}:train", "settings": {"rate": [0.1, 0.2, 5.0]}, "seeds": [0, 1]}
    with written(tmp_path / "s.yaml", content) as file:
        command = [
            sys.executable,
            "-m",
            "alignlab",
            "sweep",
            file,
            "--out",
            str(out),
            "--runner",
            runner,
            "--jobs",
            "2",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert done.returncode == 1, done.stderr
        assert "2 run(s) failed:" in done.stdout
        assert "rate=5.0, seed 0: ValueError: rate is too high" in done.stdout
        rows = [json.loads(line) for line in (out / "points.jsonl").read_text().splitlines()]
        assert len(rows) == 4
        assert rows[3]["objectives"] == {"kind": [1.0, 3.0], "harm": [0.5, 0.0]}
        source.write_text(FUNCTION.replace('["rate"] > 1', '["rate"] > 9'))  # the mistake is put right
        again = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert again.returncode == 0, again.stderr
    assert "6 runs: 4 finished before, 2 to do" in again.stdout
    points = point_set(read_records(out / "points.jsonl"), minimise=["harm"])  # as `alignlab pareto` does
    assert points.seeds == {"rate=0.1": (0, 1), "rate=0.2": (0, 1), "rate=5.0": (0, 1)}


@pytest.mark.slow
def test_a_sweep_of_a_command_ends_in_runs_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two learning rates of `alignlab sft` on a random model; a wrong flag is the run's failure, in its own words."""
    model = tiny_run.build_model(tmp_path / "model")
    rows = [{"prompt": f"Say {word}.", "response": f"{word}!"} for word in ("red", "sea", "tea", "sun")]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "home"))
    content = {
        "command": ["sft", str(tmp_path / "data.jsonl"), "--model", str(model), "--epochs", "2", "--batch-size", "1"],
        "settings": {"learning_rate": [1e-4, 1e-2]},
        "points": [{"name": "odd", "learning_rates": 1}],
        "seeds": [0],
    }
    with written(tmp_path / "s.yaml", content) as file:
        assert sweep([file, "--out", str(tmp_path / "out")]) == 1
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert any("loss" in name for name in table["metrics"])
    assert table["failures"][0]["point"] == "odd"
    assert "did you mean" in table["failures"][0]["error"]
    assert Run.read(tmp_path / "out" / "jobs" / "learning_rate=0.01" / "seed-0" / "run").state == "finished"
