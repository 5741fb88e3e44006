"""Pretraining GPT-2's smallest shape on one GPU: the whole update, beside transformers' GPT-2 in the same process.

    python bench/gpu_pretrain.py [--batch 64] [--updates 40] [--peer]

12 layers, width 768, 12 heads, vocabulary 50304, length 1024, bfloat16, compiled; clipping and AdamW included,
synthetic tokens. Model FLOPs a token are 6 N + 12 · layers · width · length, N without position embeddings (PaLM,
Chowdhery et al. 2022, appendix B); `--peak` is the device's dense bfloat16 FLOP/s.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from gpt2_training import LAYERS, LENGTH, VOCABULARY, WIDTH, seconds_of_updates
from torch import Tensor, nn


def peer(batch: int, updates: int) -> list[float]:
    """Seconds of each update of transformers' GPT-2, compiled, with fused AdamW and clipping."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=WIDTH, n_layer=LAYERS, n_head=WIDTH // 64)
    model = GPT2LMHeadModel(config).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward: Callable[..., Tensor] = torch.compile(lambda x: model(x, labels=x, use_cache=False).loss)
    seconds = []
    for i in range(updates):
        started = time.perf_counter()
        tokens = torch.randint(0, 50257, (batch, LENGTH), generator=torch.Generator().manual_seed(i % 4)).cuda()
        with torch.autocast("cuda", torch.bfloat16):
            loss = forward(tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(loss.detach())
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--peak", type=float, default=989.5e12)
    parser.add_argument("--peer", action="store_true")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    weights = 12 * LAYERS * WIDTH**2 + VOCABULARY * WIDTH
    flops = 6 * weights + 12 * LAYERS * WIDTH * LENGTH
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch {options.batch} x {LENGTH}")
    for name, run in {"alignlab": seconds_of_updates, **({"transformers": peer} if options.peer else {})}.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seconds = run(options.batch, options.updates)[options.updates // 3 :]
        rate = options.batch * LENGTH / statistics.median(seconds)
        memory = torch.cuda.max_memory_allocated() / 2**30
        print(f"{name:>12}: {rate:9.0f} tokens/s, MFU {100 * rate * flops / options.peak:.1f} %, {memory:.1f} GiB")


if __name__ == "__main__":
    main()
