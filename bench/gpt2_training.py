"""What `gpu_pretrain.py` and `gpu_scaling.py` share: GPT-2's smallest shape and the seconds of each update of it."""

from __future__ import annotations

import time
from itertools import pairwise

import torch
from torch import Tensor

from alignlab.lm.config import GPTConfig
from alignlab.lm.model import GPTModel
from alignlab.train.config import TrainConfig
from alignlab.train.language import language_model_loss
from alignlab.train.parallel import Parallel
from alignlab.train.trainer import Trainer

LAYERS, WIDTH, VOCABULARY, LENGTH = 12, 768, 50304, 1024


def seconds_of_updates(
    batch: int,
    updates: int,
    *,
    layers: int = LAYERS,
    width: int = WIDTH,
    length: int = LENGTH,
    compiled: bool = True,
    parallel: Parallel | None = None,
) -> list[float]:
    """Seconds of each `Trainer` update, from one request for a batch to the next; `batch` rows a GPU."""
    config = GPTConfig(
        vocab_size=VOCABULARY,
        n_ctx=length,
        d_model=width,
        n_layers=layers,
        n_heads=width // 64,
        d_mlp=4 * width,
        positions="learned",
        norm="layernorm",
        activation="gelu_tanh",
        gated_mlp=False,
        architecture="gpt2",
    )
    model = GPTModel(config)
    if torch.cuda.is_available():
        model.cuda()
    train = TrainConfig(
        steps=updates,
        learning_rate=6e-4,
        beta2=0.95,
        weight_decay=0.1,
        precision="bf16",
        compile=compiled,
        log_every=10,
    )
    moments: list[float] = []
    rank = 0 if parallel is None else parallel.rank

    def batch_at(index: int) -> dict[str, Tensor]:
        moments.append(time.perf_counter())
        generator = torch.Generator().manual_seed(4 * rank + index % 4)
        tokens = torch.randint(0, 50257, (batch, length + 1), generator=generator)
        return {"tokens": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}

    Trainer(model, language_model_loss, train, parallel=parallel).fit(batch_at)
    return [b - a for a, b in pairwise(moments)]
