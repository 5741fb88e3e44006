"""Runs under kill -9, a second process, and a full disk."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from alignlab.core import files
from alignlab.core.errors import RunError
from alignlab.core.run_lock import RunLock, is_locked
from alignlab.core.run_status import read_status
from alignlab.core.runs import Run

# One interpreter imports once, then forks the processes that get killed. A worker says on a pipe what has returned.
KILLING = """
import json, os, random, signal, sys, time
from pathlib import Path
from alignlab.core.runs import Run, list_runs

root, clock = Path(sys.argv[1]), random.Random(3)
path, returned = root / "run", set()

def work(say):
    run = Run.open(path) if path.exists() else Run.create({"a": 1}, name="victim", path=path)
    step = max((row["step"] for row in run.metrics()), default=-1) + 1
    while True:
        run.log(step, {"square": step * step, "padding": 0.1 * step})
        os.write(say, b"%d\\n" % step)
        if step % 7 == 0:
            run.stage(f"stage-{step}", lambda: {"step": step})
        if step % 5 == 0:
            run.write_artifact("table.json", {"rows": list(range(step % 1000))})
        step += 1

for attempt in range(10):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(write)
        finally:
            os._exit(1)
    os.close(write)
    stream = os.fdopen(read)
    said = [int(stream.readline())]  # it is alive and writing
    time.sleep(clock.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    said += [int(line) for line in stream if line.endswith("\\n")]

    seen = Run.read(path)
    assert seen.state == "interrupted", seen.state
    rows = seen.metrics()
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert all(row["square"] == row["step"] ** 2 for row in rows)
    assert said[-1] < len(rows), (said[-1], len(rows))
    stages = seen.stages()
    assert all(record.output == {"step": int(name[6:])} for name, record in stages.items())
    returned |= {f"stage-{step}" for step in said[:-1] if step % 7 == 0}
    assert returned <= set(stages), returned - set(stages)
    if (path / "artifacts" / "table.json").exists():
        json.loads((path / "artifacts" / "table.json").read_text())
with Run.open(path):
    pass
print(Run.read(path).state, len(rows))
"""


def test_kill_nine_at_ten_moments(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLING, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    state, steps = done.stdout.split()
    assert state == "finished"
    assert int(steps) >= 10


KILLED_AT_BIRTH = """
import os, random, signal, sys, time
from pathlib import Path
from alignlab.core import run_creation
from alignlab.core.runs import Run, list_runs
run_creation.environment = lambda seed: {"seed": seed}  # so that most moments fall into the writing of files
root, clock = Path(sys.argv[1]), random.Random(4)
for attempt in range(20):
    child = os.fork()
    if child == 0:
        try:
            while True:
                Run.create({"a": 1}, name="born", root=root)
        finally:
            os._exit(1)
    time.sleep(clock.uniform(0.01, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
visible = [path for path in root.iterdir() if not path.name.startswith(".")]
assert visible and len(list_runs(root)) == len(visible)
for path in visible:
    run = Run.read(path)
    assert run.config_dict == {"a": 1} and run.environment() == {"seed": 0} and run.state == "interrupted"
    with Run.open(path):
        pass
"""


def test_kill_nine_during_creation_leaves_no_half_made_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_BIRTH, tmp_path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_torn_lines_are_cut_on_open(tmp_path: Path) -> None:
    with Run.create({}, name="torn", path=tmp_path / "run") as run:
        run.log(1, {"loss": 1.0})
    for name in ("metrics.jsonl", "events.jsonl"):
        with (run.path / name).open("ab") as stream:
            stream.write(b'{"step": 2, "lo')
    assert Run.read(run.path).metrics() == [{"step": 1, "loss": 1.0}]
    with Run.open(run.path) as again:
        again.log(2, {"loss": 2.0})
    assert Run.read(run.path).metrics() == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]
    assert [event["kind"] for event in Run.read(run.path).events()][-3:] == ["closed", "opened", "closed"]


HOLDER = """
import sys, time
from alignlab.core.run_lock import RunLock
from alignlab.core.run_status import read_status
from pathlib import Path
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_two_processes_never_write_one_run(tmp_path: Path) -> None:
    run = Run.create({}, name="shared", path=tmp_path / "run")
    with pytest.raises(RunError, match=f"run directory .*run is in use by process {os.getpid()}"):
        Run.open(run.path)
    run.close()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, run.path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
        with pytest.raises(RunError, match=f"in use by process {holder.pid}, wait for it or stop it"):
            Run.open(run.path)
        assert before == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
        assert Run.read(run.path).state == "finished"
    finally:
        holder.kill()
        holder.communicate()
    Run.open(run.path).close()


def test_running_means_locked_by_a_living_process(tmp_path: Path) -> None:
    run = Run.create({}, name="alive", path=tmp_path / "run")
    assert read_status(run.path)["state"] == "running"
    status = json.loads((run.path / "status.json").read_text())
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (run.path / "status.json").write_text(json.dumps({**status, "pid": child.pid}))
    assert read_status(run.path)["state"] == "interrupted"  # the lock is held, but not by the writer
    (run.path / "status.json").write_text(json.dumps({**status, "pid": 1}))
    assert read_status(run.path)["state"] == "running"
    (run.path / "status.json").write_text(json.dumps({**status, "pid": child.pid, "host": "elsewhere"}))
    assert read_status(run.path)["state"] == "running"  # its process cannot be seen from here; the lock can
    run.close()
    assert not is_locked(run.path)


def test_a_run_that_ends_during_the_look_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create({}, name="ending", path=tmp_path / "run")

    def ends_now(*arguments: Any) -> bool:
        run.close()
        return False

    monkeypatch.setattr("alignlab.core.run_status._is_alive", ends_now)
    assert read_status(run.path)["state"] == "finished"


def test_a_look_does_not_keep_a_writer_out(tmp_path: Path) -> None:
    """Whoever looks holds the lock for an instant; a writer waits that long."""
    run = Run.create({}, name="looked-at", path=tmp_path / "run")
    run.close()
    looker = RunLock(run.path)
    started = time.monotonic()
    pid = os.getpid()
    assert is_locked(run.path)
    import threading

    timer = threading.Timer(0.1, looker.release)
    timer.start()
    with Run.open(run.path):
        assert time.monotonic() - started >= 0.1
        assert (run.path / "run.lock").read_text() == f"{pid}\n"
    timer.join()
    looker.release()


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("alignlab.core.run_lock.fcntl.flock", refuse)
    with pytest.raises(RunError, match="cannot lock a run directory"):
        Run.create({}, name="x", path=tmp_path / "run")
    assert os.listdir(tmp_path) == []


# A full disk


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A switch: from `full()` on every write of files stores half of it, then fails with ENOSPC."""
    write, fsync = os.write, os.fsync

    def no_room(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def half(descriptor: int, data: Any) -> int:
        if len(data) <= 3:
            return no_room()
        return write(descriptor, bytes(data[: len(data) // 2]))

    class Switch:
        def full(self) -> None:
            monkeypatch.setattr(files.os, "write", half)
            monkeypatch.setattr(files.os, "fsync", no_room)

        def empty(self) -> None:
            monkeypatch.setattr(files.os, "write", write)
            monkeypatch.setattr(files.os, "fsync", fsync)

    return Switch()


def test_full_disk_costs_nothing_that_was_saved(tmp_path: Path, full_disk: Any) -> None:
    run = Run.create({}, name="full", path=tmp_path / "run")
    run.log(1, {"loss": 1.0})
    run.stage("one", lambda: {"a": 1})
    run.write_artifact("a.txt", "old")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    full_disk.full()
    for write in (
        lambda: run.log(2, {"loss": 2.0}),
        lambda: run.event("note"),
        lambda: run.write_artifact("a.txt", "new"),
        lambda: run.stage("two", lambda: {"b": 1}),
    ):
        with pytest.raises(RunError, match=r"cannot write .*: the disk is full; what was saved before is intact"):
            write()
    assert before == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    full_disk.empty()
    run.log(2, {"loss": 2.0})
    run.stage("two", lambda: {"b": 1})
    run.close()
    again = Run.read(run.path)
    assert again.metrics() == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]
    assert list(again.stages()) == ["one", "two"]


def test_full_disk_at_the_end_passes_the_first_error_on(tmp_path: Path, full_disk: Any) -> None:
    run = Run.create({}, name="full", path=tmp_path / "run")
    with pytest.raises(RunError, match=r"metrics\.jsonl: the disk is full"), run:
        full_disk.full()
        run.log(1, {"loss": 1.0})
    full_disk.empty()
    assert Run.read(tmp_path / "run").state == "interrupted"  # its end could not be written, its process let go
    Run.open(tmp_path / "run").close()


def test_full_disk_at_birth_leaves_nothing(tmp_path: Path, full_disk: Any) -> None:
    full_disk.full()
    with pytest.raises(RunError, match="the disk is full"):
        Run.create({}, name="full", path=tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_full_disk_on_open_gives_the_lock_back(tmp_path: Path, full_disk: Any) -> None:
    Run.create({}, name="full", path=tmp_path / "run").close()
    full_disk.full()
    with pytest.raises(RunError, match="the disk is full"):
        Run.open(tmp_path / "run")
    full_disk.empty()
    Run.open(tmp_path / "run").close()
