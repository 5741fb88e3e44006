"""`alignlab diagnose` on runs of every kind: healthy, spoilt, at work, damaged, empty, of something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignlab.__main__ import main
from alignlab.align.diagnostics.history import StepResponses
from alignlab.align.diagnostics.reading import read_training
from alignlab.align.diagnostics.response_log import FILE, ResponseLog, Sample, StepRecord
from alignlab.align.diagnostics.simulated import healthy, spoilt
from alignlab.core.errors import RunError
from alignlab.core.runs import Run

HOSTILE = "<script>window.bitten = 1</script> ${1} {{7}}"


def plant(path: Path, rows: list[dict[str, float]], records: list[StepResponses] | None = None, **config: Any) -> Run:
    with Run.create(config, name="rl", path=path) as run:
        log = ResponseLog(path / FILE)
        for i, row in enumerate(rows):
            run.log(int(row["step"]), {name: value for name, value in row.items() if name != "step"})
            if records:
                spans = (("good ", 0.5), (HOSTILE, -0.25))
                log.write(StepRecord(records[i], (Sample(HOSTILE, "good " + HOSTILE, 0.25, 0.5, spans),)))
    return run


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["diagnose", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_spoilt_training_in_words_and_as_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, records = healthy(0, gold=lambda t: -1.5 * t)
    run = plant(tmp_path / "hacked", rows, records, ppo={"steps": 80})
    code, out, err = said(capsys, str(run.path), "--kl-budget", "9", "--gate")
    assert (code, err) == (1, "")
    assert out.startswith("hacked: PPO, 60 steps logged, finished")
    assert "SERIOUS  step" in out
    assert "reward hacking" in out
    assert "% of the 9 allowed are spent" in out
    assert "Length explains" in out
    page = (run.path / "artifacts" / "diagnosis.html").read_text()
    assert out.strip().endswith("artifacts/diagnosis.html")
    assert "<script>window.bitten" not in page
    assert "&lt;script&gt;window.bitten" in page
    assert 'title="-0.25"' in page
    assert "reward hacking" in page


def test_a_healthy_training_without_responses_says_what_could_not_be_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, _ = healthy(0)
    for row in rows:
        for name in ("gold", "repetition", "explained_variance"):
            row.pop(f"ppo/{name}")
    run = plant(tmp_path / "plain", rows)
    code, out, _ = said(capsys, str(run.path), "--gate", "--out", str(tmp_path / "deep" / "page.html"))
    assert code == 0
    assert "No alarm." in out
    for words in (
        "reward hacking: a gold reward or a judge was not logged",
        "value function: the",
        "not recorded one by one",
    ):
        assert words in out
    assert (tmp_path / "deep" / "page.html").is_file()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has logged no metrics yet"),
        (b"", "has logged no metrics yet"),
        (b'{"step": 1, "ppo/rew', "has logged no metrics yet"),
        (b"\xff\xfe\n[]\n", "has logged no metrics yet (lines that cannot be read: 2)"),
        (b'{"step": 1, "loss": 2.0, "lr": 1e-3}\n', "trained nothing against a reward: it logged loss, lr; a training"),
        (b'{"step": 1, "reward": 2.0, "loss": 1}\n', "trained nothing against a reward"),
    ],
)
def test_runs_with_nothing_to_diagnose_get_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, words: str
) -> None:
    run = plant(tmp_path / "odd", [])
    if content is not None:
        (run.path / "metrics.jsonl").write_bytes(content)
    code, out, err = said(capsys, str(run.path))
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_no_run_a_broken_one_and_a_method_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match="no such directory"):
        read_training(tmp_path / "none")
    run = plant(tmp_path / "run", healthy(0, 10)[0])
    assert "trained nothing by grpo" in said(capsys, str(run.path), "--method", "grpo")[2]
    assert "kl_budget is -1" in said(capsys, str(run.path), "--kl-budget", "-1")[2]
    assert "no reward model" in said(capsys, str(run.path), "--reward", str(tmp_path))[2] or "--step" in said(
        capsys, str(run.path), "--reward", str(tmp_path)
    )[2]  # fmt: skip
    (run.path / "status.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        read_training(run.path)


def test_hostile_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    run = plant(tmp_path / "run", healthy(0, 12)[0])
    path = run.path / "metrics.jsonl"
    lines = [
        b"[" * 100_000, b"null", b'{"ppo/kl": 3}', b'{"step": true}', b'{"step": 1e400}', b"\x00\xff",
        b'{"step": ' + b"9" * 400 + b"}",
        b'{"step": 13, "ppo/kl": "<b>", "ppo/reward": "nan", "ppo/entropy": {"a": 1}, "time": "x"}',
        b'{"step": 14, "ppo/kl": ' + b"9" * 400 + b"}",
    ]  # fmt: skip
    path.write_bytes(b"\n".join(lines) + b"\n" + path.read_bytes() + b'{"step": 15, "ppo/k')
    training = read_training(run.path)
    assert training.broken == 7
    assert len(training.history) == 14
    assert {name for _, name in training.history.not_finite} == {"reward", "kl"}
    assert [alarm.name for alarm in training.alarms()] == ["not finite"]


def test_of_several_methods_the_last_or_the_named_one(tmp_path: Path) -> None:
    rows = healthy(0, 10)[0]
    moved = [{name.replace("ppo/", "grpo/"): value for name, value in row.items()} for row in rows]
    for row in moved:
        row["step"] += 10
    run = plant(tmp_path / "run", [*rows, *moved], grpo={"steps": 40})
    assert read_training(run.path).method == "grpo"
    assert len(read_training(run.path).history) == 10
    assert read_training(run.path).total_steps == 40
    assert read_training(run.path, "ppo").history.steps.tolist() == list(range(1, 11))


def test_a_run_at_work_is_read_without_its_lock_and_is_not_over(tmp_path: Path) -> None:
    with Run.create({}, name="rl", path=tmp_path / "run") as run:
        for i, row in enumerate(spoilt("clip_fraction", lambda t: 0.6, steps=9)):
            run.log(i + 1, {name: value for name, value in row.items() if name != "step"})
            if i >= 7:
                training = read_training(run.path)
                assert training.summary.state == "running"
                assert [alarm.step for alarm in training.alarms()] in ([], [8])


def test_what_the_record_says_survives_json(tmp_path: Path) -> None:
    run = plant(tmp_path / "run", spoilt("clip_fraction", lambda t: 0.6))
    found = read_training(run.path).alarms()
    assert json.loads(json.dumps([alarm.as_dict() for alarm in found]))[0]["name"] == "clipping"
