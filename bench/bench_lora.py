"""LoRA training beside transformers + PEFT: same weights (bf16), same batches, same adapters, alternating steps.

Each side runs in a process of its own as well (`--side`), so that peak memory can be told apart.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

BATCH, LENGTH, STEPS, RANK = 8, 256, 6, 8


def ours() -> Callable[[torch.Tensor], None]:
    """One training step of alignlab."""
    from alignlab.lm.language_model import load
    from alignlab.lm.lora import ALL_LINEAR, LoraConfig, add_lora, lora_parameters
    from alignlab.train.language import language_model_loss

    model = load("smollm2-135m-instruct", dtype="bfloat16", device="cpu").model
    add_lora(model, LoraConfig(rank=RANK, alpha=2.0 * RANK, targets=(ALL_LINEAR,)))
    optimizer = torch.optim.AdamW(lora_parameters(model), lr=1e-4, fused=True)

    def step(tokens: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss, _ = language_model_loss(model, {"tokens": tokens})
        loss.backward()
        optimizer.step()

    return step


def peft() -> Callable[[torch.Tensor], None]:
    """One training step of transformers + PEFT."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from alignlab.lm.hf_export import export_hf
    from alignlab.lm.language_model import load

    with tempfile.TemporaryDirectory() as folder:
        export_hf(load("smollm2-135m-instruct", dtype="bfloat16", device="cpu"), folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step(tokens: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()

    return step


def batch(index: int) -> torch.Tensor:
    return torch.randint(100, 40_000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(index))


def side(name: str) -> None:
    """Three steps alone, for the memory; prints its peak in GiB, measured over the whole process."""
    step = {"alignlab": ours, "peft": peft}[name]()
    for i in range(3):
        step(batch(i))
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 2**20)


def main() -> None:
    steps = {"alignlab": ours(), "peft": peft()}
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(STEPS + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step(batch(i))
            rates[name].append(BATCH * LENGTH / (time.perf_counter() - started))
    ratio = statistics.median(a / b for a, b in zip(rates["alignlab"][1:], rates["peft"][1:], strict=True))
    memory = {
        name: float(subprocess.run([sys.executable, __file__, "--side", name], capture_output=True, text=True).stdout)
        for name in steps
    }
    print(f"LoRA rank {RANK} on every linear layer, {BATCH} rows of {LENGTH} tokens, bf16, median of {STEPS} steps")
    for name in steps:
        print(f"{name:>9}: {statistics.median(rates[name][1:]):7.1f} tokens/s, peak memory {memory[name]:.2f} GiB")
    print(f"ratio {ratio:.2f}")


if __name__ == "__main__":
    side(sys.argv[2]) if "--side" in sys.argv else main()
