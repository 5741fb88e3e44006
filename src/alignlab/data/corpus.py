"""Corpora: documents of text from .txt, JSONL, Parquet and the Hugging Face hub, one at a time.

A `Corpus` can be read again and again, because a tokenizer is trained in one pass and the text tokenized in another.
Documents without any text are skipped.
"""

from __future__ import annotations

import codecs
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from alignlab.core.errors import DataError
from alignlab.core.extras import import_extra

SUFFIXES = (".txt", ".text", ".md", ".jsonl", ".ndjson", ".jsonl.gz", ".parquet")
MAX_DOCUMENT_BYTES = 2**30
MAX_LINE_BYTES = 2**28
_BLOCK = 1 << 20
_ROWS = 4096


@dataclass(frozen=True)
class Corpus:
    """Documents in a file, in all corpus files below a directory (in the order of their names), or on the hub."""

    source: str
    """A path, or `hub:owner/name` (`hub:owner/name:configuration`) for a dataset that is streamed."""
    field: str = "text"
    """Which field of JSONL, column of Parquet or feature of a hub dataset holds the text."""
    separator: str | None = None
    """Text that parts the documents of a .txt file, such as a blank line; without it a file is one document."""
    split: str = "train"
    """The split of a hub dataset."""

    def __iter__(self) -> Iterator[str]:
        """The documents.

        Raises:
            DataError: nothing is there, text that is not UTF-8, a damaged line or file, a missing field.
        """
        if self.source.startswith("hub:"):
            documents = hub_documents(self.source.removeprefix("hub:"), self.split, self.field)
        else:
            documents = (document for path in self.files() for document in self._file(path))
        return (document for document in documents if document)

    def files(self) -> list[Path]:
        """The files that are read, in order. Raises DataError when there is none."""
        path = Path(self.source).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(SUFFIXES))
            if not found:
                raise DataError(f"{path} holds no text; files that are read end in {', '.join(SUFFIXES)}")
            return found
        if not path.is_file():
            raise DataError(f"{path} does not exist; allowed: a file, a directory, or hub:owner/name")
        return [path]

    def _file(self, path: Path) -> Iterator[str]:
        name = path.name.lower()
        if name.endswith((".jsonl", ".ndjson", ".jsonl.gz")):
            return jsonl_documents(path, self.field)
        if name.endswith(".parquet"):
            return parquet_documents(path, self.field)
        return text_documents(path, self.separator)


def text_documents(path: str | Path, separator: str | None = None) -> Iterator[str]:
    """The documents of a UTF-8 file, parted by `separator`; one document without it. A byte order mark is dropped.

    With a separator, memory holds one document and a block of the file.
    """
    path = Path(path)
    if separator == "":
        raise DataError("the separator of documents is empty; give some text, such as a blank line, or none at all")
    if separator is None and path.is_file() and path.stat().st_size > MAX_DOCUMENT_BYTES:
        raise DataError(
            f"{path} has {path.stat().st_size} bytes, which is too much for one document; name the text that parts its "
            f"documents (separator), or split it into files of at most {MAX_DOCUMENT_BYTES} bytes"
        )
    if separator is None:
        yield "".join(_decoded(path))
        return
    waiting = ""
    for block in _decoded(path):
        unseen = max(0, len(waiting) - len(separator) + 1)
        waiting += block
        if waiting.find(separator, unseen) >= 0:
            *whole, waiting = waiting.split(separator)
            yield from whole
        if len(waiting) > MAX_DOCUMENT_BYTES:
            raise DataError(
                f"{path}: a document has more than {MAX_DOCUMENT_BYTES} characters; is {separator!r} right?"
            )
    yield waiting


def _decoded(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    with _opened(path) as stream:
        while True:
            block = stream.read(_BLOCK)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, done - pending + error.start, error) from None
            yield text.removeprefix("\ufeff") if done == 0 else text
            done += len(block)
            if not block:
                return


def _opened(path: Path) -> IO[bytes]:
    try:
        return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error


def _not_utf8(path: Path, at: int, error: UnicodeDecodeError) -> DataError:
    byte = error.object[error.start : error.start + 1]
    return DataError(
        f"{path} is not UTF-8: byte 0x{byte.hex()} at offset {at}; convert it, for example with "
        f"iconv -f LATIN1 -t UTF-8"
    )


def jsonl_documents(path: str | Path, field: str = "text") -> Iterator[str]:
    """The text in `field` of each line of a JSONL file (or .jsonl.gz); blank lines are skipped."""
    path = Path(path)
    offset = 0
    with _opened(path) as stream:
        for number, line in enumerate(_lines(stream, path), start=1):
            where = f"{path}, line {number}"
            try:
                if line.strip():
                    yield _field(json.loads(line.decode("utf-8")), field, where)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset + error.start, error) from None
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where} is not valid JSON ({error})") from None
            offset += len(line)


def _lines(stream: IO[bytes], path: Path) -> Iterator[bytes]:
    try:
        while line := stream.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{path} has a line of more than {MAX_LINE_BYTES} bytes; is it JSONL?")
            yield line
    except (OSError, EOFError) as error:  # how gzip says that a file is damaged or cut
        raise DataError(f"{path} cannot be read: {error}") from None


def _field(row: object, field: str, where: str) -> str:
    if not isinstance(row, dict):
        raise DataError(f"{where} is {type(row).__name__}, allowed: a JSON object a line")
    if field not in row:
        raise DataError(f"{where} has no field {field!r}, only {', '.join(map(repr, row)) or 'none'}")
    if not isinstance(row[field], str):
        raise DataError(f"{where}: field {field!r} is {type(row[field]).__name__}, allowed: text")
    return row[field]


def parquet_documents(path: str | Path, column: str = "text") -> Iterator[str]:
    """The text in `column` of a Parquet file, some thousand rows at a time; rows that are null are skipped."""
    import polars as pl

    path = Path(path)
    try:
        table = pl.scan_parquet(path, glob=False)
        schema = table.collect_schema()
        if column not in schema:
            raise DataError(f"{path} has no column {column!r}, only {', '.join(map(repr, schema)) or 'none'}")
        if schema[column] != pl.String:
            raise DataError(f"{path}: column {column!r} is {schema[column]}, allowed: text")
        rows = int(table.select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {_first_line(error)}") from None
    for start in range(0, rows, _ROWS):
        try:
            part = table.select(column).slice(start, _ROWS).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{path} is damaged near row {start}: {_first_line(error)}") from None
        yield from part.get_column(column).drop_nulls().to_list()


def hub_documents(name: str, split: str = "train", field: str = "text") -> Iterator[str]:
    """The texts of a dataset on the Hugging Face hub, streamed; `name` is owner/name or owner/name:configuration.

    Raises:
        MissingExtraError: the package `datasets` is not installed.
        DataError: no such dataset, configuration, split or field, or no network.
    """
    datasets = import_extra("datasets", "data")
    repository, _, configuration = name.partition(":")
    where = f"hub:{name}, split {split}"
    try:
        rows = iter(datasets.load_dataset(repository, configuration or None, split=split, streaming=True))
    except Exception as error:  # whatever the library's HTTP client, file formats and builders raise
        raise DataError(f"{where} cannot be opened: {_first_line(error)}") from None
    number = 0
    while True:
        try:
            row = next(rows, None)
        except Exception as error:
            raise DataError(f"{where} broke off after {number} documents: {_first_line(error)}") from None
        if row is None:
            return
        number += 1
        yield _field(row, field, f"{where}, document {number}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
