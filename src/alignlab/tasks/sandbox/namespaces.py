"""Namespaces of the sandbox: who it is, what it sees, and a file tree of its own. Standard library only."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from alignlab.tasks.sandbox.syscalls import (
    ATTR_NODEV,
    ATTR_NOEXEC,
    ATTR_NOSUID,
    ATTR_RDONLY,
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    NEWIPC,
    NEWNET,
    NEWNS,
    NEWPID,
    NEWUSER,
    NEWUTS,
    mount,
    mount_attributes,
    pivot_root,
    unshare,
)

OTHERS = NEWPID | NEWNET | NEWIPC | NEWUTS
FIRST_UID, UIDS, NOBODY = 60600, 500, 65534
SCRATCH = "/scratch"
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/alternatives", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/random", "/dev/urandom")
INODES = 4096


def enter() -> tuple[int, int]:
    """Leave the namespaces of the caller, all but the mounts'; the (uid, gid) that the program is to have.

    root gives the program an identity that nothing else has, because root's processes and memory are not limited; a
    plain user keeps the own one, without any right over it. OSError where the kernel does not allow it.
    """
    if os.geteuid() != 0:
        return _enter_as_user()
    try:
        return _enter_as_root()
    except OSError as error:
        if error.errno is None:  # ours: the namespaces are left already
            raise
        # Without user namespaces root can still make the others.
        unshare(OTHERS, "pid, net, ipc, uts")
        identity = _own_identity()
        return identity, identity


def _own_identity() -> int:
    return FIRST_UID + os.getpid() % UIDS


def _enter_as_user() -> tuple[int, int]:
    uid, gid = os.geteuid(), os.getegid()
    unshare(NEWUSER | OTHERS, "user, pid, net, ipc, uts")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return uid, gid


def _enter_as_root() -> tuple[int, int]:
    """A map of two identities can only be written from outside, so a child that stays behind writes it."""
    go, going = os.pipe()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(going)
        written = 0
        if os.read(go, 1):
            written = _write_maps(os.getppid())
        os.write(tell, str(written).encode())
        os._exit(0)
    os.close(go)
    os.close(tell)
    try:
        unshare(NEWUSER | OTHERS, "user, pid, net, ipc, uts")
        os.write(going, b"1")
    finally:
        os.close(going)
        identity = int(os.read(told, 16) or 0)
        os.close(told)
        os.waitpid(child, 0)
    if not identity:
        raise OSError("no identity besides root can be mapped into a user namespace")
    os.setgroups([])
    return identity, identity


def _write_maps(pid: int) -> int:
    for identity in (_own_identity(), NOBODY):
        try:
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{pid}/{name}", "w") as file:
                    file.write(f"0 0 1\n{identity} {identity} 1\n")
        except OSError:
            continue
        return identity
    return 0


def build_root(mount_point: str, visible: Sequence[str], disk_bytes: int, uid: int, gid: int) -> None:
    """Move into a file tree that holds the system's programs, read-only, and an empty scratch directory.

    `visible` are further directories or files, at their own paths. There is no /proc, no home, and of the devices
    only `DEVICES` (/dev/zero would give memory that no limit counts).
    """
    unshare(NEWNS, "mount")
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", mount_point, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m,nr_inodes=2048")
    for path in (*SYSTEM, *visible):
        _show(mount_point, path)
    for device in DEVICES:
        _show(mount_point, device, ATTR_RDONLY | ATTR_NOSUID | ATTR_NOEXEC)
    os.makedirs(mount_point + "/etc", exist_ok=True)
    for name, text in (("passwd", f"user:x:{uid}:{gid}::{SCRATCH}:/bin/sh\n"), ("group", f"user:x:{gid}:\n")):
        with open(f"{mount_point}/etc/{name}", "w") as file:
            file.write(text)
    os.mkdir(mount_point + SCRATCH)
    options = f"mode=700,size={disk_bytes},nr_inodes={INODES},uid={uid},gid={gid}"
    mount("tmpfs", mount_point + SCRATCH, "tmpfs", MS_NOSUID | MS_NODEV, options)
    if not os.path.lexists(mount_point + "/tmp"):  # there is one when a visible path lies in it
        os.symlink(SCRATCH, mount_point + "/tmp")
    socket.sethostname("sandbox")  # of our own namespace; the machine keeps its name
    pivot_root(mount_point)
    mount_attributes("/", ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, recursive=False)


def _show(root: str, path: str, attributes: int = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV) -> None:
    target = root + path
    if not os.path.lexists(path) or os.path.lexists(target):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        open(target, "x").close()
    mount(path, target, None, MS_BIND | MS_REC)
    mount_attributes(target, attributes, recursive=True)
