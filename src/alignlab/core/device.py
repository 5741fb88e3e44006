"""Where the arithmetic happens: device, precision, what the machine has, and how much memory was used."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")


def pick_device(name: str = "auto") -> torch.device:
    """The torch device `name`; "auto" takes CUDA, then Apple's MPS, then the CPU. ConfigError if it is not there."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    allowed = "auto, cpu, cuda, cuda:N or mps"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ConfigError(f"device is {name!r}, allowed: {allowed}") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device is {name!r}, allowed: {allowed}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"device is {name!r}, but this machine has {count} CUDA devices; try --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device is {name!r}, but this machine has no MPS; try --device cpu")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The torch dtype `name`; "auto" is bfloat16 where the device computes it natively, else float32.

    On the CPU "auto" is float32: the result then does not depend on which instruction set the machine has.
    """
    import torch

    if name not in DTYPES:
        raise ConfigError(f"dtype is {name!r}, allowed: {', '.join(DTYPES)}")
    if name == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def hardware() -> dict[str, Any]:
    """What this machine has: platform, processor, cores this process may use, memory in bytes, accelerators."""
    import torch

    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        accelerators.append("Apple MPS")
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "accelerators": accelerators,
    }


def _processor_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def peak_memory_bytes() -> int:
    """The most memory this process has held at once (resident set), since its start or `reset_peak_memory`."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> None:
    """Start the peak anew at what is held now, where the system can (Linux); elsewhere the peak only grows."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
