"""How much faster GPT-2's smallest shape trains on several GPUs of one machine: the trainer's whole update.

    python bench/gpu_scaling.py [--worlds 2 4] [--kinds ddp fsdp] [--batch 64] [--updates 40]

`--batch` rows of 1024 tokens a GPU, bfloat16, compiled, clipping and AdamW included, synthetic tokens. Efficiency is
the rate at N GPUs over N times the rate of the plain trainer on one. `--layers 2 --width 64 --length 64 --no-compile`
tries it on a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys


def measure(options: argparse.Namespace) -> None:
    """One process of a measurement; rank 0 prints tokens a second of all of them."""
    import torch
    from gpt2_training import seconds_of_updates

    from alignlab.train.parallel import parallel_from_env

    torch.set_float32_matmul_precision("high")
    parallel = parallel_from_env(options.kind, precision="bf16")
    shape = {"layers": options.layers, "width": options.width, "length": options.length}
    compiled = not options.no_compile
    seconds = seconds_of_updates(options.batch, options.updates, compiled=compiled, parallel=parallel, **shape)
    seconds = seconds[options.updates // 3 :]
    if parallel.is_main:
        memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        print("RESULT", parallel.world * options.batch * options.length / statistics.median(seconds), memory)
    parallel.close()


def launch(kind: str, world: int, arguments: list[str]) -> tuple[float, float]:
    """Tokens a second over `world` processes, and GiB on the first GPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", __file__]
    if kind == "auto":
        command = [sys.executable, __file__]
    done = subprocess.run([*command, "--kind", kind, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    _, rate, memory = next(line for line in done.stdout.splitlines() if line.startswith("RESULT")).split()
    return float(rate), float(memory)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--worlds", type=int, nargs="+", default=[2])
    parser.add_argument("--kinds", nargs="+", default=["ddp", "fsdp"])
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    for name, value in (("batch", 64), ("updates", 40), ("length", 1024), ("layers", 12), ("width", 768)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    if options.kind:
        measure(options)
        return
    names = ("batch", "updates", "length", "layers", "width")
    arguments = [part for name in names for part in (f"--{name}", str(getattr(options, name)))]
    arguments += ["--no-compile"] if options.no_compile else []
    one, memory = launch("auto", 1, arguments)
    print(f"  1 process: {one:9.0f} tokens/s, {memory:.1f} GiB", flush=True)
    for world in options.worlds:
        for kind in options.kinds:
            rate, memory = launch(kind, world, arguments)
            print(
                f"{world:3} x {kind:>5}: {rate:9.0f} tokens/s, efficiency {100 * rate / world / one:.1f} %, "
                f"{memory:.1f} GiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
