"""The sandbox: verdicts, limits, what is visible, refusal where it cannot isolate, and its system-call filter."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from alignlab.core.errors import ConfigError
from alignlab.tasks.sandbox import Limits, Program, isolation, run_program, run_programs
from alignlab.tasks.sandbox.languages import missing
from alignlab.tasks.sandbox.run import _judged
from alignlab.tasks.sandbox.seccomp import AUDIT_ARCH, CHECKED, FORBIDDEN, build_filter

ISOLATION = isolation()
isolated = pytest.mark.skipif(not ISOLATION.available, reason=f"no sandbox here: {ISOLATION.how}")
SOURCE = Path(__file__).parents[2] / "src"
IMPORTS = os.pathsep.join([str(SOURCE), *filter(None, sys.path)])
HELLO = {
    "python": "print(input() + open('more').read())",
    "javascript": "const fs = require('fs'); console.log(fs.readFileSync(0, 'utf8').trim() + fs.readFileSync('more'));",
    "c": '#include <stdio.h>\nint main(void) { char a[9], b[9]; fscanf(stdin, "%8s", a);\n'
    'fscanf(fopen("more", "r"), "%8s", b); printf("%s%s\\n", a, b); return 0; }',
    "bash": "read x; echo $x$(cat more)",
}


@isolated
@pytest.mark.parametrize("language", HELLO)
def test_a_program_reads_its_input_and_files(language: str) -> None:
    if lacking := missing(language):
        pytest.skip(lacking)
    program = Program(HELLO[language], language, stdin="one\n", files={"more": "two"})
    result = run_program(program, Limits(seconds=20))
    assert (result.verdict, result.stdout, result.exit_code) == ("passed", "onetwo\n", 0), result
    assert result.isolation == "namespaces+seccomp"


@isolated
@pytest.mark.parametrize(
    ("code", "limits", "verdict", "detail"),
    [
        ("import sys; sys.exit(3)", {}, "failed", "it left with status 3"),
        ("import os; os.kill(os.getpid(), 11)", {}, "killed", "ended by signal SIGSEGV"),
        ("import time; time.sleep(99)", {"seconds": 0.5}, "timeout", "stopped after 0.5 s"),
        ("while True: pass", {"cpu_seconds": 1}, "timeout", "stopped after 1 s of processor time"),
        ("x = bytearray(10**9)", {"memory_mib": 64}, "memory", "it asked for more than 64 MiB"),
        (
            "import os, time\nfor _ in range(3): os.fork()\nx = bytearray(30 << 20)\ntime.sleep(9)",
            {"memory_mib": 96},
            "memory",
            "stopped when it held more than 96 MiB",
        ),
        ("print('x' * 5000)", {"output_kib": 4}, "output", "stopped when it had written more than 4 KiB"),
        ("open('f', 'wb').write(b'x' * (3 << 20))", {"disk_mib": 2}, "failed", "it left with status 1"),
        ("print('x' * 4000)", {"output_kib": 4}, "passed", "it left with status 0"),
    ],
)
def test_limits(code: str, limits: dict, verdict: str, detail: str) -> None:
    result = run_program(Program(code), Limits(**limits))
    assert (result.verdict, result.detail) == (verdict, detail), result


@isolated
def test_the_token_tells_the_end_from_leaving_early() -> None:
    assert run_program(Program("print('t0ken')", token="t0ken")).verdict == "passed"
    early = run_program(Program("raise SystemExit\nprint('t0ken')", token="t0ken"))
    assert (early.verdict, early.detail) == ("failed", "it left before its tests were through")
    assert run_program(Program("print('t0ken'); raise ValueError", token="t0ken")).verdict == "failed"


@isolated
def test_only_the_system_and_what_is_named_is_visible(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "note").write_text("seen")
    (tmp_path / "hidden").write_text("unseen")
    os.chmod(tmp_path / "data", 0o755)
    code = f"import os\nprint(open({str(tmp_path / 'data' / 'note')!r}).read(), os.listdir({str(tmp_path)!r}))"
    result = run_program(Program(code, read_only=(tmp_path / "data",)))
    assert result.stdout == "seen ['data']\n", result
    writing = f"open({str(tmp_path / 'data' / 'x')!r}, 'w')"
    assert "Errno 30" in run_program(Program(writing, read_only=(tmp_path / "data",))).stderr


@isolated
def test_many_keep_their_order_and_do_not_see_each_other() -> None:
    programs = [Program(f"import os\nprint({n}, sorted(os.listdir()))\nopen('f{n}', 'w')") for n in range(6)]
    results = run_programs(programs, workers=3)
    assert [result.stdout for result in results] == [f"{n} ['.stdin', 'main.py']\n" for n in range(6)]


def named(word: str) -> list[str]:
    """Processes of this machine whose arguments hold `word`."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv("/bin/sleep", ["{word}", "1000"])
    os._exit(0)
time.sleep({seconds})
"""


@isolated
def test_no_process_outlives_its_program() -> None:
    for seconds, verdict in ((0.2, "passed"), (99, "timeout")):
        word = f"left-over-{os.getpid()}-{seconds}"
        result = run_program(Program(DAEMON.format(word=word, seconds=seconds)), Limits(seconds=1))
        assert result.verdict == verdict
        assert named(word) == []


def children() -> set[int]:
    """Processes that this one has started."""
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(pid) for path in tasks for pid in path.read_text().split()}


@isolated
def test_no_process_outlives_its_launcher() -> None:
    word = f"orphan-{os.getpid()}"
    results = []
    before = children()  # other tests' helpers, such as the compiler's
    thread = threading.Thread(
        target=lambda: results.append(run_program(Program(DAEMON.format(word=word, seconds=99)), Limits(seconds=60)))
    )
    thread.start()
    deadline = time.monotonic() + 30
    while not named(word) and time.monotonic() < deadline:
        time.sleep(0.02)
    (launcher,) = children() - before
    os.kill(launcher, signal.SIGKILL)
    thread.join(30)
    assert results[0].verdict == "broken"
    deadline = time.monotonic() + 10
    while named(word) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert named(word) == []


FORBIDDING = """
import sys
from alignlab.tasks.sandbox import Limits, Program, isolation, run_program, syscalls
from alignlab.tasks.sandbox.seccomp import build_filter
syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
syscalls.install_filter(build_filter())  # forbids unshare, as a container's filter does
found = isolation()
assert not found.available and "unshare" in found.how, found
refused = run_program(Program("print('it ran')"))
assert refused.verdict == "refused" and refused.stdout == "", refused
assert "unshare" in refused.detail and "was not run" in refused.detail, refused
allowed = run_program(Program("print('it ran')"), allow_unsafe=True)
assert (allowed.verdict, allowed.stdout, allowed.isolation) == ("passed", "it ran\\n", "none"), allowed
for code, verdict in (("while True: pass", "timeout"), ("x = bytearray(10**9)", "memory"), ("1 / 0", "failed"),
                      ("while True: print('x' * 99)", "output")):
    result = run_program(Program(code), Limits(seconds=1, memory_mib=64), allow_unsafe=True)
    assert result.verdict == verdict, result
left = run_program(Program(sys.argv[1]), Limits(seconds=1), allow_unsafe=True)
assert left.verdict == "passed", left
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
def test_it_refuses_where_it_cannot_isolate(tmp_path: Path) -> None:
    word = f"unsafe-left-over-{os.getpid()}"
    arguments = [sys.executable, "-c", FORBIDDING, DAEMON.format(word=word, seconds=0.2)]
    environment = {**os.environ, "PYTHONPATH": IMPORTS, "TMPDIR": str(tmp_path)}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert named(word) == []
    assert os.listdir(tmp_path) == []


@isolated
def test_a_plain_user_gets_the_same_sandbox(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the other tests already run as a plain user")
    python = shutil.which(f"python{sys.version_info.major}.{sys.version_info.minor}", path="/usr/bin:/usr/local/bin")
    if python is None:
        pytest.skip("no interpreter that another user may read")
    code = (
        "import os; from alignlab.tasks.sandbox import Limits, Program, run_program as run\n"
        "assert os.getuid() == 60001\n"
        "first = run(Program('import os; print(os.getuid(), os.listdir())'))\n"
        "assert (first.verdict, first.stdout) == ('passed', \"60001 ['.stdin', 'main.py']\\n\"), first\n"
        "bomb = run(Program('import os\\nwhile True: os.fork()'), Limits(seconds=2, processes=8, memory_mib=128))\n"
        "assert bomb.verdict in ('failed', 'timeout', 'memory'), bomb\n"
        "reach = run(Program('import os\\nos.kill(os.getppid(), 9)\\nos.kill(-1, 15)'))\n"
        "assert reach.verdict in ('passed', 'failed'), reach\n"
        "net = run(Program('import socket; socket.socket()'))\n"
        "assert 'PermissionError' in net.stderr, net\n"
    )
    os.chmod(tmp_path, 0o777)
    packages = Path(sys.executable).parents[1] / "lib" / Path(python).name / "site-packages"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{SOURCE}:{packages}", "TMPDIR": "/tmp"}
    done = subprocess.run(
        [python, "-B", "-c", code], env=environment, user=60001, group=60001, extra_groups=[], cwd="/",
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if "ModuleNotFoundError" in done.stderr or "No module named" in done.stderr:
        pytest.skip("another user may not read this checkout")
    assert done.returncode == 0, done.stderr


NO_USER_NAMESPACES = """
import platform
from alignlab.tasks.sandbox import Limits, Program, run_program, syscalls
from alignlab.tasks.sandbox.seccomp import AUDIT_ARCH, FORBIDDEN, _argument, _deny, _op, _when
number = FORBIDDEN["unshare"][list(AUDIT_ARCH).index(platform.machine())]
allow = _op(0x06, 0x7FFF0000)
body = [_argument(0), _op(0x45, syscalls.NEWUSER, 0, 1), _deny(28), allow]
syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
syscalls.install_filter(b"".join([_op(0x20, 0), *_when(number, *body), allow]))
result = run_program(Program("import os; print(os.getuid() > 60000, os.listdir(), os.path.exists('/proc'))"))
assert (result.verdict, result.stdout) == ("passed", "True ['.stdin', 'main.py'] False\\n"), result
bomb = run_program(Program("import os\\nwhile True: os.fork()"), Limits(seconds=2, processes=8, memory_mib=128))
assert bomb.verdict in ("failed", "timeout", "memory"), bomb
"""


@isolated
def test_root_needs_no_user_namespaces() -> None:
    if os.geteuid() != 0:
        pytest.skip("a plain user cannot do without them")
    arguments = [sys.executable, "-c", NO_USER_NAMESPACES]
    environment = {**os.environ, "PYTHONPATH": IMPORTS}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)
    if "(unshare(" in done.stderr:
        pytest.skip("this root may not make namespaces of its own")
    assert done.returncode == 0, done.stderr


def test_the_launcher_loads_nothing_but_the_standard_library() -> None:
    from alignlab.tasks.sandbox.run import BOOT

    boot = BOOT.format(folder=str(SOURCE / "alignlab" / "tasks" / "sandbox")).replace("\nmain()\n", "\n")
    report = "print([name for name in sys.modules if name.partition('.')[0] not in sys.stdlib_module_names])"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", boot + report], capture_output=True, text=True, check=True)
    names = [name for name in eval(done.stdout) if name.partition(".")[0] != "alignlab" and name != "__main__"]
    assert names == []


def decide(program: bytes, arch: int, number: int, arguments: Sequence[int] = ()) -> int:
    """What a filter returns: classic BPF, interpreted as naively as can be."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    accumulator, place = 0, 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("<HBBI", program, 8 * place)
        place += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
            continue
        held = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
        place += if_true if held else if_false


ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50001, 0x50026


@pytest.mark.parametrize("machine", AUDIT_ARCH)
def test_the_filter_decides_as_it_says(machine: str) -> None:
    column, arch = list(AUDIT_ARCH).index(machine), AUDIT_ARCH[machine]
    program = build_filter(machine)
    number = {name: pair[column] for name, pair in (FORBIDDEN | CHECKED).items()}
    for name in FORBIDDEN:
        assert decide(program, arch, number[name]) == EPERM, name
    usual = {"x86_64": (0, 1, 2, 3, 12, 57, 59, 60, 231, 332), "aarch64": (63, 64, 56, 57, 93, 94, 214, 221, 291)}
    for call in usual[machine]:  # read, write, open, close, brk, fork, execve, exit, ...
        assert decide(program, arch, call) == ALLOW, call
    for flags, verdict in ((0x11, ALLOW), (0x3D0F00, ALLOW), (0x10000011, EPERM), (0x20000, EPERM), (1 << 30, EPERM)):
        assert decide(program, arch, number["clone"], [flags]) == verdict, hex(flags)
    for flags, verdict in ((0x22, ALLOW), (0x01, ALLOW), (0x21, EPERM), (0x23, EPERM), (0x02, ALLOW)):
        assert decide(program, arch, number["mmap"], [0, 0, 0, flags]) == verdict, hex(flags)
    for request, verdict in ((0x5401, ALLOW), (0x5412, EPERM), (0x541C, EPERM)):
        assert decide(program, arch, number["ioctl"], [0, request]) == verdict
    for domain, verdict in ((1, ALLOW), (2, EPERM), (40, EPERM)):
        assert decide(program, arch, number["socketpair"], [domain]) == verdict
    for call, verdict in ((425, ENOSYS), (435, ENOSYS), (436, ALLOW), (439, ALLOW), (9999, ENOSYS)):
        assert decide(program, arch, call) == verdict, call
    assert decide(program, arch ^ 1, 0) == KILL
    if machine == "x86_64":
        assert decide(program, arch, 0x40000000) == ENOSYS


def test_an_unknown_machine_has_no_filter() -> None:
    with pytest.raises(OSError, match="no system-call filter for riscv64"):
        build_filter("riscv64")


@pytest.mark.parametrize("language", ["javascript", "c", "bash"])
def test_a_missing_interpreter_is_said(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = run_program(Program("", language))
    assert result.verdict == "unavailable"
    assert "found on PATH" in result.detail


def test_another_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert run_program(Program("")).detail == "the sandbox needs Linux; this is darwin"
    assert not isolation().available


@pytest.mark.parametrize(
    ("code", "cpu", "verdict"),
    [
        (-signal.SIGXCPU, 0.86, "timeout"),  # as a busy machine reports a whole second
        (-signal.SIGXCPU, 0.1, "killed"),  # it sent itself the signal
        (-signal.SIGKILL, 0.95, "timeout"),
        (-signal.SIGKILL, 0.86, "killed"),
    ],
)
def test_processor_time_is_told_by_its_signal(code: int, cpu: float, verdict: str) -> None:
    outcome = {"ready": True, "code": int(code), "cpu": cpu, "stdout": "", "stderr": "", "seconds": 1.0, "peak": 0}
    assert _judged(outcome, Program(""), Limits(cpu_seconds=1), 1, "none").verdict == verdict


def test_an_outcome_without_a_status_is_never_a_pass() -> None:
    for outcome in (
        {},
        {"ready": True},
        {"stdout": "x"},
        {"broken": "b"},
        {"missing": "m"},
        {"cause": "timeout", "code": 0},
    ):
        assert _judged(dict(outcome), Program(""), Limits(), 1, "none").verdict != "passed"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: run_program(Program("", "cobol")), "language is 'cobol', allowed: python, javascript, c, bash"),
        (lambda: Limits(seconds=0), "seconds"),
        (lambda: Limits(memory_mib=1), "memory_mib"),
        (lambda: Limits(processes=1), "processes"),
        (lambda: Program("", files={"../x": ""}), "plain file name"),
        (lambda: Program("", files={".stdin": ""}), "plain file name"),
        (lambda: Program("", read_only=(Path("/"),)), "existing directories other than /"),
        (lambda: Program("", read_only=(Path("/nowhere"),)), "existing directories other than /"),
        (lambda: run_programs([], workers=-1), "workers"),
    ],
)
def test_bad_input_is_named(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@isolated
def test_nothing_is_left_in_the_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run_program(Program("open('/tmp/x', 'w').write('y')"))
    assert os.listdir(tmp_path) == []
