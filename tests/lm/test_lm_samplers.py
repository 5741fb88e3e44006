"""Which sampler a model gets (the engine on a GPU: test_lm_engine_gpu)."""

from __future__ import annotations

from collections.abc import Callable

from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler
from alignlab.lm.samplers import sampler_of


def test_on_a_cpu_it_is_the_local_sampler(make_lm: Callable[..., LanguageModel]) -> None:
    sampler = sampler_of(make_lm(), batch_size=7)
    assert isinstance(sampler, LocalSampler)
    assert sampler.batch_size == 7
