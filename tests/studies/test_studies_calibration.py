"""The study of few-shot curves and calibration: measures by hand, planted differences, the run at the smoke scale."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignlab.core.errors import ConfigError, DataError
from alignlab.core.run_record import RunRecord
from alignlab.core.runs import Run
from alignlab.studies.alignment_and_calibration import AlignmentAndCalibration, _check_context, _task, random_model
from alignlab.studies.calibration_answers import answers
from alignlab.studies.calibration_findings import decide
from alignlab.studies.calibration_measures import Beliefs, beliefs, ece_difference, plug_in_ece
from alignlab.studies.calibration_plan import PLANS, Condition, ItemSet, Plan, item_sets, questions
from alignlab.studies.registration import study_deviations
from alignlab.studies.runner import read_findings, run_study
from alignlab.tasks.choice import ChoiceItem, ChoiceTemplate

ITEMS = tuple(ChoiceItem(f"q{i}", f"Question {i}?", ("aa", "bbbb", "c"), i % 3) for i in range(120))


def test_beliefs_by_hand() -> None:
    logprobs = [[math.log(0.2), math.log(0.1), math.log(0.1)], [-1.0, -1.0, -3.0], None, [-1.0, math.nan, -2.0]]
    found = beliefs({"logprobs": logprobs}, ITEMS[:4])
    assert found.confidence[0] == pytest.approx(0.5)
    assert found.correct[0] == 1.0
    assert found.brier[0] == pytest.approx(0.25 + 2 * 0.0625)
    assert found.gap[0] == pytest.approx(-0.5)
    assert found.scored.tolist() == [True, False, False, False]  # a tie, nothing, not finite
    by_length = beliefs({"logprobs": [[-2.0, -3.0, -2.0]]}, ITEMS[:1], "characters")  # -1, -0.75, -2 each
    assert by_length.correct[0] == 0.0


def test_plug_in_ece_by_hand() -> None:
    confidence, correct = np.array([0.9, 0.9, 0.5, 0.5]), np.array([1.0, 0.0, 1.0, 1.0])
    assert plug_in_ece(confidence, correct, 2) == pytest.approx(0.5 * 0.4 + 0.5 * 0.5)


def covered(n: int, runs: int, shift: float, shared: float) -> float:
    """Share of intervals that hold the true change of the calibration error of models that are too sure throughout.

    The share `shared` of the items is answered by the second model as by the first, but for the shift.
    """
    rng, held = np.random.default_rng([n, int(shift * 100)]), 0
    for _ in range(runs):
        confidence = rng.uniform(0.55, 0.95, n)
        ability = rng.uniform(size=n)
        other = np.where(rng.uniform(size=n) < shared, ability, rng.uniform(size=n))
        before = Beliefs(confidence, (ability < confidence - 0.15).astype(float), confidence)
        after = Beliefs(confidence, (other < confidence - 0.15 - shift).astype(float), confidence)
        found = ece_difference(before, after, n_resamples=400)
        held += found.low <= shift <= found.high
    return held / runs


@pytest.mark.no_cover
def test_the_change_of_the_calibration_error_is_covered() -> None:
    """60 data sets, 95 %: at least 50 (false alarm 1e-4)."""
    assert covered(200, 60, 0.1, 1.0) >= 50 / 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "shift", "shared"),
    [
        (200, 0.0, 0.8),  # with all shared and no shift there is nothing to cover
        (200, 0.1, 0.8),
        (800, 0.1, 0.8),
        (800, 0.1, 1.0),
        pytest.param(
            200, 0.1, 1.0, marks=pytest.mark.xfail(reason="it covers 0.914 to 0.917: too little, if by little")
        ),
    ],
)
def test_the_change_of_the_calibration_error_is_covered_closely(n: int, shift: float, shared: float) -> None:
    assert 0.92 <= covered(n, 1000, shift, shared) <= 0.98


SIZES = Plan(shots=(0, 4), draws=3, pool=10, limit=100)


def planted(after_sharpness: float, gain: float, broken: int = 0) -> dict[tuple[str, Condition, int], dict[str, Any]]:
    """Answers of two models: `gain` more right with examples, and after alignment beliefs that much sharper."""
    records = {}
    for model, sharpness in (("before", 1.0), ("after", after_sharpness)):
        for k in SIZES.shots:
            for draw in range(3 if k else 1):
                rows: list[list[float] | None] = []
                for i, item in enumerate(ITEMS[10:110]):
                    rng = np.random.default_rng([i])
                    own = np.random.default_rng([i, k, draw])
                    right = rng.random() < 0.4 + gain * (k > 0)
                    scores = np.zeros(3)
                    scores[item.answer if right else (item.answer + 1) % 3] = 1.0 + 0.05 * own.normal()
                    rows.append([float(x) for x in sharpness * (scores + 1e-3 * own.normal(size=3)) - 5])
                for i in range(broken if model == "after" else 0):
                    rows[i] = None
                records["own", Condition(model, k), draw] = {"logprobs": rows}
    return records


def verdicts(records: dict[tuple[str, Condition, int], dict[str, Any]]) -> dict[str, str]:
    sets = [ItemSet("own", ITEMS[:10], ITEMS[10:110], ChoiceTemplate())]
    return {name: claim.verdict for name, claim in decide(answers(records, sets, SIZES), questions(4), 0).items()}


def test_planted_differences_are_found_and_equal_models_are_tied() -> None:
    found = verdicts(planted(4.0, 0.3))
    assert found["shots-before"] == found["shots-after"] == "confirmed"
    assert found["overconfidence"] == "confirmed"
    assert found["brier-shots"] == "confirmed"
    assert found["tax"] == found["gain"] == "tied"
    assert verdicts(planted(4.0, -0.3))["shots-before"] == "failed"


def test_what_is_unscorable_can_only_open_a_verdict() -> None:
    clean, few, many = (verdicts(planted(4.0, 0.3, broken)) for broken in (0, 1, 60))
    assert clean["shots-after"] == few["shots-after"] == "confirmed"
    assert many["shots-after"] == many["overconfidence"] == many["tax"] == "inconclusive"
    assert many["shots-before"] == "confirmed"  # the model before alignment answered everything


def test_the_smoke_scale(tmp_path: Path) -> None:
    path = run_study(AlignmentAndCalibration(limit=8), "smoke", seed=1, path=tmp_path / "run")
    found = read_findings(path)
    assert len(found.claims) == len(questions(2)) == 7
    assert study_deviations(Run.read(path)) == []
    assert len(found.numbers["items"]) == 8
    assert {len(rows) for rows in found.numbers["brier"]["before-2"]} == {8}
    text = (path / "report.md").read_text(encoding="utf-8")
    for words in ("What alignment changed", "Limitations", "To do it again", "--limit 8", "calibration error"):
        assert words in text
    before, after = (np.array(found.numbers["confidence"][f"{name}-0"][0]) for name in ("before", "after"))
    assert after.mean() > before.mean()  # the random model whose head was made larger
    again = run_study(AlignmentAndCalibration(limit=8), "smoke", seed=1, path=path)
    assert read_findings(again).numbers == found.numbers
    assert isinstance(Run.read(path), RunRecord)


def test_examples_are_never_asked() -> None:
    (own,) = item_sets((), PLANS["cpu"])
    asked = {item.question for item in own.asked}
    assert len(asked) == len(own.asked) >= 100
    for draw in range(3):
        most = own.examples(8, draw, 0)
        assert own.examples(3, draw, 0) == most[:3]
        assert not asked & {item.question for item in most}
    assert own.examples(8, 0, 0) != own.examples(8, 1, 0)


@pytest.mark.parametrize(
    ("options", "scale", "message"),
    [
        ({"before": "a.gguf"}, "smoke", "before and after belong together"),
        ({}, "cpu", "both models must be named"),
        ({"data": ("arc",)}, "smoke", "allowed: NAME=FILE"),
        ({"data": ("gsm=x",)}, "smoke", "NAME one of lab-facts, arc"),
        ({"data": ("arc=a", "arc=b")}, "smoke", "names 'arc' twice"),
        ({"limit": -1}, "smoke", "limit is -1"),
    ],
)
def test_bad_options(options: dict[str, Any], scale: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AlignmentAndCalibration(**options).check(scale)


def test_bad_data(tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    row = {"question": "Which?", "choices": ["a", "b"], "answer": 0}
    few.write_text("".join(json.dumps({**row, "question": f"Which {i}?"}) + "\n" for i in range(5)))
    with pytest.raises(DataError, match="has 5 items; 4 of them are kept for examples"):
        item_sets((f"items={few}",), PLANS["smoke"])
    few.write_text(json.dumps({**row, "answer": 2}) + "\n")
    with pytest.raises(DataError, match="line 1: field 'answer' is 2"):
        item_sets((f"items={few}",), PLANS["smoke"])
    with pytest.raises(DataError, match="cannot read"):
        item_sets((f"arc={tmp_path / 'none.jsonl'}",), PLANS["smoke"])


def test_a_context_that_is_too_short() -> None:
    lm = random_model("before", 0)
    long = ChoiceItem("long", "x" * 900, ("a", "b"), 0)
    one = ItemSet(
        "own",
        tuple(ChoiceItem(f"e{i}", f"{i}" * 700, ("a", "b"), 0) for i in range(3)),
        (long, *ITEMS[:2]),
        ChoiceTemplate(),
    )
    _check_context(lm, _task(one, 0, 0, 0))
    with pytest.raises(ConfigError, match=r"holds 2048 tokens, item 'long' of 'own' with 3 examples needs \d+"):
        _check_context(lm, _task(one, 3, 0, 0))
