"""`alignlab align`: whatever is wrong is one sentence, exit code 2, and costs nothing that was saved."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from alignlab.__main__ import main
from alignlab.align import cli
from alignlab.align.config import AlignConfig
from alignlab.core.config import save_yaml
from alignlab.core.runs import Run, find_same, list_runs


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tiny_run.build_model(tmp_path_factory.mktemp("model"))
    return directory


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def settings(model: Path, path: Path, **changes: Any) -> Path:
    """The tiny configuration as a file."""
    save_yaml(tiny_run.tiny_config(model, "none", **changes), path)
    return path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence of a command that ends with exit code 2."""
    assert main(["align", *arguments]) == 2
    said = capsys.readouterr().err
    (sentence,) = [line for line in said.splitlines() if line.startswith("alignlab: ")]
    assert said.endswith(sentence + "\n")
    assert "Traceback" not in said
    return sentence


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "no-such-model"], "unknown model 'no-such-model'"),
        (["--max-tokens", "0"], "max_tokens is 0, allowed: a whole number of at least 1"),
        (["--max-tokens", "many"], "--max-tokens is 'many', allowed: a whole number"),
        (["--max-token", "3"], "unknown flag '--max-token'"),
        (["--name", "two words"], "name is 'two words', allowed: letters, digits"),
        (["--name", "latest"], "name is 'latest', allowed: letters, digits"),
        (["--device", "tpu"], "device is 'tpu', allowed: auto, cpu, cuda"),
        (["--critic-url", "http://127.0.0.1:1"], "critic_model is None, allowed: given together with critic_url"),
        (["--feedback", "judge"], "feedback is 'judge', allowed: judge only with critic_url"),
        (["--supervised.epochs", "-1"], "supervised.epochs is -1.0, allowed: a positive number"),
        (["--supervised.learning-rate", "nan"], "supervised.learning_rate is nan, allowed: a positive number"),
        (["--supervised.row-length", "1"], "supervised.row_length is 1, allowed: a whole number of at least 2"),
        (["--supervised.benign-repeats", "-1"], "supervised.benign_repeats is -1, allowed: 0 or"),
        (["--preference.heldout-fraction", "1"], "preference.heldout_fraction is 1.0, allowed: a number between"),
        (["--preference.temperature", "0"], "preference.temperature is 0.0, allowed: a positive number"),
        (["--reinforcement.steps", "0"], "reinforcement.steps is 0, allowed: a whole number of at least 1"),
        (["--reinforcement.kl-coefficient", "-1"], "reinforcement.kl_coefficient is -1.0, allowed: 0 or"),
    ],
)
def test_bad_flags(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    assert sentence in refused(arguments, capsys)
    assert not runs.exists(), "a mistake leaves no run behind"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("modle: x\n", "unknown key 'modle', did you mean 'model'?"),
        ("supervised: {epoch: 1}\n", "unknown key 'supervised.epoch', did you mean 'epochs'?"),
        ("max_tokens: many\n", "max_tokens is 'many', allowed: a whole number"),
        ("revisions: 0\n", "revisions is 0, allowed: a whole number of at least 1"),
        ("feedback: coin\n", "feedback is 'coin', allowed: "),
    ],
)
def test_bad_config_files(
    content: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], runs: Path
) -> None:
    (tmp_path / "c.yaml").write_text(content)
    assert sentence in refused(["--config", str(tmp_path / "c.yaml")], capsys)
    assert not runs.exists()


@pytest.mark.parametrize(
    ("flag", "name", "content", "sentence"),
    [
        ("--constitution", "none.yaml", None, "cannot read "),
        ("--constitution", "c.yaml", b"principles: []\n", "principles is [], allowed: at least one principle"),
        (
            "--constitution",
            "c.yaml",
            b"principles: [{id: a, text: t, critique_request: c, revision_request: r}]\n",
            "preamble of the constitution is '', allowed: a text",
        ),
        (
            "--constitution",
            "c.yaml",
            b"principles: [{id: a, text: t, critique_request: c, revision_request: r, category: honesty}]\n",
            "category is 'harmlessness', allowed: one that",
        ),
        ("--prompts", "none.txt", None, "is not a file"),
        ("--prompts", "p.txt", b"\n \n", "holds no prompts"),
        ("--prompts", "p.txt", b"a\n\xff\n", "line 2: byte 2 is not UTF-8"),
        ("--prompts", "p.csv", b"a\n", "its name must end in .txt"),
    ],
)
def test_bad_files(
    flag: str, name: str, content: bytes | None, sentence: str,
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], runs: Path,
) -> None:  # fmt: skip
    if content is not None:
        (tmp_path / name).write_bytes(content)
    arguments = ["--config", str(settings(model, tmp_path / "settings.yaml")), flag, str(tmp_path / name)]
    assert sentence in refused(arguments, capsys)
    assert not runs.exists()


def test_a_run_in_use_and_one_of_other_settings(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(settings(model, tmp_path / "c.yaml")), "--run", str(tmp_path / "run")]
    with Run.create(tiny_run.tiny_config(model, "none"), name="align", path=tmp_path / "run"):
        assert f"is in use by process {os.getpid()}, wait for it or stop it" in refused(arguments, capsys)
    assert "another config, it differs in seed (was 0, now 5)" in refused([*arguments, "--seed", "5"], capsys)
    (tmp_path / "empty").mkdir()
    assert "is not a run directory" in refused([*arguments[:3], str(tmp_path / "empty")], capsys)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_the_same_command_goes_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--config", str(settings(model, tmp_path / "c.yaml")), "--run", str(tmp_path / "run")]
    real = os.write

    def full(descriptor: int, data: Any) -> int:
        if "revisions-0" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert "the disk is full; what was saved before is intact" in refused(arguments, capsys)
    assert list(Run.read(tmp_path / "run").stages())[-1] == "critiques"
    monkeypatch.setattr(cli, "write_report", lambda run: run.path / "report.html")
    monkeypatch.setattr(cli, "summary", lambda *_: "done")
    assert main(["align", *arguments]) == 0
    tiny_run.run_pipeline(tiny_run.tiny_config(model, "none"), tmp_path / "whole")
    whole, mended = tiny_run.results(tmp_path / "whole"), tiny_run.results(tmp_path / "run")
    assert [name for name in whole if whole[name] != mended[name]] == []


def test_a_checkpoint_of_another_model(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tiny_run.build_model(tmp_path / "model")
    tiny_run.run_pipeline(tiny_run.tiny_config(mine, "none"), tmp_path / "run")
    (tmp_path / "run" / "stages" / "supervised.json").unlink()
    tiny_run.build_model(mine, seed=1)
    arguments = ["--config", str(settings(mine, tmp_path / "c.yaml")), "--run", str(tmp_path / "run")]
    assert "is of another model" in refused(arguments, capsys)


def test_the_command_from_end_to_end(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], runs: Path
) -> None:
    """Report and summary; the same command shows the finished run again, --fresh makes another."""
    arguments = ["--config", str(settings(model, tmp_path / "c.yaml"))]
    assert main(["align", *arguments]) == 0
    (found,) = list_runs(runs)
    said = capsys.readouterr().out
    assert f"report  {found.path / 'report.html'}" in said
    assert "alignlab chat tiny-none" in said
    assert f"alignlab compare {model} tiny-none" in said
    page = (found.path / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert main(["align", *arguments]) == 0
    assert [run.path for run in list_runs(runs)] == [found.path]
    (found.path / "report.html").unlink()
    assert main(["report"]) == 0
    assert (found.path / "report.html").is_file()


def test_same_settings_are_found_again(model: Path, runs: Path) -> None:
    config = tiny_run.tiny_config(model)
    assert find_same("align", config) is None
    Run.create(config, name="align").close("failed")
    newest = Run.create(config, name="align")
    newest.close("interrupted")
    Run.create(config, name="other").close()
    Run.create(tiny_run.tiny_config(model, seed=1), name="align").close()
    Run.create({"modle": 1}, name="align").close()
    damaged = Run.create(config, name="align")
    damaged.close()
    (damaged.path / "status.json").write_text("{")  # one run that cannot be read does not stop another
    assert find_same("align", config) in {run.path for run in list_runs(runs)[:2]}
    assert find_same("align", AlignConfig()) is None
    with Run.open(newest.path):
        assert find_same("align", config) != newest.path
