"""`alignlab runs list | show | open`: what ran, how it went, and where its report is."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
import webbrowser
from pathlib import Path
from typing import NoReturn

from alignlab.core.errors import ConfigError, RunError
from alignlab.core.progress import clock_time
from alignlab.core.run_status import RunSummary, find_run, list_runs, summarise
from alignlab.core.runs import Run


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message} (see {self.prog} --help)")


def runs(argv: list[str]) -> int:
    """The `alignlab runs` command; returns its exit code."""
    parser = _Parser(prog="alignlab runs", description="List runs, show one, or open its report.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="{list,show,open}")
    root = _Parser(add_help=False)
    root.add_argument("--root", type=Path, help="folder of runs (default: $ALIGNLAB_RUNS or ./runs)")
    listing = actions.add_parser("list", parents=[root], help="all runs, oldest first")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    for action, text in (("show", "state, stages and last metrics of a run"), ("open", "open the report of a run")):
        sub = actions.add_parser(action, parents=[root], help=text)
        sub.add_argument("run", nargs="?", default="latest", help="path, name or part of it (default: latest)")
    options = parser.parse_args(argv)
    if options.action == "list":
        _list(list_runs(options.root), as_json=options.json)
        return 0
    path = find_run(options.run, options.root)
    if options.action == "show":
        _show(path)
    else:
        _open(path)
    return 0


def _list(summaries: list[RunSummary], *, as_json: bool) -> None:
    if as_json:
        for run in summaries:
            print(json.dumps({**run.__dict__, "path": str(run.path)}))
        return
    if not summaries:
        print("no runs yet: `alignlab align` makes one")
        return
    width = max(len(run.path.name) for run in summaries)
    print(f"{'run':<{width}}  {'state':<11}  {'started':<16}  {'took':>8}  stage")
    for run in summaries:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started))
        took = clock_time(max(run.updated - run.started, 0))
        print(f"{run.path.name:<{width}}  {run.state:<11}  {started:<16}  {took:>8}  {run.stage or ''}".rstrip())


def _show(path: Path) -> None:
    run = Run.read(path)
    summary = summarise(path)
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(summary.started))
    print(f"{path}\nstate   {run.state}\nstarted {started}\nseed    {run.seed}")
    for label, text in (("stage", summary.stage), ("error", summary.error)):
        if text:
            print(f"{label:<7} {text}")
    stages = run.stages()
    if stages:
        width = max(map(len, stages))
        print("\nstages")
        for record in stages.values():
            memory = record.peak_memory_bytes / 2**30
            print(f"  {record.name:<{width}}  {clock_time(record.seconds):>8}  {memory:6.2f} GiB")
    last: dict[str, tuple[int, float]] = {}
    for row in run.metrics():
        last |= {key: (row["step"], value) for key, value in row.items() if key != "step"}
    if last:
        width = max(map(len, last))
        print("\nlast metrics")
        for key, (step, value) in sorted(last.items()):
            print(f"  {key:<{width}}  {value:.6g} (step {step})")
    report = _report(path)
    print(f"\nreport  {report}" if report else "\nno report yet")


def _report(path: Path) -> Path | None:
    places = (path / "report.html", path / "artifacts" / "report.html")
    return next((place for place in places if place.is_file()), None)


def _open(path: Path) -> None:
    state = Run.read(path).state
    report = _report(path)
    if report is None:
        raise RunError(f"the run {path} has no report yet, its state is {state}")
    print(report.resolve())
    graphical = sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if graphical:  # without a display a text browser could take over the terminal
        with contextlib.suppress(Exception):
            webbrowser.open(report.resolve().as_uri())
