"""More than a hundred hostile programs: each gets its verdict, and none does harm."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import hostile_programs
import pytest

from alignlab.tasks.sandbox import Limits, Program, isolation, run_programs
from alignlab.tasks.sandbox.languages import missing
from alignlab.tasks.sandbox.supervise import descendants

FAMILIES = hostile_programs.FAMILIES

ISOLATION = isolation()
pytestmark = pytest.mark.skipif(not ISOLATION.available, reason=f"no sandbox here: {ISOLATION.how}")
SECRET = "ALIGNLAB_PLANTED_SECRET"
WATCHED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)


@dataclass
class Host:
    """What the programs try to reach, and what has reached us."""

    canary: Path
    listener: socket.socket
    signals: list[int] = field(default_factory=list)
    before: set[int] = field(default_factory=lambda: set(descendants(os.getpid())))
    """Processes of other tests, such as the compiler's."""

    def run(self, hostile: list, seconds: float) -> list:
        """Run all of a list, and check each verdict and that nothing happened outside."""
        port = str(self.listener.getsockname()[1])
        words = {"@CANARY@": str(self.canary), "@PORT@": port, "@SECRET@": SECRET}
        able = [one for one in hostile if missing(one.language) is None]
        programs = []
        for one in able:
            code = one.code
            for word, value in words.items():
                code = code.replace(word, value)
            programs.append(Program(code, one.language))
        limits = Limits(seconds=seconds, cpu_seconds=20, memory_mib=160, processes=24, output_kib=32, disk_mib=4)
        results = run_programs(programs, limits, workers=2)
        for one, result in zip(able, results, strict=True):
            assert result.verdict in one.verdicts, (one, result.verdict, result.detail, result.stderr[-500:])
            assert "ESCAPED" not in result.stdout, (one, result.stdout)
            assert len(result.stdout) + len(result.stderr) <= 32 * 1024
            assert result.seconds < seconds + 5
        self.check()
        return results

    def check(self) -> None:
        """The file is whole, nothing is left, nobody called."""
        assert self.canary.read_text() == "intact"
        assert os.stat(self.canary).st_nlink == 1
        assert sorted(os.listdir(self.canary.parent)) == ["canary", "places"]
        assert os.listdir(tempfile.gettempdir()) == []
        assert set(descendants(os.getpid())) <= self.before
        assert self.signals == []
        with pytest.raises(BlockingIOError):
            self.listener.accept()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    (tmp_path / "places").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "places"))
    monkeypatch.setenv(SECRET, "planted")
    (tmp_path / "canary").write_text("intact")
    os.chmod(tmp_path / "canary", 0o666)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        host = Host(tmp_path / "canary", listener)

        def note(number: int, frame: FrameType | None) -> None:
            host.signals.append(number)

        before = {number: signal.signal(number, note) for number in WATCHED}
        yield host
        for number, handler in before.items():
            signal.signal(number, handler)


def test_there_are_more_than_a_hundred() -> None:
    counts = Counter({family: len(programs) for family, programs in FAMILIES.items()})
    assert sum(counts.values()) - counts["calls"] >= 100
    assert min(counts.values()) >= 9
    codes = [(one.language, one.code) for programs in FAMILIES.values() for one in programs]
    assert len(set(codes)) == len(codes)


WAITING = {"fork": 3.0, "sleeping": 3.0, "signals": 5.0}
"""Seconds for families whose programs go on until they are stopped; the others get time to spare."""


def test_a_dozen_hostile_programs(host: Host) -> None:
    host.run([*FAMILIES["fork"][:2], FAMILIES["sleeping"][0]], seconds=1.5)
    ending = [programs[0] for family, programs in FAMILIES.items() if family not in ("fork", "sleeping")]
    host.run([*ending, FAMILIES["sleeping"][-1]], seconds=20.0)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_hostile_programs(family: str, host: Host) -> None:
    seconds = WAITING.get(family, 15.0)
    host.run([one for one in FAMILIES[family] if one.language in ("python", "bash")], seconds)
    host.run([one for one in FAMILIES[family] if one.language in ("c", "javascript")], max(seconds, 8.0))
