"""Decoding on the CPU beside Hugging Face `generate` (bf16) and llama.cpp (packed 4-bit): same weights, alternating.

64-token prompts, 64 new tokens, greedy. "decode" is the rate after the first new token, "prefill" that of the prompts'
tokens up to it. Prints medians and the median of the paired ratios.

    python bench/bench_cpu_decode.py [MODEL]             # SmolLM2-135M-Instruct unless another is named
    python bench/bench_cpu_decode.py [MODEL] --llama     # beside llama-cpp-python, packed weights of a GGUF file
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch

from alignlab.lm.generate import decode
from alignlab.lm.hf_export import export_hf
from alignlab.lm.language_model import load
from alignlab.lm.model import GPTModel
from alignlab.lm.types import SamplingParams

Rates = tuple[float, float]
"""Tokens/s of prefill and of decoding."""
Run = Callable[[list[list[int]], int], Rates]
PROMPT, NEW = 64, 64


def rates(batch: int, new: int, began: float, first: float, ended: float) -> Rates:
    return batch * PROMPT / (first - began), batch * (new - 1) / (ended - first)


def ours(model: GPTModel) -> Run:
    def run(prompts: list[list[int]], new: int) -> Rates:
        began, first = time.perf_counter(), 0.0
        for _ in decode(model, prompts, SamplingParams(max_tokens=new, temperature=0.0), frozenset()):
            first = first or time.perf_counter()
        return rates(len(prompts), new, began, first, time.perf_counter())

    return run


def hugging_face(folder: str) -> Run:
    from transformers import AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer

    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    class Clock(BaseStreamer):
        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: torch.Tensor) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    @torch.no_grad()
    def generate(tokens: torch.Tensor, new: int) -> None:
        peer.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, min_new_tokens=new, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip

    def run(prompts: list[list[int]], new: int) -> Rates:
        # Its streamer takes one row only, so the first token's time is that of a call of its own.
        tokens = torch.tensor(prompts)
        began = time.perf_counter()
        generate(tokens, 1)
        first = time.perf_counter()
        generate(tokens, new)
        return rates(len(prompts), new, began, first, first + (time.perf_counter() - first) - (first - began))

    return run


def llama_cpp(path: str) -> Run:
    from llama_cpp import Llama  # type: ignore[import-not-found]

    threads = torch.get_num_threads()
    peer = Llama(path, n_threads=threads, n_threads_batch=threads, n_ctx=512, verbose=False)

    def run(prompts: list[list[int]], new: int) -> Rates:
        peer.reset()
        began, first = time.perf_counter(), 0.0
        for n, _ in enumerate(peer.generate(prompts[0], temp=0.0, reset=True), 1):
            first = first or time.perf_counter()
            if n == new:
                break
        return rates(1, new, began, first, time.perf_counter())

    return run


def compare(name: str, runs: dict[str, Run], batch: int, rounds: int) -> None:
    prompts = torch.randint(100, 40_000, (batch, PROMPT), generator=torch.Generator().manual_seed(batch)).tolist()
    found: dict[str, list[Rates]] = {who: [] for who in runs}
    for run in runs.values():
        run(prompts, 4)
    for _ in range(rounds):
        for who, run in runs.items():
            found[who].append(run(prompts, NEW))
    for phase in (0, 1):
        medians = {who: statistics.median(rate[phase] for rate in values) for who, values in found.items()}
        first, *others = found.values()
        ratio = [statistics.median(a[phase] / b[phase] for a, b in zip(first, other, strict=True)) for other in others]
        told = ", ".join(f"{who} {rate:.0f}" for who, rate in medians.items())
        print(f"{name} batch {batch:>2} {('prefill', 'decode')[phase]:>7}: {told} tokens/s, ratio {ratio[0]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--llama", action="store_true", help="llama.cpp on packed weights instead of transformers")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(
        f"{torch.get_num_threads()} threads, {PROMPT}-token prompts, {NEW} new tokens, {args.rounds} rounds", flush=True
    )
    lm = load(args.model, dtype="bfloat16", device="cpu", packed=args.llama)
    if args.llama:
        compare("packed", {"alignlab": ours(lm.model), "llama.cpp": llama_cpp(lm.source)}, 1, args.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        export_hf(lm, folder)
        runs = {"alignlab": ours(lm.model), "transformers": hugging_face(folder)}
        for batch in args.batches:
            compare("bf16", runs, batch, args.rounds)


if __name__ == "__main__":
    main()
