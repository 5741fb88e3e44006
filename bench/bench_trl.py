"""SFT, DPO and GRPO beside trl: SmolLM2-135M-Instruct, LoRA on every linear layer, bf16, one process, by turns.

    python bench/bench_trl.py [sft] [dpo] [grpo] [--rounds 3] [--steps 3] [--device cpu] [--pairs FILE.jsonl.gz]

Both sides start from the same weights and take the same rows. trl runs without gradient checkpointing, which is its
default and costs it a quarter. The first step of each round, with its compilations, does not count. SFT: 8 full rows
of 256 tokens. DPO: 8 pairs of 96 + 64 random words, or of a file of preferences. GRPO: two prompts of 64 words,
eight answers each of at most 64 tokens, no KL term (trl's default). Time it on an idle machine.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from alignlab.core.errors import MissingExtraError
from alignlab.lm.hf_export import export_hf
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.lora import ALL_LINEAR, LoraConfig

RANK, RATE = 8, 1e-5
ROWS, LENGTH = 8, 256
PAIRS = 8
PROMPTS, GROUP, NEW = 2, 8, 64

Moments = list[float]
Side = Callable[[int], tuple[Moments, float]]
"""Steps in, moments between steps (one more than steps) and the units of work in a step out."""


def words(seed: int, count: int) -> str:
    """Random words that both tokenizers read alike."""
    known = "river stone market window garden letter summer engine paper doctor music north light bridge silver table"
    draw = random.Random(seed)
    return " ".join(draw.choice(known.split()) for _ in range(count))


def adapter() -> LoraConfig:
    return LoraConfig(rank=RANK, alpha=2.0 * RANK, targets=(ALL_LINEAR,))


def reward(prompts: Any, responses: list[str]) -> list[float]:
    """Share of the letter e: cheap, and different for almost every answer."""
    return [text.count("e") / max(len(text), 1) for text in responses]


def ours(kind: str, lm: LanguageModel, options: argparse.Namespace) -> Side:
    return {"sft": our_sft, "dpo": our_dpo, "grpo": our_grpo}[kind](lm, options)


def our_sft(lm: LanguageModel, options: argparse.Namespace) -> Side:
    from alignlab.align.adapters import ensure_lora
    from alignlab.train.config import TrainConfig
    from alignlab.train.language import language_model_loss
    from alignlab.train.trainer import Trainer

    def run(steps: int) -> tuple[Moments, float]:
        moments: Moments = []

        def batch_at(index: int) -> dict[str, torch.Tensor]:
            moments.append(time.perf_counter())
            return {"tokens": torch.tensor(token_rows(index))}

        ensure_lora(lm.model, adapter())
        config = TrainConfig(steps=steps, learning_rate=RATE, precision="bf16", schedule="constant")
        Trainer(lm.model, language_model_loss, config).fit(batch_at)
        return [*moments, time.perf_counter()], ROWS * LENGTH

    return run


def our_dpo(lm: LanguageModel, options: argparse.Namespace) -> Side:
    from alignlab.align.direct.objectives import DirectConfig
    from alignlab.align.direct.training import train_direct
    from alignlab.align.pairs import PreferencePair
    from alignlab.train.config import TrainConfig

    rows = [PreferencePair(*row) for row in preferences(options)]

    def run(steps: int) -> tuple[Moments, float]:
        train = TrainConfig(learning_rate=RATE, precision="bf16", schedule="constant", log_every=1)
        config = DirectConfig(epochs=1, batch_size=PAIRS, lora=adapter(), train=train)
        chosen = [rows[i % len(rows)] for i in range(steps * PAIRS)]
        started = time.perf_counter()
        train_direct(lm, chosen, config)
        # Its reference is scored before the first step, so only the whole can be shared out.
        each = (time.perf_counter() - started) / steps
        return [i * each for i in range(steps + 1)], PAIRS

    return run


def our_grpo(lm: LanguageModel, options: argparse.Namespace) -> Side:
    from alignlab.align.rl.config import GRPOConfig
    from alignlab.align.rl.grpo import train_grpo

    def run(steps: int) -> tuple[Moments, float]:
        config = GRPOConfig(
            steps=steps, prompts_per_step=PROMPTS, group_size=GROUP, minibatch_size=PROMPTS * GROUP,
            microbatch_size=PROMPTS * GROUP, max_tokens=NEW, learning_rate=RATE, kl_coefficient=0.0, lora=adapter(),
            precision="bf16", max_policy_kl=None, equal_groups="keep",
        )  # fmt: skip
        moments = [time.perf_counter()]
        train_grpo(lm, reward, questions(), config, on_step=lambda *_: moments.append(time.perf_counter()))
        return moments, PROMPTS * GROUP

    return run


def theirs(kind: str, folder: str, options: argparse.Namespace) -> Side:
    """A trl trainer over the exported weights, made anew each round."""
    try:
        import trl
        from datasets import Dataset
        from peft import LoraConfig as PeftConfig
        from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    except ModuleNotFoundError as error:
        raise MissingExtraError("the bench needs trl, peft and datasets: pip install 'alignlab[test]'") from error
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "<|endoftext|>"
    common = {
        "learning_rate": RATE, "lr_scheduler_type": "constant", "bf16": True, "use_cpu": options.device == "cpu",
        "gradient_checkpointing": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True,
        "logging_strategy": "no", "dataloader_num_workers": 0,
    }  # fmt: skip

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.moments: Moments = []

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.moments.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.moments.append(time.perf_counter())

    def run(steps: int) -> tuple[Moments, float]:
        out = f"{folder}/out"
        size: dict[str, Any] = {"max_steps": steps, "output_dir": out} | common
        if kind == "sft":
            rows = [{"input_ids": row} for i in range(steps) for row in token_rows(i)]
            config: Any = trl.SFTConfig(per_device_train_batch_size=ROWS, max_length=LENGTH, **size)
            trainer: Any = trl.SFTTrainer
            units = ROWS * LENGTH
        elif kind == "dpo":
            kept = preferences(options)
            rows = [
                dict(zip(("prompt", "chosen", "rejected"), chat(kept[i % len(kept)]), strict=True))
                for i in range(steps * PAIRS)
            ]
            config = trl.DPOConfig(per_device_train_batch_size=PAIRS, max_length=512, **size)
            trainer, units = trl.DPOTrainer, PAIRS
        else:
            rows = [{"prompt": prompt} for prompt in questions()]
            config = trl.GRPOConfig(
                per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP, max_completion_length=NEW, **size
            )
            trainer, units = trl.GRPOTrainer, PROMPTS * GROUP
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        clock = Clock()
        more: dict[str, Any] = {}
        if kind == "grpo":
            more["reward_funcs"] = lambda completions, **_: reward(None, [c[0]["content"] for c in completions])
        peft = PeftConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        data = Dataset.from_list(rows)
        trainer(
            model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=peft,
            callbacks=[clock], **more,
        ).train()  # fmt: skip
        return clock.moments, units

    return run


def token_rows(index: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(index)
    return torch.randint(100, 40_000, (ROWS, LENGTH), generator=generator).tolist()


def questions() -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"Write a long story with these words: {words(i, 64)}"}] for i in range(64)]


def preferences(options: argparse.Namespace) -> list[tuple[Any, str, str]]:
    """(messages, chosen, rejected)."""
    if options.pairs is not None:
        from alignlab.align.reward.readers import read_pairs

        return [(p.prompt, p.chosen, p.rejected) for p in read_pairs(options.pairs)[:256]]
    prompts = [[{"role": "user", "content": words(i, 96)}] for i in range(64)]
    return [(prompt, words(1000 + i, 64), words(2000 + i, 64)) for i, prompt in enumerate(prompts)]


def chat(row: tuple[Any, str, str]) -> list[Any]:
    prompt, *answers = row
    return [prompt, *([{"role": "assistant", "content": answer}] for answer in answers)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", default=["sft", "dpo", "grpo"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--only", choices=("alignlab", "trl"))
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    units = {"sft": "tokens/s", "dpo": "pairs/s", "grpo": "completions/s"}
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as folder:
            lm = load("smollm2-135m-instruct", dtype="bfloat16", device=options.device)
            export_hf(lm, folder)
            sides = {"alignlab": ours(kind, lm, options), "trl": theirs(kind, folder, options)}
            rates: dict[str, list[float]] = {name: [] for name in sides if options.only in (None, name)}
            for _ in range(options.rounds):
                for name in rates:
                    moments, work = sides[name](options.steps + 1)
                    each = [b - a for a, b in pairwise(moments[1:])]
                    rates[name].append(work / statistics.median(each))
        shown = ", ".join(f"{name} {statistics.median(found):.2f} {units[kind]}" for name, found in rates.items())
        if len(rates) == 2:
            ratios = [a / b for a, b in zip(rates["alignlab"], rates["trl"], strict=True)]
            shown += f"; ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{kind}: {shown}", flush=True)


if __name__ == "__main__":
    main()
