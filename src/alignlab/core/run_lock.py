"""One writer a run: an advisory lock that the kernel releases however the process ends, kill -9 included."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from alignlab.core.errors import RunError
from alignlab.core.files import writing

LOCK_FILE = "run.lock"
# `is_locked` takes the lock for an instant to see whether it is free; a writer outwaits that.
_PATIENCE_SECONDS = 0.5


class RunLock:
    """The exclusive lock of a run directory. Raises RunError naming the process that holds it."""

    def __init__(self, directory: Path):
        path = directory / LOCK_FILE
        with writing(path):
            self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._wait(directory, self._descriptor)
        except BaseException:
            self.release()
            raise
        with suppress(OSError):  # the number is for the message only; a full disk must not stop a resume here
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    @staticmethod
    def _wait(directory: Path, descriptor: int) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                raise RunError(f"run directory {directory} is in use by process {holder}, wait for it or stop it")
            time.sleep(0.02)

    def release(self) -> None:
        """Give the directory free. Doing so twice is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(directory: Path) -> bool:
    """Whether some process, this one included, writes the run directory now."""
    try:
        descriptor = os.open(directory / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RunError(f"this file system cannot lock a run directory ({error.strerror}), use a local one") from error
    return True
