"""`ResearchExperiment`: verdicts at their nominal rates, a lock that shows every change, and a report that says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignlab.core.errors import ConfigError, DataError
from alignlab.core.run_record import RunRecord
from alignlab.core.runs import Run
from alignlab.research import Hypothesis, Measurement, Methodology, ResearchExperiment, audit, check_registration
from alignlab.research.ledger import Ledger
from alignlab.stats.design import Noise

BETTER = Hypothesis("The new prompt scores higher", effect=0.1, source="our pilot", unit="score")
PLAN = Methodology(control="old", treatment="new", noise=Noise(item=0.4), items=80, limitations=("One model.",))


def measure(shift: float, calls: list[tuple[str, int]] | None = None) -> Callable[[str, int, range], list[float]]:
    def work(condition: str, seed: int, items: range) -> list[float]:
        if calls is not None:
            calls.extend((condition, i) for i in items)
        return [
            0.5 + np.random.default_rng([i, seed]).normal(0, 0.3)
            + (shift + np.random.default_rng([i, seed, 1]).normal(0, 0.2)) * (condition == "new")
            for i in items
        ]  # fmt: skip

    return work


@pytest.fixture
def done(tmp_path: Path) -> ResearchExperiment:
    """A finished experiment with a planted difference."""
    experiment = ResearchExperiment(
        BETTER, PLAN, path=tmp_path / "run", title="Prompts", command="python new_prompt.py"
    )
    experiment.design_experiment(config={"model": "tiny"})
    experiment.collect_data(measure(0.15))
    return experiment


def test_from_plan_to_report(done: ResearchExperiment) -> None:
    validation = done.validate_findings()
    assert validation.confirmatory
    assert validation.deviations == ()
    assert validation.verdict() == "supported"
    assert validation.registration == done.registration
    page = done.write_report().read_text(encoding="utf-8")
    text = (done.path / "report.md").read_text(encoding="utf-8")
    for words in (
        "Prompts",
        "The new prompt scores higher",
        done.registration,
        "None: the lock is intact",
        "One model.",
    ):
        assert words in page
        assert words in text
    assert "python new_prompt.py" in text
    assert "git checkout" in text
    assert "| The new prompt scores higher | **supported** |" in text
    record = json.loads((done.folder / "validation.json").read_text())
    assert record["findings"]["main"]["verdict"] == "supported"
    assert Run.read(done.path).state == "finished"


def test_a_plain_sentence_and_a_mapping_will_do(tmp_path: Path) -> None:
    experiment = ResearchExperiment("b is better", {"items": 50, "noise": {"item": 0.2}}, path=tmp_path / "x")
    design = experiment.design_experiment(lock=False)
    assert design.items == 50
    assert not (tmp_path / "x").exists()


@pytest.mark.no_cover
@pytest.mark.slow
def test_the_design_has_the_power_that_was_asked_for() -> None:
    """Items by `design`, 300 simulated experiments with the effect: 0.8 within 0.1 (4.3 standard errors)."""
    method = replace(PLAN, items=0, looks=(0.5, 1.0))
    from alignlab.research.analysis import analyse
    from alignlab.research.design import make_design
    from alignlab.research.measurements import PairedTable

    design = make_design((BETTER,), method)
    rng, found = np.random.default_rng(5), 0
    for _ in range(300):
        control = np.zeros((design.items, 1))
        treatment = rng.normal(BETTER.effect, 0.4, (design.items, 1))
        for n, fractions in zip(design.look_items, ((0.5,), (0.5, 1.0)), strict=True):
            table = PairedTable(control[:n], treatment[:n], tuple(map(str, range(n))), None)
            if analyse({"score": table}, (BETTER,), method, fractions=fractions)["main"].verdict == "supported":
                found += 1
                break
    assert found / 300 == pytest.approx(0.8, abs=0.1)


def test_an_interrupted_collection_goes_on(tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []
    first = ResearchExperiment(BETTER, PLAN, path=tmp_path / "run")
    first.design_experiment()
    first.collect_data(measure(0.1, calls), items=30)
    again = ResearchExperiment(BETTER, PLAN, path=tmp_path / "run")
    assert again.collect_data(measure(0.1, calls)) == 100
    assert len(calls) == len(set(calls)) == 160
    assert again.collect_data(measure(0.1, calls)) == 0
    assert again.validate_findings().confirmatory


# What breaks the registration, visibly


def test_no_data_before_the_lock(tmp_path: Path) -> None:
    experiment = ResearchExperiment(BETTER, PLAN, path=tmp_path / "run")
    with pytest.raises(ConfigError, match="not registered yet"):
        experiment.collect_data(measure(0.1))
    with pytest.raises(ConfigError, match="not registered yet"):
        experiment.analyze_results()


def test_older_data_are_shown(done: ResearchExperiment) -> None:
    row = Measurement("new", "score", "old-item", 1.0, collected="2020-01-01T00:00:00.000000+00:00")
    done.add_data([row])
    validation = done.validate_findings()
    assert not validation.confirmatory
    assert validation.verdict().startswith("exploratory: ")
    assert "late" in [one.kind for one in validation.deviations]
    assert "older than the lock" in done.write_report().read_text(encoding="utf-8")


def test_an_edited_hypothesis_is_refused(done: ResearchExperiment) -> None:
    turned = ResearchExperiment(replace(BETTER, direction="less"), PLAN, path=done.path)
    message = r"hypotheses\[0\].direction \(registered 'greater', now 'less'\)"
    for action in (turned.analyze_results, turned.validate_findings, lambda: turned.collect_data(measure(0))):
        with pytest.raises(ConfigError, match=message):
            action()


def test_an_amendment_is_shown_for_ever(done: ResearchExperiment) -> None:
    turned = ResearchExperiment(replace(BETTER, direction="less"), PLAN, path=done.path)
    turned.amend("we read the scale the wrong way round")
    validation = turned.validate_findings()
    assert validation.findings["main"].verdict == "refuted"
    assert not validation.confirmatory
    page = turned.write_report().read_text(encoding="utf-8")
    assert "registered &#x27;greater&#x27;, now &#x27;less&#x27;" in page
    assert "the wrong way round" in page
    with pytest.raises(ConfigError, match="nothing to amend"):
        turned.amend("again")
    with pytest.raises(ConfigError, match="reason is empty"):
        turned.amend(" ")


@pytest.mark.parametrize("also_the_hash", [False, True])
def test_an_edited_file_breaks_the_lock(done: ResearchExperiment, also_the_hash: bool) -> None:
    from alignlab.research.ledger import digest

    path = done.folder / "preregistration.json"
    record = json.loads(path.read_text())
    record["registration"]["hypotheses"][0]["statement"] = "The old prompt scores higher"
    if also_the_hash:
        record["sha256"] = digest(record["registration"])
    path.write_text(json.dumps(record))
    validation = done.validate_findings()
    assert not validation.confirmatory
    assert any(one.breaks and one.kind == "edited" for one in validation.deviations)
    assert "THE PRE-REGISTRATION IS BROKEN" in done.write_report().read_text(encoding="utf-8")


def test_an_early_peek_is_refused_and_a_forced_one_is_shown(tmp_path: Path) -> None:
    experiment = ResearchExperiment(BETTER, PLAN, path=tmp_path / "run")
    experiment.design_experiment()
    experiment.collect_data(measure(0.15), items=30)
    with pytest.raises(ConfigError, match="30 of 80 items have data, and the plan looks after 80"):
        experiment.analyze_results()
    assert experiment.deviations() == []
    early = experiment.analyze_results(peek="a sponsor asked")
    assert early["main"].level < 0.01  # what is spent so early
    experiment.collect_data(measure(0.15))
    final = experiment.validate_findings()
    assert final.findings["main"].level < 0.05
    assert [one.kind for one in final.deviations] == ["peek"]
    assert "a sponsor asked" in experiment.write_report().read_text(encoding="utf-8")


def test_planned_looks_are_no_deviation(tmp_path: Path) -> None:
    experiment = ResearchExperiment(BETTER, replace(PLAN, looks=(0.5, 1.0)), path=tmp_path / "run")
    experiment.design_experiment()
    experiment.collect_data(measure(0.02), items=40)
    first = experiment.analyze_results()
    assert first == experiment.analyze_results()  # the same data again are not another look
    assert len(Ledger(experiment.folder).entries("look")) == 1
    assert first["main"].level == pytest.approx(0.00305, abs=1e-5)
    experiment.collect_data(measure(0.02))
    assert experiment.validate_findings().findings["main"].level == pytest.approx(0.049, abs=1e-4)
    assert experiment.deviations() == []


def test_changed_data_break_the_lock(done: ResearchExperiment) -> None:
    path = done.folder / "data.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[3])
    lines[3] = json.dumps({**row, "value": 9.0})
    path.write_text("\n".join(lines) + "\n")
    assert [one.kind for one in done.deviations() if one.breaks] == ["changed data"]


def test_outcomes_that_were_not_registered(done: ResearchExperiment) -> None:
    rows = [Measurement(c, "length", f"item-{i:06d}", float(i), 0) for c in ("old", "new") for i in range(5)]
    done.add_data(rows)
    validation = done.validate_findings()
    assert [one.kind for one in validation.deviations] == ["extra outcome"]
    assert "'length'" in validation.deviations[0].detail
    assert "length" in validation.secondary
    assert "exploratory" in (done.write_report().parent / "report.md").read_text(encoding="utf-8")


def test_an_outcome_that_was_not_measured(tmp_path: Path) -> None:
    experiment = ResearchExperiment(BETTER, replace(PLAN, secondary=("length",)), path=tmp_path / "run")
    experiment.design_experiment()
    experiment.collect_data(measure(0.1))
    assert [one.kind for one in experiment.deviations()] == ["missing outcome"]


def test_the_ledger_shows_what_was_done_to_it(done: ResearchExperiment) -> None:
    done.analyze_results()
    path = done.folder / "ledger.jsonl"
    lines = path.read_text().splitlines()
    changes: dict[str, list[str]] = {
        "was changed after": [*lines[:-1], lines[-1].replace('"planned": true', '"planned": false')],
        "its end was removed": lines[:-1],
        "does not follow": [lines[0], *lines[2:]],
    }
    for words, kept in changes.items():
        path.write_text("\n".join(kept) + "\n")
        assert any(words in one.detail and one.breaks for one in audit(done.folder)), words
        with pytest.raises(DataError, match="not intact"):
            Ledger(done.folder).append("look")
    path.write_text("\n".join(lines) + "\n")
    assert audit(done.folder) == []


def test_the_published_hash_catches_a_folder_written_anew(done: ResearchExperiment, tmp_path: Path) -> None:
    published = done.registration[:12]
    forged = ResearchExperiment(replace(BETTER, effect=0.3), PLAN, path=tmp_path / "forged")
    forged.design_experiment()
    assert check_registration(forged.folder) == []
    assert [one.kind for one in check_registration(forged.folder, expect=published)] == ["edited"]
    assert check_registration(done.folder, expect=published) == []
    with pytest.raises(ConfigError, match="at least the first 8 digits"):
        check_registration(done.folder, expect="abc")


# Unscorable items


def with_gaps(count: int) -> Callable[[str, int, range], list[float | None]]:
    def work(condition: str, seed: int, items: range) -> list[float | None]:
        right = [float(condition == "new" or i % 3 == 0) if i < 30 else float(i % 2) for i in items]
        return [
            None if condition == "new" and i >= 80 - count else value for i, value in zip(items, right, strict=True)
        ]

    return work


@pytest.mark.parametrize(("count", "verdict"), [(0, "supported"), (2, "supported"), (40, "inconclusive")])
def test_unscorable_items_bound_the_verdict(tmp_path: Path, count: int, verdict: str) -> None:
    hypothesis = replace(BETTER, score_range=(0.0, 1.0), margin=0.02)
    experiment = ResearchExperiment(hypothesis, PLAN, path=tmp_path / "run")
    experiment.design_experiment()
    experiment.collect_data(with_gaps(count))
    found = experiment.analyze_results()["main"]
    assert found.n_unscorable == count
    assert found.verdict == verdict
    if count:
        assert found.worst is not None
        assert found.best is not None
        assert found.worst.estimate < found.difference.estimate
        assert found.worst.low < found.difference.low


def test_without_a_range_unscorable_items_leave_it_open(tmp_path: Path) -> None:
    experiment = ResearchExperiment(BETTER, PLAN, path=tmp_path / "run")
    experiment.design_experiment()
    experiment.collect_data(with_gaps(1))
    found = experiment.analyze_results()["main"]
    assert found.verdict == "inconclusive"
    assert any("not robust" in note for note in found.notes)


# Bad input


@pytest.mark.parametrize(
    ("hypothesis", "methodology", "message"),
    [
        ("", None, "statement is ''"),
        ([], None, "allowed: a sentence, a Hypothesis or several"),
        ([BETTER, BETTER], None, "two hypotheses are named 'main'"),
        (BETTER, {"item": 3}, "item"),
        (BETTER, {"items": 1}, "items is 1"),
        (BETTER, {"seeds": (1, 1)}, "seeds is"),
        (BETTER, {"looks": (0.5,)}, "the last is 1"),
        (BETTER, {"control": "a", "treatment": "a"}, "treatment is 'a'"),
        (BETTER, {"noise": {"item": 0.3, "seed": 0.2}}, "at least 3 are needed where seeds differ"),
        ({"statement": "x", "effect": 0.0}, None, "effect is 0"),
    ],
)
def test_bad_plans(tmp_path: Path, hypothesis: Any, methodology: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ResearchExperiment(hypothesis, methodology, path=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bad_data(done: ResearchExperiment) -> None:
    with pytest.raises(DataError, match="never replaced"):
        done.add_data([Measurement("new", "score", "item-000001", 0.5)])
    with pytest.raises(DataError, match="allowed: a finite number or None"):
        Measurement("new", "score", "x", float("nan"))
    with pytest.raises(DataError, match="no reason for that"):
        Measurement("new", "score", "x", None)
    with pytest.raises(ConfigError, match="from 1 to the 80 of the plan"):
        done.collect_data(measure(0), items=81)


def test_a_measure_of_the_wrong_length(tmp_path: Path) -> None:
    experiment = ResearchExperiment(BETTER, PLAN, path=tmp_path / "run")
    experiment.design_experiment()
    with pytest.raises(DataError, match="gave 3 values of 'score' for 80 items"):
        experiment.collect_data(lambda condition, seed, items: [0.0, 1.0, 1.0])
    assert isinstance(Run.read(experiment.path), RunRecord)


def test_a_plan_is_locked_once(done: ResearchExperiment) -> None:
    before = done.registration
    done.design_experiment()  # the same plan: nothing happens
    assert done.registration == before
    other = ResearchExperiment(BETTER, replace(PLAN, items=90), path=done.path)
    with pytest.raises(ConfigError, match="registered 80, now 90"):
        other.design_experiment()
