"""Decoding with SmolLM2-135M's shape on one GPU: the engine beside transformers' `generate`, bfloat16, greedy.

    python bench/gpu_decode.py [--batches 1 32 256] [--prompt 64] [--new 128] [--rounds 5] [--peer] [--local]

Random weights (only the shape matters here), random prompts, no end token. `whole/s` counts new tokens over the whole
call, reading the prompts included; `decode/s` what comes after the first token, over what the call takes longer than
one for a single token. The limit is what reading weights, keys and values from memory allows at the bandwidth measured
there.
"""

from __future__ import annotations

import argparse
import time

import tokenizers
import torch
from smollm2_shape import our_model, their_model
from tokenizers import decoders, models, pre_tokenizers

from alignlab.lm.bench_limits import measure_limits
from alignlab.lm.bench_model import Setting, figures, needs, time_contenders
from alignlab.lm.bench_peers import Contender, Room, engine, ours
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.tokenizer import SpecialTokens, Tokenizer


def language_model() -> LanguageModel:
    """Random weights of the shape, with a tokenizer of bytes."""
    model = our_model().eval()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(["</s>", *alphabet])}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return LanguageModel(model, Tokenizer(core, SpecialTokens(eos=0)), name="smollm2-shape", source="random weights")


def peer() -> Contender:
    """transformers' `generate` on the same shape, as one gets it by default."""
    model = their_model().eval()

    @torch.no_grad()
    def generate(prompts: list[list[int]], new: int) -> None:
        rows = torch.tensor(prompts, device="cuda")
        model.generate(rows, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)

    return Contender("transformers", generate)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256])
    for name, value in (("prompt", 64), ("new", 128), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--local", action="store_true", help="LocalSampler as well")
    options = parser.parse_args()
    lm = language_model()
    device = lm.model.embed.weight.device
    limits = measure_limits(device, torch.bfloat16)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(
        f"{limits.bytes_per_second / 1e9:,.0f} GB/s, {limits.flops_per_second / 1e12:,.0f} Tflop/s measured", flush=True
    )
    print("batch  engine        whole/s   decode/s  of limit   limit/s  spread  first token", flush=True)
    room = Room(max(options.batches), options.prompt + options.new)
    contenders = [engine(lm, room), *([peer()] if options.peer else [])]
    for batch in options.batches:
        setting = Setting(batch, options.prompt, options.new)
        local = [ours(lm, batch)] if options.local else []
        started = time.perf_counter()
        seconds = time_contenders(lm, [*contenders, *local], setting, rounds=options.rounds, seed=0)
        for name, each in seconds.items():
            row = figures(setting, each, *needs(lm, setting), limits)
            decode, share = row["decode_tokens_per_second"] or 0, row["decode_share"] or 0
            wait = row["first_token_seconds"]
            print(
                f"{batch:5d}  {name:12s} {row['tokens_per_second']:9,.0f}  {decode:9,.0f}  {100 * share:6.0f} %"
                f"  {row['decode_limit']:8,.0f}  {100 * row['spread']:4.0f} %  {wait * 1e3:7.1f} ms",
                flush=True,
            )
        print(f"       {time.perf_counter() - started:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
