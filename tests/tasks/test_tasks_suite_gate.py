"""Gates: a pass needs the whole interval, missing scores count against it, and undecided is not a pass."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from alignlab.__main__ import main
from alignlab.core.errors import ConfigError
from alignlab.lm.types import Completion
from alignlab.tasks import Sample, Score, Task, evaluate
from alignlab.tasks.evaluation import Evaluation, SampleResult
from alignlab.tasks.suite_gate import Check, check_drop, check_level, overall

Values = Sequence[float | None]
Captured = pytest.CaptureFixture[str]


def evaluation(values: Values, higher: bool = True) -> Evaluation:
    scores = [Score.unscorable("crash") if v is None else Score(float(v)) for v in values]
    results = [SampleResult(f"i{k}", "?", None, score) for k, score in enumerate(scores)]
    header = {"task": "quiz", "model": "m", "dataset": "d", "scorer": "s", "score_range": [0.0, 1.0], "seed": 0}
    return Evaluation.build({**header, "higher_is_better": higher}, results, Path("logs"))


def test_levels_pass_fail_and_stay_open() -> None:
    found = evaluation([1.0] * 80 + [0.0] * 20)
    outcomes = [check_level(found, limit).outcome for limit in (0.6, 0.8, 0.95)]
    assert outcomes == ["pass", "undecided", "fail"]
    assert [check_level(found, x, at_least=False).outcome for x in (0.95, 0.8, 0.6)] == ["pass", "undecided", "fail"]


def test_missing_scores_count_against_a_pass() -> None:
    assert check_level(evaluation([1.0] * 100), 0.9).outcome == "pass"
    assert check_level(evaluation([1.0] * 85 + [None] * 15), 0.9).outcome == "undecided"
    harm = evaluation([0.0] * 85 + [None] * 15, higher=False)
    assert check_level(harm, 0.1, at_least=False).outcome == "undecided"
    assert check_drop(evaluation([1.0] * 85 + [None] * 15), evaluation([1.0] * 100), 0.1).outcome == "undecided"
    assert check_drop(evaluation([None] * 99 + [1.0]), evaluation([1.0] * 100), 0.1).outcome == "undecided"


def test_drops_in_either_direction() -> None:
    rng = np.random.default_rng(0)
    before = (rng.random(600) < 0.7).astype(float)
    after = np.where(rng.random(600) < 0.3, 0.0, before)
    for higher in (True, False):
        old, new = (evaluation((x if higher else 1 - x).tolist(), higher) for x in (before, after))
        assert check_drop(new, old, 0.05).outcome == "fail"
        assert check_drop(new, old, 0.5).outcome == "pass"
        assert check_drop(old, new, 0.0).outcome == "pass"  # better
        assert check_drop(new, old, 0.05).estimate == pytest.approx(float(after.mean() - before.mean()))


def test_a_few_equal_answers_prove_nothing() -> None:
    same = [1.0, 0.0] * 4
    assert check_drop(evaluation(same), evaluation(same), 0.02).outcome == "undecided"
    assert check_drop(evaluation(same * 60), evaluation(same * 60), 0.02).outcome == "pass"
    assert check_level(evaluation([0.5] * 5), 0.4).outcome == "undecided"
    assert check_level(evaluation([0.5] * 500), 0.4).outcome == "pass"


@pytest.mark.no_cover
def test_a_model_at_the_limit_rarely_passes() -> None:
    """True drop equal to the limit: a pass is false and comes in at most 2.5 % (400 draws, + 3 sd)."""
    rng = np.random.default_rng(5)
    passes = 0
    for _ in range(400):
        before = rng.random(200) < 0.7
        lost, won = rng.random(200) < 0.15 / 0.7, rng.random(200) < 0.1 / 0.3
        after = np.where(before, ~lost, won)  # loses 0.15, wins 0.10
        one, other = (evaluation(x.astype(float).tolist()) for x in (after, before))
        passes += check_drop(one, other, 0.05, n_resamples=400).outcome == "pass"
    assert passes <= 0.025 * 400 + 3 * (0.025 * 0.975 * 400) ** 0.5


def test_one_failure_fails_and_nothing_checked_is_no_pass() -> None:
    checks = [Check("t", "c", outcome, 0.5, 0.4, 0.6, 9, 0) for outcome in ("pass", "undecided", "fail")]
    assert [overall(checks[:k]) for k in (0, 1, 2, 3)] == ["undecided", "pass", "undecided", "fail"]


def logged(folder: Path, values: Values) -> str:
    by_id = {f"i{k}": v for k, v in enumerate(values)}

    def solver(sampler: object, samples: Sequence[Sample]) -> list[Completion]:
        return [Completion("", (), (), "stop") for _ in samples]

    def scorer(sample: Sample, completion: Completion) -> Score:
        value = by_id[sample.id]
        return Score.unscorable("crash") if value is None else Score(value)

    scorer.fingerprint = "planted"  # type: ignore[attr-defined]
    task = Task("quiz", [Sample(name, "?") for name in by_id], solver, scorer)
    evaluate(task, None, log_dir=folder / "quiz", model=folder.name)  # type: ignore[arg-type]
    return str(folder)


def test_exit_codes(tmp_path: Path, capsys: Captured) -> None:
    good, bad = logged(tmp_path / "good", [1.0] * 190 + [0.0] * 10), logged(tmp_path / "bad", [1.0, 0.0] * 100)
    codes = {
        ("--at-least", "0.9"): 0,
        ("--at-least", "0.94"): 3,
        ("--at-least", "0.94", "--undecided-passes"): 0,
        ("--at-least", "0.99"): 1,
        ("--at-least", "0.99", "--undecided-passes"): 1,
        ("--at-most", "0.99", "--task", "quiz"): 0,
        ("--baseline", bad, "--max-drop", "0.02"): 0,
        ("--baseline", bad, "--max-drop", "0.02", "--at-least", "0.99"): 1,
    }
    for flags, code in codes.items():
        assert main(["eval", "gate", good, *flags]) == code, flags
    assert main(["eval", "gate", bad, "--baseline", good, "--max-drop", "0.02"]) == 1
    capsys.readouterr()
    assert main(["eval", "gate", good, "--at-least", "0.94", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["outcome"] == told["checks"][0]["outcome"] == "undecided"
    assert told["checks"][0]["n"] == 200


def test_conditions_that_say_nothing(tmp_path: Path, capsys: Captured) -> None:
    good = logged(tmp_path / "good", [1.0] * 10)
    cases = {
        (good,): "needs a condition",
        (good, "--max-drop", "0.1"): "--baseline and --max-drop are given together",
        (good, "--baseline", good, "--at-least", "1"): "--baseline and --max-drop are given together",
        (good, "--baseline", good, "--max-drop", "-1"): "max_drop is -1.0, allowed: 0 or a positive number",
        (good, "--at-least", "nan"): "at_least is nan, allowed: a finite number",
        (good, "--at-least", "0.5", "--task", "quizz"): "has no task 'quizz', did you mean 'quiz'",
    }
    for flags, sentence in cases.items():
        assert main(["eval", "gate", *flags]) == 2
        assert sentence in capsys.readouterr().err
    with pytest.raises(ConfigError, match="at_most is inf"):
        check_level(evaluation([1.0]), float("inf"), at_least=False)
