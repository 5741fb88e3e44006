"""The report of an alignment run, from run directories written here without a model."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alignlab.align import report_account
from alignlab.align.config import AlignConfig, ReinforcementSettings
from alignlab.align.measures import held_out_tasks
from alignlab.align.report import build_report, summary_lines
from alignlab.align.report_findings import Findings, change, points
from alignlab.core.errors import DataError, RunError
from alignlab.core.files import append_jsonl
from alignlab.core.rng import derive_seed
from alignlab.core.runs import Run
from alignlab.data.prompts import load_prompts
from alignlab.lm.scripted import ScriptedSampler, last_text
from alignlab.lm.types import Prompt
from alignlab.stats.multiplicity import holm
from alignlab.stats.paired import compare
from alignlab.tasks.evaluator import evaluate

DECLINE, COMPLY = "I can't help with that, it could hurt someone.", "Sure, this is what you do about it."
NASTY = '<script>alert("x")</script> & **bold**'
RATES = {
    "base": {"harmlessness": 0.2, "over_refusal": 0.05, "helpfulness": 0.5},
    "sl-cai": {"harmlessness": 0.8, "over_refusal": 0.2, "helpfulness": 0.45},
    "rl-cai": {"harmlessness": 0.82, "over_refusal": 0.2, "helpfulness": 0.5},
}
MEASURING = {"baseline": "base", "sl-cai": "sl-cai", "rl-cai": "rl-cai"}
BITS = {"base": 1.2, "sl-cai": 1.21, "rl-cai": 1.212}


def draw(prompt: str) -> float:
    """A number from 0 to 1 that belongs to a prompt: shared by all models, so that their answers are paired."""
    return derive_seed(3, prompt) % 10_000 / 10_000


def answers(model: str, empty: float = 0.0) -> Callable[[Prompt], str]:
    """Declines or answers with the rates of RATES; the last share `empty` of the draws gives nothing."""
    sets = {"harmlessness": "harmful", "over_refusal": "benign", "helpfulness": "helpful"}
    records = {r.prompt: (task, r) for task, name in sets.items() for r in load_prompts(name, "heldout")}  # type: ignore[arg-type]

    def answer(prompt: Prompt) -> str:
        task, record = records[last_text(prompt)]
        hit = draw(record.prompt) < RATES[model][task]
        if draw(record.prompt) > 1 - empty:
            return ""
        if task == "helpfulness":
            return f"It is {record.keywords[0]}." if hit else "That is hard to say."
        return DECLINE if hit else f"{COMPLY} {NASTY}"

    return answer


def make_run(
    path: Path, *, method: str = "ppo", until: str | None = None, n_eval: int = 24, empty: float = 0.0, n: int = 8
) -> Run:
    """A run of `alignlab align` as the pipeline leaves it, up to and without the stage `until`."""
    config = AlignConfig(
        n_prompts=n,
        n_eval=n_eval,
        reinforcement=ReinforcementSettings(method=method),  # type: ignore[arg-type]
    )
    run = Run.create(config, name="align", seed=config.seed, path=path)
    for name, work in stages(run, config, empty).items():
        if name == until:
            return run
        if method == "none" and name in ("reinforcement", "rl-cai"):
            continue
        run.stage(name, work)
    return run


def stages(run: Run, config: AlignConfig, empty: float) -> dict[str, Callable[[], dict[str, Any]]]:
    """What each stage writes."""

    def measure(model: str) -> dict[str, Any]:
        found = {}
        for task in held_out_tasks(limit=config.n_eval):
            log_dir = run.artifacts / "evaluations" / model / task.name
            done = evaluate(task, ScriptedSampler(answers(model, empty)), log_dir=log_dir, model=model)
            found[task.name] = done.aggregate.as_dict()
        return {**found, "bits_per_byte": BITS[model]}

    def texts(name: str, text: str) -> dict[str, Any]:
        rows = [
            {"index": i, "text": f"{text} {i}", "tokens": 5, "finish_reason": "stop"} for i in range(config.n_prompts)
        ]
        append_jsonl(run.artifacts / f"{name}.jsonl", rows[::-1])
        return {name: len(rows), "tokens": 5 * len(rows)}

    def revisions() -> dict[str, Any]:
        scores = [None, *(0.1 * i - 0.35 for i in range(1, config.n_prompts))]
        rows = [
            {"index": i, "text": None if score is None else f"revision {i} {NASTY}", "score": score}
            for i, score in enumerate(scores)
        ]
        append_jsonl(run.artifacts / "revisions.jsonl", rows)
        return {"revisions": len(rows), "kept": len(rows) - 1, "tokens": 640}

    def critiques() -> dict[str, Any]:
        run.write_artifact("principles.json", [f"rule-{i}" for i in range(config.n_prompts)])
        return texts("critiques", "critique")

    def train(name: str, output: dict[str, Any]) -> dict[str, Any]:
        for step in range(1, 31):
            run.log(step, {f"{name}/loss": 2.5 / step**0.3, f"{name}/tokens": 100.0})
        return output

    def reinforce() -> dict[str, Any]:
        for step in range(1, 21):
            values = {"kl": 0.3 * step**0.8 - 0.3, "reward": -1.5 + 0.2 * step**0.7 + 0.1 * (step % 3)}
            run.log(step, {f"{config.reinforcement.method}/{key}": value for key, value in values.items()})
        return {"method": config.reinforcement.method, "steps": 20, "last": {}}

    preference = {"pairs": 90, "heldout_pairs": 20, "heldout_accuracy": 0.75, "steps": 30, "loss": 0.4}
    return {
        "setup": lambda: {"dtype": "bfloat16"},
        "baseline": lambda: measure("base"),
        "responses": lambda: texts("responses", f"response {NASTY}"),
        "critiques": critiques,
        "revisions": revisions,
        "supervised": lambda: train("supervised", {"examples": 90, "steps": 30, "loss": 1.0}),
        "sl-cai": lambda: measure("sl-cai"),
        "pairs": lambda: {"tokens": 655},
        "preferences": lambda: {"ai_pairs": 80, "reference_pairs": 30, "unscorable": 2},
        "preference-model": lambda: train("preference_model", preference),
        "reinforcement": reinforce,
        "rl-cai": lambda: measure("rl-cai"),
        "export": lambda: {"path": "model", "name": "aligned", "stage": "rl-cai"},
    }


def words(page_html: str) -> str:
    """The words of a page as a reader sees them, without scripts and tags."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page_html, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.fixture(scope="module", autouse=True)
def _no_flush() -> Iterator[None]:
    """Dozens of run directories are written; that they survive a power cut is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def page_html(finished: Run) -> str:
    return build_report(finished).html()


def logged_values(run: Run, model: str, task: str) -> list[float]:
    """Scores straight from the log, without the code under test."""
    path = run.artifacts / "evaluations" / model / task / "samples.jsonl"
    return [json.loads(line)["value"] for line in path.read_text().splitlines()]


def test_rates_differences_and_verdicts_are_those_of_the_logs(finished: Run) -> None:
    findings = Findings(finished)
    raw = []
    for found in findings.differences:
        before, after = (logged_values(finished, model, found.task) for model in (found.earlier, found.later))
        expected = compare(before, after, seed=0, higher_is_better=found.task != "over_refusal")
        assert found.result.difference == expected.difference
        assert found.result.p_value == expected.p_value
        assert found.changed == sum(x != y for x, y in zip(before, after, strict=True))
        raw.append(expected)
    assert len(raw) == 9
    adjusted = holm([comparison.p_value for comparison in raw])
    assert [d.result.adjusted_p for d in findings.differences] == pytest.approx(adjusted)
    expected_verdicts = [c.verdict if p <= 0.05 else "tied" for c, p in zip(raw, adjusted, strict=True)]
    assert [d.result.verdict for d in findings.differences] == expected_verdicts
    assert findings.difference("harmlessness", "rl-cai").result.verdict == "better"  # planted: 0.2 against 0.82


def test_headline_shows_the_recomputed_numbers(finished: Run, page_html: str) -> None:
    shown = words(page_html)
    base, last = (logged_values(finished, model, "harmlessness") for model in ("base", "rl-cai"))
    gain = 100 * (sum(last) / len(last) - sum(base) / len(base))
    assert (
        f"Harmlessness +{gain:.1f} pts {100 * sum(base) / len(base):.1f} % → {100 * sum(last) / len(last):.1f} %"
        in shown
    )
    assert "Bits per byte +1.0 % 1.200 → 1.212" in shown
    assert "RL-CAI is better than the base on harmlessness: it declines more harmful requests" in shown
    assert "over all 9 comparisons" in shown
    found = Findings(finished).difference("harmlessness", "rl-cai")
    assert f"a true difference of {100 * found.detectable:.1f} points" in shown


def test_reinforcement_that_adds_nothing_is_said_to_add_nothing(page_html: str, finished: Run) -> None:
    assert "RL-CAI (PPO) does not beat SL-CAI on harmlessness (tied)" in words(page_html)
    assert any("does not beat SL-CAI" in line for line in summary_lines(finished))


@pytest.mark.parametrize(("rates", "told"), [((0.1, 0.9), "beats SL-CAI"), ((0.9, 0.1), "is worse than SL-CAI")])
def test_the_paragraph_follows_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rates: tuple[float, float], told: str
) -> None:
    for model, value in zip(("sl-cai", "rl-cai"), rates, strict=True):
        monkeypatch.setitem(RATES, model, {**RATES[model], "harmlessness": value})
    run = make_run(tmp_path / "run")
    assert f"RL-CAI (PPO) {told} on harmlessness" in words(build_report(run).html())
    assert f"RL-CAI (PPO) {told} on harmlessness" in "\n".join(summary_lines(run))


def test_worse_over_refusal_and_lost_capability_are_shown_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RATES, "rl-cai", {**RATES["rl-cai"], "over_refusal": 0.9})
    monkeypatch.setitem(BITS, "rl-cai", 1.2 * 1.06)
    run = make_run(tmp_path / "run")
    page = build_report(run).html()
    shown = words(page)
    assert "RL-CAI is worse than the base on over-refusal: it declines more harmless requests" in shown
    assert "changed by +6.0 %, outside the limit of +5 %" in shown
    assert "✕ fail" in shown
    declined = int(sum(logged_values(run, "rl-cai", "over_refusal")))
    assert f"RL-CAI declines {declined} of 24 harmless requests that look harmful; the first 3:" in shown
    assert "worse by more than 5 %" in "\n".join(summary_lines(run))


def test_texts_are_escaped_and_nothing_comes_from_elsewhere(page_html: str) -> None:
    body = page_html[: page_html.index('<script type="application/json"')]
    assert NASTY not in body
    assert html.escape(NASTY) in body
    assert "<script>alert" not in page_html
    assert not re.search(r'(?:src|href)="https?:', body)


def test_best_and_worst_revisions_with_their_principles(page_html: str) -> None:
    shown = words(page_html)
    prompts = [record.prompt for record in load_prompts("harmful", "train")]
    best, worst = (
        shown[shown.index("Highest scores") : shown.index("Lowest scores")],
        shown[shown.index("Lowest scores") :],
    )
    for i in (7, 6, 5):
        assert f"{prompts[i]} response response {NASTY} {i} critique by rule-{i} critique {i}" in best
    for i in (1, 2, 3):
        assert f"revision, score {'−' if 0.1 * i < 0.35 else '+'}{abs(0.1 * i - 0.35):.2f} revision {i}" in worst
    assert best.index(prompts[7]) < best.index(prompts[6])
    assert worst.index(prompts[1]) < worst.index(prompts[2])
    assert "Of 8 responses to harmful requests, 7 got a usable revision" in shown


def test_categories_preference_model_and_tokens(finished: Run, page_html: str) -> None:
    shown = words(page_html)
    rows = [
        json.loads(line)
        for line in (finished.artifacts / "evaluations/base/harmlessness/samples.jsonl").read_text().splitlines()
    ]
    weapons = [row["value"] for row in rows if row["metadata"]["category"] == "weapons"]
    assert f"weapons {int(sum(weapons))}/{len(weapons)}" in shown
    assert len({row["metadata"]["category"] for row in rows}) == 12
    assert "Held-out accuracy 75.0 % 95 % [53.1, 88.8]; n = 20 pairs" in shown  # Wilson for 15 of 20
    assert "judged 80 pairs of sampled answers to harmful requests and could not judge 2; 30 pairs" in shown
    assert re.search(r"supervised fine-tuning [\d.]+ s 3,000", shown)  # 30 steps of 100 tokens


def test_unscorable_samples_are_counted_and_bounded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", empty=0.15)
    values = logged_values(run, "base", "harmlessness")
    scored = [value for value in values if value is not None]
    after = logged_values(run, "rl-cai", "harmlessness")
    pairs = [(x, y) for x, y in zip(values, after, strict=True) if x is not None and y is not None]
    gained, lost, failed, kept = (pairs.count(pair) for pair in ((0, 1), (1, 0), (0, 0), (1, 1)))
    lacking = 24 - len(pairs)
    assert (
        f"Of 24 prompts: {gained} gained, {lost} lost, {failed} still failed, {kept} right as before, {lacking} without"
        in words(build_report(run).html())
    )
    low, high = (100 * (sum(scored) + fill * (24 - len(scored))) / 24 for fill in (0, 1))
    assert len(scored) < 24
    assert f" 24 {24 - len(scored)} {low:.1f} – {high:.1f}" in words(build_report(run).html())


def test_all_answers_empty_gives_no_verdict(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", empty=1.1)
    shown = words(build_report(run).html())
    assert Findings(run).differences == []
    assert "harmlessness base – 24 24" in shown
    assert any(line.startswith("harmlessness") and "–" in line for line in summary_lines(run))


@pytest.mark.parametrize("method", ["none", "dpo"])
def test_other_methods(tmp_path: Path, method: str) -> None:
    run = make_run(tmp_path / "run", method=method)
    shown = words(build_report(run).html())
    assert "unfinished" not in shown
    assert "PPO: mean reward" not in shown
    if method == "none":
        assert len(Findings(run).differences) == 3
        assert "SL-CAI is better than the base on harmlessness" in shown
        assert "RL-CAI" not in shown
        assert not any("RL-CAI" in line for line in summary_lines(run))
    else:
        assert "RL-CAI (DPO) does not beat SL-CAI" in shown


ORDER = (
    "setup", "baseline", "responses", "critiques", "revisions", "supervised", "sl-cai", "pairs", "preferences",
    "preference-model", "reinforcement", "rl-cai", "export",
)  # fmt: skip


@pytest.mark.parametrize("until", ORDER)
def test_a_run_that_stopped_anywhere_has_a_report(tmp_path: Path, finished: Run, until: str) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    done = ORDER.index(until)
    for name in ORDER[done:]:
        (tmp_path / "run" / "stages" / f"{name}.json").unlink()
    run = Run.read(tmp_path / "run")
    shown = words(build_report(run).html())
    assert "This run is unfinished. Not done yet:" in shown
    assert ("What changed" in shown) == (done > ORDER.index("baseline"))
    assert ("Highest scores" in shown) == (done > ORDER.index("revisions"))
    assert ("Paired differences" in shown) == (done > ORDER.index("sl-cai"))
    assert ("Held-out accuracy" in shown) == (done > ORDER.index("preference-model"))
    assert ("RL-CAI (PPO) does not" in shown) == (done > ORDER.index("rl-cai"))
    assert "Configuration" in shown
    lines = summary_lines(run)
    assert any(line.startswith("unfinished, not done yet:") for line in lines)


def test_a_run_that_has_just_begun_has_a_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", until="setup")
    assert "This run is unfinished. Not done yet: set-up, measuring base," in words(build_report(run).html())
    assert summary_lines(run)[-1] == "time 0.0 s, peak memory 0.00 GiB"


def test_an_evaluation_cut_off_in_the_middle_is_not_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", until="sl-cai")
    folder = run.artifacts / "evaluations" / "sl-cai" / "harmlessness"
    folder.mkdir(parents=True)
    (folder / "samples.jsonl").write_text('{"id": ')
    assert Findings(run).models == ["base"]
    assert "Paired differences" not in words(build_report(run).html())


def test_size_does_not_grow_with_training_or_with_long_texts(tmp_path: Path, finished: Run, page_html: str) -> None:
    run = make_run(tmp_path / "run")
    path = run.artifacts / "revisions.jsonl"
    path.unlink()
    append_jsonl(path, [{"index": i, "text": "long " * 40_000, "score": 0.1} for i in range(8)])
    for step in range(31, 5000):
        run.log(step, {"supervised/loss": 1.0, "ppo/kl": 1.0, "ppo/reward": 0.5})
    page = build_report(run).html()
    assert len(page) - len(page_html) < 60_000
    assert "198,799 more characters" in page


def test_steps_without_finite_numbers_draw_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", until="reinforcement", n_eval=12)
    run.log(1, {"ppo/kl": float("nan"), "ppo/reward": 0.5})
    assert "PPO: mean reward" not in words(build_report(run).html())


def test_summary_is_aligned_plain_text(finished: Run) -> None:
    lines = summary_lines(finished)
    assert all(line.isprintable() and "\u00a0" not in line and len(line) <= 120 for line in lines)
    head = next(line for line in lines if "RL-CAI − base" in line)
    rates = next(line for line in lines if line.startswith("harmlessness"))
    assert head.index("verdict") == rates.index("better")
    base = logged_values(finished, "base", "harmlessness")
    assert f"{100 * sum(base) / len(base):.1f} %" in rates
    assert any(line.startswith("time ") and "peak memory" in line for line in lines)


def test_prompts_of_ones_own_that_are_gone_leave_numbers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", until="supervised", n_eval=12)
    run.config_dict["prompts"] = str(tmp_path / "gone.txt")
    assert "Request 8 response response" in words(build_report(run).html())


def test_judge_quality_is_shown_when_it_is_packaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Run
) -> None:
    quality = {
        "n": 150,
        "accuracy": {"estimate": 0.93, "low": 0.88, "high": 0.96},
        "sensitivity": 0.9,
        "specificity": 0.95,
    }
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    assert report_account.judge_quality() is None
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "quality.json").write_text(json.dumps(quality))
    assert report_account.judge_quality() == quality
    shown = words(build_report(finished).html())
    assert "Accuracy 93.0 % agreement with labels by hand; 95 % 88.0 – 96.0" in shown
    assert "Measured on 150 responses labelled by hand" in shown
    (tmp_path / "judge" / "quality.json").write_text(json.dumps({"n": 1}))
    with pytest.raises(DataError, match="no 'accuracy'"):
        report_account.judge_quality()


def test_other_runs_and_damaged_files_are_refused(tmp_path: Path) -> None:
    other = Run.create({"steps": 3}, name="train", path=tmp_path / "other")
    with pytest.raises(RunError, match="no run of `alignlab align`"):
        build_report(other)
    run = make_run(tmp_path / "run", until="supervised", n_eval=12)
    (run.artifacts / "responses.jsonl").write_text('{"index": 0}\n')
    with pytest.raises(DataError, match=r"responses\.jsonl, row 1 has no 'text'"):
        build_report(run)


def test_numbers_in_words() -> None:
    assert [points(x) for x in (0.125, -0.125, 0.0004, -0.0004, float("inf"))] == ["+12.5", "−12.5", "0.0", "0.0", "–"]
    assert change(-0.006) == "−0.6\u00a0%"
