"""One of the processes that test_align_distributed.py starts: trains a tiny policy and writes down what happened.

    python distributed_worker.py SCENARIO DIRECTORY

It is started with torchrun's variables. Its functions are imported by the tests, for the reference in one process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from alignlab.align.ppo import PPOTrainer
from alignlab.align.ppo_config import PPOConfig
from alignlab.align.rl.answers import Actor
from alignlab.align.rl.config import GRPOConfig, ReinforceConfig, RLOOConfig
from alignlab.align.rl.grpo import train_grpo
from alignlab.align.rl.reinforce import train_reinforce
from alignlab.align.rl.rewards import Combined
from alignlab.align.rl.rloo import train_rloo
from alignlab.align.shared_work import processes
from alignlab.core.errors import AlignlabError
from alignlab.lm.config import GPTConfig
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler
from alignlab.lm.lora import LoraConfig
from alignlab.lm.model import GPTModel
from alignlab.lm.types import Prompt
from alignlab.train.parallel import Parallel, parallel_from_env

STEPS, LORA = 4, LoraConfig(rank=4, targets=("all-linear",))
SHARED: dict[str, Any] = {
    "steps": STEPS, "microbatch_size": 2, "max_tokens": 5, "learning_rate": 0.01, "checkpoint_every": 2,
}  # fmt: skip
PPO: dict[str, Any] = {
    **SHARED, "batch_size": 7, "minibatch_size": 4, "kl_target": 0.5, "max_policy_kl": 0.005, "grad_clip": 0.03,
    "entropy_coefficient": 0.01,
}  # fmt: skip
GRPO: dict[str, Any] = {
    **SHARED, "prompts_per_step": 3, "group_size": 3, "minibatch_size": 5, "epochs": 2, "equal_groups": "resample",
    "on_equal_rewards": "skip",
}  # fmt: skip
PROMPTS: list[Prompt] = ["a", "bc", "cde", "d", "ef", "fgh", "g"]
MORE: list[Prompt] = [f"{letter}{digit}" for letter in "abcdefghij" for digit in "01"]  # none comes twice
EVERYTHING = ("ppo", "ppo whole", "grpo", "rloo", "reinforce")
Stop = Callable[[int, Any, Any], None]


def tiny(rank: int = 0) -> LanguageModel:
    """The same weights in every process; `rank` shifts them, which rank 0's must put right."""
    spec = importlib.util.spec_from_file_location("tiny_model", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tokenizer = module.CharTokenizer("abcdefghij0123 ")
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, n_ctx=32, d_model=16, n_layers=2, n_heads=2, d_mlp=24, tie_embeddings=False
    )
    model = GPTModel(config, seed=rank)
    with torch.no_grad():
        model.embed.weight.normal_(0, 1, generator=torch.Generator().manual_seed(rank))
    return LanguageModel(model, tokenizer, "tiny", "test")


def vowels(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    return [float(sum(c in "aei" for c in text)) for text in responses]


def lengths(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in responses]


def train(
    method: str, parallel: Parallel, directory: Path | None = None, *, on_step: Stop | None = None, reward: Any = None
) -> dict[str, Any]:
    """Metrics of every step, and two numbers that tell the trained weights."""
    lm = tiny(parallel.rank)
    if method == "ppo narrow":
        lm.model.to(torch.bfloat16)
    loops: dict[str, tuple[Any, Any]] = {
        "grpo": (train_grpo, GRPOConfig(**GRPO, lora=LORA)),
        "rloo": (train_rloo, RLOOConfig(**GRPO, lora=LORA)),
        "reinforce": (train_reinforce, ReinforceConfig(**SHARED, lora=LORA, prompts_per_step=5, baseline="running")),
    }
    if method in loops:  # a reward that keeps account, which one rank is asked for
        kept = Combined({"vowels": vowels, "length": lengths}, {"vowels": 1.0, "length": 0.1}, normalise="running")
        actor = Actor(lm.model, lm.tokenizer, LocalSampler(lm), parallel=parallel)
        loop, settings = loops[method]
        result: Any = loop(actor, kept, MORE, settings, checkpoint_dir=directory, on_step=on_step)
    else:
        whole = method in ("ppo whole", "ppo rounded")
        config = PPOConfig(**PPO, lora=None if whole else LORA)
        if method == "ppo rounded":  # float32 weights under autocast, as on a GPU
            config = replace(config, precision="bf16", max_mismatch=0.5)
        reference = tiny() if whole else None
        trainer = PPOTrainer(lm, reward or vowels, reference, config, checkpoint_dir=directory, parallel=parallel)
        result = trainer.train(PROMPTS, on_step=on_step)
    names = [name for name, p in lm.model.named_parameters() if p.requires_grad]
    first, last = (dict(lm.model.named_parameters())[name] for name in (names[0], names[-1]))
    return {"history": result.history, "weights": [float(first.detach().norm()), float(last.detach().norm())]}


def stopped(step: int, responses: Any, metrics: Any) -> None:
    if step == 3:
        raise KeyError("stop")


def refusal(action: Callable[[], object]) -> str:
    try:
        action()
    except AlignlabError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def curves(directory: Path) -> dict[str, Any]:
    """Every method under both kinds, interrupted and continued, and by the other kind."""
    found: dict[str, Any] = {}
    for kind in ("ddp", "fsdp"):
        parallel = parallel_from_env(kind)  # type: ignore[arg-type]
        for method in EVERYTHING:
            found[f"{kind} {method}"] = train(method, parallel)
        for method in ("ppo", "grpo"):
            place = directory / f"{kind} {method}"
            found[f"{kind} {method} stopped"] = refusal(partial(train, method, parallel, place, on_step=stopped))
            if parallel.is_main:
                os.system(f"cp -r '{place}' '{place} alone'")
            parallel.barrier()
            found[f"{kind} {method} continued"] = train(method, parallel, place)
    found["narrow"] = train("ppo narrow", parallel)
    found["rounded"] = train("ppo rounded", parallel)
    parallel = parallel_from_env("ddp")
    found["ddp from fsdp"] = train("ppo", parallel, directory / "fsdp ppo alone")
    rank = parallel.rank

    def raises(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        if rank == 1:
            raise ValueError("no such thing")
        return vowels(prompts, responses)

    found["raises"] = refusal(lambda: train("ppo", parallel, reward=raises))
    dist.destroy_process_group()
    return found


def dies(directory: Path) -> dict[str, Any]:
    """Rank 1 is killed while a reward is asked; what is left says so in one sentence."""

    def deadly(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return vowels(prompts, responses)

    with processes("fsdp", timeout_seconds=60) as parallel:
        train("ppo", parallel, directory / "saved", reward=deadly)
    return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[2])
    outcome = {"curves": curves, "dies": dies}[sys.argv[1]](where)
    (where / f"result-{os.environ['RANK']}.json").write_text(json.dumps(outcome))
