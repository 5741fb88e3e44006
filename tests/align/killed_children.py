"""Work in processes of its own, forked so that a restart imports nothing anew, and killed with kill -9."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable


def forked(work: Callable[[], object]) -> int:
    """Start a process that does the work and ends; returns its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def killed(child: int) -> bool:
    """Wait for its end: True where it was killed, False where it was done; SystemExit where it failed."""
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise SystemExit(f"a process that was not killed failed with {os.WEXITSTATUS(status)}")
    return False


def in_child(work: Callable[[], object], kill_after: float | None = None) -> bool:
    """Do the work in a process of its own, killed after so many seconds; True where that was before its end."""
    child = forked(work)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)  # a child that has ended waits for its parent, so the number is still its own
    return killed(child)
