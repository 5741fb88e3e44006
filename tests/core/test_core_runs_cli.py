"""`alignlab runs`: what it prints, and that a machine without a display is no reason to fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignlab.__main__ import main
from alignlab.core.runs import Run


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path))
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_list(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list"]) == 0
    assert capsys.readouterr().out == "no runs yet: `alignlab align` makes one\n"
    with Run.create({}, name="alpha") as first:
        pass
    with pytest.raises(ValueError, match="x"), Run.create({}, name="beta") as second:
        second.stage("sft", lambda: int("x"))  # type: ignore[arg-type,return-value]
    assert main(["runs", "list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "state", "started", "took", "stage"]
    assert [line.split()[:2] for line in lines] == [[first.path.name, "finished"], [second.path.name, "failed"]]
    assert lines[1].endswith("  sft")
    assert main(["runs", "list", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["state"] for row in rows] == ["finished", "failed"]
    assert rows[0]["path"] == str(first.path)
    assert main(["runs", "list", "--root", str(root / "none")]) == 0


def test_show(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run.create({}, name="alpha", seed=5) as run:
        run.stage("sft", lambda: {"a": 1})
        run.log(1, {"loss": 2.0, "kl": 0.1})
        run.log(2, {"loss": 1.5})
    assert main(["runs", "show"]) == 0
    shown = capsys.readouterr().out
    expected = ["state   finished", "seed    5", "  sft", "GiB", "loss  1.5 (step 2)", "kl    0.1 (step 1)"]
    for words in (str(run.path), *expected, "no report yet"):
        assert words in shown
    (run.path / "report.html").write_text("<p>")
    with pytest.raises(ValueError, match="broken"), Run.open(run.path) as run:
        raise ValueError("broken")
    assert main(["runs", "show", "alpha"]) == 0
    shown = capsys.readouterr().out
    assert "error   ValueError: broken" in shown
    assert f"report  {run.path / 'report.html'}" in shown


def test_open_prints_and_opens_only_with_a_display(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    with Run.create({}, name="alpha") as run:
        pass
    assert main(["runs", "open"]) == 2
    assert capsys.readouterr().err.endswith("has no report yet, its state is finished\n")
    run.artifacts.joinpath("report.html").write_text("<p>")
    assert main(["runs", "open", run.path.name]) == 0
    assert capsys.readouterr().out == f"{run.artifacts / 'report.html'}\n"
    assert opened == []
    monkeypatch.setenv("DISPLAY", ":0")
    assert main(["runs", "open", str(run.path)]) == 0
    assert opened == [(run.artifacts / "report.html").as_uri()]

    def broken(url: str) -> None:
        raise RuntimeError("no browser")

    monkeypatch.setattr("webbrowser.open", broken)
    assert main(["runs", "open"]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "alignlab: alignlab runs: the following arguments are required: {list,show,open}"),
        (["shwo"], "alignlab: alignlab runs: argument {list,show,open}: invalid choice: 'shwo'"),
        (["list", "--rot"], "alignlab: alignlab runs: unrecognized arguments: --rot"),
        (["show"], "alignlab: there is no run 'latest'"),
        (["show", "x"], "alignlab: there is no run 'x'"),
    ],
)
def test_mistakes(root: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(sentence)
    assert err.count("\n") == 1
