"""An RLHF run on a random model of a few thousand weights, as a library of the tests and as a program.

python tiny_rlhf.py MODEL FOLDER KILLS SEED   run it in FOLDER/whole; then in FOLDER/killed with kill -9 at KILLS
                                              random moments, and to the end; says whether both are equal
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from killed_children import in_child

from alignlab.align.rlhf.config import JudgeSettings, PolicySettings, RewardSettings, RLHFConfig, SFTSettings
from alignlab.align.rlhf.pipeline import RLHFPipeline
from alignlab.align.rlhf.report import build_report
from alignlab.core.progress import Progress
from alignlab.core.runs import Run
from alignlab.lm.cpu_step.step import loaded

spec = importlib.util.spec_from_file_location("tiny_run", Path(__file__).parents[1] / "tiny_run.py")
assert spec is not None
assert spec.loader is not None
tiny_run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_run)

CALLABLE = '''"""Rewards of a user."""


def vowels(prompts, responses):
    return [sum(letter in "aeiou" for letter in text) / (1 + len(text)) for text in responses]


def short(prompts, responses):
    return [-len(text) / 100 for text in responses]


def broken(prompts, responses):
    raise KeyError("no such thing")


def nothing(prompts, responses):
    return [0.0 for _ in responses]


def three(prompts, responses, answers):
    return [0.0 for _ in responses]


class Counting:
    name = "counting"

    def score(self, prompts, responses):
        return [float(len(text)) for text in responses]


def hanging(prompts, responses):
    import time

    time.sleep(5)


def undefined(prompts, responses):
    return [float("nan") for _ in responses]


class Foreign:
    """A reward model that reads texts with a tokenizer of its own."""

    class tokenizer:
        vocab_size = 7

    def score(self, prompts, responses):
        return [0.0 for _ in responses]


text = "no reward"
'''


def write_comparisons(path: Path, count: int = 60) -> Path:
    """HH-RLHF's notation: two answers to each of `count / 2` questions, better ones with vowels."""
    rng, rows = random.Random(0), []
    for i in range(count):
        asked = f"\n\nHuman: question {i // 2}\n\nAssistant: "
        good, bad = ("".join(rng.choices(letters, k=rng.randint(4, 9))) for letters in ("aeiou", "bcdfg"))
        rows.append({"chosen": asked + good, "rejected": asked + bad})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_callable(folder: Path) -> Path:
    """The user's file of rewards."""
    path = folder / "my_rewards.py"
    path.write_text(CALLABLE)
    return path


def tiny_config(model: Path, comparisons: Path | None, **changes: Any) -> RLHFConfig:
    """Every stage, with as little of everything as there can be."""
    settings: dict[str, Any] = {
        "comparisons": comparisons,
        "model": str(model),
        "name": "tiny-rlhf",
        "heldout": 0.4,
        "n_eval": 8,
        "batch_size": 4,
        "dtype": "float32",
        "device": "cpu",
        "max_prompt_tokens": 64,
        "sft": SFTSettings(rank=2, batch_size=2, row_length=64),
        "reward_model": RewardSettings(rank=2, batch_size=4, max_length=64),
        "rl": PolicySettings(steps=3, batch_size=4, group_size=2, max_tokens=6, rank=2, checkpoint_every=1),
    }
    return RLHFConfig(**{**settings, **changes})


def run_pipeline(config: RLHFConfig, path: Path) -> Run:
    """Make or continue the run in `path`, with its report; returns it closed."""
    run = Run.open(path, config=config) if path.exists() else Run.create(config, name="rlhf", path=path)
    with run:
        RLHFPipeline(config, run, Progress.silent()).execute()
        build_report(run).save(run.path / "report.html")
    return run


def results(path: Path) -> dict[str, object]:
    """All that a run came to, without times and places."""
    run = Run.read(path)
    found: dict[str, object] = {"metrics": run.metrics(), "state": run.state}
    for name, record in run.stages().items():
        found[f"stage {name}"] = {key: value for key, value in record.output.items() if key != "path"}
    for file in sorted(path.glob("artifacts/**/*")):
        if file.suffix in (".jsonl", ".safetensors"):
            found[str(file.relative_to(path))] = file.read_bytes()
    found["model"] = (path / "model" / "model.safetensors").read_bytes()
    return found


def main(model: Path, folder: Path, kills: int, seed: int) -> None:
    """See the head of this file."""
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")  # loading a model imports it; here once, not in every child
    loaded()
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(
        model,
        write_comparisons(folder / "pairs.jsonl"),
        gold=f"{write_callable(folder)}:short",
        judge=JudgeSettings(reward="comparisons"),
    )
    started = time.monotonic()
    in_child(lambda: run_pipeline(config, folder / "whole"))
    duration = time.monotonic() - started
    moments, done = random.Random(seed), 0
    for _ in range(kills):
        after = moments.uniform(0.3, 1.7) * duration / kills
        done += in_child(lambda: run_pipeline(config, folder / "killed"), after)
    in_child(lambda: run_pipeline(config, folder / "killed"))
    whole, killed = results(folder / "whole"), results(folder / "killed")
    different = sorted(name for name in whole.keys() | killed.keys() if whole.get(name) != killed.get(name))
    print(f"{done} kills; different: {different}; {len(whole)} compared")


def changed(config: RLHFConfig, **changes: Any) -> RLHFConfig:
    """The configuration with other values."""
    return dataclasses.replace(config, **changes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
