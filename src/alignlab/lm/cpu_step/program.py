"""Small programs of our own, compiled on first use where there is a compiler, and kept.

A program lies in the user's cache under the hash of its sources and compiler, for this processor alone. Without a
compiler, or with ALIGNLAB_NO_COMPILER set, there is none, and torch does the same work more slowly; where there are
compilers and all of them fail, a warning says why.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

import torch

from alignlab.core.files import user_dir

HEADERS = Path(__file__).parent
COMPILERS = ("g++", "c++", "clang++")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-ffp-contract=fast")
_TIMEOUT_S = 120


def program(source: Path) -> ctypes.CDLL | None:
    """The compiled program, or None where it cannot be had or is not wanted."""
    return None if os.environ.get("ALIGNLAB_NO_COMPILER") else _program(source)


@lru_cache
def _program(source: Path) -> ctypes.CDLL | None:
    if platform.system() not in ("Linux", "Darwin"):
        return None
    failed: Exception | None = None
    for compiler in filter(None, map(shutil.which, COMPILERS)):
        try:
            return ctypes.CDLL(str(_library(compiler, source)))
        except (OSError, subprocess.SubprocessError) as error:
            failed = failed or error  # one that cannot, or whose threads are not those of torch
    if failed is not None:
        why = f"no compiler here makes {source.name} ({_reason(failed)}), so torch does its work, more slowly"
        warnings.warn(f"{why}; ALIGNLAB_NO_COMPILER=1 takes that for granted", stacklevel=3)
    return None


def _reason(error: Exception) -> str:
    """The compiler's first complaint, or what else went wrong."""
    said = (
        error.stderr.decode(errors="replace").splitlines() if isinstance(error, subprocess.CalledProcessError) else []
    )
    return next((line.strip() for line in said if "error" in line.lower()), str(error))


def _library(compiler: str, source: Path) -> Path:
    """The compiled program's file, made if it is not there; appears only when it is whole."""
    sources = b"\0".join(path.read_bytes() for path in [source, *sorted(HEADERS.glob("*.h"))])
    flags = (*FLAGS, f"-I{HEADERS}")
    identity = "\n".join((compiler, " ".join(FLAGS), _processor(), torch.__version__)).encode()
    path = user_dir("kernels") / f"{source.stem}-{hashlib.sha256(sources + identity).hexdigest()[:16]}.so"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made, object_file = Path(scratch) / path.name, Path(scratch) / "program.o"
        # Threads are those that torch has already: its library of threads is loaded, a second one beside it would
        # compete for the same processors. So the name is left open here, and found there.
        threads = ["-fopenmp"] if platform.system() == "Linux" else []
        for command in (
            [compiler, *flags, *threads, "-c", str(source), "-o", str(object_file)],
            [compiler, "-shared", str(object_file), "-o", str(made)],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)
        made.replace(path)
    return path


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
