"""The `Sampler` of a model in this process, by where the model is."""

from __future__ import annotations

import torch

from alignlab.lm.engine import Engine, EngineOptions, EngineSampler
from alignlab.lm.engine.paged import PagedCache
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler

SHARE = 0.3
"""Part of a GPU's free memory that an engine's cache takes at most: training wants some as well."""


def sampler_of(lm: LanguageModel, *, batch_size: int = 32) -> LocalSampler | EngineSampler:
    """A sampler that runs at most `batch_size` rows at a time: on a GPU the engine, elsewhere `LocalSampler`.

    Both give the same answers in float32. The engine is kept with the model, so that what it has recorded serves the
    next caller.
    """
    device = lm.model.embed.weight.device
    if device.type != "cuda":
        return LocalSampler(lm, batch_size=batch_size)
    kept: Engine | None = vars(lm).get("_engine")
    if kept is None or kept.options.max_running < batch_size or kept.cache.device != device:
        wanted = EngineOptions(max_running=batch_size)
        each = PagedCache.bytes_per_block(lm.model.config, wanted.block_size, lm.model.embed.weight.dtype)
        memory = min(int(SHARE * torch.cuda.mem_get_info(device)[0]), wanted.n_blocks(lm.model) * each)
        vars(lm)["_engine"] = kept = Engine(lm, wanted, memory=memory)
    return EngineSampler(kept)
