"""The system-call filter of the sandbox, written as classic BPF (seccomp mode 2).

Allowed is what ordinary programs use; forbidden (EPERM) is what reaches beyond the process, changes the machine, or
holds memory that no limit counts: `memfd_create`, System V memory, shared anonymous mappings, large socket buffers.
Calls newer than the list are answered ENOSYS, as an older kernel would, so that new kernels bring no new holes;
`clone3` is among them because a filter cannot read its flags, and the C library then falls back to `clone`.
"""

from __future__ import annotations

import errno
import platform
import struct

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Numbers on x86_64 and aarch64.
FORBIDDEN: dict[str, tuple[int, int]] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162), "syslog": (103, 116), "vhangup": (153, 58),
    "nfsservctl": (180, 42), "lookup_dcookie": (212, 18), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "fanotify_init": (300, 262), "memfd_create": (319, 279), "shmget": (29, 194),
    "shmat": (30, 196), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "socket": (41, 198),
    "setsockopt": (54, 208), "personality": (135, 92), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
    "io_setup": (206, 0), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "mbind": (237, 235), "set_mempolicy": (238, 237),
}  # fmt: skip
FORBIDDEN_X86 = {"iopl": 172, "ioperm": 173, "modify_ldt": 154, "uselib": 134, "sysfs": 139, "create_module": 174}

FIRST_NEW = 424  # from here on the numbers agree on all architectures
NEW_ALLOWED = {
    "pidfd_send_signal": 424, "pidfd_open": 434, "close_range": 436, "openat2": 437, "faccessat2": 439,
    "epoll_pwait2": 441, "futex_waitv": 449, "fchmodat2": 452, "mseal": 462,
}  # fmt: skip

CHECKED = {"clone": (56, 220), "mmap": (9, 222), "ioctl": (16, 29), "socketpair": (53, 199)}
CLONE_NAMESPACES = 0x7E020000
MAP_SHARED, MAP_ANONYMOUS = 0x01, 0x20
TERMINAL_INJECTION = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
AF_UNIX = 1

_LOAD, _JUMP_EQUAL, _JUMP_ABOVE, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
X32_BIT = 0x40000000


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _deny(number: int) -> bytes:
    return _op(_RETURN, _ERRNO | number)


def _when(call: int, *body: bytes) -> list[bytes]:
    """Run `body`, which ends in a return, for this call."""
    return [_op(_JUMP_EQUAL, call, 0, len(body)), *body]


def _argument(index: int) -> bytes:
    """Load the low half of an argument (both architectures are little-endian)."""
    return _op(_LOAD, _ARGUMENTS + 8 * index)


def build_filter(machine: str | None = None, extra: tuple[int, ...] = ()) -> bytes:
    """The filter for `machine` (default: this one), with the calls numbered `extra` forbidden too.

    OSError (ENOSYS) for a machine whose numbers are not known here.
    """
    machine = platform.machine() if machine is None else machine
    if machine not in AUDIT_ARCH:
        raise OSError(errno.ENOSYS, f"no system-call filter for {machine}; known: {', '.join(AUDIT_ARCH)}")
    column = list(AUDIT_ARCH).index(machine)
    allow, denied = _op(_RETURN, _ALLOW), _deny(errno.EPERM)
    program = [_op(_LOAD, _ARCH), _op(_JUMP_EQUAL, AUDIT_ARCH[machine], 1, 0), _op(_RETURN, _KILL), _op(_LOAD, _NUMBER)]
    if machine == "x86_64":
        program += [_op(_JUMP_ABOVE, X32_BIT, 0, 1), _deny(errno.ENOSYS)]
    checked = {name: numbers[column] for name, numbers in CHECKED.items()}
    program += _when(checked["clone"], _argument(0), _op(_JUMP_SET, CLONE_NAMESPACES, 0, 1), denied, allow)
    shared = (_op(_JUMP_SET, MAP_ANONYMOUS, 0, 2), _op(_JUMP_SET, MAP_SHARED, 0, 1), denied, allow)
    program += _when(checked["mmap"], _argument(3), *shared)
    injected = [part for request in TERMINAL_INJECTION for part in _when(request, denied)]
    program += _when(checked["ioctl"], _argument(1), *injected, allow)
    program += _when(checked["socketpair"], _argument(0), _op(_JUMP_EQUAL, AF_UNIX, 0, 1), allow, denied)
    numbers = [pair[column] for pair in FORBIDDEN.values()]
    numbers += list(FORBIDDEN_X86.values()) if machine == "x86_64" else []
    for number in [*numbers, *extra]:
        program += _when(number, denied)
    for number in NEW_ALLOWED.values():
        program += _when(number, allow)
    program += [_op(_JUMP_ABOVE, FIRST_NEW, 0, 1), _deny(errno.ENOSYS), allow]
    return b"".join(program)
