"""The command table: help, exit codes, one sentence for what a user got wrong, a traceback for what we did."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

import alignlab
from alignlab import __main__ as cli
from alignlab.core.errors import AlignlabError, MissingExtraError
from alignlab.core.extras import import_extra


def command(monkeypatch: pytest.MonkeyPatch, outcome: BaseException | int | None) -> None:
    """Make `trial` a command that returns or raises `outcome`."""

    def trial(argv: list[str]) -> int | None:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setitem(cli.COMMANDS, "trial", ("alignlab:trial_command", "a trial"))
    monkeypatch.setattr(alignlab, "trial_command", trial, raising=False)


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    for name, (_, text) in cli.COMMANDS.items():
        assert f"  {name}" in shown
        assert text in shown


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([flag]) == 0
    assert capsys.readouterr().out == f"alignlab {alignlab.__version__}\n"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("aling", "alignlab: unknown command 'aling', did you mean 'align'?\n"),
        ("zzz", f"alignlab: unknown command 'zzz', allowed: {', '.join(cli.COMMANDS)}\n"),
    ],
)
def test_unknown_command(name: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name]) == 2
    assert capsys.readouterr() == ("", sentence)


@pytest.mark.parametrize(
    ("outcome", "code", "sentence"),
    [
        (None, 0, ""),
        (3, 3, ""),
        (AlignlabError("a  was\n wrong"), 2, "alignlab: a was wrong\n"),
        (KeyboardInterrupt(), 130, "alignlab: stopped"),
        (OSError(errno.ENOSPC, "No space left", "/x/y"), 2, "alignlab: the disk is full, there is no room for /x/y;"),
        (OSError(errno.EDQUOT, "Quota"), 2, "alignlab: the disk is full, there is no room; what"),
    ],
)
def test_outcomes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcome: BaseException | int | None,
    code: int,
    sentence: str,
) -> None:
    command(monkeypatch, outcome)
    assert cli.main(["trial", "x"]) == code
    err = capsys.readouterr().err
    assert err.startswith(sentence)
    assert err.count("\n") == bool(sentence)


@pytest.mark.parametrize("outcome", [ValueError("ours"), OSError(errno.EIO, "I/O")])
def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, outcome: BaseException) -> None:
    command(monkeypatch, outcome)
    with pytest.raises(type(outcome)):
        cli.main(["trial"])


def test_as_a_process() -> None:
    done = subprocess.run([sys.executable, "-m", "alignlab", "nonsense"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_reader_of_the_output_goes_away() -> None:
    script = (
        "import sys; from alignlab.__main__ import main; [main(['--help']) for _ in range(3000)]; sys.exit(main([]))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), errors) == (0, b"")


def test_closed_stderr_keeps_the_exit_code() -> None:
    done = subprocess.run(f"{sys.executable} -m alignlab nonsense 2>&-", shell=True, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, b"")


def test_import_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert import_extra("json", "any").dumps([1]) == "[1]"
    with pytest.raises(
        MissingExtraError, match=r"no_such is not installed, install it with: pip install 'alignlab\[t\]'"
    ):
        import_extra("no_such.part", "t")


def test_broken_package_is_not_called_missing(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("broken")
    (folder / "broken_package_x.py").write_text("import not_there_either")
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(ModuleNotFoundError, match="not_there_either"):
        import_extra("broken_package_x", "t")
