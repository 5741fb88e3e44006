"""Programs that try to do harm, by family. Each prints ESCAPED when it got what it should not get.

`@CANARY@` is a file of the host, `@PORT@` a port of the host on which the test listens, `@SECRET@` a variable of the
test's environment.
"""

from __future__ import annotations

import platform
import textwrap
from dataclasses import dataclass

from alignlab.tasks.sandbox.seccomp import CHECKED, FORBIDDEN, FORBIDDEN_X86
from alignlab.tasks.sandbox.types import JUDGED

HELD = frozenset({"passed", "failed"})


@dataclass(frozen=True)
class Hostile:
    """One program with the verdicts that are right for it."""

    family: str
    code: str
    verdicts: frozenset[str]
    language: str = "python"


def attempt(*steps: str, verdicts: frozenset[str] = HELD, family: str) -> list[Hostile]:
    """Python programs, one a step, that print ESCAPED when the step raises nothing."""
    head = "import ctypes, ctypes.util, os, sys, socket, resource, signal\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    body = "try:\n{}\n    print('ESCAPED')\nexcept BaseException as error:\n    print('held', error)\n"
    return [Hostile(family, head + body.format(textwrap.indent(step, "    ")), verdicts) for step in steps]


def programs(family: str, verdicts: str, *codes: str, language: str = "python") -> list[Hostile]:
    """Programs of one family in one language; `verdicts` are separated by spaces."""
    return [Hostile(family, code, frozenset(verdicts.split()), language) for code in codes]


def c_main(body: str) -> str:
    """A C program with the usual headers."""
    names = ("fcntl", "signal", "stdio", "stdlib", "string", "sys/mman", "sys/stat", "sys/syscall", "unistd")
    headers = "#define _GNU_SOURCE\n" + "".join(f"#include <{name}.h>\n" for name in names)
    return f"{headers}int main(void) {{ {body} }}\n"


FORKS = [
    *programs(
        "fork", " ".join(JUDGED),
        "import os\nwhile True: os.fork()",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "import os\nwhile True:\n    if os.fork(): os._exit(0)",
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()",
        "import subprocess\nkept = []\nwhile True: kept.append(subprocess.Popen(['/bin/sleep', '99']))",
        "import os, signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True:\n    try:\n"
        "        if os.fork() == 0: os.setsid()\n    except OSError: pass",
    ),
    *programs("fork", " ".join(JUDGED), ":(){ :|:& };:\nsleep 99", "while :; do bash main.sh & done", language="bash"),
    *programs("fork", " ".join(JUDGED), c_main("for (;;) fork();"), c_main("for (;;) vfork();"), language="c"),
    *programs(
        "fork", " ".join(JUDGED),
        "for (;;) require('child_process').spawn('/bin/sleep', ['99']).on('error', () => {});",
        language="javascript",
    ),
]  # fmt: skip

MEMORY = [
    *programs(
        "memory", "memory",
        "x = bytearray(10**10)",
        "x = []\nwhile True: x.append('y' * 10**6 + str(len(x)))",
        "x = b'z'\nwhile True: x += x",
        "import os, time\nfor _ in range(6): os.fork()\nx = bytearray(40 << 20)\ntime.sleep(9)",
        "import mmap\nkept = [mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(9)]\n"
        "while True:\n    kept.append(mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))\n"
        "    kept[-1].write(b'x' * (1 << 20))",
    ),
    *programs("memory", "memory killed failed timeout",
        "a = [1]\nwhile True: a = [a, a * 2]", "x = 9 ** 9 ** 9", "def f(n): return f(n + 1) + 1\nimport sys\n"
        "sys.setrecursionlimit(10**9)\nf(0)",
    ),
    *programs("memory", "memory killed", 'x=y; while :; do x="$x$x"; done', language="bash"),
    *programs("memory", "memory failed killed",
        c_main("for (;;) { char *p = malloc(1 << 20); memset(p, 1, 1 << 20); }"),
        c_main("static volatile char big[200 << 20]; for (long i = 0; i < sizeof big; i++) big[i] = 1;"), language="c"),
    *programs("memory", "memory killed", "const kept = []; for (;;) kept.push(new Array(1e5).fill(Math.random()));",
        "const kept = []; for (;;) kept.push(Buffer.alloc(1 << 20, 1));", language="javascript"),
    *attempt(
        "import mmap\nmmap.mmap(-1, 1 << 20)",
        "os.write(os.memfd_create('x'), b'y')",
        "open('/dev/shm/x', 'wb').write(b'y')",
        "import mmap\nmmap.mmap(os.open('/dev/zero', os.O_RDWR), 1 << 20)",
        family="memory",
    ),
]  # fmt: skip

DISK = [
    *programs("disk", "failed output killed", "f = open('x', 'wb')\nwhile True: f.write(b'y' * 10**6)",
        "n = 0\nwhile True:\n    open(f'f{n}', 'w').write('x')\n    n += 1",
        "import os\nwhile True:\n    os.mkdir('d')\n    os.chdir('d')",
        "import os\nfd = os.open('x', os.O_CREAT | os.O_RDWR)\nos.posix_fallocate(fd, 0, 1 << 40)",
        "import os\nos.truncate(os.open('x', os.O_CREAT | os.O_RDWR), 1 << 40)",
    ),
    *programs("disk", "timeout output", "while True:\n    try: open('x', 'ab').write(b'y' * 10**6)\n"
        "    except OSError: pass"),
    *programs("disk", "failed output killed", "cat /dev/urandom > x", "dd if=/dev/urandom of=/tmp/x bs=1M",
        language="bash"),
    *programs("disk", "failed output killed", c_main(
        "int f = open(\"x\", O_CREAT | O_WRONLY, 0600); static char b[65536]; while (write(f, b, 65536) > 0); return 1;"
    ), language="c"),
    *attempt(
        "open('/x', 'w')", "open('/usr/x', 'w')", "open('/etc/x', 'w')", "open('/dev/x', 'w')", "os.mkdir('/home')",
        "open('/var/tmp/x', 'w')", "os.link('/usr/bin/env', '/usr/bin/vne')", "open('/root/x', 'w')",
        family="disk",
    ),
]  # fmt: skip

NETWORK = [
    *attempt(
        "socket.create_connection(('127.0.0.1', @PORT@), 1)",
        "socket.create_connection(('1.1.1.1', 53), 1)",
        "socket.create_connection(('::1', @PORT@), 1)",
        "socket.getaddrinfo('example.com', 80)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', @PORT@))",
        "socket.socket(socket.AF_INET, socket.SOCK_STREAM).bind(('0.0.0.0', 0))",
        "socket.socket(socket.AF_UNIX).bind('\\0abstract')",
        "socket.socket(socket.AF_UNIX).connect('/run/docker.sock')",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "socket.socket(40, socket.SOCK_STREAM)",  # vsock: leads to the machine below, and knows no namespaces
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:@PORT@/', timeout=1)",
        family="network",
    ),
    *programs("network", "failed", "exec 3<>/dev/tcp/127.0.0.1/@PORT@ && echo ESCAPED", language="bash"),
    *programs("network", "failed killed timeout",
        "require('net').connect(@PORT@, '127.0.0.1', () => console.log('ESCAPED'));", language="javascript"),
]  # fmt: skip

FILES = [
    *attempt(
        "open('@CANARY@').read()",
        "open('@CANARY@', 'w')",
        "os.symlink('@CANARY@', 'link')\nopen('link').read()",
        "os.link('@CANARY@', 'link')",
        "os.unlink('@CANARY@')",
        "open('../../../../../../..@CANARY@').read()",
        "open('/proc/1/root@CANARY@').read()",
        "open('/proc/self/environ').read()",
        "open('/etc/shadow').read()",
        "os.listdir('/home')",
        "os.listdir('/root/.ssh')",
        "os.listdir('/sys')",
        "os.listdir('/proc')",
        "os.listdir('/run')",
        "os.unlink('/usr/bin/env')",
        "os.rename('/usr', '/rsu')",
        "os.chmod('/usr/bin/env', 0o777)",
        "os.mknod('disk', 0o060666, os.makedev(8, 0))\nopen('disk', 'rb').read(1)",
        "os.chroot('.')",
        "os.symlink('/', 'top')\nopen('top/@CANARY@').read()",
        "if libc.mount(b'none', b'/scratch', b'tmpfs', 0, None): raise OSError",
        "if libc.umount2(b'/', 2): raise OSError",
        "os.chdir('/scratch/../..')\nopen('.@CANARY@').read()",
        family="files",
    ),
    *programs("files", "failed", "cat '@CANARY@' && echo ESCAPED", "ls /proc/$PPID/cwd/ && echo ESCAPED",
        "rm -rf --no-preserve-root / 2>/dev/null; [ -e /usr/bin/env ] || echo ESCAPED; exit 1", language="bash"),
    *programs("files", "failed", "console.log(require('fs').readFileSync('@CANARY@', 'utf8'), 'ESCAPED');",
        language="javascript"),
]  # fmt: skip

SIGNALS = [
    *programs("signals", "passed", "import os\nos.kill(os.getppid(), 9)\nos.kill(1, 9)\nos.kill(1, 19)"),
    *programs("signals", "passed failed killed",
        "import os, signal\nfor number in (1, 2, 10, 12, 15):\n    os.kill(-1, number)",
        "import os\nos.kill(-1, 9)",
        "import os\nfor pid in range(2, 40000):\n    try: os.kill(pid, 15)\n    except OSError: pass",
        "import os\nfor pid in range(1, 40000):\n    try: os.killpg(pid, 15)\n    except OSError: pass",
    ),
    *programs("signals", "killed", "import os\nos.killpg(0, 9)", "import os\nos.kill(os.getpid(), 11)",
        "import os\nos.abort()"),
    *programs("signals", "killed", "kill -9 $$", language="bash"),
    *programs("signals", "timeout", "import os\nos.kill(os.getpid(), 19)"),
    *programs("signals", "killed", c_main("raise(SIGKILL);"), c_main("*(volatile int *)0 = 1;"), language="c"),
]  # fmt: skip

OUTPUT = [
    *programs("output", "output", "while True: print('x' * 99)",
        "import sys\nwhile True: sys.stderr.write('x')",
        "import os\nwhile True: os.write(1, b'\\xff\\0' * 10**6)",
        "import os\nwhile True:\n    os.write(1, b'x')\n    os.write(2, b'y')",
        "import os\nfor _ in range(4): os.fork()\nwhile True: os.write(1, b'x' * 999)",
        "import signal\nsignal.signal(signal.SIGPIPE, signal.SIG_IGN)\nwhile True:\n    try: print('x' * 999)\n"
        "    except OSError: pass",
    ),
    *programs("output", "output", "yes", "while :; do echo x >&2; done", language="bash"),
    *programs("output", "output", c_main("for (;;) puts(\"x\");"), language="c"),
    *programs("output", "output memory", "for (;;) require('fs').writeSync(2, 'x'.repeat(99));", language="javascript"),
]  # fmt: skip

SLEEPING = [
    *programs("sleeping", "timeout", "import time\ntime.sleep(10**6)", "import signal\nsignal.pause()",
        "while True: pass", "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
        "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\n"
        "while True: pass",
        "import os\nreading, writing = os.pipe()\nos.read(reading, 1)",
        "import os\nfor _ in range(3): os.fork()\nwhile True: pass",
    ),
    *programs("sleeping", "timeout", "sleep infinity", "while :; do :; done", "mkfifo p; cat p", language="bash"),
    *programs("sleeping", "timeout", c_main("for (;;);"), c_main("for (;;) pause();"), language="c"),
    *programs("sleeping", "timeout", "setInterval(() => {}, 1000);", language="javascript"),
    *programs("sleeping", "passed", "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(10**6)",
        "import subprocess\nsubprocess.Popen(['/bin/sleep', '1000000'], start_new_session=True)"),
    *programs("sleeping", "passed", "nohup sleep 1000000 & disown", language="bash"),
]  # fmt: skip

ENVIRONMENT = [
    *attempt(
        "os.environ['@SECRET@']",
        "assert any(b'@SECRET@' in open(f'/proc/{pid}/environ', 'rb').read() for pid in range(1, 99))",
        "found = []\nfor number in range(3, 64):\n    try: found.append(os.fstat(number))\n    except OSError: pass\n"
        "assert found",
        "assert os.getuid() == 0",
        "os.setuid(0)",
        "os.setresgid(0, 0, 0)",
        "os.setgroups([0])",
        "assert socket.gethostname() != 'sandbox'",
        "resource.setrlimit(resource.RLIMIT_NPROC, (9999, 9999))",
        "resource.setrlimit(resource.RLIMIT_DATA, (1 << 40, 1 << 40))",
        "os.nice(-20)",
        "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))",
        "open('/dev/tty')",
        "open('/dev/mem', 'rb')",
        "open('/dev/kmsg', 'w')",
        family="environment",
    ),
]  # fmt: skip


def raw_calls() -> list[Hostile]:
    """Each forbidden system call by its number, with arguments that would be harmless: it must not even be tried."""
    machine = platform.machine()
    if machine not in ("x86_64", "aarch64"):
        return []
    column = ("x86_64", "aarch64").index(machine)
    calls = {name: both[column] for name, both in FORBIDDEN.items()}
    calls |= FORBIDDEN_X86 if machine == "x86_64" else {}
    steps = [
        f"assert libc.syscall({number}, -1, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1" for number in calls.values()
    ]
    found = attempt(*steps, family="calls")
    new = {
        "io_uring_setup": 425,
        "open_tree": 428,
        "fsopen": 430,
        "clone3": 435,
        "pidfd_getfd": 438,
        "memfd_secret": 447,
    }
    unknown = [f"assert libc.syscall({n}, 0, 0, 0) != -1 or ctypes.get_errno() != 38" for n in new.values()]
    namespaces = f"if libc.syscall({CHECKED['clone'][column]}, 0x10000011, 0, 0, 0, 0) == -1: raise OSError"
    x32 = "if libc.syscall(0x40000000 + 39) == -1: raise OSError"
    return [*found, *attempt(*unknown, namespaces, *([x32] if machine == "x86_64" else []), family="calls")]


FAMILIES: dict[str, list[Hostile]] = {
    "fork": FORKS,
    "memory": MEMORY,
    "disk": DISK,
    "network": NETWORK,
    "files": FILES,
    "signals": SIGNALS,
    "output": OUTPUT,
    "sleeping": SLEEPING,
    "environment": ENVIRONMENT,
    "calls": raw_calls(),
}
