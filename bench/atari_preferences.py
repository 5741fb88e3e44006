"""One Atari game from demonstrations and preferences (Ibarz et al. 2018) against imitation, on one GPU in ten minutes.

    python bench/atari_preferences.py                                    # seconds on a CPU: that everything runs
    python bench/atari_preferences.py --scale full --device cuda --out atari --game pong --slips 0.3 --minutes 8 \
        --arms preferences+demonstrations:1 demonstrations:1 --jobs 2 --threads 14
    python bench/atari_preferences.py --part table --scale full --out atari

Agents of every arm and seed are trained as processes beside each other (`--jobs`), the longest first; each stops when
its minutes are over and says so. A second agent that learns by playing about halves the steps of both. Every one leaves
a file in --out/agents and is not trained again; --part table reads what is there. It prints the scores of test episodes
with intervals over episodes and over seeds, the method against each other arm, paired by the episodes' beginnings and
corrected by Holm, how right the reward model is, and alarms where learned and true reward part. --out/results.json has
all of it, --out/table.txt the table, --out/report.html the curves, --out/logs every agent's metrics. --part speed
measures what an update and a step cost, which says what a budget of minutes buys; --part reward fits a reward model to
clips of scripted players who slip more or less, without any learning to play, and prints how often it orders fresh
pairs as the score does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from job_processes import Job, run_jobs

from alignlab.align.atari.arms import ARMS
from alignlab.align.atari.clip_reward import ClipReward, draw_clips
from alignlab.align.atari.demonstrations import record_demonstrations
from alignlab.align.atari.learning import learn_atari
from alignlab.align.atari.measures import METHOD, ArmResult, as_lines, as_record, measure_arm
from alignlab.align.atari.page import atari_page
from alignlab.align.atari.replay import Episodes, Replay
from alignlab.align.atari.settings import SCALES, AtariSettings
from alignlab.align.trajectories.teacher import SyntheticTeacher
from alignlab.core.device import pick_device
from alignlab.core.files import append_jsonl, atomic_write
from alignlab.core.rng import numpy_generator, torch_generator
from alignlab.stats.interval import wilson

DEFAULT_ARMS = {METHOD: 3, "true reward": 2, "demonstrations": 3}
"""Seeds of each arm, those that train longest first."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("train", "table", "speed", "reward", "agent"), default="train")
    parser.add_argument("--scale", choices=tuple(SCALES), default="smoke")
    parser.add_argument("--game", default="boxing")
    parser.add_argument("--arms", nargs="+", default=[f"{a}:{n}" for a, n in DEFAULT_ARMS.items()], help="ARM:SEEDS")
    parser.add_argument("--steps", type=int, help="of each agent; none: what suits the scale")
    parser.add_argument("--labels", type=int)
    parser.add_argument("--round-size", type=int, help="comparisons asked at once after the first")
    parser.add_argument("--demonstrated", type=int)
    parser.add_argument("--slips", type=float)
    parser.add_argument("--margin", type=float)
    parser.add_argument("--reward-scale", type=float, help="deviation of the learned reward, a step")
    parser.add_argument("--updates", type=int, help="after each step of all copies of the game")
    parser.add_argument("--threads", type=int, help="that play the games of one agent")
    parser.add_argument("--episodes", type=int, default=0, help="test episodes; none: 30, or 3 at scale smoke")
    parser.add_argument("--minutes", type=float, help="of each agent's training")
    parser.add_argument("--jobs", type=int, default=1, help="agents trained beside each other")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("atari_preferences"))
    parser.add_argument("--agent", help="ARM:SEED, for --part agent")
    options = parser.parse_args(argv)
    options.episodes = options.episodes or (3 if options.scale == "smoke" else 30)
    for arm, _ in planned(options):
        if arm not in ARMS:
            parser.error(f"--arms names {arm!r}, allowed: {', '.join(ARMS)}, each with :SEEDS or without")
    return options


def planned(options: argparse.Namespace) -> list[tuple[str, int]]:
    """Arm and seed of every agent, all first seeds first."""
    counts = [(name, int(count or 1)) for name, _, count in (arm.partition(":") for arm in options.arms)]
    return [(arm, seed) for seed in range(max(n for _, n in counts)) for arm, n in counts if seed < n]


def settings_of(options: argparse.Namespace) -> AtariSettings:
    names = ("steps", "labels", "round_size", "demonstrated", "slips", "updates", "threads")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    settings = replace(SCALES[options.scale](), game=options.game, **given)
    if options.margin is not None:
        settings = replace(settings, agent=replace(settings.agent, margin=options.margin))
    if options.reward_scale is not None:
        settings = replace(settings, reward=replace(settings.reward, scale=options.reward_scale))
    return settings


def file_of(options: argparse.Namespace, arm: str, seed: int) -> Path:
    found: Path = options.out / "agents" / f"{options.game}-{arm.replace(' ', '-').replace('+', '-')}-{seed}.json"
    return found


def train(options: argparse.Namespace) -> None:
    """Every agent that is not there yet, `jobs` at a time; a failed one is told at the end, and the others go on."""
    started, jobs = time.monotonic(), []
    for arm, seed in planned(options):
        command = [sys.executable, __file__, *passed_on(options), "--part", "agent", "--agent", f"{arm}:{seed}"]
        # Beside each other, processes whose libraries take every core slow each other down tenfold.
        threads = {"OMP_NUM_THREADS": "1"}
        jobs.append(Job(f"{arm}, seed {seed}", command, file_of(options, arm, seed), environment=threads))
    failed = run_jobs(jobs, options.jobs)
    print(f"trained and tested in {(time.monotonic() - started) / 60:.1f} minutes")
    table(options)
    if failed:
        raise SystemExit(f"{len(failed)} of {len(jobs)} agents failed: {'; '.join(failed)}")


def passed_on(options: argparse.Namespace) -> list[str]:
    """The flags that an agent's own process needs."""
    names = ("scale", "game", "steps", "labels", "round_size", "demonstrated", "slips", "margin", "reward_scale",
             "updates", "threads", "episodes", "minutes", "device", "out")  # fmt: skip
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def train_agent(options: argparse.Namespace, arm: str, seed: int) -> None:
    """One agent, in this process."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")  # the convolutions' own precision on a GPU
    target, log = file_of(options, arm, seed), options.out / "logs" / file_of(options, arm, seed).name
    log.parent.mkdir(parents=True, exist_ok=True)
    log = log.with_suffix(".jsonl")
    log.unlink(missing_ok=True)
    started, seconds = time.monotonic(), None if options.minutes is None else 60 * options.minutes

    def tell(step: int, numbers: dict[str, float]) -> None:
        record = {"step": step, "seconds": round(time.monotonic() - started, 1), **numbers}
        append_jsonl(log, [{k: None if v != v else v for k, v in record.items()}])
        if "score" in numbers:
            print(f"{arm}, seed {seed}, {record['seconds']:.0f} s, step {step}: {numbers['score']:.1f}", flush=True)

    found, _ = measure_arm(
        settings_of(options), arm, seed=seed, episodes=options.episodes, device=pick_device(options.device),
        teacher=SyntheticTeacher(), log=tell, seconds=seconds,
    )  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, json.dumps(asdict(found)))


def table(options: argparse.Namespace) -> None:
    """What is there, as text and as JSON."""
    files = [file_of(options, arm, seed) for arm, seed in planned(options)]
    results = [read_result(file) for file in files if file.is_file()]
    if not results:
        raise SystemExit(f"{options.out / 'agents'} holds no agent of these arms yet")
    about: dict[str, Any] = {
        "game": options.game,
        "episodes": options.episodes,
        "settings": asdict(settings_of(options)),
    }
    if options.device != "cpu" and torch.cuda.is_available():
        about["device"] = torch.cuda.get_device_name()
    lines = [f"{options.game}, scale {options.scale}, {len(results)} of {len(files)} agents", *as_lines(results)]
    lines += [f"curve, {r.arm}, seed {r.seed}: " + " ".join(f"{n}:{s:.1f}" for n, s in r.curve) for r in results]
    atomic_write(options.out / "results.json", json.dumps(about | as_record(results), indent=1))
    atomic_write(options.out / "table.txt", "\n".join(lines) + "\n")
    atari_page(results, options.game).save(options.out / "report.html")
    print("\n".join(lines))


def read_result(file: Path) -> ArmResult:
    found = json.loads(file.read_text())
    return ArmResult(**{f.name: found[f.name] for f in fields(ArmResult)})


def speed(options: argparse.Namespace) -> None:
    """Seconds of a short training with the true reward, with and without updates: what playing and learning cost."""
    short = replace(settings_of(options), evaluations=1, curve_episodes=1, most_steps=5, imitation=1, demonstrated=200)
    rounds = 20 if options.scale == "smoke" else 200
    first = short.agent.batch_size + short.copies * 20
    found = {}
    for name, steps in (("playing", first), ("both", first + rounds * short.copies)):
        made = replace(short, steps=steps, first_steps=first)
        found[name] = learn_atari(made, "true reward", seed=0, device=pick_device(options.device)).seconds
    each = (found["both"] - found["playing"]) / rounds
    pace = f"{short.copies / each:,.0f} steps/s with {short.updates / each:,.0f} updates/s"
    line = f"{pace} of batch {short.agent.batch_size}, one agent alone"
    print(line)
    options.out.mkdir(parents=True, exist_ok=True)
    atomic_write(options.out / "speed.json", json.dumps({"steps_a_second": short.copies / each, **found}))


def scripted(settings: AtariSettings, device: torch.device, first: int) -> Replay:
    """Play of scripted players who slip a little, often, mostly, always, each from a seed of its own."""
    shown = [
        record_demonstrations(settings.game, steps=settings.demonstrated, slips=slips, seed=seed, size=settings.size)
        for seed, slips in enumerate((0.15, 0.5, 0.8, 1.0), first)
    ]
    episodes = Episodes(*(np.concatenate([getattr(s, f.name) for s in shown]) for f in fields(Episodes)))
    return Replay(1, settings.size, settings.replay, episodes, device=device)


def reward(options: argparse.Namespace) -> None:
    """The reward model alone: its agreement with the score on pairs of other play, after each tenth of its updates."""
    settings, device, lines = settings_of(options), pick_device(options.device), []
    generator, rng, teacher = torch_generator(0, device), numpy_generator(0), SyntheticTeacher()
    count = 4 * settings.test_pairs
    learn, test = (
        [draw_clips(replay, replay.filled(), n, settings.length, generator) for _ in range(2)]
        for replay, n in ((scripted(settings, device, 0), settings.labels), (scripted(settings, device, 10), count))
    )
    part = max(1, settings.reward.first_updates // 10)
    fitting = replace(settings.reward, first_updates=part, updates=part)
    model = ClipReward(fitting, size=settings.size, seed=0, device=device)
    model.add(*learn, teacher.judge(learn[0].segments(), learn[1].segments(), rng))
    truth = teacher.judge(test[0].segments(), test[1].segments(), rng)
    for done in range(1, 11):
        loss = model.fit()
        with torch.no_grad():
            slices = torch.arange(count, device=device).split(64)
            first, second = (torch.cat([model.sums(clips.pick(some)) for some in slices]) for clips in test)
        right = ((first > second).cpu().numpy() == (truth == 1))[truth != 0.5]
        told = wilson(int(right.sum()), len(right)) if len(right) else "no pair differs"
        lines.append(f"{done * part} updates, loss {loss:.3f}, orders fresh pairs as the score does: {told}")
        print(lines[-1], flush=True)
    tied = np.mean(model.labels == 0.5)
    lines.append(f"{options.game}, scale {options.scale}: {len(model)} comparisons, {tied:.0%} of them ties")
    print(lines[-1])
    options.out.mkdir(parents=True, exist_ok=True)
    atomic_write(options.out / "reward.txt", "\n".join(lines) + "\n")


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    if options.part == "agent":
        arm, _, seed = options.agent.rpartition(":")
        train_agent(options, arm, int(seed))
    else:
        {"train": train, "table": table, "speed": speed, "reward": reward}[options.part](options)


if __name__ == "__main__":
    main()
