"""Run programs in the sandbox: `run_program` for one, `run_programs` for many, `isolation` to ask whether it can."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from alignlab.core.config import require
from alignlab.tasks.sandbox.languages import LANGUAGES, Tools, language_named
from alignlab.tasks.sandbox.types import MIB, Isolation, Limits, Program, RunResult, Verdict

PATIENCE = 20.0
"""Seconds beyond the limit after which the launcher itself is taken to hang."""

ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
OUT_OF_MEMORY = ("MemoryError", "heap out of memory", "annot allocate", "virtual memory exhausted", "bad_alloc")

# Stand-ins for the packages above the launcher: their own __init__ would load what an evaluation needs.
BOOT = """
import os, sys, types
folder = {folder!r}
for name, path in (("alignlab", 2), ("alignlab.tasks", 1), ("alignlab.tasks.sandbox", 0)):
    module = types.ModuleType(name)
    module.__path__ = [os.path.normpath(os.path.join(folder, *[os.pardir] * path))]
    sys.modules[name] = module
from alignlab.tasks.sandbox.launcher import main
main()
"""


def run_program(program: Program, limits: Limits | None = None, *, allow_unsafe: bool = False) -> RunResult:
    """Run `program` isolated and limited, and say how it ended.

    A machine that cannot isolate gives the verdict `refused` with the reason, and the program has not run. With
    `allow_unsafe` it then runs all the same, as the caller and with limits only: for programs you would start by hand.
    ConfigError for an unknown language.
    """
    limits = limits or Limits()
    language = LANGUAGES[language_named(program.language)]
    tools = language.tools(limits.memory_mib)
    if isinstance(tools, str):
        return RunResult("unavailable", f"{program.language} cannot run here: {tools}")
    if not sys.platform.startswith("linux"):
        return RunResult("refused", f"the sandbox needs Linux; this is {sys.platform}")
    files = {**program.files, language.file: program.code}
    job: dict[str, Any] = {
        "files": {name: _packed(text) for name, text in files.items()},
        "stdin": _packed(program.stdin),
        "environment": {**ENVIRONMENT, **language.environment},
        "limits": asdict(limits),
        "visible": [*tools.visible, *map(str, program.read_only)],
    }
    outcome = _launch(job, tools, limits, unsafe=False)
    how = "namespaces+seccomp"
    if "refused" in outcome and allow_unsafe:
        outcome, how = _launch(job, tools, limits, unsafe=True), "none"
    return _judged(outcome, program, limits, len(tools.commands), how)


def run_programs(
    programs: Sequence[Program], limits: Limits | None = None, *, workers: int = 0, allow_unsafe: bool = False
) -> list[RunResult]:
    """`run_program` for each, in order, `workers` at a time (0: one for each processor that we may use)."""
    require(workers >= 0, "workers", workers, "0 (one for each processor) or a positive whole number")
    one = partial(run_program, limits=limits, allow_unsafe=allow_unsafe)
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(one, programs))


def isolation() -> Isolation:
    """Whether programs can be isolated here: builds a sandbox and starts nothing in it."""
    if not sys.platform.startswith("linux"):
        return Isolation(False, f"the sandbox needs Linux; this is {sys.platform}")
    job = {"files": {}, "stdin": "", "environment": {}, "limits": asdict(Limits()), "visible": []}
    outcome = _launch(job, Tools(()), Limits(), unsafe=False)
    if outcome.get("ready"):
        return Isolation(True, "namespaces+seccomp")
    return Isolation(False, str(outcome.get("refused") or outcome.get("broken")))


def _packed(text: str) -> str:
    return base64.b64encode(text.encode(errors="surrogatepass")).decode()


def _launch(job: dict[str, Any], tools: Tools, limits: Limits, *, unsafe: bool) -> dict[str, Any]:
    """Start the launcher with `job` and wait for its outcome."""
    place = tempfile.mkdtemp(prefix="alignlab-sandbox-")
    scratch = place if unsafe else "/scratch"
    commands = [[part.replace("/scratch", scratch) for part in command] for command in tools.commands]
    environment = {**job["environment"], "HOME": scratch, "TMPDIR": scratch}
    sent = {**job, "mount_point": place, "unsafe": unsafe, "commands": commands, "environment": environment}
    boot = BOOT.format(folder=str(Path(__file__).parent))
    try:
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", boot],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": ENVIRONMENT["PATH"]},
            cwd="/",
            start_new_session=True,
        ) as launcher:
            try:
                told, complaint = launcher.communicate(json.dumps(sent).encode(), limits.seconds + PATIENCE)
            except subprocess.TimeoutExpired:
                return {"broken": "the launcher did not end in time and was killed"}
            finally:
                launcher.kill()  # its end is the end of everything in the sandbox; nothing happens if it has ended
        if launcher.returncode != 0 or not told:
            last = complaint.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
            return {"broken": f"the launcher left with status {launcher.returncode}: {last[0]}"}
        return dict(json.loads(told))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _judged(outcome: dict[str, Any], program: Program, limits: Limits, n_commands: int, how: str) -> RunResult:
    verdict, detail = _verdict(outcome, program, limits, n_commands)
    code = outcome.get("code")
    return RunResult(
        verdict,
        detail,
        stdout=outcome.get("stdout", ""),
        stderr=outcome.get("stderr", ""),
        exit_code=code if code is not None and code >= 0 else None,
        signal=-code if code is not None and code < 0 else None,
        seconds=outcome.get("seconds", 0.0),
        cpu_seconds=outcome.get("cpu", 0.0),
        peak_mib=outcome.get("peak", 0) / MIB,
        isolation="none" if verdict == "refused" else how,
    )


def _verdict(outcome: dict[str, Any], program: Program, limits: Limits, n_commands: int) -> tuple[Verdict, str]:
    if "refused" in outcome:
        return "refused", f"this machine cannot isolate the program ({outcome['refused']}), so it was not run"
    if "missing" in outcome:
        return "unavailable", outcome["missing"]
    if "broken" in outcome:
        return "broken", outcome["broken"]
    cause = outcome.get("cause")
    if cause == "timeout":
        return "timeout", f"stopped after {limits.seconds:g} s"
    if cause == "memory":
        return "memory", f"stopped when it held more than {limits.memory_mib} MiB"
    if cause == "output":
        return "output", f"stopped when it had written more than {limits.output_kib} KiB"
    if "code" not in outcome:
        return "killed", "the sandbox was killed from outside before the program ended"
    return _verdict_of_status(outcome, program, limits, n_commands)


def _verdict_of_status(
    outcome: dict[str, Any], program: Program, limits: Limits, n_commands: int
) -> tuple[Verdict, str]:
    code = outcome["code"]
    if code == 0:
        if program.token is not None and program.token not in outcome["stdout"].splitlines():
            return "failed", "it left before its tests were through"
        return "passed", "it left with status 0"
    # The kernel's limit counts whole ticks, which on a busy machine run ahead of the time that it reports: 0.86 of 1 s
    # was seen. Only a program that sends itself this signal early has another reason.
    least = {-signal.SIGXCPU: 0.5, -signal.SIGKILL: 0.9}.get(code)
    if least is not None and outcome["cpu"] >= least * limits.cpu_seconds:
        return "timeout", f"stopped after {limits.cpu_seconds} s of processor time"
    if code == -signal.SIGXFSZ:
        return "output", f"it wrote a file larger than {limits.disk_mib} MiB"
    # What ran out of memory says so only in words; both readings are failures.
    if any(word in outcome["stderr"][-2000:] for word in OUT_OF_MEMORY):
        return "memory", f"it asked for more than {limits.memory_mib} MiB"
    if code < 0:
        return "killed", f"ended by signal {signal.Signals(-code).name}"
    if outcome.get("command", 0) < n_commands - 1:
        return "failed", f"it does not compile (status {code})"
    return "failed", f"it left with status {code}"
