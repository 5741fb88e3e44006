"""How fast a model generates here: tokens/s by batch and length, first token, memory, distance from the limits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from alignlab.core.device import peak_memory_bytes, reset_peak_memory
from alignlab.core.rng import derive_seed, torch_generator
from alignlab.lm.bench_limits import Limits, Need, prefill_need, step_need, synchronise
from alignlab.lm.bench_peers import Contender
from alignlab.lm.language_model import LanguageModel


@dataclass(frozen=True)
class Setting:
    """One row of the table: how many prompts, how long, and how many tokens after them."""

    batch: int
    prompt: int
    new: int

    @property
    def name(self) -> str:
        return f"batch-{self.batch}-prompt-{self.prompt}-new-{self.new}"


def random_prompts(lm: LanguageModel, setting: Setting, seed: int, *names: str | int) -> list[list[int]]:
    """Prompts of random tokens. Every timing has its own, so that nothing kept from an earlier one helps."""
    generator = torch_generator(derive_seed(seed, setting.name, *names))
    size = (setting.batch, setting.prompt)
    rows: list[list[int]] = torch.randint(0, lm.tokenizer.vocab_size, size, generator=generator).tolist()
    return rows


def peak_memory(lm: LanguageModel, contender: Contender, setting: Setting, seed: int) -> int:
    """Most bytes held while the contender generates: allocated on the GPU, or resident in this whole process."""
    device = lm.model.embed.weight.device
    prompts = random_prompts(lm, setting, seed, "memory")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    reset_peak_memory()
    contender.generate(prompts, setting.new)
    synchronise(device)
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()


def time_contenders(
    lm: LanguageModel,
    contenders: Sequence[Contender],
    setting: Setting,
    *,
    rounds: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every round by contender: `first` (prompts read, one token each) and `all` (all new tokens).

    Contenders take turns within a round, so that a slow minute of the machine meets all of them. One round more warms
    up and is thrown away. Contenders that cannot take the batch are left out.
    """
    device = lm.model.embed.weight.device
    able = [c for c in contenders if not c.largest_batch or setting.batch <= c.largest_batch]
    found: dict[str, dict[str, list[float]]] = {c.name: {"first": [], "all": []} for c in able}
    for number in range(rounds + 1):
        for contender in able:
            for what, new in (("first", 1), ("all", setting.new)):
                prompts = random_prompts(lm, setting, seed, number, what)
                synchronise(device)
                started = time.perf_counter()
                contender.generate(prompts, new)
                synchronise(device)
                found[contender.name][what].append(time.perf_counter() - started)
        advance()
    return {name: {what: values[1:] for what, values in each.items()} for name, each in found.items()}


def needs(lm: LanguageModel, setting: Setting) -> tuple[Need, Need]:
    """What reading the prompts, and what one decoding step in the middle of the answer, ask of the machine."""
    size = lm.model.embed.weight.element_size()
    context = setting.prompt + setting.new / 2
    return prefill_need(lm.model, setting.batch, setting.prompt), step_need(lm.model, setting.batch, context, size)


def figures(
    setting: Setting, seconds: dict[str, list[float]], prefill: Need, step: Need, limits: Limits
) -> dict[str, Any]:
    """Rates of one contender from the medians of its rounds, and the share of the possible that they reach.

    `tokens_per_second` counts new tokens over the whole call. Decoding counts what comes after the first token, over
    what the call takes longer than one for a single token: None where that difference drowns in noise.
    """
    first, whole = statistics.median(seconds["first"]), statistics.median(seconds["all"])
    best_prefill = setting.batch * setting.prompt / prefill.seconds(limits)
    best_decode = setting.batch / step.seconds(limits)
    prefill_rate = setting.batch * setting.prompt / first
    decode_rate = setting.batch * (setting.new - 1) / (whole - first) if setting.new > 1 and whole > first else None
    return {
        "tokens_per_second": setting.batch * setting.new / whole,
        "spread": (max(seconds["all"]) - min(seconds["all"])) / whole,
        "first_token_seconds": first,
        "prefill_tokens_per_second": prefill_rate,
        "prefill_limit": best_prefill,
        "prefill_share": prefill_rate / best_prefill,
        "prefill_bound": prefill.bound(limits),
        "decode_tokens_per_second": decode_rate,
        "decode_limit": best_decode,
        "decode_share": None if decode_rate is None else decode_rate / best_decode,
        "decode_bound": step.bound(limits),
        "rounds": len(seconds["all"]),
        "seconds": seconds,
    }


COLUMNS = (
    ("batch", "batch"), ("prompt", "prompt"), ("new", "new"), ("engine", "engine"), ("tokens/s", "tokens_per_second"),
    ("spread", "spread"), ("decode/s", "decode_tokens_per_second"), ("of limit", "decode_share"),
    ("bound by", "decode_bound"), ("prefill/s", "prefill_tokens_per_second"), ("of limit", "prefill_share"),
    ("first token", "first_token_seconds"), ("memory", "peak_memory_bytes"),
)  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text in columns."""
    cells = [[title for title, _ in COLUMNS]] + [[_cell(key, row.get(key)) for _, key in COLUMNS] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    return "\n".join("  ".join(f"{c:>{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if key.endswith("share") or key == "spread":
        return f"{100 * value:.0f} %"
    if key.endswith("bytes"):
        return f"{value / 2**20:,.0f} MiB"
    if key.endswith("seconds"):
        return f"{value:.3f} s"
    return f"{value:,.1f}" if isinstance(value, float) else str(value)
