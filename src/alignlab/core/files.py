"""Files that survive a crash: atomic replacement, append-only JSON lines, checksums, and where things live."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alignlab.core.errors import DataError, RunError

_DISK_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "file too large",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating system error of a write to `path` into a RunError of one sentence."""
    try:
        yield
    except OSError as error:
        reason = _DISK_FULL.get(error.errno or 0) or (error.strerror or str(error)).lower()
        raise RunError(f"cannot write {path}: {reason}; what was saved before is intact") from error


def atomic_write(path: str | Path, data: str | bytes) -> None:
    """Replace `path` by `data` so that a reader, or a crash, sees the old content or the new, never a part.

    Writes a temporary file beside it, fsyncs, renames, and fsyncs the directory. Raises RunError when the disk is full
    or the place cannot be written; the old content then stays.
    """
    path = Path(path)
    payload = data.encode() if isinstance(data, str) else data
    with writing(path):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            # Not mkstemp: its files are private, and a report should follow the user's umask like any other file.
            with open(temporary, "xb") as stream:
                stream.write(payload)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make a rename inside `directory` durable; file systems that cannot are left alone."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def append_bytes(descriptor: int, payload: bytes, path: Path) -> None:
    """Append `payload` whole: if the disk fills up half-way, cut the part off again and raise RunError."""
    before = os.fstat(descriptor).st_size
    with writing(path):
        try:
            view = memoryview(payload)
            while view:
                view = view[os.write(descriptor, view) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, before)
            raise


def append_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append one JSON object a line, in one write, after mending a torn last line that a crash may have left.

    Raises RunError when the disk is full (the file is then as before) and TypeError for what JSON cannot hold.
    """
    path = Path(path)
    payload = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if not payload:
        return
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        mend_tail(descriptor, path)
        append_bytes(descriptor, payload, path)
    finally:
        os.close(descriptor)


def mend_tail(descriptor: int, path: Path) -> None:
    """Make an open JSONL file end in a complete line: finish one that only lacks its newline, cut a torn one off."""
    end = os.fstat(descriptor).st_size
    tail, start = b"", end
    while start and b"\n" not in tail:
        step = min(start, 1 << 16)
        start -= step
        tail = os.pread(descriptor, step, start) + tail
    last = tail[tail.rfind(b"\n") + 1 :]
    if not last:
        return
    if _is_json(last):
        append_bytes(descriptor, b"\n", path)
    else:
        with writing(path):
            os.ftruncate(descriptor, end - len(last))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The JSON objects of `path`, one a line; empty lines are skipped.

    A last line without its newline that does not parse is the mark of a crash and is dropped. Anything else that does
    not parse, or is no object, raises DataError naming the line; so does a file that cannot be read.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    lines = content.split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise DataError(f"{path}, line {number} is not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is {type(row).__name__}, allowed: a JSON object a line")
        rows.append(row)
    return rows


def json_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a data set, one a line, each after the words for where it stands; the file may be gzipped.

    Empty lines are skipped. Unlike `read_jsonl`, which reads what a crash may have cut, nothing is dropped: a line that
    does not parse or is no object raises DataError naming it; so does a file that cannot be read.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        lines = (gzip.decompress(content) if path.suffix == ".gz" else content).split(b"\n")
    except (OSError, EOFError, zlib.error) as error:  # the latter two: gzip's, of a file that is damaged or cut
        raise DataError(f"cannot read {path}: {(getattr(error, 'strerror', None) or str(error)).lower()}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{where} is {type(row).__name__}, allowed: a JSON object")
        yield where, row


def read_json(path: str | Path) -> Any:
    """The JSON value in `path`; DataError when it is missing or damaged."""
    path = Path(path)
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error})") from error


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits, read in pieces."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def user_dir(*parts: str) -> Path:
    """A folder for fetched and converted things below $ALIGNLAB_HOME, else ~/.cache/alignlab; created if missing."""
    home = os.environ.get("ALIGNLAB_HOME")
    base = Path(home).expanduser() if home else Path.home() / ".cache" / "alignlab"
    return _made(base.joinpath(*parts))


def runs_dir() -> Path:
    """Where runs go unless a path is given: $ALIGNLAB_RUNS, else ./runs. Not created until the first run."""
    return Path(os.environ.get("ALIGNLAB_RUNS") or "runs").expanduser()


def _made(directory: Path) -> Path:
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    return directory
