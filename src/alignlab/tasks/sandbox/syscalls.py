"""The system calls that Python has no function for. Standard library only: the launcher imports nothing else."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47

_libc = ctypes.CDLL(None, use_errno=True)
_MOUNT_SETATTR = 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000


def _checked(result: int, what: str) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _syscall(number: int, *arguments: object) -> int:
    return int(_libc.syscall(ctypes.c_long(number), *arguments))


def unshare(flags: int, what: str) -> None:
    """Leave the shared namespaces of `flags`; OSError that names `what`."""
    _checked(_libc.unshare(flags), f"unshare({what})")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    encoded = [part.encode() if part is not None else None for part in (source, target, kind)]
    result = _libc.mount(*encoded, ctypes.c_ulong(flags), options.encode() or None)
    _checked(result, f"mount of {kind or source} at {target}")


def mount_attributes(path: str, attributes: int, *, recursive: bool) -> None:
    """Set attributes of a mount and, `recursive`, of all below it (Linux 5.12)."""
    record = struct.pack("QQQQ", attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    size = ctypes.c_size_t(len(record))
    result = _syscall(_MOUNT_SETATTR, ctypes.c_int(_AT_FDCWD), path.encode(), ctypes.c_uint(flags), record, size)
    _checked(result, f"mount_setattr of {path} (Linux 5.12 and later have it)")


def pivot_root(new_root: str) -> None:
    """Make `new_root` the root and let go of the old one."""
    os.chdir(new_root)
    _checked(_syscall(_PIVOT_ROOT[platform.machine()], b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", 2), "umount of the old root")
    os.chdir("/")


def prctl(option: int, first: int = 0, second: int = 0) -> None:
    """prctl(2) with numbers."""
    unsigned = [ctypes.c_ulong(value) for value in (first, second, 0, 0)]
    _checked(_libc.prctl(ctypes.c_int(option), *unsigned), f"prctl({option})")


def drop_capabilities() -> None:
    """No capability now, and none to be gained by exec."""
    prctl(PR_CAP_AMBIENT, 4)
    for number in range(64):
        try:
            prctl(PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL):
                raise
            break  # beyond the last one, or a process that has none to drop
    header, nothing = struct.pack("Ii", 0x20080522, 0), struct.pack("6I", *[0] * 6)
    _checked(_syscall(_CAPSET[platform.machine()], header, nothing), "capset")


def install_filter(instructions: bytes) -> None:
    """Install a seccomp filter on this thread; needs `PR_SET_NO_NEW_PRIVS` first."""
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(instructions) // 8, ctypes.addressof(buffer)))
    mode_filter = 2
    result = _libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(mode_filter), program, ctypes.c_ulong(0), ctypes.c_ulong(0))
    _checked(result, "seccomp filter")
