"""What a reward on the command line may be, and what is said of one that cannot be one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from alignlab.align.rl.constrained import LagrangianReward
from alignlab.align.rl.endpoint_reward import EndpointReward
from alignlab.align.rl.rewards import Combined, Guarded, RewardError, TaskReward
from alignlab.align.rlhf.config import CombineSettings, PolicySettings, RLHFConfig, TaskSettingsOfReward
from alignlab.align.rlhf.methods import CONFIGS, method_config
from alignlab.align.rlhf.rewards import RewardSpec, joined, open_reward, prompts_of
from alignlab.core.config import load_yaml
from alignlab.core.errors import ConfigError, ModelError

PLAIN = CombineSettings()
TASK = TaskSettingsOfReward(limit=6)
RECIPES = Path(__file__).parents[3] / "recipes"


def opened(spec: object) -> object:
    return open_reward(str(spec), TASK, dtype="float32", device="cpu", seed=0)


def test_every_kind_of_reward_is_opened(rewards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vowels = opened(f"{rewards}:vowels")
    assert Guarded(vowels).score(["p"], ["aeio"]).tolist() == pytest.approx([0.8])  # type: ignore[arg-type]
    assert Guarded(opened(f"{rewards}:Counting")).score(["p"], ["abc"]).tolist() == [3.0]  # type: ignore[arg-type]
    monkeypatch.chdir(rewards.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert Guarded(opened("my_rewards:short")).score(["p"], ["abc"]).tolist() == pytest.approx([-0.03])  # type: ignore[arg-type]
    task = opened("task:lab-arithmetic")
    assert isinstance(task, TaskReward)
    asked = prompts_of(task).train
    assert len(asked) == 6
    targets = [sample.target for sample in task.task.dataset]
    assert task.score(asked, [f"It is {target}." for target in targets]).tolist() == [1.0] * 6
    assert task.score(asked[:1], [""]).tolist() == [0.0]  # unscorable is worth the worst, never the best
    assert isinstance(opened("http://localhost:1/score"), EndpointReward)
    assert not prompts_of(vowels).train  # type: ignore[arg-type]
    sums = opened("alignlab.align.rlhf.arithmetic:Sums")
    brought = prompts_of(sums)  # type: ignore[arg-type]
    assert (len(brought.train), len(brought.heldout)) == (600, 128)
    assert not set(map(repr, brought.train)) & set(map(repr, brought.heldout))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{file}:vowel", "unknown name 'vowel' there, did you mean 'vowels'"),
        ("{file}:text", "reward is a str, allowed: a function"),
        ("{file}:three", r"takes \(prompts, responses, answers\), right is a function of \(prompts, responses\)"),
        ("{folder}/absent.py:f", "absent.py, which is not there"),
        ("{folder}/wrong.py:f", "wrong.py cannot be run: SyntaxError"),
        ("{folder}/raises.py:f", "raises.py cannot be run: ZeroDivisionError"),
        ("{folder}/raises.py", "holds no reward model"),
        ("no.such.module:f", "there is no module 'no' here"),
        ("math:pi", "reward is a float"),
        ("pathlib:Path.cwd", "which is no file or directory here"),
        ("somewhere", "which is no file or directory here; allowed: the directory of a reward model"),
        ("task:lab-arithmatic", "did you mean 'lab-arithmetic'"),
        ("task:gsm8k", "task 'gsm8k' needs data"),
        ("{folder}", "holds no reward model"),
    ],
)
def test_what_is_no_reward_is_refused(rewards: Path, spec: str, words: str) -> None:
    folder = rewards.parent
    (folder / "wrong.py").write_text("def f(:\n")
    (folder / "raises.py").write_text("1 / 0\n")
    unlimited = TaskSettingsOfReward()
    with pytest.raises((ConfigError, ModelError), match=words):
        open_reward(spec.format(file=rewards, folder=folder), unlimited, dtype="float32", device="cpu", seed=0)


def test_weights_are_read_and_several_rewards_add_up(rewards: Path) -> None:
    spec = RewardSpec.parse(f"0.5*{rewards}:vowels")
    assert (spec.weight, spec.label, spec.file) == (0.5, "vowels", rewards)
    assert RewardSpec.parse("-1e-2*https://here.example/score?x=1").label == "here.example"
    for wrong in ("x*reward", "0.5*", "nan*reward", ""):
        with pytest.raises(ConfigError, match=r"allowed: \[NAME=\]\[WEIGHT\*\]REWARD"):
            RewardSpec.parse(wrong)
    one, other = opened(f"{rewards}:vowels"), opened(f"{rewards}:Counting")
    both = joined({"a": (one, 2.0), "b": (other, 0.5)}, PLAIN, 10.0)  # type: ignore[arg-type]
    assert isinstance(both, Combined)
    assert both.score(["p"], ["aeio"]).tolist() == pytest.approx([2 * 0.8 + 0.5 * 4])
    assert joined({"a": (one, 1.0)}, PLAIN, 10.0) is one  # type: ignore[arg-type]


def test_rewards_are_held_above_bounds_by_name(rewards: Path) -> None:
    spec = RewardSpec.parse(f"kind={rewards}:vowels")
    assert (spec.name, spec.label, spec.weight) == ("kind", "kind", 1.0)
    assert RewardSpec.parse("https://a.example/?x=1").name == ""
    one, other = opened(f"{rewards}:vowels"), opened(f"{rewards}:short")
    bound = CombineSettings(method="constrained", maximise="kind", bounds={"brief": -0.1})
    parts = {"kind": (one, 1.0), "brief": (other, 1.0)}
    assert isinstance(joined(parts, bound, 10.0), LagrangianReward)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="there is no reward 'brief', allowed: kind, short"):
        joined({"kind": (one, 1.0), "short": (other, 1.0)}, bound, 10.0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"weights .*which only combine.method weighted has a use for"):
        joined({"kind": (one, 2.0), "brief": (other, 1.0)}, bound, 10.0)  # type: ignore[arg-type]


def test_an_error_within_a_reward_is_said_once(rewards: Path) -> None:
    both = joined({"a": (opened(f"{rewards}:vowels"), 1.0), "b": (opened(f"{rewards}:broken"), 1.0)}, PLAIN, 10.0)  # type: ignore[arg-type]
    with pytest.raises(
        RewardError, match=r"^reward broken raised KeyError: 'no such thing'; one by one, response 0"
    ) as told:
        Guarded(both).score(["p", "q"], ["a", "b"])
    assert (told.value.row, str(told.value).count("one by one")) == (0, 1)


@pytest.mark.parametrize("method", list(CONFIGS))
def test_flags_and_options_become_the_methods_configuration(method: str) -> None:
    settings = PolicySettings(batch_size=12, group_size=3, steps=7, rank=4, options=("warmup_steps=2",))
    config = method_config(method, settings, seed=5)  # type: ignore[arg-type]
    assert (config.steps, config.warmup_steps) == (7, 2)
    assert config.lora is not None
    assert config.lora.rank == 4
    responses = getattr(config, "batch_size", None) or config.prompts_per_step * config.group_size  # type: ignore[union-attr]
    assert responses == 12
    assert getattr(config, "group_size", 1) == (3 if method in ("grpo", "rloo") else 1)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("clip_hgh=0.3", "unknown key 'rl.options.clip_hgh', did you mean 'clip_high'"),
        ("clip_high=wide", "rl.options.clip_high is 'wide', allowed: a number"),
        ("scale", "allowed: NAME=VALUE"),
        ("steps=3", "rl.options names steps"),
        ("scale=batches", "rl.options.scale is 'batches', allowed: 'group'"),
        ("clip_low=[", "not valid YAML"),
    ],
)
def test_wrong_options_are_refused(option: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        method_config("grpo", PolicySettings(options=(option,)), seed=0)


def test_configurations_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"rl.batch_size is 32, allowed: a multiple of rl.group_size \(5\)"):
        RLHFConfig(method="grpo", rl=PolicySettings(group_size=5))
    for wrong, words in (
        ({}, "reward, or comparisons to train one on"),
        ({"reward": ("2*trained",)}, "without comparisons to train it on"),
        ({"reward": ("x",), "gold": "trained"}, "gold is 'trained'"),
    ):
        with pytest.raises(ConfigError, match=words):
            RLHFConfig(**wrong).check_sources()  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", ["summarise", "helpful", "arithmetic"])
def test_the_recipes_are_configurations(recipe: str) -> None:
    config = load_yaml(RLHFConfig, RECIPES / f"{recipe}.yaml")
    found = method_config(config.method, config.rl, config.seed)
    assert (found.steps, found.max_tokens) == (config.rl.steps, config.rl.max_tokens)
