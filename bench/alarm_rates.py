"""How often the alarms of `alignlab diagnose` go off by chance, and how soon on what is planted for them.

    python bench/alarm_rates.py [--trainings 100] [--seed 0] [--json FILE]

Simulated trainings of 60 steps with 16 answers to 40 prompts (`alignlab.align.diagnostics.simulated`); no model is
run, one core is enough. Prints a table; `--json` also writes it as numbers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from alignlab.align.diagnostics.alarms import Alarm, Limits, alarms
from alignlab.align.diagnostics.simulated import FAILURES, healthy, spoilt
from alignlab.stats.interval import wilson

LENGTHS = (25, 60, 140)
HACKS = {
    "gold turns half-way, falls by 0.8": lambda t: t if t < 0.5 else 0.5 - 1.6 * (t - 0.5),
    "gold turns half-way, falls by 1.6": lambda t: t if t < 0.5 else 0.5 - 3.2 * (t - 0.5),
    "gold falls by 1.5 from the start": lambda t: -1.5 * t,
}
BOUNDARIES = {
    "clipping": ("clip_fraction", 0.3, 0.3, 0.05),
    "value function": ("explained_variance", 0.0, 0.0, 0.12),
    "repetition": ("repetition", 0.1, 0.2, 0.04),
    "entropy collapse": ("entropy", 2.0, 0.5, 0.05),
    "length growth": ("response_length", 40.0, 52.0, 3.0),
}
"""An alarm's metric exactly where it must not yet go off: first quarter, rest, deviation of the noise."""


def row(case: str, given: list[int], n: int) -> dict[str, Any]:
    """One line of the table: how many trainings gave the alarm, and the step at which half of them had."""
    share = wilson(len(given), n)
    step = float(np.median(given)) if given else None
    return {"case": case, "given": len(given), "of": n, "low": share.low, "high": share.high, "median_step": step}


def seen(name: str, given: list[Alarm]) -> list[int]:
    """The step at which an alarm was first seen, if it was."""
    return [alarm.step for alarm in given if alarm.name == name][:1]


def by_chance(n: int, seed: int) -> list[dict[str, Any]]:
    """Healthy trainings, and trainings on the boundary of each null."""
    found: list[int] = []
    for i in range(n):
        steps = LENGTHS[i % len(LENGTHS)]
        rows, records = healthy(seed + i, steps)
        given = alarms(rows, responses=records, limits=Limits(kl_budget=15.0, total_steps=steps))
        found += [given[0].step] if given else []
    table = [row("healthy, any alarm", found, n)]
    for singly in (True, False):
        found = []
        for i in range(n):
            rows, records = healthy(seed + i, 60, gold=lambda t: 0.0, reward=lambda t: 4 * t)
            given = alarms(rows, responses=records if singly else ())
            found += seen("reward hacking", given)
        table.append(row(f"gold flat, reward up: hacking, over {'prompts' if singly else 'steps'}", found, n))
    for name, (metric, first, rest, noise) in BOUNDARIES.items():
        found = []
        for i in range(n):
            rng, (rows, _) = np.random.default_rng(seed + i), healthy(seed + i, 60)
            for k, one in enumerate(rows):
                one[f"ppo/{metric}"] = float((first if k < 15 else rest) + rng.normal(0, noise))
            found += seen(name, alarms(rows))
        table.append(row(f"exactly at the limit: {name}", found, n))
    return table


def planted(n: int, seed: int) -> list[dict[str, Any]]:
    """Trainings in which one thing goes wrong."""
    table = []
    limits = Limits(kl_budget=15.0, total_steps=60)
    for name, (metric, course) in FAILURES.items():
        given = [seen(name, alarms(spoilt(metric, course, seed + i), limits=limits)) for i in range(n)]
        table.append(row(name, [step for steps in given for step in steps], n))
    for words, gold in HACKS.items():
        for singly in (True, False):
            found: list[int] = []
            for i in range(n):
                rows, records = healthy(seed + i, 60, gold=gold)
                found += seen("reward hacking", alarms(rows, responses=records if singly else ()))
            table.append(row(f"reward hacking: {words}, over {'prompts' if singly else 'steps'}", found, n))
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainings", type=int, default=100, help="simulated trainings a line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tables = {"by chance": by_chance(options.trainings, options.seed)}
    tables["planted"] = planted(options.trainings, options.seed)
    for name, table in tables.items():
        print(f"\n{name:72} given        95 % interval   median step")
        for one in table:
            step = "" if one["median_step"] is None else f"{one['median_step']:.0f}"
            share = f"{one['given']} of {one['of']}"
            print(f"{one['case']:72} {share:12} {one['low']:.3f} to {one['high']:.3f}   {step:>6}")
    if options.json is not None:
        options.json.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    main()
