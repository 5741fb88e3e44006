"""Seeds: the same everywhere, different for different uses, and never from global state."""

from __future__ import annotations

import hashlib
import itertools
import random

import numpy as np
import pytest
import torch

from alignlab.core.rng import derive_seed, numpy_generator, torch_generator


def test_seed_is_what_the_docstring_says() -> None:
    digest = hashlib.sha256(b"int:1:7" + b"str:4:data" + b"int:1:3").digest()
    assert derive_seed(7, "data", 3) == int.from_bytes(digest[:8], "big") // 2


def test_different_names_give_different_streams() -> None:
    names = [(), ("a",), ("b",), ("a", "b"), ("ab",), ("b", "a"), (1,), ("1",), (11,), (1, 1), ("",), ("", "")]
    seeds = {derive_seed(seed, *name) for seed, name in itertools.product((0, 1, -1, 2**70), names)}
    assert len(seeds) == 4 * len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("name", [True, 1.0, None, b"a"])
def test_only_int_and_str_name_a_stream(name: object) -> None:
    with pytest.raises(TypeError, match="a seed is derived from int and str"):
        derive_seed(0, name)  # type: ignore[arg-type]


def test_generators_repeat_and_leave_the_globals_alone() -> None:
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    draws = [(torch.rand(3, generator=torch_generator(5)), numpy_generator(5).random(3)) for _ in range(2)]
    assert torch.equal(draws[0][0], draws[1][0])
    assert np.array_equal(draws[0][1], draws[1][1])
    assert not torch.equal(draws[0][0], torch.rand(3, generator=torch_generator(6)))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


def test_every_derived_seed_is_a_valid_torch_seed() -> None:
    torch_generator(2**63 - 1)
    numpy_generator(2**63 - 1)
