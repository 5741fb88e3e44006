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
from itertools import pairwise

import torch
from torch import Tensor, nn

LAYERS, WIDTH, HEADS, VOCABULARY, LENGTH = 12, 768, 12, 50304, 1024


def ours(batch: int, updates: int) -> list[float]:
    """Seconds of each update of `Trainer`, from one request for a batch to the next."""
    from alignlab.lm.config import GPTConfig
    from alignlab.lm.model import GPTModel
    from alignlab.train.config import TrainConfig
    from alignlab.train.language import language_model_loss
    from alignlab.train.trainer import Trainer

    config = GPTConfig(
        vocab_size=VOCABULARY,
        n_ctx=LENGTH,
        d_model=WIDTH,
        n_layers=LAYERS,
        n_heads=HEADS,
        d_mlp=4 * WIDTH,
        positions="learned",
        norm="layernorm",
        activation="gelu_tanh",
        gated_mlp=False,
        architecture="gpt2",
    )
    model = GPTModel(config).cuda()
    train = TrainConfig(
        steps=updates, learning_rate=6e-4, beta2=0.95, weight_decay=0.1, precision="bf16", compile=True, log_every=10
    )
    moments: list[float] = []

    def batch_at(index: int) -> dict[str, Tensor]:
        moments.append(time.perf_counter())
        tokens = torch.randint(0, 50257, (batch, LENGTH + 1), generator=torch.Generator().manual_seed(index % 4))
        return {"tokens": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}

    Trainer(model, language_model_loss, train).fit(batch_at)
    return [b - a for a, b in pairwise(moments)]


def peer(batch: int, updates: int) -> list[float]:
    """Seconds of each update of transformers' GPT-2, compiled, with fused AdamW and clipping."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS)
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
    for name, run in {"alignlab": ours, **({"transformers": peer} if options.peer else {})}.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seconds = run(options.batch, options.updates)[options.updates // 3 :]
        rate = options.batch * LENGTH / statistics.median(seconds)
        memory = torch.cuda.max_memory_allocated() / 2**30
        print(f"{name:>12}: {rate:9.0f} tokens/s, MFU {100 * rate * flops / options.peak:.1f} %, {memory:.1f} GiB")


if __name__ == "__main__":
    main()
