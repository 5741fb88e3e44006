"""Files: replaced whole or not at all, lines that survive a crash, a full disk that costs nothing saved."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignlab.core import files
from alignlab.core.errors import DataError, RunError
from alignlab.core.files import append_jsonl, atomic_write, read_json, read_jsonl, runs_dir, sha256_file, user_dir

ROWS = [{"a": 1, "text": 'ä\n"quoted"'}, {"b": [1, 2]}, {}]


def test_atomic_write_replaces(tmp_path: Path) -> None:
    target = tmp_path / "f.txt"
    atomic_write(target, "first")
    atomic_write(target, "zweite Ü".encode())
    assert target.read_text() == "zweite Ü"
    assert os.listdir(tmp_path) == ["f.txt"]


def test_atomic_write_follows_the_umask(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.umask(0o027)\nfrom alignlab.core.files import atomic_write\natomic_write(sys.argv[1], 'x')"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "f"], check=True)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EIO, "input/output error"),
    ],
)
def test_atomic_write_that_fails_keeps_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, words: str
) -> None:
    target = tmp_path / "f.txt"
    atomic_write(target, "old")

    def fail(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(RunError, match=f"cannot write .*f.txt: {words}; what was saved before is intact"):
        atomic_write(target, "new")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["f.txt"]


def test_atomic_write_into_nowhere(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such file or directory"):
        atomic_write(tmp_path / "none" / "f", "x")


# A file-size limit makes the kernel cut a write short and then refuse, as a disk does that fills up half-way.
FULL_DISK = """
import json, resource, sys
from alignlab.core.errors import RunError
from alignlab.core.files import append_jsonl, atomic_write
path, limit = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
failed = []
for write in (lambda: append_jsonl(path, [{"long": "x" * 500}]), lambda: atomic_write(path, "y" * 5000)):
    try:
        write()
    except RunError as error:
        failed.append(str(error))
append_jsonl(path, [{"fits": 1}])
print(json.dumps(failed))
"""


def test_full_disk_half_way_through_a_write(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_jsonl(path, ROWS)
    limit = path.stat().st_size + 100
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, path, str(limit)], capture_output=True, text=True, check=True
    )
    failed = json.loads(done.stdout)
    assert len(failed) == 2
    assert all(str(path) in sentence and "intact" in sentence for sentence in failed)
    assert read_jsonl(path) == [*ROWS, {"fits": 1}]
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_append_and_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_jsonl(path, ROWS[:1])
    append_jsonl(path, [])
    append_jsonl(path, ROWS[1:])
    assert read_jsonl(path) == ROWS


def test_every_torn_tail_is_dropped_and_mended(tmp_path: Path) -> None:
    """Cut the file at every byte of its last line: the earlier rows stay, and appending goes on from there."""
    whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS[:2]).encode()
    last = json.dumps({"k": "ä", "n": 1.5}, ensure_ascii=False).encode() + b"\n"
    path = tmp_path / "rows.jsonl"
    for cut in range(len(last) + 1):
        path.write_bytes(whole + last[:cut])
        complete = ROWS[:2] + ([{"k": "ä", "n": 1.5}] if cut >= len(last) - 1 else [])
        assert read_jsonl(path) == complete
        append_jsonl(path, [{"next": 1}])
        assert read_jsonl(path) == [*complete, {"next": 1}]


def test_torn_tail_longer_than_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": "' + b"x" * 200_000)
    append_jsonl(path, [{"c": 1}])
    assert read_jsonl(path) == [{"a": 1}, {"c": 1}]
    path.write_bytes(b"x" * 200_000)
    append_jsonl(path, [{"c": 1}])
    assert read_jsonl(path) == [{"c": 1}]


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none())))
@pytest.mark.no_cover
def test_any_rows_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    append_jsonl(path, rows)
    assert (read_jsonl(path) if rows else []) == rows


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"a": 1}\n{"b": \n{"c": 1}\n', r"rows\.jsonl, line 2 is not valid JSON"),
        (b'{"a": 1}\n\xff\n{"c": 1}\n', r"rows\.jsonl, line 2 is not valid JSON"),
        (b'{"a": 1}\n{"b": \n', r"rows\.jsonl, line 2 is not valid JSON"),
        (b"[1]\n", r"rows\.jsonl, line 1 is list, allowed: a JSON object a line"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        read_jsonl(path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*: no such file"):
        read_jsonl(tmp_path / "none")
    with pytest.raises(DataError, match=r"cannot read .*: no such file"):
        read_json(tmp_path / "none")
    (tmp_path / "bad").write_text("{")
    with pytest.raises(DataError, match="bad is not valid JSON"):
        read_json(tmp_path / "bad")
    with pytest.raises(RunError, match="cannot write"):
        append_jsonl(tmp_path / "none" / "rows", ROWS)


def test_sha256_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "f").write_bytes(bytes(3_000_000))
    assert sha256_file(tmp_path / "f") == hashlib.sha256(bytes(3_000_000)).hexdigest()


def test_folders_follow_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "runs"))
    assert user_dir("models", "x") == tmp_path / "home" / "models" / "x"
    assert (tmp_path / "home" / "models" / "x").is_dir()
    assert runs_dir() == tmp_path / "runs"
    monkeypatch.delenv("ALIGNLAB_RUNS")
    assert runs_dir() == Path("runs")
    monkeypatch.delenv("ALIGNLAB_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_dir() == tmp_path / ".cache" / "alignlab"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "file"))
    with pytest.raises(RunError, match=r"cannot write .*file"):
        user_dir("models")
