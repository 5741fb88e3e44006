"""`alignlab rlhf` on a tiny model: from the command to the report, what goes wrong, and going on after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from alignlab.align.cli import report as report_command
from alignlab.align.diagnostics.cli import diagnose
from alignlab.align.report import build_report
from alignlab.align.rlhf.account import Account
from alignlab.align.rlhf.cli import rlhf
from alignlab.align.rlhf.config import CombineSettings, PolicySettings
from alignlab.core.config import to_dict
from alignlab.core.errors import AlignlabError, ConfigError, DataError, RunError, TrainingError
from alignlab.core.runs import Run
from alignlab.lm.language_model import load


def flags(model: Path, **more: Any) -> list[str]:
    """The smallest run there can be, as it is typed."""
    given = {
        "model": model,
        "dtype": "float32",
        "device": "cpu",
        "max-prompt-tokens": 64,
        "heldout": 0.4,
        "n-eval": 6,
        "rl.steps": 2,
        "rl.batch-size": 4,
        "rl.group-size": 2,
        "rl.max-tokens": 5,
        "rl.rank": 2,
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "asked.txt"
    path.write_text("".join(f"say {word}\n" for word in ("one", "two", "three", "four", "five", "six", "seven")))
    return path


def test_a_function_of_the_users_is_climbed(
    model: Path, rewards: Path, asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    typed = flags(model, method="grpo", prompts=asked, reward=f"{rewards}:vowels", gold=f"{rewards}:short", run=run)
    assert rlhf([*typed, "--name", "tiny-vowels"]) == 0
    said = capsys.readouterr().out
    assert "policy − base [95 %]" in said
    assert "alignlab chat tiny-vowels" in said
    record = Run.read(run)
    assert list(record.stages()) == [
        "setup", "material", "reinforcement", "answers-base", "answers-rl", "measures", "export",
    ]  # fmt: skip
    measures = record.stages()["measures"].output
    assert {(d["quantity"], d["earlier"]) for d in measures["differences"]} == {("reward", "base"), ("gold", "base")}
    assert all(d["adjusted_p"] >= d["p"] for d in measures["differences"])
    assert all("grpo/gold" in row for row in record.metrics())
    logged = [json.loads(line) for line in (run / "responses.jsonl").read_text().splitlines()]
    assert len(logged) == 2  # `alignlab diagnose` and the page Training show them
    rows = [json.loads(line) for line in (run / "artifacts" / "measured.jsonl").read_text().splitlines()]
    for row in rows:  # what is recorded is what the reward says of what was said
        text = row["answers"]["rl"]
        assert row["scores"]["gold"]["rl"] == pytest.approx(-len(text) / 100, abs=1e-6)
    assert load("tiny-vowels", dtype="float32").model.config.n_layers == 2
    page = (run / "report.html").read_text()
    for words in ("GRPO against", "Same prompt, each model", "Largest gain in reward", "Alarms", "KL to the base"):
        assert words in page
    assert rlhf([*typed, "--name", "tiny-vowels"]) == 0  # a finished run is shown, not repeated
    assert capsys.readouterr().out == said
    assert report_command([str(run)]) == 0
    assert diagnose([str(run)]) == 0
    with pytest.raises(ConfigError, match=r"differs in rl.steps \(was 2, now 3\)"):
        rlhf([*typed, "--name", "tiny-vowels", "--rl.steps", "3"])
    rewards.write_text(rewards.read_text() + "\n")
    with pytest.raises(ConfigError, match=r"my_rewards.py has changed since this run was started"):
        rlhf([*typed, "--name", "tiny-vowels"])


def refused(error: type[AlignlabError], words: str, typed: list[str]) -> None:
    with pytest.raises(error, match=words):
        rlhf(typed)


def test_what_is_wrong_is_said_before_there_is_a_run(
    model: Path, rewards: Path, asked: Path, pairs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    vowels = f"{rewards}:vowels"
    refused(ConfigError, "reward, or comparisons to train one on", flags(model, run=run))
    refused(ConfigError, "neither the reward nor another file has some", flags(model, run=run, reward=vowels))
    refused(DataError, "nowhere.jsonl is no file", ["nowhere.jsonl", *flags(model, run=run)])
    refused(DataError, "absent.txt is no file", flags(model, run=run, reward=vowels, prompts=tmp_path / "absent.txt"))
    refused(ConfigError, "unknown name 'vowel'", flags(model, run=run, reward=vowels[:-1], prompts=asked))
    more = {"run": run, "reward": vowels, "prompts": asked}
    bound = ["--combine.method", "constrained", "--combine.maximise", "kind", "--combine.bounds", "vowels", "0.1"]
    refused(ConfigError, "there is no reward 'vowels'", [*flags(model, **{**more, "reward": f"kind={vowels}"}), *bound])
    refused(AlignlabError, "unknown model 'smolm'", flags(Path("smolm"), **more))
    refused(ConfigError, "unknown key 'rl.options.clp'", [*flags(model, **more), "--rl.options", "clp=0.1"])
    refused(ConfigError, "a multiple of rl.group_size", flags(model, method="rloo", **{**more, "rl__group_size": 3}))
    refused(ConfigError, "judge.labels is 'lab', allowed: none", flags(model, judge__labels="lab", **more))
    judged = {**more, "judge__reward": vowels}
    refused(DataError, "judge.labels is 'x.jsonl', which is no file", flags(model, judge__labels="x.jsonl", **judged))
    refused(ConfigError, "comparisons', allowed: another one", flags(model, **{**more, "judge__reward": "comparisons"}))
    assert not run.exists()


def test_rewards_that_fail_stop_the_run_and_say_where(model: Path, rewards: Path, asked: Path, tmp_path: Path) -> None:
    for name, words in (
        ("broken", r"reward broken raised KeyError: 'no such thing'; one by one, response 0"),
        ("hanging", r"reward hanging took longer than 0.2 s for 4 responses"),
        ("undefined", r"reward undefined: the reward of response 0 is nan, rewards must be finite \(4 of 4"),
        ("Foreign", r"the tokenizer of reward Foreign has 7 tokens and the policy's 9\d\d, .*'any' if that is meant"),
        ("nothing", r"equal in each of the 2 rollout batches \(the last: 0\), so nothing was learned"),
    ):
        run = tmp_path / name
        typed = flags(model, method="grpo", prompts=asked, reward=f"{rewards}:{name}", run=run)
        typed += ["--rl.reward-time-limit", "0.2"] if name == "hanging" else []
        refused(TrainingError, words, typed)
        assert Run.read(run).state == "failed"
        assert "unfinished" in build_report(Run.read(run)).html()
    other = Run.create({}, name="rlhf", path=tmp_path / "other")
    other.close()
    with pytest.raises(RunError, match="no run of `alignlab rlhf`"):
        Account(Run.read(tmp_path / "other"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ppo", "grpo", "rloo", "reinforce"])
def test_every_stage_with_every_method(
    method: str, tiny: ModuleType, model: Path, pairs: Path, rewards: Path, tmp_path: Path
) -> None:
    config = tiny.tiny_config(
        model,
        pairs,
        method=method,
        gold=f"{rewards}:short",
        reward=("trained", f"0.1*{rewards}:vowels"),
        combine=CombineSettings(normalise="running"),
        judge=tiny.JudgeSettings(reward="comparisons"),
    )
    run = tiny.run_pipeline(config, tmp_path / "run")
    stages = run.stages()
    assert [name for name in stages if not name.startswith("answers")] == [
        "setup", "material", "supervised", "reward-model", "judge-model", "reinforcement", "measures", "export",
    ]  # fmt: skip
    measures = stages["measures"].output
    earlier = {d["earlier"] for d in measures["differences"]}
    assert earlier == {"base", "sft"}
    assert set(measures["quantities"]) == {"reward trained", "reward vowels", "gold"}
    assert measures["wins"]["sft"]["labels"]["n"] == stages["material"].output["kept_comparisons"]
    assert {"reward", "reward/trained", "reward/vowels", "gold"} <= {
        name.removeprefix(f"{method}/") for row in run.metrics() for name in row
    }
    assert Account(run).finished


@pytest.mark.slow
def test_a_reward_run_and_a_task_are_climbed(model: Path, pairs: Path, tmp_path: Path) -> None:
    from alignlab.align.reward.cli import reward

    trained = tmp_path / "reward"
    assert reward(["train", str(pairs), "--model", str(model), "--run", str(trained), "--rank", "2"]) == 0
    typed = flags(model, reward=trained, prompts=pairs, run=tmp_path / "run", judge__reward=trained)
    assert rlhf(typed) == 0
    task = flags(model, method="rloo", reward="task:lab-arithmetic", task__limit=12, run=tmp_path / "task")
    with pytest.raises(TrainingError, match="nothing was learned"):  # a random model solves none
        rlhf(task)


@pytest.mark.slow
def test_kills_leave_no_trace(model: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("tiny_rlhf.py"), model, tmp_path, "5", "3"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) >= 3, done.stdout
    assert "different: []" in done.stdout, done.stdout


def test_the_command_line_says_everything_that_a_configuration_can(tiny: ModuleType, model: Path) -> None:
    settings = to_dict(tiny.tiny_config(model, None, reward=("x",)))
    assert set(settings["rl"]) == set(PolicySettings.__dataclass_fields__)


def test_help_is_light() -> None:
    code = (
        "import sys\nfrom alignlab.align.rlhf.cli import rlhf\n"
        "try:\n    rlhf(['--help'])\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--comparisons" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.slow
def test_a_language_model_judges_and_is_measured_first(
    model: Path, rewards: Path, asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = flags(model, method="reinforce", prompts=asked, reward=f"{rewards}:vowels", run=tmp_path / "run")
    assert rlhf([*typed, "--judge.model", str(model), "--judge.labels", "lab"]) == 0
    wins = Run.read(tmp_path / "run").stages()["measures"].output["wins"]["base"]
    assert wins["judge"].startswith(str(model))
    # A random model puts no probability on the letters: no verdict is made up, and none is a tie.
    told = "No win rate against the base" if "failed" in wins else "prefers the policy to the base"
    assert told in capsys.readouterr().out
    assert "failed" in wins or wins["wins"] + wins["ties"] + wins["losses"] + wins["missing"] == 3


@pytest.mark.slow
def test_the_recipe_of_summaries_runs_on_the_hubs_format(model: Path, tmp_path: Path) -> None:
    posts, rows = [], []
    for i in range(24):
        told = {"subreddit": "AskDocs", "title": f"Title {i}", "post": f"This is post number {i}."}
        posts.append({**told, "summary": f"Post {i}."})
        texts = [{"text": f" good {i}", "policy": "sup2"}, {"text": f" bad {i} and long", "policy": "ref"}]
        rows.append({"info": {"id": f"t3_{i}", **told}, "summaries": texts[:: 1 - 2 * (i % 2)], "choice": i % 2})
    files = {"comparisons": rows, "posts": posts}
    for name, lines in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    typed = flags(
        model, demonstrations=tmp_path / "posts.jsonl", prompts=tmp_path / "posts.jsonl", run=tmp_path / "run"
    )
    small = ["--max-prompt-tokens", "96", "--sft.rank", "2", "--reward-model.rank", "2", "--sft.row-length", "128"]
    recipe = str(Path(__file__).parents[3] / "recipes" / "summarise.yaml")
    assert rlhf([str(tmp_path / "comparisons.jsonl"), "--config", recipe, *typed, *small]) == 0
    stages = Run.read(tmp_path / "run").stages()
    counts = stages["material"].output
    assert counts["examples"] + counts["heldout_prompts"] <= 24  # no summary of a held-out post was learned
    assert counts["judge_comparisons"] > 0
    row = json.loads((tmp_path / "run" / "artifacts" / "measured.jsonl").read_text().splitlines()[0])
    assert row["prompt"].startswith("SUBREDDIT: r/AskDocs\n\nTITLE: ")
    assert row["prompt"].endswith("\n\nTL;DR:")
    assert "sft" in stages["measures"].output["wins"]
