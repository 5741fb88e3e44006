"""Slices, agreement, edits and the report, on margins and rewards whose make-up is known."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from alignlab.align.preference_model import PreferenceModel
from alignlab.align.reward.ensemble import RewardEnsemble
from alignlab.align.reward.examples import RewardPair
from alignlab.align.reward.heads import HeadConfig
from alignlab.align.reward_validation.agreement import (
    annotator_rows,
    margin_calibration,
    model_rows,
    ranking_by_margin,
)
from alignlab.align.reward_validation.edits import (
    EDITS,
    Edit,
    ModelParaphrase,
    double_space,
    each,
    expand_contractions,
    first_half,
    lower_case,
    pad,
    polite_start,
    repeat_last,
    respace,
    swap_function_words,
)
from alignlab.align.reward_validation.report import decided, validate_margins
from alignlab.align.reward_validation.robustness import measure_robustness, raw_scores
from alignlab.align.reward_validation.slices import in_quarters, of_column, read_columns, slice_accuracy
from alignlab.core.errors import DataError
from alignlab.lm.scripted import ScriptedSampler

RNG = np.random.default_rng(11)


def some_pairs(n: int, **extra: object) -> list[RewardPair]:
    turns = [{"role": "user", "content": "and?"}]
    return [
        RewardPair(
            [{"role": "user", "content": f"question {i} " + "x" * (i % 50)}, *turns * (i % 5)],
            "Yes. " * (1 + i % 7),
            "No. " * (1 + i % 4),
            **extra,  # type: ignore[arg-type]
        )
        for i in range(n)
    ]


# Slices


def test_slices_part_the_pairs_and_find_the_planted_accuracy() -> None:
    pairs = some_pairs(200)
    names = [["safety", "chat"][i % 2] for i in range(200)]
    margins = np.where(np.arange(200) % 2 == 0, 1.0, -1.0) * (1 + RNG.random(200))
    groups = {group.name: group for group in slice_accuracy(margins, pairs, columns={"subset": names})}
    assert set(groups) == {
        "length of chosen beside rejected", "length of the prompt", "requests so far", "size of the margin", "subset",
    }  # fmt: skip
    for group in groups.values():
        assert sum(part.n for part in group.slices.values()) == 200
        mean = np.mean([part.estimate for part in group.slices.values()])
        assert group.macro.estimate == pytest.approx(mean)
        assert group.macro.low <= group.macro.estimate <= group.macro.high
    assert {name: part.estimate for name, part in groups["subset"].slices.items()} == {"chat": 0, "safety": 1}
    assert list(groups["requests so far"].slices) == ["1", "2", "3", "4 and more"]
    assert next(iter(groups["length of chosen beside rejected"].slices)) == "1. under half"
    with pytest.raises(DataError, match="column 'subset' has 1 values"):
        slice_accuracy(margins, pairs, columns={"subset": ["a"]})
    with pytest.raises(DataError, match="200 margins and 0 pairs"):
        slice_accuracy(margins, [])


def test_pairs_of_one_dialogue_count_as_one() -> None:
    """The interval of ten copies of each pair is that of one copy, not three times narrower."""
    single = some_pairs(60)
    margins = RNG.normal(size=60) + 0.5
    alone = slice_accuracy(margins, single)[-1].slices
    tenfold = slice_accuracy(np.repeat(margins, 10), [pair for pair in single for _ in range(10)])[-1].slices
    for one, ten in zip(alone.values(), tenfold.values(), strict=True):
        assert ten.n == 10 * one.n
        assert ten.high - ten.low > 0.7 * (one.high - one.low)


def test_bins_of_columns() -> None:
    quarters = in_quarters([1.0, 2, 3, 4, 5, 6, 7, 8], "s")
    assert list(dict.fromkeys(quarters)) == ["1 to 2 s", "3 to 4 s", "5 to 6 s", "7 to 8 s"]
    assert in_quarters([5.0, 5, 5, 5]) == ["5"] * 4
    assert in_quarters([1.0, float("nan")]) == ["1", None]
    assert of_column([1, 2, 1, None]) == ["1", "2", "1", None]
    assert len(set(of_column(list(range(100))))) == 4
    many = of_column([f"name {i % 40}" for i in range(80)])
    assert len(set(many)) == 12
    assert "other" in many


def test_columns_of_a_file(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c", "subset": "x"}, {"prompt": "a", "subset": None, "odd": []}]
    for name, text in (
        ("rows.json", json.dumps(rows)),
        ("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows)),
    ):
        path = tmp_path / name
        path.write_text(text)
        assert read_columns(path, ["subset"]) == {"subset": ["x", None]}
        assert read_columns(path, ["subset"], most=1) == {"subset": ["x"]}
        with pytest.raises(DataError, match=r"no record of .* has a column 'set', there are: prompt, chosen"):
            read_columns(path, ["set"])
        with pytest.raises(DataError, match="holds lists or objects"):
            read_columns(path, ["odd"])


# Agreement


def test_agreement_with_soft_labels() -> None:
    """A model that always agrees with the majority reaches all that can be reached, one that never does the rest."""
    labels = np.tile([0.5, 0.6, 0.7, 0.8, 1.0], 40)
    pairs = [RewardPair(f"q{i}", "a", "b", probability=p) for i, p in enumerate(labels)]
    rows = annotator_rows(np.ones(200), pairs)
    assert [row.middle for row in rows] == pytest.approx([0, 0.1, 0.2, 0.3, 0.5])
    assert [row.agreement.estimate for row in rows] == pytest.approx([0.5, 0.6, 0.7, 0.8, 1.0])
    assert [row.attainable for row in rows] == pytest.approx([0.5, 0.6, 0.7, 0.8, 1.0])
    against = annotator_rows(-np.ones(200), pairs)
    assert [row.agreement.estimate for row in against] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.0])
    # A label below one half means that the other side was preferred by most: the attainable share counts it so.
    turned = annotator_rows(-np.ones(40), [RewardPair(f"q{i}", "a", "b", probability=0.2) for i in range(40)])
    assert (turned[0].agreement.estimate, turned[0].attainable) == pytest.approx((0.8, 0.8))
    hard = annotator_rows(np.ones(200), some_pairs(200))
    assert len(hard) == 1


def test_a_calibrated_model_agrees_as_its_margins_state() -> None:
    stated = RNG.normal(size=4000) * 2
    margins = np.where(RNG.random(4000) < expit(stated), stated, -stated)
    pairs = [RewardPair(f"q{i}", "a", "b") for i in range(4000)]
    rows = model_rows(margins, pairs)
    assert len(rows) == 8
    for row in rows:  # 500 comparisons a row: five standard errors are below 0.112
        assert row.agreement.estimate == pytest.approx(row.attainable, abs=0.112)
    assert [row.middle for row in rows] == sorted(row.middle for row in rows)
    found = margin_calibration(margins[:2000], pairs[:2000])
    assert found is not None
    assert found.error.low == 0
    assert margin_calibration(margins[:10], pairs[:10]) is None
    ranked = ranking_by_margin(margins[:2000], pairs[:2000])
    assert ranked is not None
    assert ranked.low > 0.6
    assert ranking_by_margin(np.ones(5), pairs[:5]) is None


# Edits


def test_the_edits() -> None:
    text = "Don't worry, it's big. I'm sure that you’ll like it!  Maybe, for example, often.\n\nBye."
    assert expand_contractions(text) == (
        "Do not worry, it is big. I am sure that you will like it!  Maybe, for example, often.\n\nBye."
    )
    assert swap_function_words(text) == (
        "Don't worry, it's large. I'm sure that you’ll like it!  Perhaps, for instance, frequently.\n\nBye."
    )
    assert respace(" a  b\n\n\nc ") == "a b\nc"
    assert double_space("A. B! C") == "A.  B!  C"
    assert double_space("A.\n\nB") == "A.\n\nB"
    assert lower_case("Ab") == "ab"
    assert polite_start("Yes.") == "Thank you for asking. Yes."
    assert first_half("A. B! C? D.") == "A. B!"
    assert first_half("One sentence") == "One sentence"
    assert repeat_last("A. B!") == "A. B! B!"
    assert pad("Yes.").startswith("Yes. That is")
    for edit in EDITS:
        assert edit.apply(["", "Yes."])[0] == ""
        assert edit.apply([text]) == edit.apply([text])
    # What paraphrases keep: the letters of every word that no table names.
    plain = "The swan sleeps near water"
    for change in (expand_contractions, swap_function_words, respace, double_space):
        assert change(plain) == plain


def test_paraphrases_by_a_model() -> None:
    sampler = ScriptedSampler(["  Hello there. ", ""])
    assert ModelParaphrase(sampler)(["Hi.", "Bye."]) == ["Hello there.", "Bye."]


def test_robustness_of_rewards_that_are_known() -> None:
    """The reward counts letters `a` and stops of sentences: padding moves it by three, lower case not at all."""

    def stops(prompts: object, texts: list[str]) -> np.ndarray:
        return np.array([float(text.count("a") * 10 + text.count(".")) for text in texts])

    # The preferred side leads by 1 (its `.`) in half of the pairs and by 10 in the others.
    pairs = [RewardPair(f"q{i}", "Yes. No." if i % 2 else "Yes a.", "Yes.") for i in range(40)]
    found = measure_robustness(stops, pairs, edits=[e for e in EDITS if e.kind == "length"] + [EDITS[4]])
    effects = {effect.name: effect for effect in found.effects}
    assert found.deviation == pytest.approx(np.sqrt((1 + 100) / 2 / 2))
    padded = effects["padding that adds nothing"]
    gain = float(stops([], [pad("Yes")])[0])
    assert padded.changed == 1
    assert padded.flips.estimate == 0  # both sides gain alike
    assert padded.shift.estimate == pytest.approx(gain / found.deviation)
    assert padded.movement.estimate == pytest.approx(padded.shift.estimate)
    assert padded.steals.estimate == 1  # given to the other side alone it wins everywhere
    assert effects["lower case"].movement.estimate == 0
    assert effects["lower case"].steals.estimate == 0
    half = effects["first half only"]  # "Yes. No." loses a stop, a lead of 1: both sides then have the same reward
    assert half.changed == pytest.approx(20 / 80)
    assert half.flips.estimate == 1
    assert half.accuracy_before.estimate == 1
    assert half.accuracy_after.estimate == 0.5
    assert half.shift.estimate == pytest.approx(-1 / found.deviation)
    json.dumps(found.as_dict())
    assert len(found.lines()) == 5
    with pytest.raises(DataError, match="same reward"):
        measure_robustness(lambda prompts, texts: np.zeros(len(texts)), pairs)
    with pytest.raises(DataError, match="is empty"):
        measure_robustness(stops, [])
    nothing = measure_robustness(stops, pairs, edits=[Edit("none", "paraphrase", each(str))])
    assert nothing.effects == ()


def test_an_edit_steals_only_for_the_side_that_loses() -> None:
    """Dots for answers that begin with No: given to the side that loses they win, given to the winner nothing moves."""

    def dots(prompts: object, texts: list[str]) -> np.ndarray:
        return np.array([float(text.count(".")) for text in texts])

    generous = Edit("dots", "length", each(lambda text: text + "...." if text.startswith("No") else text))
    losing = measure_robustness(dots, [RewardPair(f"q{i}", "Yes..", "No.") for i in range(10)], edits=[generous])
    assert losing.effects[0].steals.estimate == 1
    assert losing.effects[0].flips.estimate == 1
    winning = measure_robustness(dots, [RewardPair(f"q{i}", "No..", "Yes.") for i in range(10)], edits=[generous])
    assert winning.effects[0].steals.estimate == 0
    assert winning.effects[0].flips.estimate == 0
    assert winning.effects[0].changed == 0.5


def test_the_reward_that_is_edited_is_the_model_s(make_lm) -> None:
    model = PreferenceModel(make_lm(), heads=HeadConfig(members=2))
    expected = model.corrected_scores(["a", "b"], ["c", "d"]).double().numpy()
    assert raw_scores(model)(["a", "b"], ["c", "d"]) == pytest.approx(expected)
    assert raw_scores(RewardEnsemble([model]))(["a", "b"], ["c", "d"]) == pytest.approx(expected, abs=1e-6)


# The report


def test_the_report_is_complete_and_self_contained(tmp_path: Path) -> None:
    pairs = [*some_pairs(80), *(RewardPair(f"soft {i}", "a", "b", probability=0.7) for i in range(40))]
    margins = RNG.normal(size=120) + 1

    def letters(prompts: object, texts: list[str]) -> np.ndarray:
        return np.array([float(len(text)) + text.count("Y") for text in texts])

    report = validate_margins(
        "<script>alert(1)</script>", margins, pairs, robustness=measure_robustness(letters, pairs),
        columns={"sub<b>set": ["<i>x</i>", "y"] * 60},
    )  # fmt: skip
    record = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert record["accuracy"] == report.measures.accuracy.as_dict()
    assert len(record["by_annotators_margin"]) == 2
    assert record["overoptimisation"] is None
    assert [row["correct"]["n"] for row in record["reliability"]]
    assert "by requests so far" in report.lines()
    text = report.page().save(tmp_path / "report.html").read_text()
    shown = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert "<script>alert" not in shown
    assert "<i>x</i>" not in shown
    assert not re.search(r'(?:src|href)="(?!#)', shown)
    assert decided([RewardPair("a", "b", "c", tie=True), RewardPair("a", "b", "c")]) == [1]
    with pytest.raises(DataError, match="is empty"):
        validate_margins("a", np.ones(0), [])
