"""Devices and precisions: what is not there is an error that names what is; memory is measured, not guessed."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from alignlab.core.device import hardware, peak_memory_bytes, pick_device, pick_dtype, reset_peak_memory
from alignlab.core.errors import ConfigError

CPU = torch.device("cpu")


def test_auto_device_computes() -> None:
    device = pick_device("auto")
    assert torch.ones(2, device=device).sum().item() == 2
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["gpu", "", "cpu:x", "meta", "cuda:-1"])
def test_unknown_device(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^device is '.*', allowed: auto, cpu, cuda, cuda:N or mps$"):
        pick_device(name)


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:1", 1)])
def test_missing_cuda_device(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ConfigError, match=f"has {count} CUDA devices"):
        pick_device(name)


def test_auto_prefers_cuda_then_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match="has no MPS"):
        pick_device("mps")


def test_dtypes() -> None:
    assert pick_dtype("auto", CPU) == torch.float32
    assert pick_dtype("bfloat16", CPU) == torch.bfloat16
    assert pick_dtype("float16", CPU) == torch.float16
    with pytest.raises(ConfigError, match=r"^dtype is 'fp8', allowed: auto, float32, bfloat16, float16$"):
        pick_dtype("fp8", CPU)


def test_hardware_is_plain_and_plausible() -> None:
    machine = hardware()
    assert json.loads(json.dumps(machine)) == machine
    assert machine["cores"] >= 1
    assert machine["memory_bytes"] > 2**28
    assert machine["processor"]


def test_peak_memory_sees_an_allocation_and_forgets_it_on_reset() -> None:
    size = 200 * 2**20
    reset_peak_memory()
    before = peak_memory_bytes()
    block = np.ones(size, dtype=np.uint8)
    during = peak_memory_bytes()
    assert during - before > 0.9 * size
    del block
    assert peak_memory_bytes() >= during - 0.05 * size  # the kernel counts pages in batches
    reset_peak_memory()
    if os.access("/proc/self/clear_refs", os.W_OK):  # elsewhere the peak only grows
        assert peak_memory_bytes() < during - 0.5 * size
