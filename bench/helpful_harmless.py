"""Helpful and harmless on one model: a sweep of weights, bounds on harmlessness, a strict order, and their front.

    python bench/helpful_harmless.py                                                   # small, on a CPU
    python bench/helpful_harmless.py --data PAIRS.jsonl.gz --device cuda --jobs 4 --out DIR

One reward model with two heads on the policy's trunk (an adapter of its own) learns `harmless` from the comparisons of
`--data` and `helpful` from those of `--helpful`. Without `--helpful` the helpful comparisons are made from the texts of
`--data`: the answer that was given to this dialogue is better than one of about the same length that was given to
another. That is what "answers what was asked" can mean without people's labels, and the table says so. Then the policy
is trained by GRPO for each weight, each bound and a strict order, and every policy answers prompts of dialogues that
neither the rewards nor the policies have seen; both heads score every answer.

Every training is a process of its own, `--jobs` at a time, and leaves DIR/jobs/NAME.json; called again with the same
`--out`, what is there is kept and what was interrupted goes on from its last checkpoint. `--minutes` ends a training
early; its steps are in the table.

Parts (`--part`): rewards, points, table (from what is there: points.jsonl, results.json, table.txt, tradeoffs.html).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from job_processes import Job, run_jobs

from alignlab.align.objectives.combining import ObjectivesConfig, combine
from alignlab.align.objectives.heads import SharedHeads
from alignlab.align.objectives.page import tradeoff_page
from alignlab.align.objectives.points import point_set, record_of
from alignlab.align.objectives.recording import measure_objectives, objectives_record
from alignlab.align.objectives.tradeoffs import Tradeoffs
from alignlab.align.preference_model import PreferenceModel
from alignlab.align.reward.examples import RewardPair, dialogue_of, dialogues, split_dialogues
from alignlab.align.reward.heads import HeadConfig
from alignlab.align.reward.readers import read_pairs
from alignlab.align.reward.saved import plain_prompts, save_reward
from alignlab.align.reward.training import RewardConfig, RewardLoss, train_reward_model
from alignlab.align.rl.answers import Actor
from alignlab.align.rl.config import GRPOConfig
from alignlab.align.rl.grpo import train_grpo
from alignlab.align.rollout import Response
from alignlab.core.errors import ConfigError
from alignlab.core.files import atomic_write, read_json
from alignlab.core.rng import derive_seed
from alignlab.core.run_creation import pretty_json
from alignlab.data.prompts import load_pairs
from alignlab.lm.engine import Engine, EngineOptions, EngineSampler
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.lora import ALL_LINEAR, LoraConfig
from alignlab.lm.samplers import sampler_of
from alignlab.lm.types import Prompt, Sampler, SamplingParams
from alignlab.stats import mean_interval
from alignlab.train.config import TrainConfig

HELPFUL, HARMLESS = "helpful", "harmless"
OBJECTIVES = (HELPFUL, HARMLESS)
START = "untrained"
LENGTH, LONGEST_PROMPT = 384, 160
PARTS = ("rewards", "points", "table")
SMALL: dict[str, Any] = {
    "pairs": 24, "prompts": 6, "steps": 2, "groups": 2, "group": 4, "max_tokens": 12, "answers": 2, "microbatch": 8,
    "reward_batch": 8, "running": 16,
}  # fmt: skip
LARGE: dict[str, Any] = {
    "pairs": 1_000_000, "prompts": 160, "steps": 28, "groups": 16, "group": 8, "max_tokens": 48, "answers": 4,
    "microbatch": 32, "reward_batch": 32, "running": 128,
}  # fmt: skip
MEANINGS = {
    "pairs": "comparisons of each objective to learn from at most",
    "prompts": "held-out prompts to measure on",
    "steps": "rollout batches of each training",
    "groups": "prompts of a rollout batch",
    "group": "answers to each",
    "max_tokens": "tokens of an answer",
    "answers": "answers to each held-out prompt",
    "microbatch": "answers in a training pass",
    "reward_batch": "comparisons in an update of the reward model",
    "running": "answers that are generated at a time",
}


class TimeUpError(Exception):
    """The training has had its minutes."""


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    if options.job is not None:
        run_job(options.job, options)
        return 0
    (options.out / "jobs").mkdir(parents=True, exist_ok=True)
    own = ("out", "part", "jobs", "job", "minutes")
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items() if name not in own}
    file = options.out / "settings.json"
    if file.is_file() and read_json(file) != settings:
        raise ConfigError(f"{options.out} holds an experiment with other settings; give another --out")
    atomic_write(file, pretty_json(settings))
    failed: list[str] = []
    given = sys.argv[1:] if argv is None else argv
    for part, jobs in (("rewards", ["rewards"]), ("points", planned(options))):
        if options.part in ("all", part) and not failed:
            started = time.perf_counter()
            failed = run_all(jobs, options, given)
            print(f"{part}: {time.perf_counter() - started:.0f} s", flush=True)
    if options.part in ("all", "points", "table"):
        make_table(options)
    return 1 if failed else 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="comparisons by harmlessness; none: the packaged pairs")
    parser.add_argument("--helpful", type=Path, help="comparisons by helpfulness; none: made from the texts of --data")
    parser.add_argument("--out", type=Path, default=Path("helpful-harmless"))
    parser.add_argument("--part", choices=("all", *PARTS), default="all")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="policy, and trunk of the rewards")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--minutes", type=float, default=3.0, help="longest training of a point")
    parser.add_argument(
        "--seeds", type=int, default=1, help="trainings of each point; from 3 on intervals hold for new"
    )
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0], help="of helpful")
    parser.add_argument("--bounds", type=float, nargs="+", default=[0.25, 0.75], help="least mean of harmless")
    parser.add_argument("--margin", type=float, default=0.1, help="by which training aims above a bound")
    parser.add_argument("--tolerance", type=float, default=0.5, help="of the strict order, in deviations of harmless")
    for name, text in MEANINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{text} ({LARGE[name]} on a GPU)")
    parser.add_argument("--reward-rank", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16, help="of the policy's adapter")
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate of the policy")
    parser.add_argument("--kl", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", help=argparse.SUPPRESS)  # one job in this process
    options = parser.parse_args(argv)
    for name, value in (SMALL if options.device == "cpu" else LARGE).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if any(not 0 <= weight <= 1 for weight in options.weights):
        raise ConfigError(f"weights are {options.weights}, right are numbers from 0 to 1")
    return options


def combinations(options: argparse.Namespace) -> dict[str, ObjectivesConfig]:
    """Each point's name and how it puts the two rewards together. Rewards are in deviations of the policy's answers."""
    found: dict[str, ObjectivesConfig] = {}
    for weight in options.weights:
        both = {HELPFUL: weight, HARMLESS: 1 - weight}
        found[f"weight {weight:g}"] = ObjectivesConfig("weighted", both, normalise="running")
    for bound in options.bounds:
        # The policy follows a multiplier many steps late and with momentum: the derivative meets it early.
        found[f"bound {bound:g}"] = ObjectivesConfig(
            "constrained", maximise=HELPFUL, bounds={HARMLESS: bound + options.margin}, normalise="none", rate=0.02,
            proportional=1.0, derivative=8.0, smoothing=0.5, start=1.0,
        )  # fmt: skip
    order, tolerances = (HARMLESS, HELPFUL), {HARMLESS: options.tolerance}
    found["strict order"] = ObjectivesConfig("lexicographic", order=order, tolerances=tolerances, normalise="none")
    return found


def planned(options: argparse.Namespace) -> list[str]:
    """Names of the jobs that make points."""
    trained = [f"{name}, {seed}" for seed in range(options.seeds) for name in combinations(options)]
    return [*trained, f"{START}, 0"]


def run_all(jobs: list[str], options: argparse.Namespace, argv: Sequence[str]) -> list[str]:
    """Each job in a process of its own, as many at a time as asked; the names of those that failed."""
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.jobs))}
    environment |= {"PYTORCH_CUDA_ALLOC_CONF": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")}
    return run_jobs(
        [
            Job(
                name, [sys.executable, str(Path(__file__).resolve()), *argv, "--job", name], result_file(options, name),
                log_file(options, name), None, environment,
            )
            for name in jobs
        ],
        options.jobs,
    )  # fmt: skip


def result_file(options: argparse.Namespace, name: str) -> Path:
    return Path(options.out) / "jobs" / f"{name.replace(' ', '-').replace(',', '')}.json"


def log_file(options: argparse.Namespace, name: str) -> Path:
    return result_file(options, name).with_suffix(".log")


def run_job(name: str, options: argparse.Namespace) -> None:
    """One process's work: the reward model, or one policy and what it says to the held-out prompts."""
    started = time.perf_counter()
    lm = load(options.model, dtype=options.dtype, device=options.device)
    loaded = time.perf_counter()
    found = make_rewards(lm, options) if name == "rewards" else make_point(lm, name, options)
    found |= {"loading": round(loaded - started, 1), "seconds": round(time.perf_counter() - started, 1)}
    atomic_write(result_file(options, name), pretty_json(found))


Parts = tuple[list[RewardPair], list[RewardPair], list[RewardPair]]
"""Comparisons of different dialogues: that the reward learns from, whose prompts the policy learns on, held out."""


def comparisons(lm: LanguageModel, options: argparse.Namespace) -> tuple[Parts, list[str]]:
    """(the three parts, where each objective's come from), each pair with its objective.

    The policy has prompts of its own: on those that a reward model has learned from, it scores higher than on others.
    """
    if options.data is not None:
        pairs, said = read_pairs(options.data), "the comparisons given"
    else:
        pairs = [RewardPair([{"role": "user", "content": p.prompt}], p.harmless, p.harmful) for p in load_pairs()]
        said = "the packaged pairs"
    pairs = plain_prompts(PreferenceModel(lm), pairs)
    given = [] if options.helpful is None else plain_prompts(PreferenceModel(lm), read_pairs(options.helpful))
    every = [with_objective(pair, HARMLESS) for pair in pairs] + [with_objective(pair, HELPFUL) for pair in given]
    rest, held = split(every, 0.2, options.seed)
    parts = [*split(rest, 0.25, options.seed), held]
    source = "the comparisons given for it"
    if not given:
        # Made after the split: an answer that stands in two dialogues would join them.
        parts = [part + own_answers(part, options.seed) for part in parts]
        source = "the dialogue's own answer against another dialogue's, made from the same texts"
    chosen: list[RewardPair] = []
    for objective in OBJECTIVES:
        chosen += [pair for pair in parts[0] if pair.objective == objective][: options.pairs]
    return (chosen, parts[1], parts[2]), [f"{HARMLESS}: {said}", f"{HELPFUL}: {source}"]


def split(pairs: list[RewardPair], share: float, seed: int) -> tuple[list[RewardPair], list[RewardPair]]:
    first, second = split_dialogues(pairs, share, seed=seed)
    return [pairs[i] for i in first], [pairs[i] for i in second]


def with_objective(pair: RewardPair, objective: str) -> RewardPair:
    return RewardPair(pair.prompt, pair.chosen, pair.rejected, pair.probability, objective=objective)


def own_answers(pairs: Sequence[RewardPair], seed: int) -> list[RewardPair]:
    """For each pair, one of its answers (drawn) against an answer of about its length to another dialogue.

    Both sides are drawn from the same answers, so nothing but whether it fits the prompt tells them apart.
    """
    rng = np.random.default_rng(derive_seed(seed, "own answers"))
    groups = dialogues(pairs)
    sides = [pair.chosen if rng.random() < 0.5 else pair.rejected for pair in pairs]
    order = sorted(range(len(pairs)), key=lambda i: len(sides[i]))
    found: list[RewardPair] = []
    for at, i in enumerate(order):
        near = [j for j in order[max(0, at - 20) : at + 21] if groups[j] != groups[i] and sides[j] != sides[i]]
        if near:
            found.append(RewardPair(pairs[i].prompt, sides[i], sides[int(rng.choice(near))], objective=HELPFUL))
    return [found[i] for i in rng.permutation(len(found))]


def make_rewards(lm: LanguageModel, options: argparse.Namespace) -> dict[str, Any]:
    """Train the reward model, measure each head on other dialogues, scale both on the policy's own answers."""
    (learn, practice, kept), sources = comparisons(lm, options)
    seed, on_gpu = derive_seed(options.seed, "rewards") % 2**31, options.device != "cpu"
    lora = LoraConfig(rank=options.reward_rank, alpha=2.0 * options.reward_rank, targets=(ALL_LINEAR,), seed=seed)
    model = PreferenceModel(
        lm, lora=lora, max_length=LENGTH, batch_size=2 * options.microbatch, seed=seed, heads=HeadConfig(OBJECTIVES)
    )
    train = TrainConfig(learning_rate=5e-4, warmup_steps=10 if on_gpu else 1, precision=precision_of(lm), seed=seed)
    config = RewardConfig(epochs=1.0, batch_size=options.reward_batch, loss=RewardLoss(centre=0.01), train=train)
    started = time.perf_counter()
    train_reward_model(model, learn, config)
    seconds = time.perf_counter() - started
    heads = SharedHeads(model)
    accuracy = {}
    for objective in OBJECTIVES:
        own = [pair for pair in kept if pair.objective == objective][: options.pairs]
        right = (margins(heads, own, objective) > 0).astype(float)
        accuracy[objective] = mean_interval(right, clusters=[dialogue_of(pair.prompt) for pair in own]).as_dict()
    prompts = short_prompts(lm, practice, options.prompts)
    said = sampler_for(lm, options).generate(prompts, sampling_of(options, "scales", 1))
    scales = heads.fit_scales(prompts, [completion.text for completion in said])
    both = heads.scores(prompts, [completion.text for completion in said])
    save_reward(model, options.out / "reward", {"base": options.model, "pairs": len(learn)})
    atomic_write(options.out / "prompts.json", json.dumps({
        "learn": short_prompts(lm, practice, len(practice)), "held": short_prompts(lm, kept, options.prompts),
    }))  # fmt: skip
    counts = {objective: sum(pair.objective == objective for pair in learn) for objective in OBJECTIVES}
    return {
        "sources": sources, "pairs": counts, "accuracy": accuracy, "scales": {k: list(v) for k, v in scales.items()},
        "correlation": float(np.corrcoef(both.T.numpy())[0, 1]), "training": round(seconds, 1),
    }  # fmt: skip


def margins(heads: SharedHeads, pairs: Sequence[RewardPair], objective: str) -> np.ndarray:
    """How much higher one head scores the chosen sides."""
    reward, prompts = heads.rewards[objective], [pair.prompt for pair in pairs]
    chosen = reward.score(prompts, [pair.chosen for pair in pairs])
    return (chosen - reward.score(prompts, [pair.rejected for pair in pairs])).double().numpy()


def short_prompts(lm: LanguageModel, pairs: Sequence[RewardPair], most: int) -> list[Prompt]:
    """The prompts of different dialogues, the first of each that is short."""
    first: dict[str, Prompt] = {}
    for pair in pairs:
        dialogue = dialogue_of(pair.prompt)
        if dialogue not in first and len(lm.tokenizer.encode_prompt(pair.prompt)) <= LONGEST_PROMPT:
            first[dialogue] = pair.prompt
            if len(first) == most:
                break
    return list(first.values())


def precision_of(lm: LanguageModel) -> Literal["fp32", "bf16"]:
    """bf16 products where the weights are wide and on a GPU; narrow weights need no autocast."""
    weight = lm.model.embed.weight
    return "bf16" if weight.device.type == "cuda" and weight.dtype == torch.float32 else "fp32"


def sampler_for(lm: LanguageModel, options: argparse.Namespace) -> Sampler:
    """On a GPU an engine whose cache is as large as a batch needs and no larger, because the GPU is shared."""
    if options.device == "cpu":
        return sampler_of(lm, batch_size=options.running)
    blocks = options.running * -(-(LONGEST_PROMPT + options.max_tokens + 16) // 16)
    return EngineSampler(Engine(lm, EngineOptions(max_running=options.running, blocks=blocks)))


def sampling_of(options: argparse.Namespace, name: str, n: int) -> SamplingParams:
    """The policy as it is, without filters."""
    return SamplingParams(max_tokens=options.max_tokens, n=n, seed=derive_seed(options.seed, name) % 2**31)


def make_point(lm: LanguageModel, job: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one policy (none for the start) and score its answers to the held-out prompts with both heads."""
    name, _, seed = job.rpartition(", ")
    rewards = read_json(result_file(options, "rewards"))
    model = PreferenceModel.load(options.out / "reward", lm)
    model.batch_size = 2 * options.microbatch
    heads = SharedHeads(model, {objective: tuple(scale) for objective, scale in rewards["scales"].items()})
    prompts = read_json(options.out / "prompts.json")
    sampler = sampler_for(lm, options)
    found: dict[str, Any] = {"point": name, "seed": int(seed), "history": [], "steps": 0}
    if name != START:
        found |= train(Actor(lm.model, lm.tokenizer, sampler), heads, prompts["learn"], (name, int(seed)), options)
    started = time.perf_counter()
    values, answers = measure_objectives(
        sampler, prompts["held"], heads.rewards, sampling_of(options, "held-out answers", options.answers),
        at_a_time=max(1, options.running // options.answers),
    )  # fmt: skip
    examples = [
        {"prompt": prompt if isinstance(prompt, str) else prompt[-1]["content"], "answer": own[0]}
        for prompt, own in zip(prompts["held"][:4], answers, strict=False)
    ]
    return {**found, "values": values, "examples": examples, "measuring": round(time.perf_counter() - started, 1)}


def train(
    actor: Actor, heads: SharedHeads, prompts: list[Prompt], point: tuple[str, int], options: argparse.Namespace
) -> dict[str, Any]:
    """GRPO against the combination, to the end of its steps or of its minutes."""
    name, seed = point
    reward = combine(heads.rewards, combinations(options)[name])
    batch = options.groups * options.group
    config = GRPOConfig(
        steps=options.steps, prompts_per_step=options.groups, group_size=options.group, minibatch_size=batch // 2,
        microbatch_size=min(options.microbatch, batch // 2), max_tokens=options.max_tokens, learning_rate=options.rate,
        warmup_steps=2, kl_coefficient=options.kl, on_equal_rewards="skip", checkpoint_every=10,
        max_mismatch=0.1 if options.device == "cpu" else 0.3, precision=precision_of_actor(actor),
        lora=LoraConfig(rank=options.rank, alpha=2.0 * options.rank, targets=(ALL_LINEAR,), seed=seed),
        seed=derive_seed(options.seed, "policy", seed) % 2**31,
    )  # fmt: skip
    history: list[dict[str, float]] = []
    started = time.perf_counter()

    def on_step(step: int, responses: list[Response], metrics: dict[str, float]) -> None:
        history.append({"step": step, "seconds": round(time.perf_counter() - started, 2), **metrics})
        print(f"step {step}: {metrics.get('reward', float('nan')):.3f}", flush=True)
        if time.perf_counter() - started > 60 * options.minutes:
            raise TimeUpError

    stopped = False
    folder = options.out / "checkpoints" / f"{name}, {seed}".replace(" ", "-").replace(",", "")
    try:
        train_grpo(actor, reward, prompts, config, checkpoint_dir=folder, on_step=on_step)
    except TimeUpError:
        stopped = True
    steps = int(history[-1]["step"]) if history else options.steps  # none: it had ended before it was interrupted
    return {"steps": steps, "stopped_by_time": stopped, "history": history}


def precision_of_actor(actor: Actor) -> Literal["fp32", "bf16"]:
    weight = actor.model.embed.weight
    return "bf16" if weight.device.type == "cuda" and weight.dtype == torch.float32 else "fp32"


def make_table(options: argparse.Namespace) -> None:
    """points.jsonl, results.json, table.txt and tradeoffs.html from the jobs that are there."""
    rewards = read_json(result_file(options, "rewards"))
    files = [result_file(options, name) for name in planned(options)]
    jobs = [read_json(file) for file in files if file.is_file()]
    records = [
        objectives_record(job["point"], job["values"], seed=job["seed"], settings={"steps": job["steps"]})
        for job in jobs
    ]
    atomic_write(options.out / "points.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    points = point_set([record_of(record, f"job {i}") for i, record in enumerate(records)])
    lines = [*rewards["sources"], f"comparisons learned from: {rewards['pairs']}"]
    for objective in OBJECTIVES:
        cell = rewards["accuracy"][objective]
        lines.append(
            f"{objective}: accuracy {cell['estimate']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}] on {cell['n']} "
            "comparisons of other dialogues"
        )
    lines += [f"correlation of the heads on the policy's own answers: {rewards['correlation']:.2f}", ""]
    accounts = [Tradeoffs(points, bounds={HARMLESS: bound}) for bound in options.bounds]
    lines += accounts[0].lines()[: -len(accounts[0].bound_lines()) or None]
    sweep = [name for name in points.table.names if name.startswith("weight")]
    for account, bound in zip(accounts, options.bounds, strict=True):
        if f"bound {bound:g}" in points.table.names:
            lines += account.bound_lines(rivals=sweep, names=[f"bound {bound:g}", *sweep])
    lines += ["", *(training_line(job) for job in jobs)]
    atomic_write(options.out / "table.txt", "\n".join(lines) + "\n")
    compared = [account.as_dict() for account in accounts[:1]]
    held = {
        f"bound {bound:g}": [asdict_of(one) for one in account.held(sweep, [f"bound {bound:g}"])]
        for account, bound in zip(accounts, options.bounds, strict=True)
        if f"bound {bound:g}" in points.table.names
    }
    atomic_write(
        options.out / "results.json",
        pretty_json({"rewards": rewards, "tradeoffs": compared, "held": held, "jobs": jobs}),
    )
    tradeoff_page(accounts[0], "Helpful and harmless").save(options.out / "tradeoffs.html")
    print("\n".join(lines), flush=True)


def asdict_of(held: Any) -> dict[str, Any]:
    return {
        "point": held.name, "met": held.met, "surely": held.surely, "helpful": held.kept.as_dict(),
        "harmless": held.values[HARMLESS].as_dict(),
        "against": {name: {"difference": gap.as_dict(), "p": p} for name, (gap, p) in held.rivals.items()},
    }  # fmt: skip


def training_line(job: dict[str, Any]) -> str:
    """How a training went: steps, KL, multiplier, time."""
    said = f"{job['point']}, seed {job['seed']}: {job['steps']} steps"
    if job["history"]:
        last = job["history"][-1]
        said += f", KL {last.get('kl', float('nan')):.1f} nats, length {last.get('response_length', float('nan')):.0f}"
        if f"multiplier/{HARMLESS}" in last:
            late = [-row[f"cost/{HARMLESS}"] for row in job["history"][-6:]]
            said += (
                f", multiplier {last[f'multiplier/{HARMLESS}']:.2f}, harmless {np.mean(late):.2f} in its last batches"
            )
    stopped = " (stopped by time)" if job.get("stopped_by_time") else ""
    times = f"{job['seconds']:.0f} s, of which {job['loading']:.0f} loading, {job['measuring']:.0f} measuring"
    return f"{said}{stopped}; {times}"


if __name__ == "__main__":
    sys.exit(main())
