"""Writers killed at random: no judgement that was acknowledged is lost, none is there twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alignlab.align.preference_data.collector import PreferenceCollector
from alignlab.align.preference_data.questions import Question
from alignlab.core.store import open_store

SCRIPT = Path(__file__).with_name("killed_writers.py")


def check(url: str, folder: Path, writers: int, each: int, pause: float) -> int:
    """Let the writers write, and compare what is in the store with what they sent; the number of kills."""
    with open_store(url) as store:
        lab = PreferenceCollector(store, project="p", annotator="nobody")
        lab.add([Question(f"q{i}", ("a", "b")) for i in range(each)])
        command = [sys.executable, str(SCRIPT), url, "p", str(folder), str(writers), str(pause), "0"]
        path = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
        done = subprocess.run(
            command, capture_output=True, text=True, env=path, timeout=3600
        )  # minutes alone, more on a busy machine
        assert done.returncode == 0, done.stderr
        stored = lab.judgements(withdrawn=True)
    assert len(stored) == writers * each
    assert {j.token for j in stored} == {f"{w}-{n}" for w in range(writers) for n in range(each)}
    for writer in range(writers):
        noted = (folder / str(writer)).read_text().splitlines()
        assert {int(line) for line in noted} == set(range(each))
    wanted = {}
    for judgement in stored:
        writer, number = map(int, judgement.token.split("-"))
        wanted[judgement.token] = "ab"[(number + writer) % 2]
        assert judgement.annotator == f"person{writer}"
    with open_store(url) as store, store.snapshot() as session:
        from alignlab.align.preference_data.questions import read_comparisons

        texts = {a.id: a.text for comparison in read_comparisons(session, "p") for a in comparison.answers}
        if store.url.get_backend_name() == "sqlite":
            assert session.connection().exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    assert {j.token: texts[str(j.verdict.choice)] for j in stored} == wanted
    return int(done.stdout)


def test_killed_writers_lose_and_double_nothing(tmp_path: Path, template: Path) -> None:
    (tmp_path / "notes").mkdir()
    url = f"sqlite:///{shutil.copy(template, tmp_path / 'lab.db')}"
    assert check(url, tmp_path / "notes", writers=3, each=40, pause=0.05) > 0


@pytest.mark.slow
def test_ten_thousand_judgements_of_eight_killed_processes(new_url: Callable[[], str], tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    assert check(new_url(), tmp_path / "notes", writers=8, each=1250, pause=0.3) >= 20
