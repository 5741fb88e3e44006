"""Generation beside Hugging Face `generate`: same weights (SmolLM2-135M-Instruct, bf16), same process, alternating.

Prints tokens/s at batch 1 and 32 for both, and the median of the paired ratios.
"""

from __future__ import annotations

import statistics
import tempfile
import time

import torch
from transformers import AutoModelForCausalLM

from alignlab.lm.generate import decode
from alignlab.lm.hf_export import export_hf
from alignlab.lm.language_model import load
from alignlab.lm.types import SamplingParams

PROMPT, NEW, REPEATS = 64, 64, 5


def main() -> None:
    lm = load("smollm2-135m-instruct", dtype="bfloat16", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        export_hf(lm, folder)
        peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    print(f"{torch.get_num_threads()} threads, {PROMPT}-token prompts, {NEW} new tokens, median of {REPEATS} rounds")
    for batch in (1, 32):
        tokens = torch.randint(100, 40_000, (batch, PROMPT), generator=torch.Generator().manual_seed(batch))
        rates: dict[str, list[float]] = {"alignlab": [], "transformers": []}
        for _ in range(REPEATS + 1):
            started = time.perf_counter()
            for _ in decode(lm.model, tokens.tolist(), SamplingParams(max_tokens=NEW, temperature=0.0), frozenset()):
                pass
            middle = time.perf_counter()
            with torch.no_grad():
                peer.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=NEW,
                    min_new_tokens=NEW,
                    do_sample=False,
                    pad_token_id=0,
                )
            ended = time.perf_counter()
            rates["alignlab"].append(batch * NEW / (middle - started))
            rates["transformers"].append(batch * NEW / (ended - middle))
        ours, theirs = (values[1:] for values in rates.values())  # the first round warms up
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        print(
            f"batch {batch:>2}: alignlab {statistics.median(ours):7.1f} tokens/s, "
            f"transformers {statistics.median(theirs):7.1f} tokens/s, ratio {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
