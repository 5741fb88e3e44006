"""Process 1 of the sandbox: builds the walls around itself, then starts the commands. Standard library only."""

from __future__ import annotations

import base64
import json
import os
import resource
import signal
from collections.abc import Mapping
from typing import Any, NoReturn

from alignlab.tasks.sandbox import syscalls
from alignlab.tasks.sandbox.namespaces import SCRATCH, build_root
from alignlab.tasks.sandbox.seccomp import build_filter

MIB = 1 << 20
OPEN_FILES, PENDING_SIGNALS, STACK_MIB, NICE = 64, 256, 64, 10
NOT_FOUND = 127


class Report:
    """Lines of JSON to the supervisor; the program never holds this end."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def say(self, **facts: Any) -> None:
        """One line."""
        os.write(self._descriptor, (json.dumps(facts) + "\n").encode())


def live(
    job: Mapping[str, Any], identity: tuple[int, int] | None, streams: tuple[int, int], report: Report
) -> NoReturn:
    """Be the first process of the sandbox and end with the last command. `identity` None: without namespaces."""
    try:
        _isolate(job, identity)
    except (OSError, ValueError, KeyError) as error:
        report.say(refused=str(error))
        os._exit(1)
    try:
        _write_files(job)
        report.say(ready=True)
        for number, command in enumerate(job["commands"]):
            if not _run(number, command, job, streams, report):
                break
    except OSError as error:  # no process or no space left, before the program had any
        report.say(broken=str(error))
    os._exit(0)


def _isolate(job: Mapping[str, Any], identity: tuple[int, int] | None) -> None:
    os.setsid()
    os.nice(NICE)
    _volunteer_for_the_out_of_memory_killer()
    limits = job["limits"]
    if identity is not None:
        uid, gid = identity
        build_root(job["mount_point"], job["visible"], limits["disk_mib"] * MIB, uid, gid)
        os.chdir(SCRATCH)
        if os.geteuid() != uid:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        syscalls.drop_capabilities()
    else:
        os.chdir(job["mount_point"])
    # After the change of identity, which clears both.
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    os.umask(0o077)
    _limit(limits, job["present_processes"])
    syscalls.install_filter(build_filter())


def _volunteer_for_the_out_of_memory_killer() -> None:
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass  # the sampling of memory is the limit; this is for the case that it comes late


def _limit(limits: Mapping[str, Any], present_processes: int) -> None:
    """Limits of each process; equal soft and hard, so that the program cannot raise them."""
    cpu = limits["cpu_seconds"]
    wanted = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),
        resource.RLIMIT_DATA: (limits["memory_mib"] * MIB,) * 2,
        resource.RLIMIT_NPROC: (limits["processes"] + 1 + present_processes,) * 2,
        resource.RLIMIT_FSIZE: (limits["disk_mib"] * MIB,) * 2,
        resource.RLIMIT_NOFILE: (OPEN_FILES,) * 2,
        resource.RLIMIT_STACK: (8 * MIB, STACK_MIB * MIB),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MEMLOCK: (0, 0),
        resource.RLIMIT_MSGQUEUE: (0, 0),
        resource.RLIMIT_SIGPENDING: (PENDING_SIGNALS,) * 2,
        resource.RLIMIT_NICE: (0, 0),
        resource.RLIMIT_RTPRIO: (0, 0),
    }
    for name, (soft, hard) in wanted.items():
        _, ceiling = resource.getrlimit(name)
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(name, (soft, hard))


def _write_files(job: Mapping[str, Any]) -> None:
    for name, content in job["files"].items():
        with open(name, "xb") as file:
            file.write(base64.b64decode(content))
    with open(".stdin", "xb") as file:
        file.write(base64.b64decode(job["stdin"]))


def _run(number: int, command: list[str], job: Mapping[str, Any], streams: tuple[int, int], report: Report) -> bool:
    """Run one command to its end; whether it left with status 0."""
    failed, failing = os.pipe()  # closed by a successful exec
    child = os.fork()
    if child == 0:
        _become(command, job["environment"], streams, failing)
    os.close(failing)
    while True:  # orphans of the program come here too
        found, status, usage = os.wait4(-1, 0)
        if found == child:
            break
    problem = os.read(failed, 512).decode(errors="replace")
    os.close(failed)
    if problem:
        report.say(missing=f"{command[0]} cannot be started: {problem}")
        return False
    code, cpu = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
    report.say(command=number, code=code, cpu=cpu)
    return code == 0


def _become(command: list[str], environment: dict[str, str], streams: tuple[int, int], failing: int) -> NoReturn:
    try:
        os.setsid()
        source = os.open(".stdin", os.O_RDONLY)
        for descriptor, target in ((source, 0), (streams[0], 1), (streams[1], 2)):
            os.dup2(descriptor, target)
        # Python ignores these two, and exec would hand that on.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        os.execve(command[0], command, environment)
    except OSError as error:
        os.write(failing, str(error.strerror or error).encode())
    os._exit(NOT_FOUND)
