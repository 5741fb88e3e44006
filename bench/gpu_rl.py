"""PPO and GRPO beside trl on one GPU: SmolLM2-135M's shape, LoRA on every linear layer, bf16, rollouts included.

    python bench/gpu_rl.py [ppo] [grpo] [--steps 6] [--peer-first] [--tiny]

Random weights (only the shape matters here): 128 prompts of 64 tokens, 128 new tokens each; GRPO 16 prompts, eight
answers each. Both sides as their own defaults have it: GRPO one update a batch without a KL term, PPO four epochs of
one minibatch, a reward model of the same shape, KL to the policy without its adapter. trl has a value network of the
same shape besides, alignlab a value head on the policy's trunk: that is part of the comparison. trl's PPO left the
package after 1.12, so for it that version must be installed. Tokens are those of prompts and answers; the first two
steps, with their compilations, do not count. `--tiny` runs it on a CPU in a small shape.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from typing import Any

import tokenizers
import torch
from smollm2_shape import SHAPE
from tokenizers import models, pre_tokenizers

from alignlab.lm.config import GPTConfig
from alignlab.lm.hf_export import export_hf
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.lora import ALL_LINEAR, LoraConfig
from alignlab.lm.model import GPTModel
from alignlab.lm.tokenizer import SpecialTokens, Tokenizer

RANK, RATE, SKIPPED = 8, 1e-6, 2
TINY = {"vocab_size": 512, "d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_mlp": 128}


class Setting:
    """Sizes of a comparison."""

    def __init__(self, options: argparse.Namespace) -> None:
        tiny = options.tiny
        self.steps: int = options.steps + SKIPPED
        self.shape = TINY if tiny else SHAPE
        self.device = "cpu" if tiny else "cuda"
        self.batch, self.group, self.prompt, self.new = (8, 4, 8, 8) if tiny else (128, 8, 64, 128)
        self.piece = 4 if tiny else 64
        self.tokens_per_step = self.batch * (self.prompt + self.new)

    def core(self) -> tokenizers.Tokenizer:
        """A vocabulary of numbered words: every token is text, and every text is its tokens again."""
        core = tokenizers.Tokenizer(models.WordLevel({f"w{i}": i for i in range(self.shape["vocab_size"])}, "w2"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return core

    def prompts(self, count: int) -> list[str]:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(3, self.shape["vocab_size"], (count, self.prompt), generator=generator)
        return [" ".join(f"w{i}" for i in row) for row in drawn.tolist()]

    def our_model(self, seed: int) -> LanguageModel:
        config = GPTConfig(n_ctx=2048, rope_theta=100_000.0, **self.shape)  # type: ignore[arg-type]
        model = GPTModel(config, seed=seed).to(self.device, torch.bfloat16)
        return LanguageModel(model, Tokenizer(self.core(), SpecialTokens(eos=0)), name="shape", source="random weights")

    def their_config(self) -> Any:
        from transformers import LlamaConfig

        s = self.shape
        return LlamaConfig(
            vocab_size=s["vocab_size"], hidden_size=s["d_model"], num_hidden_layers=s["n_layers"], eos_token_id=0,
            num_attention_heads=s["n_heads"], num_key_value_heads=s["n_kv_heads"], intermediate_size=s["d_mlp"],
            tie_word_embeddings=True, bos_token_id=None, pad_token_id=1,
        )  # fmt: skip

    def their_model(self) -> Any:
        """The very weights that alignlab's policy begins with."""
        from transformers import LlamaForCausalLM

        with tempfile.TemporaryDirectory() as folder:
            export_hf(self.our_model(0), folder)
            return LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, eos_token_id=0, pad_token_id=1)

    def their_tokenizer(self) -> Any:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(
            tokenizer_object=self.core(), eos_token="w0", pad_token="w1", unk_token="w2", padding_side="left"
        )


def reward(prompts: Any, responses: list[str]) -> list[float]:
    """A number that differs between answers."""
    return [sum(int(word[1:]) for word in text.split()) % 1009 / 1009 for text in responses]


def our_grpo(s: Setting) -> list[float]:
    from alignlab.align.rl.config import GRPOConfig
    from alignlab.align.rl.grpo import train_grpo

    config = GRPOConfig(
        steps=s.steps, prompts_per_step=s.batch // s.group, group_size=s.group, minibatch_size=s.batch,
        microbatch_size=s.piece, max_tokens=s.new, learning_rate=RATE, kl_coefficient=0.0, precision="bf16",
        max_policy_kl=None, lora=LoraConfig(rank=RANK, alpha=2.0 * RANK, targets=(ALL_LINEAR,)),
    )  # fmt: skip
    moments = [time.perf_counter()]
    train_grpo(
        s.our_model(0), reward, s.prompts(s.batch), config, on_step=lambda *_: moments.append(time.perf_counter())
    )
    return moments


def our_ppo(s: Setting) -> list[float]:
    from alignlab.align.ppo import PPOTrainer
    from alignlab.align.ppo_config import PPOConfig
    from alignlab.align.preference_model import PreferenceModel

    config = PPOConfig(
        steps=s.steps, batch_size=s.batch, minibatch_size=s.batch, microbatch_size=s.piece, epochs=4, max_tokens=s.new,
        learning_rate=RATE, precision="bf16", max_policy_kl=None,
        lora=LoraConfig(rank=RANK, alpha=2.0 * RANK, targets=(ALL_LINEAR,)),
    )  # fmt: skip
    judge = PreferenceModel(s.our_model(1), batch_size=s.piece)
    trainer = PPOTrainer(s.our_model(0), judge, config=config)
    moments = [time.perf_counter()]
    trainer.train(s.prompts(s.batch), on_step=lambda *_: moments.append(time.perf_counter()))
    return moments


def their_arguments(s: Setting) -> dict[str, Any]:
    return {
        "output_dir": "/tmp/gpu_rl", "learning_rate": RATE, "lr_scheduler_type": "constant", "bf16": True,
        "use_cpu": s.device == "cpu", "gradient_checkpointing": False, "report_to": [], "save_strategy": "no",
        "disable_tqdm": True, "logging_strategy": "no", "per_device_train_batch_size": s.piece,
        "gradient_accumulation_steps": s.batch // s.piece,
    }  # fmt: skip


def clock() -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.moments = [time.perf_counter()]

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.moments.append(time.perf_counter())

    return Clock()


def adapter() -> Any:
    from peft import LoraConfig as PeftConfig

    return PeftConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")


def their_grpo(s: Setting) -> list[float]:
    import trl
    from datasets import Dataset

    config = trl.GRPOConfig(
        num_generations=s.group, max_completion_length=s.new, max_steps=s.steps, **their_arguments(s)
    )
    timed = clock()
    trl.GRPOTrainer(
        model=s.their_model(), args=config, processing_class=s.their_tokenizer(),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in s.prompts(s.batch)]),
        reward_funcs=lambda completions, **_: reward(None, completions), peft_config=adapter(), callbacks=[timed],
    ).train()  # fmt: skip
    return timed.moments


def their_ppo(s: Setting) -> list[float]:
    from datasets import Dataset
    from transformers import LlamaForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    shape = s.their_config()
    shape.num_labels = 1
    tokenizer = s.their_tokenizer()
    config = PPOConfig(
        response_length=s.new, temperature=1.0, num_ppo_epochs=4, num_mini_batches=1, num_sample_generations=0,
        total_episodes=s.steps * s.batch, **their_arguments(s),
    )  # fmt: skip
    judge, values = (LlamaForSequenceClassification(shape).to(torch.bfloat16) for _ in range(2))
    rows = [{"input_ids": tokenizer(prompt)["input_ids"]} for prompt in s.prompts(s.batch)]
    timed = clock()
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer, model=s.their_model(), ref_model=None,
        reward_model=judge, value_model=values, train_dataset=Dataset.from_list(rows), peft_config=adapter(),
        callbacks=[timed],
    )  # fmt: skip
    trainer.train()
    return timed.moments


SIDES = {"ppo": (our_ppo, their_ppo), "grpo": (our_grpo, their_grpo)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", default=["grpo"], help="ppo, grpo")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", choices=("alignlab", "trl"))
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    setting = Setting(options)
    device = "CPU" if options.tiny else torch.cuda.get_device_name()
    for kind in options.kinds:
        rates = {}
        for name, side in zip(("alignlab", "trl"), SIDES[kind], strict=True):
            if options.only in (None, name):
                moments = side(setting)
                each = [b - a for a, b in pairwise(moments[SKIPPED:])]
                rates[name] = setting.tokens_per_step / statistics.median(each)
                print(
                    f"{kind} {name}: {rates[name]:.0f} tokens/s, {statistics.median(each):.3f} s a step "
                    f"({min(each):.3f} to {max(each):.3f}, n = {len(each)}), torch {torch.__version__}, {device}",
                    flush=True,
                )
                if not options.tiny:
                    torch.cuda.empty_cache()
        if len(rates) == 2:
            print(f"{kind}: ratio {rates['alignlab'] / rates['trl']:.2f}", flush=True)


if __name__ == "__main__":
    main()
