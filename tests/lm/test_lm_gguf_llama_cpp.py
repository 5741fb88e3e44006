"""llama.cpp on our GGUF files of a real model: the same greedy text, the same perplexity.

Needs ALIGNLAB_TEST_GGUF (a SmolLM2-135M-Instruct file) and `llama_cpp`, here or in the Python that
ALIGNLAB_LLAMA_PYTHON names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.lm.gguf_export import export_gguf
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.local import LocalSampler
from alignlab.lm.quant.measure import heldout_tokens, perplexity
from alignlab.lm.types import SamplingParams

pytestmark = pytest.mark.slow
PYTHON = os.environ.get("ALIGNLAB_LLAMA_PYTHON", sys.executable)
N_NEW = 32
PROMPTS = [
    "What is the capital of France?", "Name three primary colours.", "Write a haiku about rain.",
    "Why is the sky blue?",
    "Explain gravity to a child.", "Translate 'good morning' to Spanish.", "What is 12 + 7?", "List the planets.",
    "Give me a recipe for pancakes.", "Who wrote Hamlet?", "What does a compiler do?", "Describe the ocean.",
    "How do bees make honey?", "What is photosynthesis?", "Tell me a joke.", "What is a prime number?",
    "Write a polite email declining an invitation.", "What causes tides?", "Define entropy.",
    "How does a bicycle stay up?",
    "naïve café, 東京 — 2024: what do these have in common?", "def fib(n):\n    # what is missing here?",
    "Summarise: the cat sat on the mat, then left.", "What are the benefits of sleep?",
]  # fmt: skip
PROGRAM = """
import json, sys
import numpy as np
from llama_cpp import Llama
job = json.load(open(sys.argv[1]))
llm = Llama(job["model"], n_ctx=640, n_batch=640, logits_all=True, n_threads=1, n_threads_batch=1, verbose=False,
            type_k=0, type_v=0, flash_attn=False)
out = {"ids": [llm.tokenize(t.encode(), add_bos=False, special=True) for t in job["texts"]], "greedy": []}
for ids in job["prompts"]:
    llm.reset(); llm.eval(ids); made = []
    for _ in range(job["n"]):
        row = np.array(llm.scores[llm.n_tokens - 1]); best = int(row.argmax()); made.append(best)
        if best in job["ends"]: break
        llm.eval([best])
    out["greedy"].append(made)
total = count = 0
for ids in job["documents"]:
    llm.reset(); llm.eval(ids)
    rows = np.array(llm.scores[: len(ids) - 1], dtype=np.float64)
    peak = rows.max(-1); logsum = peak + np.log(np.exp(rows - peak[:, None]).sum(-1))
    total += float((logsum - rows[np.arange(len(ids) - 1), ids[1:]]).sum()); count += len(ids) - 1
out["perplexity"] = float(np.exp(total / count)) if count else None
out["template"] = llm.metadata.get("tokenizer.chat_template")
json.dump(out, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def real() -> LanguageModel:
    path = os.environ.get("ALIGNLAB_TEST_GGUF")
    if not path:
        pytest.skip("ALIGNLAB_TEST_GGUF names no model file")
    if subprocess.run([PYTHON, "-c", "import llama_cpp"], capture_output=True).returncode:
        pytest.skip("llama_cpp is not installed (ALIGNLAB_LLAMA_PYTHON may name a Python that has it)")
    return load(path, dtype="float32", device="cpu")


def run_llama(folder: Path, **job: Any) -> dict[str, Any]:
    (folder / "program.py").write_text(PROGRAM)
    (folder / "job.json").write_text(json.dumps({"texts": [], "prompts": [], "documents": [], "n": N_NEW} | job))
    subprocess.run([PYTHON, *(str(folder / f) for f in ("program.py", "job.json", "out.json"))], check=True)
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return found


def test_same_greedy_text_and_ids(real: LanguageModel, tmp_path: Path) -> None:
    """24 prompts, 32 tokens each, on the F16 file."""
    path = export_gguf(real, tmp_path / "m.gguf", "f16")
    ours = load(str(path), dtype="float32", device="cpu")
    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    prompts = [ours.tokenizer.encode_prompt(chat) for chat in chats]  # type: ignore[arg-type]
    ends = sorted(ours.tokenizer.eos_ids)
    theirs = run_llama(tmp_path, model=str(path), texts=PROMPTS, prompts=prompts, ends=ends)
    assert theirs["ids"] == [real.tokenizer.encode(text) for text in PROMPTS]
    assert theirs["template"] == real.tokenizer.chat_template
    greedy = SamplingParams(max_tokens=N_NEW, temperature=0.0)
    made = LocalSampler(ours).generate(chats, greedy)  # type: ignore[arg-type]
    different = [
        (PROMPTS[i], ours.tokenizer.decode(their), completion.text)
        for i, (completion, their) in enumerate(zip(made, theirs["greedy"], strict=True))
        if completion.text.strip() != ours.tokenizer.decode(their).strip()
    ]
    assert not different


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0", "q4_k"])
def test_perplexities_agree(real: LanguageModel, tmp_path: Path, kind: Any) -> None:
    """Within 0.5 % on packaged held-out prose; llama.cpp also rounds activations (to 8 bits, or to float16)."""
    path = export_gguf(real, tmp_path / "m.gguf", kind)
    ours = load(str(path), dtype="float32", device="cpu")
    documents = [document[:512] for document in heldout_tokens(ours)]
    job = {"documents": [document.tolist() for document in documents], "ends": []}
    theirs = run_llama(tmp_path, model=str(path), **job)["perplexity"]
    with torch.no_grad():
        mine = perplexity(ours.model, documents)
    print(f"{kind}: ours {mine:.4f}, llama.cpp {theirs:.4f}, {theirs / mine - 1:+.3%}")
    assert theirs == pytest.approx(mine, rel=0.005)
