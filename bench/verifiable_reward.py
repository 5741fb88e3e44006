"""Rewards that can be checked: sums and GSM8K, PPO and GRPO, accuracy on held-out questions before and after.

    python bench/verifiable_reward.py                       # small, on a CPU
    python bench/verifiable_reward.py --device cuda --jobs 7 --out DIR \\
        --gsm8k-train gsm8k_train.jsonl.gz --gsm8k-test gsm8k_test.jsonl

Every training is a process of its own, `--jobs` at a time, and leaves DIR/jobs/NAME.json; called again with the same
`--out`, what is there is kept and what was interrupted goes on from its last checkpoint. `--minutes` ends a training
early; its steps are in the table. Sums are asked as raw text after four solved ones. For GSM8K the model is first
fine-tuned on the training file's solutions (`warm`), and "before" is that model; without the files, generated word
problems stand in and the table says so.

Parts (`--part`): arithmetic, gsm8k, table (results.json and table.txt from whatever jobs are there), all.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from job_processes import Job, run_jobs

from alignlab.align.adapters import merged_for_decoding
from alignlab.align.policy import evaluating
from alignlab.align.ppo import PPOTrainer
from alignlab.align.ppo_config import PPOConfig
from alignlab.align.rl.answers import Actor
from alignlab.align.rl.config import GRPOConfig
from alignlab.align.rl.gains import gain_lines, gains
from alignlab.align.rl.grpo import train_grpo
from alignlab.align.rl.verifiable_task import VerifiableTask, gsm8k_task, measure, sums_task, word_task
from alignlab.align.rollout import Response
from alignlab.align.sft import SFTConfig, sft
from alignlab.core.errors import ConfigError
from alignlab.core.files import atomic_write, read_json
from alignlab.core.run_creation import pretty_json
from alignlab.lm.engine import Engine, EngineOptions, EngineSampler
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.lora import ALL_LINEAR, LoraConfig
from alignlab.lm.native import export_model
from alignlab.lm.samplers import sampler_of
from alignlab.lm.types import Sampler
from alignlab.train.config import TrainConfig

METHODS = ("ppo", "grpo")
TASKS = {"arithmetic": "sums", "gsm8k": "gsm8k"}
CONTEXT = {"sums": 96, "gsm8k": 512}
"""Tokens of a prompt with its answer that the engine's cache is made for."""
GROUP = 16
"""GRPO's answers to a question."""
SHOWN = ("reward", "kl", "entropy", "response_length", "ended", "approx_kl", "equal_groups", "mismatch_mean")
SMALL: dict[str, Any] = {
    "sums": 24, "sums_held": 12, "sums_steps": 2, "sums_batch": 16, "gsm8k": 16, "gsm8k_held": 8, "gsm8k_steps": 2,
    "gsm8k_batch": 16, "gsm8k_tokens": 24, "warm_epochs": 1.0, "seeds": 3, "answers": 2,
    "sums_microbatch": 8, "gsm8k_microbatch": 8,
}  # fmt: skip
LARGE: dict[str, Any] = {
    "sums": 1200, "sums_held": 600, "sums_steps": 150, "sums_batch": 256, "gsm8k": None, "gsm8k_held": None,
    "gsm8k_steps": 60, "gsm8k_batch": 256, "gsm8k_tokens": 256, "warm_epochs": 2.0, "seeds": 3, "answers": 4,
    "sums_microbatch": 128, "gsm8k_microbatch": 16,
}  # fmt: skip


class TimeUpError(Exception):
    """The training has had its minutes."""


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    if options.job is not None:
        run_job(options.job, options)
        return 0
    (options.out / "jobs").mkdir(parents=True, exist_ok=True)
    own = ("out", "part", "jobs", "job", "minutes", "gsm8k_minutes")
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items() if name not in own}
    file = options.out / "settings.json"
    if file.is_file() and read_json(file) != settings:
        raise ConfigError(f"{options.out} holds an experiment with other settings; give another --out")
    atomic_write(file, pretty_json(settings))
    started, failed = time.perf_counter(), []
    if options.part != "table":
        parts = TASKS if options.part == "all" else (options.part,)
        failed = run_all(
            planned([TASKS[part] for part in parts], options), options, sys.argv[1:] if argv is None else argv
        )
        print(f"{options.part}: {time.perf_counter() - started:.0f} s", flush=True)
    make_table(options)
    return 1 if failed else 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("verifiable"))
    parser.add_argument("--part", choices=("all", *TASKS, "table"), default="all")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", help="of the frozen weights; float32 on a GPU trains under autocast")
    parser.add_argument("--gsm8k-train", type=Path, help="GSM8K's training file as published, may be gzipped")
    parser.add_argument("--gsm8k-test", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--minutes", type=float, default=2.0, help="longest training of a sums job")
    parser.add_argument("--gsm8k-minutes", type=float, default=3.5)
    for name, default in LARGE.items():
        kind = float if isinstance(default, float) else int
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"on a GPU {default or 'all'}")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate of the adapter")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--kl", type=float, default=0.005)
    parser.add_argument("--job", help=argparse.SUPPRESS)  # one job in this process
    options = parser.parse_args(argv)
    if (options.gsm8k_train is None) != (options.gsm8k_test is None):
        raise ConfigError("--gsm8k-train and --gsm8k-test go together: learn from one, measure on the other")
    for name, value in (SMALL if options.device == "cpu" else LARGE).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def planned(tasks: list[str], options: argparse.Namespace) -> dict[str, str | None]:
    """Name of each job, and of the one that it waits for; the longest first."""
    jobs: dict[str, str | None] = {}
    for task in reversed(tasks):
        first = "gsm8k-warm" if task == "gsm8k" else None
        if first is not None:
            jobs[first] = None
        jobs |= {f"{task}-{method}-{seed}": first for seed in range(options.seeds) for method in METHODS}
        jobs[f"{task}-before"] = first
    return jobs


def run_all(jobs: dict[str, str | None], options: argparse.Namespace, argv: list[str]) -> list[str]:
    """Each job in a process of its own, as many at a time as asked; the names of those that failed."""
    threads = str(max(1, (os.cpu_count() or 1) // options.jobs))
    return run_jobs(
        [
            Job(
                name, [sys.executable, str(Path(__file__).resolve()), *argv, "--job", name], result_file(options, name),
                options.out / "jobs" / f"{name}.log", needs, {"OMP_NUM_THREADS": threads},
            )
            for name, needs in jobs.items()
        ],
        options.jobs,
    )  # fmt: skip


def result_file(options: argparse.Namespace, name: str) -> Path:
    return Path(options.out) / "jobs" / f"{name}.json"


def task_of(name: str, options: argparse.Namespace) -> VerifiableTask:
    if name == "sums":
        return sums_task(options.sums, options.sums_held)
    if options.gsm8k_train is None:
        return word_task(options.gsm8k or 512, options.gsm8k_held or 128, max_tokens=options.gsm8k_tokens)
    return gsm8k_task(
        options.gsm8k_train, options.gsm8k_test, n=options.gsm8k, n_held=options.gsm8k_held,
        max_tokens=options.gsm8k_tokens,
    )  # fmt: skip


def run_job(name: str, options: argparse.Namespace) -> None:
    """One process's work: a warm-up, a measurement before, or a training and the measurement after it."""
    started = time.perf_counter()
    task = task_of(name.split("-")[0], options)
    if name == "gsm8k-warm":
        found = warm_up(task, options)
    else:
        base = str(options.out / "warm") if task.name != "sums" else options.model
        lm = load(base, dtype=options.dtype, device=options.device)
        sampler = sampler_for(lm, name.split("-")[0], options)
        found = {"model": base}
        if not name.endswith("-before"):
            found |= train(lm, sampler, task, name, options)
        found |= measured(lm, sampler, task, options)
    found |= {"task": task.name, "learned": len(task.learned), "held": len(task.held)}
    found["seconds"] = round(time.perf_counter() - started, 1)
    atomic_write(result_file(options, name), pretty_json(found))


def sampler_for(lm: LanguageModel, name: str, options: argparse.Namespace) -> Sampler:
    """On a GPU an engine whose cache is as large as a batch needs and no larger, because it is shared with others."""
    rows = batch_of(name, options)
    if options.device == "cpu":
        return sampler_of(lm, batch_size=rows)
    return EngineSampler(Engine(lm, EngineOptions(max_running=rows, blocks=rows * -(-CONTEXT[name] // 16))))


def measured(lm: LanguageModel, sampler: Sampler, task: VerifiableTask, options: argparse.Namespace) -> dict[str, Any]:
    """Held-out accuracy: the most likely answer, and answers drawn at temperature 1 as in training."""
    with evaluating(lm.model), merged_for_decoding(lm.model):
        greedy = measure(sampler, task)
        drawn = measure(sampler, task, temperature=1.0, seed=1, answers=options.answers)
    return {"greedy": asdict(greedy), "sampled": asdict(drawn), "kinds": [item.category for item in task.held]}


def as_it_came(task: VerifiableTask, options: argparse.Namespace) -> dict[str, Any]:
    lm = load(options.model, dtype=options.dtype, device=options.device)
    return measured(lm, sampler_for(lm, "gsm8k", options), task, options)


def warm_up(task: VerifiableTask, options: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune on the solutions, after measuring the model as it came."""
    found = as_it_came(task, options)
    wide = load(options.model, dtype="float32", device=options.device)
    wide.model.requires_grad_(True)
    train_config = TrainConfig(
        learning_rate=1e-4, warmup_steps=10, precision="fp32" if options.device == "cpu" else "bf16"
    )
    config = SFTConfig(options.warm_epochs, row_length=512, batch_size=16, lora=None, train=train_config)
    result = sft(wide, task.solutions(), config)
    export_model(wide, options.out / "warm")
    return {"model": options.model, "steps": result.steps, **found}


def train(
    lm: LanguageModel, sampler: Sampler, task: VerifiableTask, job: str, options: argparse.Namespace
) -> dict[str, Any]:
    """PPO or GRPO against the task's own reward, to the end of its steps or of its minutes."""
    name, method, seed = job.split("-")
    minutes = options.minutes if name == "sums" else options.gsm8k_minutes
    history: list[dict[str, float]] = []
    spoken: list[dict[str, str]] = []
    started = time.perf_counter()

    def on_step(step: int, responses: list[Response], metrics: dict[str, float]) -> None:
        history.append({"step": step, "seconds": round(time.perf_counter() - started, 2), **metrics})
        shown = {key: round(metrics[key], 3) for key in SHOWN if key in metrics}
        print(step, f"{history[-1]['seconds']:.0f} s", shown, flush=True)
        spoken[:] = [{"prompt": str(r.prompt)[-200:], "answer": r.completion.text} for r in responses[:4]]
        if time.perf_counter() - started > 60 * minutes:
            raise TimeUpError

    # A wrong number in the asked form is worth a little where the form is rare at first. A cut answer loses what a
    # right one earns, so half an answer is never better than none.
    reward = task.reward(formed=0.1 if name == "gsm8k" else 0.0)
    folder, shared, batch = (
        options.out / "checkpoints" / job,
        shared_settings(name, task, options),
        batch_of(name, options),
    )
    stopped = False
    try:
        if method == "ppo":
            ppo = PPOConfig(batch_size=batch, seed=int(seed), **shared)
            trainer = PPOTrainer(lm, reward, None, ppo, sampler=sampler, checkpoint_dir=folder)
            trainer.train(task.prompts, on_step=on_step)
        else:
            grpo = GRPOConfig(
                prompts_per_step=batch // GROUP, group_size=GROUP, scale="none", aggregate="constant", epochs=2,
                seed=int(seed), **shared,
            )  # fmt: skip
            actor = Actor(lm.model, lm.tokenizer, sampler)
            train_grpo(actor, reward, task.prompts, grpo, checkpoint_dir=folder, on_step=on_step)
    except TimeUpError:
        stopped = True
    steps = int(history[-1]["step"]) if history else shared["steps"]  # none: it had ended before it was interrupted
    about = {"method": method, "seed": int(seed), "steps": steps, "stopped_by_time": stopped}
    return {**about, "history": history, "answers": spoken}


def batch_of(name: str, options: argparse.Namespace) -> int:
    return int(getattr(options, f"{name}_batch"))


def shared_settings(name: str, task: VerifiableTask, options: argparse.Namespace) -> dict[str, Any]:
    """What PPO and GRPO have in common: as many answers and updates a step for both."""
    batch = batch_of(name, options)
    return {
        "steps": getattr(options, f"{name}_steps"), "max_tokens": task.sampling.max_tokens, "stop": task.stop,
        "minibatch_size": batch // 2, "microbatch_size": min(getattr(options, f"{name}_microbatch"), batch // 2),
        "learning_rate": options.rate, "warmup_steps": 2, "kl_coefficient": options.kl, "on_equal_rewards": "skip",
        "missing_end_penalty": 1.0, "checkpoint_every": 20, "max_mismatch": 0.1 if options.device == "cpu" else 0.3,
        "lora": LoraConfig(rank=options.rank, alpha=2.0 * options.rank, targets=(ALL_LINEAR,)),
        "precision": "bf16" if options.device != "cpu" and options.dtype == "float32" else "fp32",
    }  # fmt: skip


def make_table(options: argparse.Namespace) -> None:
    """results.json with everything that was measured, and table.txt, from the jobs that are there."""
    jobs = {file.stem: read_json(file) for file in sorted((options.out / "jobs").glob("*.json"))}
    lines, compared = [], {}
    for name in TASKS.values():
        before = jobs.get(f"{name}-before")
        runs = {m: [jobs[k] for k in sorted(jobs) if k.startswith(f"{name}-{m}-")] for m in METHODS}
        if before is None or not any(runs.values()):
            continue
        about = f"{before['learned']} questions to learn from, {before['held']} held out, model {options.model}"
        lines += ["", f"{before['task']}: {about}", *came_as(jobs.get(f"{name}-warm"))]
        pairs = {}
        for method, done in runs.items():
            for how in ("greedy", "sampled"):
                if done:
                    after = np.array([run[how]["right"] for run in done]).T
                    pairs[f"{method}, {how}"] = (before[how]["right"], after)
        if len(runs["ppo"]) == len(runs["grpo"]):
            both = [np.array([run["greedy"]["right"] for run in runs[method]]).T for method in METHODS]
            pairs["grpo against ppo, greedy"] = (both[0], both[1])
        found = gains(pairs)
        compared[name] = {label: asdict(one) for label, one in found.items()}
        lines += [*gain_lines(found), *run_lines(before, runs)]
    atomic_write(options.out / "results.json", pretty_json({"compared": compared, "jobs": jobs}))
    atomic_write(options.out / "table.txt", "\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)


def came_as(warm: dict[str, Any] | None) -> list[str]:
    """What the model could do before its warm-up."""
    if warm is None:
        return []
    shares = [f"{how} {100 * np.mean(warm[how]['right']):.1f} %" for how in ("greedy", "sampled")]
    any_form = 100 * np.mean(warm["greedy"]["right_any_form"])
    return [f"as it came: {', '.join(shares)} (greedy in any form {any_form:.1f} %), then {warm['steps']} steps of SFT"]


def run_lines(before: dict[str, Any], runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Each training in a line, and greedy accuracy by kind of question."""
    lines = []
    for run in (run for done in runs.values() for run in done):
        history = run["history"] or [{}]
        first, last = (np.mean([h.get("reward", np.nan) for h in part]) for part in (history[:5], history[-5:]))
        why = " (its minutes were up)" if run["stopped_by_time"] else ""
        lines.append(
            f"  {run['method']} seed {run['seed']}: {run['steps']} steps{why}, {run['seconds']:.0f} s, reward "
            f"{first:.3f} -> {last:.3f}, KL {history[-1].get('kl', float('nan')):.2f}, greedy "
            f"{100 * np.mean(run['greedy']['right']):.1f} %, ended {100 * np.mean(run['greedy']['ended']):.0f} %"
        )
    for kind in sorted({kind for kind in before["kinds"] if kind}):
        at = [i for i, own in enumerate(before["kinds"]) if own == kind]
        shares = {"before": [before], **runs}
        told = [
            f"{n} {100 * np.mean([[r['greedy']['right'][i] for i in at] for r in d]):.1f}"
            for n, d in shares.items()
            if d
        ]
        lines.append(f"  {kind} ({len(at)} items, greedy): {', '.join(told)} %")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
