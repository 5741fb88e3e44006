"""What this machine could do at most: measured memory bandwidth and matrix products, and what a model asks of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from alignlab.lm.model import GPTModel

CPU_BYTES, GPU_BYTES = 512 * 2**20, 4 * 2**30
"""Read by one pass of the bandwidth probe: more than the caches of most machines hold."""
CPU_SIDE, GPU_SIDE = 2048, 8192
"""Side of the square matrices of the product probe."""


@dataclass(frozen=True)
class Limits:
    """Medians of the probes on one device."""

    bytes_per_second: float
    """Reading memory: the faster of a sum and a matrix times a vector."""
    flops_per_second: float
    """A product of two large square matrices in the type of the weights, two operations a multiply-add."""
    repeats: int
    """Timings behind each median."""


@dataclass(frozen=True)
class Need:
    """What work asks of the machine: bytes read from memory and floating-point operations."""

    bytes: float
    flops: float

    def seconds(self, limits: Limits) -> float:
        """The least time it can take (the roofline of Williams et al. 2009): memory and arithmetic overlap at best."""
        return max(self.bytes / limits.bytes_per_second, self.flops / limits.flops_per_second)

    def bound(self, limits: Limits) -> str:
        """Which of the two sets that time."""
        memory = self.bytes / limits.bytes_per_second
        return "memory" if memory >= self.flops / limits.flops_per_second else "compute"


def measure_limits(device: torch.device, dtype: torch.dtype, *, repeats: int = 5, scale: float = 1.0) -> Limits:
    """Probe the device; `scale` shrinks the probes (tests)."""
    on_gpu = device.type == "cuda"
    count = max(1024, int((GPU_BYTES if on_gpu else CPU_BYTES) * scale) // 4 // 1024 * 1024)
    values = torch.ones(count, device=device)
    matrix, vector = values.view(-1, 1024), torch.ones(1024, device=device)
    readers = (values.sum, lambda: torch.mv(matrix, vector))
    seconds = min(statistics.median(timings(read, device, repeats)) for read in readers)
    del values, matrix
    side = max(16, int((GPU_SIDE if on_gpu else CPU_SIDE) * scale**0.5))
    left = torch.ones(side, side, device=device, dtype=dtype)
    product = statistics.median(timings(lambda: left @ left, device, repeats))
    return Limits(count * 4 / seconds, 2 * side**3 / product, repeats)


def timings(work: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Seconds of `repeats` calls after one that warms up."""
    found = []
    for _ in range(repeats + 1):
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        found.append(time.perf_counter() - started)
    return found[1:]


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def middle(limits: list[Limits]) -> Limits:
    """One measurement out of several: the medians of theirs."""
    return Limits(
        statistics.median(one.bytes_per_second for one in limits),
        statistics.median(one.flops_per_second for one in limits),
        sum(one.repeats for one in limits),
    )


def weight_bytes(model: GPTModel) -> int:
    """Bytes of everything that one decoding step reads of the weights, packed ones as they lie in memory.

    An embedding that is not also the head is left out: a step reads one row of it a sequence.
    """
    tables = [model.embed] if model.head is not None else []
    tables += [] if model.pos_embed is None else [model.pos_embed]
    looked_up = {t.data_ptr() for table in tables for t in table.state_dict().values()}
    stored = {t.data_ptr(): t.numel() * t.element_size() for t in model.state_dict().values()}
    return sum(size for place, size in stored.items() if place not in looked_up)


def cache_bytes(model: GPTModel, context: float, bytes_per_value: int) -> float:
    """Bytes of keys and values that a token at the end of `context` tokens attends to."""
    config = model.config
    return sum(
        2 * config.n_kv_heads * config.d_head * bytes_per_value * _seen(model, layer, context)
        for layer in range(config.n_layers)
    )


def step_need(model: GPTModel, batch: int, context: float, bytes_per_value: int) -> Need:
    """One decoding step of `batch` sequences that have `context` tokens each on average."""
    flops = 2 * (_block_weights(model) + _head_weights(model)) + _attention_flops(model, context)
    return Need(weight_bytes(model) + batch * cache_bytes(model, context, bytes_per_value), batch * flops)


def prefill_need(model: GPTModel, batch: int, length: int) -> Need:
    """Reading `batch` prompts of `length` tokens up to the first token's logits; one position each is unembedded."""
    # A token at position i attends to i + 1, on average to (length + 1) / 2.
    per_token = 2 * _block_weights(model) + _attention_flops(model, (length + 1) / 2)
    return Need(weight_bytes(model), batch * (length * per_token + 2 * _head_weights(model)))


def _seen(model: GPTModel, layer: int, context: float) -> float:
    window = model.config.window
    return min(context, window) if window and model.config.is_windowed(layer) else context


def _attention_flops(model: GPTModel, context: float) -> float:
    config = model.config
    return sum(4 * config.n_heads * config.d_head * _seen(model, layer, context) for layer in range(config.n_layers))


def _block_weights(model: GPTModel) -> int:
    config = model.config
    attention = 2 * config.d_model * config.d_head * (config.n_heads + config.n_kv_heads)
    return config.n_layers * (attention + (3 if config.gated_mlp else 2) * config.d_model * config.d_mlp)


def _head_weights(model: GPTModel) -> int:
    return model.config.vocab_size * model.config.d_model
