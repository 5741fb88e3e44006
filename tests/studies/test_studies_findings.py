"""Findings: verdicts from evidence, and a record that comes back whole."""

from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import pytest

from alignlab.core.errors import ConfigError, DataError
from alignlab.stats.interval import Interval
from alignlab.stats.paired import compare
from alignlab.studies.findings import Claim, Evidence, Expectation, Figure, Findings, Table, judge

LOWER = Expectation("b is lower than a", "lower", "a paper", "bits")
RNG = np.random.default_rng(0)
A = RNG.normal(2.0, 0.1, 40)


def against(shift: float, noise: float = 0.05) -> Evidence:
    b = A + shift + np.random.default_rng(1).normal(0, noise, 40)
    return Evidence(compare(A, b, higher_is_better=False))


@pytest.mark.parametrize(("shift", "verdict"), [(-0.2, "confirmed"), (0.2, "failed"), (0.0, "tied")])
def test_verdicts_follow_the_data(shift: float, verdict: str) -> None:
    (claim,) = judge({"x": LOWER}, {"x": against(shift)})
    assert claim.verdict == verdict
    assert claim.observed is not None
    assert claim.observed.estimate == pytest.approx(shift, abs=0.03)
    assert (claim.statement, claim.source, claim.unit) == ("b is lower than a", "a paper", "bits")


def test_no_evidence_is_no_verdict() -> None:
    claims = judge({"x": LOWER, "y": LOWER}, {"y": against(-0.2)})
    assert [claim.verdict for claim in claims] == ["untested", "confirmed"]
    assert claims[0].observed is None
    with pytest.raises(DataError, match="'z', which nothing claims"):
        judge({"x": LOWER}, {"z": against(0.0)})


def test_seeds_that_disagree_decide_nothing() -> None:
    comparison = against(-0.2).comparison
    agree, split = Evidence(comparison, (-0.1, -0.3)), Evidence(comparison, (0.1, -0.5))
    assert judge({"x": LOWER}, {"x": agree})[0].verdict == "confirmed"
    (claim,) = judge({"x": LOWER}, {"x": split})
    assert claim.verdict == "tied"
    assert "disagree in sign" in claim.note
    assert "one seed" in judge({"x": LOWER}, {"x": Evidence(comparison, (-0.2,))})[0].note


def test_many_claims_are_corrected_together() -> None:
    """A p between 0.05 / 20 and 0.05 convinces alone, and not among twenty."""
    for shift in np.linspace(-0.001, -0.03, 60):
        weak = against(float(shift))
        if 0.005 < weak.comparison.p_value < 0.04 and weak.comparison.verdict == "better":
            break
    else:
        pytest.fail("no shift gave a p in the window")
    names = [f"claim {i}" for i in range(20)]
    alone = judge({"x": LOWER}, {"x": weak})
    many = judge(dict.fromkeys(names, LOWER), dict.fromkeys(names, weak))
    assert alone[0].verdict == "confirmed"
    assert {claim.verdict for claim in many} == {"tied"}


def test_the_record_comes_back_whole() -> None:
    cell = Interval(1.0, 0.5, float("inf"), 3, 0.95, "bca")
    claim = Claim("s", "e", "src", cell, "bits", "failed", "note")
    findings = Findings(
        summary="what came out",
        claims=(claim, LOWER.untested("too small")),
        tables=(Table("t", ("a", "b", "c"), (("x", 1, cell), (None, 2.5, True)), "cap"),),
        figures=(Figure("f", go.Figure().add_scatter(x=[1, 2], y=[3.5, 4.5]), "cap"),),
        examples=(("title", (("left", "one"), ("right", "two"))),),
        method=("how",),
        numbers={"k": [1, 2]},
    )
    back = Findings.from_dict(json.loads(json.dumps(findings.to_dict())))
    assert back.figures[0].figure.data[0].y[1] == 4.5
    assert back.claims == findings.claims
    assert back.tables == findings.tables
    assert (back.examples, back.method, back.numbers) == (findings.examples, findings.method, findings.numbers)


def test_bad_findings() -> None:
    with pytest.raises(ConfigError, match="verdict is 'maybe'"):
        Claim("s", "e", "src", None, "bits", "maybe")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="row 1 of 't' has 1 cells for 2 columns"):
        Table("t", ("a", "b"), ((1, 2), (1,)))
    with pytest.raises(DataError, match="not the record of findings"):
        Findings.from_dict({"summary": "x"})
