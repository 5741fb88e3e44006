"""How often company changes a greedy answer: requests alone and all at once through the engine.

    python bench/bf16_differences.py [--model smollm2-135m-instruct] [--dtype bfloat16] [--requests 100] [--tokens 24]

In float32 on a CPU nothing may differ. In bfloat16 logits have three digits and near-ties are common: products with
another number of rows add up in another order, and the first near-tie that this decides changes the text from there on.
The prompts are those that the package carries.
"""

from __future__ import annotations

import argparse

from alignlab.data.prompts import load_prompts
from alignlab.lm.engine import Engine, Request
from alignlab.lm.language_model import load
from alignlab.lm.types import SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=24)
    options = parser.parse_args()
    lm = load(options.model, dtype=options.dtype, device=options.device)
    records = [record for name in ("helpful", "benign", "harmful") for record in load_prompts(name)]
    asked = [[{"role": "user", "content": record.prompt}] for record in records[: options.requests]]
    sampling = SamplingParams(max_tokens=options.tokens, temperature=0)
    requests = [Request(lm.tokenizer.encode_prompt(messages), sampling) for messages in asked]
    engine = Engine(lm, max_running=64)
    alone = []
    for request in requests:
        alone.append(engine.submit(request).wait().tokens)
        engine.pool.forget()
    handles = [engine.submit(request) for request in requests]
    engine.run()
    places = []
    for expected, handle in zip(alone, handles, strict=True):
        pairs = zip(expected, handle.tokens, strict=False)
        places.append(next((i for i, (a, b) in enumerate(pairs) if a != b), None))
    differ = [place for place in places if place is not None]
    n_tokens = sum(len(answer) if place is None else place + 1 for answer, place in zip(alone, places, strict=True))
    print(f"{lm.name}, {options.dtype}, {len(requests)} requests of {options.tokens} tokens, alone and together")
    print(f"differing texts: {len(differ)} ({100 * len(differ) / len(requests):.1f} %)")
    print(f"first differences: {len(differ)} in {n_tokens} tokens that had equal beginnings")


if __name__ == "__main__":
    main()
