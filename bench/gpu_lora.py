"""LoRA training of SmolLM2-135M's shape on one GPU, beside transformers + PEFT: 32 rows of 512 tokens, bfloat16.

    python bench/gpu_lora.py [--updates 30] [--no-compile]

Random weights (only the shape matters here), rank 8 on every linear layer, fused AdamW, the whole update.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import pairwise

import torch
from smollm2_shape import our_model, their_model
from torch import Tensor

BATCH, LENGTH, RANK = 32, 512, 8


def ours(updates: int, compiled: bool) -> list[float]:
    """Seconds of each update of `Trainer`, from one request for a batch to the next."""
    from alignlab.lm.lora import ALL_LINEAR, LoraConfig, add_lora
    from alignlab.train.config import TrainConfig
    from alignlab.train.language import language_model_loss
    from alignlab.train.trainer import Trainer

    model = our_model()
    add_lora(model, LoraConfig(rank=RANK, alpha=2.0 * RANK, targets=(ALL_LINEAR,)))
    moments: list[float] = []

    def batch_at(index: int) -> dict[str, Tensor]:
        moments.append(time.perf_counter())
        tokens = torch.randint(100, 40_000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(index % 4))
        return {"tokens": tokens}

    Trainer(model, language_model_loss, TrainConfig(steps=updates, compile=compiled, log_every=10)).fit(batch_at)
    return [b - a for a, b in pairwise(moments)]


def peer(updates: int, compiled: bool) -> list[float]:
    """Seconds of each update of transformers + PEFT."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(their_model(), LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    seconds = []
    for i in range(updates):
        started = time.perf_counter()
        tokens = torch.randint(100, 40_000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(i % 4)).cuda()
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        float(loss.detach())
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {BATCH} x {LENGTH} tokens, rank {RANK}")
    rates = {}
    for name, run in {"alignlab": ours, "PEFT": peer}.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seconds = run(options.updates, not options.no_compile)[options.updates // 3 :]
        rates[name] = BATCH * LENGTH / statistics.median(seconds)
        print(f"{name:>8}: {rates[name]:8.0f} tokens/s, peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    print(f"ratio {rates['alignlab'] / rates['PEFT']:.2f}")


if __name__ == "__main__":
    main()
