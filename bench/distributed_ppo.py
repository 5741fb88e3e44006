"""PPO on several GPUs against one: is the learning curve the same, and how much faster is it?

    python bench/distributed_ppo.py                                  # tiny: two CPU processes, a few answers
    python bench/distributed_ppo.py --device cuda --model FILE.gguf  # the experiment, on two GPUs of one machine

One torchrun does everything, so that model and kernels are made ready once:
  shared  every seed with all processes together: FSDP2 (or `--kind ddp`), the same global batch as alone
  alone   every seed in one process on one GPU, as many seeds at a time as there are GPUs
  weak    all processes together with as many times the batch, for its speed
The reward is the number of the answer's words from a list of friendly ones. `--lora 0` trains every parameter in
float32 with bfloat16 products; `--lora 16` an adapter of that rank over bfloat16 weights. Each run is a JSON file in
`--out`: what is there is not done again, and no further seeds start where `--minutes` would not do for them. At the end
(`--part table` alone) the table is printed and written with its numbers to distributed_ppo.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FRIENDLY_WORDS = """
    amazing beautiful best better bright calm cheerful clean comfort comfortable cosy delicious delight delightful
    easy enjoy enjoyed enjoying excellent excited favorite favourite fresh friendly friend friends fun generous
    gentle glad golden good grateful great happy happiness healthy helpful hope joy kind kindness laugh laughter
    light lovely lucky nice peace peaceful perfect pleasant pleased proud pure relaxed relaxing safe smile smiled
    soft special strong sunny sweet thank thankful thanks warm warmth welcome well wise wonderful
"""
FRIENDLY = frozenset(FRIENDLY_WORDS.split())
PROMPTS = (
    "Describe a walk in a park.", "Write a line about your breakfast.", "How was the weather today?",
    "Describe a room in a house.", "What did you do last weekend?", "Tell me about a teacher.",
    "Describe a train journey.", "Write two sentences about a dog.", "What is a market like?",
    "Describe the sea in the morning.", "Tell me about a meal with others.", "Write a line about a book.",
    "How does a garden look in spring?", "Describe a small shop.", "Tell me about a neighbour.",
    "What is it like to cook soup?", "Describe a night by a fire.", "Write a line about music.",
    "Tell me about a bicycle ride.", "Describe a letter from far away.", "What does a bakery smell like?",
    "Tell me about a rainy day.", "Describe a chair by a window.", "Write a line about winter.",
)  # fmt: skip
SMALL: dict[str, Any] = {"seeds": 2, "steps": 2, "batch": 4, "microbatch": 2, "max_tokens": 6, "weak_steps": 2}
LARGE: dict[str, Any] = {"seeds": 4, "steps": 20, "batch": 128, "microbatch": 64, "max_tokens": 32, "weak_steps": 8}
SKIPPED = 2
"""Steps at the beginning that do not count for the speed: kernels are made ready in them."""


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.worker:
        work(options)
        return
    if options.part == "all":
        own_ways = ("out", "part", "worker", "minutes", "seeds")
        settings = {name: value for name, value in vars(options).items() if name not in own_ways}
        file = options.out / "settings.json"
        if file.is_file() and json.loads(file.read_text()) != settings:
            raise SystemExit(f"{options.out} holds an experiment with other settings; give another --out")
        file.write_text(json.dumps(settings))
        own = [*(sys.argv[1:] if argv is None else argv), "--worker"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        done = subprocess.run([*torchrun, f"--nproc-per-node={options.processes}", __file__, *own])
        if done.returncode:
            raise SystemExit(f"a process failed ({done.returncode}); what is finished in {options.out} is kept")
    table(options)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("distributed_ppo"))
    parser.add_argument("--part", choices=("all", "table"), default="all")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kind", choices=("fsdp", "ddp"), default="fsdp")
    parser.add_argument("--lora", type=int, help="rank of the adapter; 0 (on a GPU) trains every parameter")
    parser.add_argument("--rate", type=float, help="learning rate; 1e-5, or 3e-4 of an adapter")
    parser.add_argument("--kl", type=float, default=0.02)
    parser.add_argument("--minutes", type=float, help="no further seeds where they would take longer (GPU: 3.9)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    for name in SMALL:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    options = parser.parse_args(argv)
    for name, value in (SMALL if options.device == "cpu" else LARGE).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.lora is None:
        options.lora = 0 if options.device == "cuda" else 8  # every parameter of SmolLM2 takes 4 GB a process
    options.minutes = options.minutes or (3.9 if options.device == "cuda" else float("inf"))
    options.rate = options.rate or (3e-4 if options.lora else 1e-5)
    return options


def friendly(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
    """Friendly words of each answer; a little for its length, so that a batch without any still differs."""
    words = [[word.strip(".,!?;:'\"()*").lower() for word in text.split()] for text in answers]
    return [sum(word in FRIENDLY for word in own) + 0.001 * len(own) for own in words]


class Bench:
    """A model that every run starts from as it was, in this process."""

    def __init__(self, options: argparse.Namespace, parallel: Any) -> None:
        from alignlab.align.adapters import ensure_lora
        from alignlab.lm.language_model import load
        from alignlab.lm.lora import ALL_LINEAR, LoraConfig

        self.options, self.parallel = options, parallel
        rank = options.lora
        self.lora = LoraConfig(rank=rank, alpha=2.0 * rank, targets=(ALL_LINEAR,)) if rank else None
        cuda = options.device == "cuda"
        dtype = "bfloat16" if rank and cuda else "float32"
        device = str(parallel.device)
        self.lm = load(options.model, dtype=dtype, device=device)
        ensure_lora(self.lm.model, self.lora)
        self.reference = None if rank else load(options.model, dtype=dtype, device=device)
        self.start = {name: p.detach().clone() for name, p in self.lm.model.named_parameters() if p.requires_grad}
        self.precision = "bf16" if cuda and not rank else "fp32"

    def run(self, seed: int, steps: int, parallel: Any, *, times: int = 1) -> dict[str, Any]:
        """One training; what a table needs of it."""
        import torch

        from alignlab.align.ppo import PPOTrainer
        from alignlab.align.ppo_config import PPOConfig

        options, batch = self.options, self.options.batch * times
        self.lm.model.load_state_dict(self.start, strict=False)  # what is frozen is as it was
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        lm = self.lm
        if options.kind == "ddp" and parallel.world > 1:
            import copy

            lm = copy.deepcopy(self.lm)  # the replicas' hooks stay with a model
        config = PPOConfig(
            steps=steps, batch_size=batch, minibatch_size=max(1, batch // 2), epochs=2,
            microbatch_size=options.microbatch, max_tokens=options.max_tokens, learning_rate=options.rate,
            kl_coefficient=options.kl, lora=self.lora, precision=self.precision,  # type: ignore[arg-type]
            max_mismatch=0.1 if options.device == "cpu" else 0.3, on_equal_rewards="skip", seed=seed,
        )  # fmt: skip
        trainer = PPOTrainer(lm, friendly, self.reference, config, parallel=parallel)
        seconds: list[float] = []
        sampling: list[float] = []
        tokens: list[int] = []
        generate = trainer.generate

        def timed(prompts: Any) -> Any:
            began = time.perf_counter()
            answers = generate(prompts)
            sampling.append(time.perf_counter() - began)
            return answers

        def on_step(step: int, responses: Any, metrics: Any) -> None:
            if options.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - last[0])
            last[0] = time.perf_counter()
            tokens.append(sum(len(response.completion.tokens) for response in responses))

        trainer.generate = timed  # type: ignore[method-assign]
        last = [time.perf_counter()]
        prompts = [[{"role": "user", "content": text}] for text in PROMPTS]
        result = trainer.train(prompts, on_step=on_step)
        memory = torch.cuda.max_memory_allocated() / 2**30 if options.device == "cuda" else 0.0
        return {
            "seed": seed, "processes": parallel.world, "batch": batch, "seconds": seconds, "sampling": sampling,
            "tokens": tokens, "history": result.history, "gib": memory,
        }  # fmt: skip


def work(options: argparse.Namespace) -> None:
    """One process of the experiment."""
    import torch

    from alignlab.align.shared_work import processes
    from alignlab.core.files import atomic_write
    from alignlab.train.parallel import Parallel

    started = time.monotonic()
    torch.set_float32_matmul_precision("high")
    with processes(options.kind, timeout_seconds=600) as parallel:
        bench = Bench(options, parallel)

        def say(text: str) -> None:
            print(f"[{time.monotonic() - started:5.0f} s] rank {parallel.rank}: {text}", flush=True)

        def keep(name: str, found: dict[str, Any]) -> None:
            atomic_write(options.out / f"{name}.json", json.dumps(found))
            rewards = [row["reward"] for row in found["history"]]
            say(f"{name}: reward {rewards[0]:.2f} -> {rewards[-1]:.2f}, {sum(found['seconds']):.1f} s")

        def due(*names: str) -> bool:
            """Rank 0 decides for all."""
            return parallel.broadcast(not all((options.out / f"{name}.json").is_file() for name in names))

        say("ready")
        bench.run(0, SKIPPED, parallel)  # kernels and graphs are made ready
        own = Parallel()
        taken = 0.0  # seconds that the seeds before took, both ways
        for first in range(0, options.seeds, parallel.world):
            began = time.monotonic()
            if parallel.broadcast(began - started + taken > 60 * options.minutes):
                say(f"seeds from {first} on would take longer than {options.minutes:g} minutes; start again for them")
                break
            seeds = range(first, min(first + parallel.world, options.seeds))
            for seed in seeds:
                if due(f"shared-{seed}"):
                    found = bench.run(seed, options.steps, parallel)
                    if parallel.is_main:
                        keep(f"shared-{seed}", found)
            if due(*(f"alone-{seed}" for seed in seeds)) and first + parallel.rank in seeds:
                keep(f"alone-{first + parallel.rank}", bench.run(first + parallel.rank, options.steps, own))
            parallel.barrier()
            taken = time.monotonic() - began
            if due("weak"):
                found = bench.run(0, options.weak_steps, parallel, times=parallel.world)
                if parallel.is_main:
                    keep("weak", found)


def rate_of(runs: list[dict[str, Any]]) -> float:
    """Answer tokens a second, the median step of all runs."""
    return statistics.median(
        tokens / seconds
        for run in runs
        for tokens, seconds in list(zip(run["tokens"], run["seconds"], strict=True))[
            min(SKIPPED, len(run["tokens"]) - 1) :
        ]
    )


def table(options: argparse.Namespace) -> None:
    """Speed and learning curves of the runs that are there."""
    from alignlab.core.files import atomic_write, read_json
    from alignlab.core.run_creation import pretty_json

    files = [*sorted(options.out.glob("*-*.json")), *options.out.glob("weak.json")]
    runs = {path.stem: read_json(path) for path in files}
    shared, alone = (
        {name.split("-")[1]: run for name, run in runs.items() if name.startswith(kind)} for kind in ("shared", "alone")
    )
    seeds = sorted(set(shared) & set(alone), key=int)
    if not seeds:
        raise SystemExit(f"{options.out} has no seed that was run both ways yet")
    both = {"shared": [shared[seed] for seed in seeds], "alone": [alone[seed] for seed in seeds]}
    found: dict[str, Any] = {"seeds": len(seeds), "processes": both["shared"][0]["processes"]}
    world = found["processes"]
    lines = [f"PPO in {world} processes ({options.kind}) against one, {len(seeds)} seeds each"]
    for name, some in both.items():
        share = statistics.median(a / b for run in some for a, b in zip(run["sampling"], run["seconds"], strict=True))
        found[f"{name} tokens/s"], found[f"{name} sampling share"] = rate_of(some), share
        gib = max(run["gib"] for run in some)
        lines.append(
            f"  {name:>6}: {rate_of(some):8.0f} answer tokens/s, sampling {share:.0%} of a step, {gib:.1f} GiB"
        )
    found["strong speed-up"] = found["shared tokens/s"] / found["alone tokens/s"]
    lines.append(f"  strong scaling (same batch, {both['alone'][0]['batch']}): {found['strong speed-up']:.2f} times")
    if "weak" in runs:
        found["weak tokens/s"] = rate_of([runs["weak"]])
        found["weak speed-up"] = found["weak tokens/s"] / found["alone tokens/s"]
        lines.append(f"  weak scaling ({world} times the batch): {found['weak speed-up']:.2f} times")
    lines += curves(both, found)
    atomic_write(options.out / "distributed_ppo.json", pretty_json(found))
    atomic_write(options.out / "distributed_ppo.txt", "\n".join(lines) + "\n")
    print("\n".join(lines))


def curves(both: dict[str, list[dict[str, Any]]], found: dict[str, Any]) -> list[str]:
    """The curves side by side, and whether they differ: paired by seed, a t interval over seeds."""
    import numpy as np
    from scipy.stats import t

    lines, steps = [], min(len(run["history"]) for some in both.values() for run in some)
    for measure in ("reward", "kl", "response_length"):
        curve = {
            name: np.array([[row.get(measure, np.nan) for row in run["history"][:steps]] for run in some])
            for name, some in both.items()
        }
        at = sorted({0, steps // 4, steps // 2, 3 * steps // 4, steps - 1})
        for name, rows in curve.items():
            means = ", ".join(f"{step + 1}: {float(np.nanmean(rows[:, step])):.3f}" for step in at)
            lines.append(f"  {measure:>15} {name:>6} at step {means}")
        for part, chosen in (("whole run", slice(0, steps)), ("last third", slice(2 * steps // 3, steps))):
            two = {name: np.nanmean(rows[:, chosen], axis=1) for name, rows in curve.items()}
            differences = two["shared"] - two["alone"]
            n, mean = len(differences), float(differences.mean())
            record: dict[str, Any] = {"difference": mean, "n": n, "alone": float(two["alone"].mean())}
            text = f"  {measure:>15} {part}: shared - alone {mean:+.3f}"
            if n > 1:
                half = float(t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n))
                noise = float(two["alone"].std(ddof=1))
                record |= {"low": mean - half, "high": mean + half, "sd of seeds alone": noise}
                verdict = "within noise" if abs(mean) <= half else "not within noise"
                text += (
                    f" [{mean - half:+.3f}, {mean + half:+.3f}] (n={n}), {verdict}; seeds alone differ by {noise:.3f}"
                )
                record["verdict"] = verdict
            found[f"{measure}, {part}"] = record
            lines.append(text)
    return lines


if __name__ == "__main__":
    main()
