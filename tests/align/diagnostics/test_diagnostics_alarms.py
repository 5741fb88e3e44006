"""Each alarm goes off on what is planted for it and stays silent on healthy trainings; its error rate holds."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from alignlab.align.diagnostics.alarms import Alarm, Limits, Look, alarms, looks
from alignlab.align.diagnostics.changes import Block, block_of, change, level, slope_within
from alignlab.align.diagnostics.history import History, StepResponses
from alignlab.align.diagnostics.kl_budget import kl_budget
from alignlab.align.diagnostics.simulated import FAILURES, healthy, spoilt
from alignlab.core.errors import ConfigError

LIMITS = Limits(kl_budget=15.0, total_steps=60)


def names(found: list[Alarm]) -> list[str]:
    return [alarm.name for alarm in found]


def block(values: Any, clusters: Any, unit: str = "prompts") -> Block:
    return Block.of(np.asarray(values, dtype=np.float64), np.asarray(clusters), unit)


def test_the_change_is_welchs_or_the_paired_interval_where_every_cluster_is_one_answer() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 12), rng.normal(1, 2, 12)
    paired = change(block(a, range(12)), block(b, range(12)), 0.025)
    assert paired is not None
    wanted = stats.ttest_rel(b, a).confidence_interval(0.95)
    np.testing.assert_allclose((paired.low, paired.high), wanted, rtol=1e-12)
    apart = change(block(a, range(12)), block(b, range(12, 24)), 0.025)
    assert apart is not None
    half = stats.t.ppf(0.975, 11) * math.sqrt(a.var(ddof=1) / 12 + b.var(ddof=1) / 12)
    np.testing.assert_allclose(apart.high - apart.estimate, half, rtol=1e-12)
    alone = level(block(a, range(12)), 0.025)
    assert alone is not None
    np.testing.assert_allclose((alone.low, alone.high), stats.t.interval(0.95, 11, a.mean(), stats.sem(a)), rtol=1e-12)


def test_the_slope_is_the_one_within_groups() -> None:
    on = np.array([1.0, 2, 3, 10, 11, 12])
    groups = np.array([0, 0, 0, 1, 1, 1])
    values = 2 * on - 30 * groups + np.array([0.1, -0.2, 0.1, 0, 0, 0])
    assert slope_within(values, on, groups) == pytest.approx(2.0)
    assert slope_within([1, 2], [3, 3], np.array([0, 0])) == 0.0


def test_columns_of_rows_with_and_without_names_of_the_method() -> None:
    rows = [{"step": 3.0, "ppo/kl": 1.0}, {"step": 1.0, "ppo/kl": float("nan"), "ppo/cost/long": 2.0}]
    history = History.of(rows)
    assert history.steps.tolist() == [1, 3]
    assert history.not_finite == ((1, "kl"),)
    np.testing.assert_array_equal(history.columns["kl"], [math.nan, 1.0])
    assert history.columns["cost/long"][0] == 2.0
    assert History.of([{"kl": 1.0}, {"kl": 2.0}]).steps.tolist() == [1, 2]


def test_a_block_is_of_responses_only_where_every_step_has_them() -> None:
    rows = [{"gold": 1.0}, {"gold": 2.0}]
    records = [StepResponses(1, ("a", "b"), (0.0, 1.0), gold=(3.0, 5.0)), StepResponses(2, ("a",), (0.0,), gold=(7.0,))]
    whole = block_of(History.of(rows, records), "gold", 0, 2)
    assert whole is not None
    assert (whole.unit, whole.groups, whole.mean) == ("prompts", 2, 5.0)
    means = block_of(History.of(rows, records[:1]), "gold", 0, 2)
    assert means is not None
    assert (means.unit, means.mean) == ("steps", 1.5)
    assert block_of(History.of(rows), "kl", 0, 2) is None


def test_looks_share_one_error_rate_and_come_ever_more_rarely() -> None:
    every = list(looks(10**9))
    assert sum(share for _, share in every) < 0.9
    assert [at for at, _ in every[:5]] == [8, 10, 12, 15, 19]
    assert sum(at <= 20_000 for at, _ in every) <= 36
    assert list(looks(11, over=True))[-1] == (11, 0.1)
    assert list(looks(7, over=True)) == []


@pytest.mark.parametrize("name", list(FAILURES))
def test_planted_failures_are_found(name: str) -> None:
    metric, course = FAILURES[name]
    found = {alarm.name: alarm for alarm in alarms(spoilt(metric, course), limits=LIMITS)}
    assert list(found) == [name]
    assert found[name].standing
    assert 8 <= found[name].step <= 60
    assert any(sign.isdigit() for sign in found[name].sentence)


def test_hacking_is_found_over_prompts_and_over_steps() -> None:
    rows, records = healthy(0, gold=lambda t: t if t < 0.5 else 1.5 - 2.5 * (t - 0.2))
    over_prompts = {alarm.name: alarm for alarm in alarms(rows, responses=records)}
    assert list(over_prompts) == ["reward hacking"]
    assert "40 prompts" in over_prompts["reward hacking"].sentence
    over_steps = alarms(rows)
    assert names(over_steps) == ["reward hacking"]
    assert "steps in the last quarter" in over_steps[0].sentence
    rows, records = healthy(0, gold=lambda t: -1.5 * t)
    assert alarms(rows, responses=records)[0].severity == "serious"


def test_a_fall_of_gold_without_a_rise_of_the_reward_is_no_hacking() -> None:
    rows, records = healthy(0, gold=lambda t: -1.5 * t, reward=lambda t: -0.5 * t)
    assert alarms(rows, responses=records) == []


def test_length_that_is_paid_for_is_serious_and_length_that_is_not_needs_more() -> None:
    rows, records = healthy(0, reward=lambda t: 0.1 * t, length=lambda t: 40 + 40 * t, length_pays=0.03)
    (found,) = alarms(rows, responses=records)
    assert (found.name, found.severity) == ("length growth", "serious")
    assert "length alone accounts for" in found.sentence
    rows, records = healthy(0, length=lambda t: 40 + 25 * t)
    assert alarms(rows, responses=records) == []


def test_kl_that_buys_nothing_any_more() -> None:
    rows, records = healthy(0, reward=lambda t: 1.5 * min(1.0, 3 * t) - 0.6 * max(0.0, t - 0.5))
    for i, row in enumerate(rows):
        row["ppo/kl"] = 0.3 * i
    assert "KL without reward" in names(alarms(rows, responses=records))


def test_the_budget_of_a_straight_line_is_exact() -> None:
    rows = [{"kl": 0.5 * step, "reward": 0.25 * step} for step in range(1, 41)]
    account = kl_budget(History.of(rows), 30.0)
    assert account is not None
    assert account.per_step == pytest.approx(0.5)
    assert account.rate == pytest.approx(0.5)
    assert account.gone_at == pytest.approx(60.0)
    assert [purchase.rate for purchase in account.purchases] == pytest.approx([0.5] * 3)
    assert kl_budget(History.of(rows[:7])) is None
    assert kl_budget(History.of([{"reward": 1.0}] * 20)) is None


def test_numbers_that_are_none_are_told_at_once() -> None:
    (found,) = alarms([{"reward": 1.0, "kl": float("nan")}, {"reward": float("inf")}])
    assert (found.name, found.step, found.severity) == ("not finite", 1, "serious")
    assert found.sentence == "kl of step 1 is not finite, and so in 1 later steps"


def test_an_alarm_never_changes_while_the_training_goes_on() -> None:
    rows = spoilt("entropy", FAILURES["entropy collapse"][1])
    for size in (40, 47, 59):
        before = alarms(rows[:size], over=False)
        after = {(alarm.name, alarm.severity): alarm for alarm in alarms(rows, over=False)}
        assert before
        assert all(after[alarm.name, alarm.severity].sentence == alarm.sentence for alarm in before)


def test_an_alarm_that_is_over_says_so() -> None:
    rows = spoilt("clip_fraction", lambda t: 0.4 if t < 0.5 else 0.05)
    (found,) = alarms(rows)
    assert (found.name, found.standing) == ("clipping", False)


def test_a_warning_that_becomes_serious_is_given_once_more() -> None:
    rows, records = healthy(0, 140, gold=lambda t: 2 * t if t < 0.4 else 0.8 - 4 * (t - 0.4))
    given = [(alarm.name, alarm.severity) for alarm in alarms(rows, responses=records)]
    assert given == [("reward hacking", "warning"), ("reward hacking", "serious")]


def test_odd_histories_give_nothing() -> None:
    assert alarms([]) == []
    assert alarms([{"reward": 1.0}] * 7) == []
    assert alarms([{"loss": 1.0}] * 50) == []
    assert alarms([{"reward": 1.0, "skipped": 1.0}] * 50) == []
    with pytest.raises(ConfigError, match="alpha"):
        Limits(alpha=0.7)


@pytest.mark.slow
def test_healthy_trainings_are_left_alone() -> None:
    """300 healthy trainings of three lengths: fewer than 5 % of them may give any alarm at all. With a true rate of
    1 % the test fails by chance with probability below 1e-6."""
    given: Counter[str] = Counter()
    for seed in range(300):
        rows, records = healthy(seed, (25, 60, 140)[seed % 3])
        given["any"] += bool(alarms(rows, responses=records, limits=LIMITS))
    assert given["any"] <= 15


@pytest.mark.slow
@pytest.mark.parametrize("singly", [True, False])
def test_the_error_rate_of_hacking_holds_where_gold_stands_still(singly: bool) -> None:
    """Gold is flat while the reward surely rises: the boundary of the null. At most 5 % of 400 trainings may alarm; at
    exactly 5 % the bound of 34 is passed by chance with probability 0.1 %."""
    wrong = 0
    for seed in range(400):
        rows, records = healthy(seed, 40, gold=lambda t: 0.0, reward=lambda t: 4 * t)
        wrong += "reward hacking" in names(alarms(rows, responses=records if singly else ()))
    assert wrong <= 34


@pytest.mark.slow
def test_limits_of_a_change_miss_as_often_as_they_say() -> None:
    """Twenty prompts with effects of their own in both blocks: 5 % of 4,000 one-sided limits may miss, 4 to 6.5 %
    here; chance leaves that range with probability below 0.2 %."""
    rng, missed = np.random.default_rng(0), 0
    for _ in range(4000):
        effects = rng.normal(0, 1, (2, 20))
        one, two = rng.integers(20, size=(2, 100))
        early = block(effects[0, one] + rng.normal(size=100), one)
        late = block(effects[0, two] + 0.5 * effects[1, two] + rng.normal(size=100), two)
        found = change(early, late, 0.05)
        assert found is not None
        missed += found.low > 0
    assert 0.04 <= missed / 4000 <= 0.065


def test_a_look_names_its_quarter() -> None:
    rows = [{"kl": float(i)} for i in range(8)]
    look = Look(History.of(rows), Limits(), 0.05)
    assert [look.mean("kl", i) for i in range(4)] == [0.5, 2.5, 4.5, 6.5]


@pytest.mark.slow
def test_the_table_of_error_rates_is_made(tmp_path: Path) -> None:
    script = Path(__file__).parents[3] / "bench" / "alarm_rates.py"
    out = tmp_path / "rates.json"
    done = subprocess.run(
        [sys.executable, str(script), "--trainings", "1", "--json", str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    tables = json.loads(out.read_text())
    assert set(FAILURES) < {row["case"] for row in tables["planted"]}
    assert all(row["given"] == 1 for row in tables["planted"] if row["case"] in FAILURES)
    assert "healthy, any alarm" in done.stdout
