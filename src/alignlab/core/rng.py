"""Randomness is an argument: independent streams derived from one seed and the names of their use."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2**63) for the stream `names` of `seed`, the first 63 bits of a SHA-256 digest.

    Each part is hashed with its type and length, so that ("a", "b") differs from ("ab",) and 1 differs from "1".
    The same arguments give the same seed on every machine and in every version of Python.
    """
    digest = hashlib.sha256()
    for part in (seed, *names):
        if isinstance(part, bool) or not isinstance(part, int | str):
            raise TypeError(f"a seed is derived from int and str, not {type(part).__name__}")
        encoded = str(part).encode()
        digest.update(f"{type(part).__name__}:{len(encoded)}:".encode())
        digest.update(encoded)
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def torch_generator(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator on `device`, seeded with `seed`; the global generator is never touched."""
    import torch

    return torch.Generator(device=device).manual_seed(seed)


def numpy_generator(seed: int) -> np.random.Generator:
    """A NumPy PCG64 generator seeded with `seed`."""
    import numpy as np

    return np.random.default_rng(seed)
