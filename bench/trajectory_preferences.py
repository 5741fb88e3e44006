"""Learning a control task from preferences (Christiano et al. 2017): the table of docs/trajectory-preferences.md.

    python bench/trajectory_preferences.py [--env CartPole-v1] [--seeds 5] [--steps 60000] [--labels 700]

For every seed: an agent trained on the task's own reward, and agents that learn from a synthetic teacher's
comparisons: right ones, chosen by the disagreement of the ensemble; a tenth of them wrong; two fifths fewer; and chosen
at random. All take the same number of steps. Prints returns of 100 episodes and the share of the true reward's gain
over random actions, with Student's t intervals over seeds, and what wrong answers cost, paired by seed. What is done is
kept in --out and not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignlab.align.trajectories.learning import (
    LearningSettings,
    learn_from_preferences,
    learn_with_true_reward,
    with_budget,
)
from alignlab.align.trajectories.measures import over_seeds
from alignlab.align.trajectories.policy import evaluate_agent
from alignlab.align.trajectories.teacher import SyntheticTeacher
from alignlab.core.files import append_jsonl
from alignlab.core.rng import derive_seed

TRUE, RIGHT, WRONG, FEWER, RANDOM = "true reward", "right", "10 % wrong", "40 % fewer", "random questions"
ROWS = (TRUE, RIGHT, WRONG, FEWER, RANDOM)
EPISODES = 100


def measure(row: str, settings: LearningSettings, seed: int) -> dict[str, Any]:
    """Train one agent; its return at the end and what it took."""
    started = time.process_time()
    if row == TRUE:
        learned = learn_with_true_reward(settings, seed=seed)
    else:
        fewer = with_budget(settings, round(0.6 * settings.labels))
        asked = {FEWER: fewer, RANDOM: replace(settings, queries="random")}.get(row, settings)
        learned = learn_from_preferences(asked, SyntheticTeacher(0.1 if row == WRONG else 0.0), seed=seed)
    seconds = time.process_time() - started
    test = derive_seed(seed, "test episodes")
    returns = evaluate_agent(learned.agent, settings.env, episodes=EPISODES, seed=test)
    chance = evaluate_agent(None, settings.env, episodes=EPISODES, seed=test)
    return {
        "return": float(returns.mean()),
        "random": float(chance.mean()),
        "correlation": learned.correlation,
        "labels": None if learned.comparisons is None else len(learned.comparisons),
        "ties": None if learned.comparisons is None else float((learned.comparisons.labels == 0.5).mean()),
        "seconds": seconds,
        "curve": learned.curve,
    }


def table(env: str, found: Mapping[tuple[str, int], Mapping[str, Any]], seeds: int) -> None:
    """Print the rows that are complete."""
    print(f"{env}, {seeds} seeds")
    print("| agent | return | share of the true reward's gain | correlation | CPU seconds |")
    print("|---|---|---|---|---|")
    shares: dict[str, list[float]] = {}
    for row in ROWS:
        cells = [found[row, seed] for seed in range(seeds) if (row, seed) in found]
        if len(cells) < seeds:
            continue
        shares[row] = [
            (cell["return"] - cell["random"]) / (found[TRUE, seed]["return"] - cell["random"])
            for seed, cell in enumerate(cells)
        ]
        known = [cell["correlation"] for cell in cells if cell["correlation"] is not None]
        correlation = shown(known, 3) if known else "–"
        seconds = sum(cell["seconds"] for cell in cells) / seeds
        print(
            f"| {row} | {shown([c['return'] for c in cells], 0)} | {shown(shares[row], 3)} "
            f"| {correlation} | {seconds:.0f} |"
        )
    for row in (WRONG, FEWER, RANDOM):
        if row in shares:
            less = [a - b for a, b in zip(shares[row], shares[RIGHT], strict=True)]
            print(f"{row} less {RIGHT}, share of the gain: {shown(less, 3)}")


def shown(values: list[float], digits: int) -> str:
    interval = over_seeds(values)
    return f"{interval.estimate:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="first seed to train, for several processes")
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--labels", type=int, default=700)
    parser.add_argument("--length", type=int, default=50, help="steps of a clip")
    parser.add_argument("--out", type=Path, default=Path("trajectory_preferences.jsonl"))
    parser.add_argument("--only-table", action="store_true", help="train nothing")
    options = parser.parse_args()
    settings = LearningSettings(env=options.env, steps=options.steps, labels=options.labels, length=options.length)
    key = [options.env, options.steps, options.labels, options.length]
    found: dict[tuple[str, int], dict[str, Any]] = {}
    if options.out.exists():
        for line in options.out.read_text().splitlines():
            record = json.loads(line)
            if record["key"] == key:
                found[record["row"], record["seed"]] = record
    for seed in range(options.seeds if options.only_table else options.first, options.seeds):
        for row in ROWS:
            if (row, seed) not in found:
                found[row, seed] = {"key": key, "row": row, "seed": seed, **measure(row, settings, seed)}
                append_jsonl(options.out, [found[row, seed]])
                print(f"{options.env} seed {seed}, {row}: {found[row, seed]['return']:.1f}", flush=True)
    table(options.env, found, options.seeds)


if __name__ == "__main__":
    main()
