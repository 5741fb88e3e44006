"""Sizes and switches of an engine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from alignlab.core.config import require
from alignlab.core.errors import ConfigError
from alignlab.lm.engine.graphs import LONGEST_AHEAD
from alignlab.lm.engine.paged import PagedCache
from alignlab.lm.model import GPTModel

CPU_MEMORY = 2 * 2**30
"""Bytes that the cache takes at most on a CPU where nobody says; they are taken as they are first written."""
GPU_SHARE = 0.8
"""Part of a GPU's free memory that the cache takes at most where nobody says."""


@dataclass(frozen=True)
class EngineOptions:
    """What an engine may use and how it runs. Raises `ConfigError` for sizes that hold no request."""

    blocks: int | None = None
    """Blocks of the cache. Where neither this nor `memory` is given: as many as `max_running` full contexts need,
    within 2 GiB on a CPU and 80 % of what is free on a GPU."""
    memory: int | None = None
    """Bytes of the cache."""
    block_size: int = 16
    """Tokens in a block."""
    max_running: int = 256
    """Requests that run at a time."""
    prefill_chunk: int | None = None
    """Prompt tokens that a step reads beside the decoding at most; 512 on a CPU and 8192 on a GPU where None."""
    ageing: int = 64
    """Steps of waiting that one level of priority is worth."""
    invariant: bool | None = None
    """Numbers that no load changes (`engine.invariant`); where None, in float32 on a CPU."""
    ahead: int = 16
    """Steps that a GPU makes without asking Python, where all requests decode. Streams then come in such pieces."""
    compiled: bool = True
    """Decode steps on a GPU go through `torch.compile`: ten to thirty seconds at first."""

    def __post_init__(self) -> None:
        for name in ("max_running", "prefill_chunk", "ageing", "ahead"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "a whole number of at least 1")
        require(self.blocks is None or self.blocks >= 1, "blocks", self.blocks, "a whole number of at least 1")
        require(self.ahead <= LONGEST_AHEAD, "ahead", self.ahead, f"at most {LONGEST_AHEAD}")
        require(
            self.block_size >= 1 and not (self.invariant and self.block_size % 16),
            "block_size", self.block_size, "a positive whole number, for invariant numbers a multiple of 16",
        )  # fmt: skip

    def n_blocks(self, model: GPTModel) -> int:
        """How many blocks the cache for `model` gets."""
        if self.blocks is not None:
            return self.blocks
        weight = model.embed.weight
        each = PagedCache.bytes_per_block(model.config, self.block_size, weight.dtype)
        if self.memory is not None:
            if self.memory < each:
                raise ConfigError(f"memory is {self.memory} bytes, one block of {self.block_size} tokens takes {each}")
            return self.memory // each
        free = GPU_SHARE * torch.cuda.mem_get_info(weight.device)[0] if weight.device.type == "cuda" else CPU_MEMORY
        return max(1, min(int(free) // each, self.max_running * -(-model.config.n_ctx // self.block_size)))
