"""Over-optimisation of a reward model: a gold reward while a policy is optimised against a proxy (Gao et al. 2022).

    python bench/overoptimisation.py                                          # small, on a CPU, packaged texts
    python bench/overoptimisation.py PAIRS.jsonl.gz --device cuda --out DIR   # the experiment, on one GPU

The gold reward is a reward model trained on the comparisons of the file; it stands for what people want. Each proxy
learns from `--proxy-pairs` comparisons of the policy's own answers, labelled by the gold reward. Then the policy is
optimised against the proxy, on prompts of dialogues that neither model has seen: by best-of-n up to `--samples`, and by
PPO with a small KL penalty. Rewards are in deviations of the policy's own answers.

Parts (`--part`), each resumed where it was interrupted when called again with the same `--out`:
  models  gold reward and proxies            rl   PPO against one proxy, measured every `--every` steps
  bon     answers and their rewards          fit  curves, fits, findings.json and overoptimisation.html
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from alignlab.align.ppo import PPOTrainer
from alignlab.align.ppo_config import PPOConfig
from alignlab.align.preference_model import PreferenceModel
from alignlab.align.reward.examples import RewardPair, dialogue_of, split_dialogues
from alignlab.align.reward.measures import measure_reward
from alignlab.align.reward.readers import read_pairs
from alignlab.align.reward.saved import FILE, plain_prompts, save_reward
from alignlab.align.reward.training import RewardConfig, RewardLoss, train_reward_model
from alignlab.align.reward_validation.overoptimisation import measure_overoptimisation
from alignlab.align.reward_validation.policy_probe import PolicyProbe, probe_curve
from alignlab.align.reward_validation.sampled import reward_function, sample_rewards, score_answers
from alignlab.core.errors import ConfigError
from alignlab.core.files import atomic_write, read_json, read_jsonl
from alignlab.core.progress import Progress
from alignlab.core.rng import derive_seed
from alignlab.core.run_creation import pretty_json
from alignlab.data.prompts import load_pairs
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.lora import ALL_LINEAR, LoraConfig
from alignlab.lm.samplers import sampler_of
from alignlab.lm.types import Prompt, SamplingParams
from alignlab.train.config import TrainConfig
from alignlab.viz import Page

BATCH, LENGTH, LONGEST_PROMPT, GROUP = 8, 512, 256, 16
PARTS = ("models", "bon", "rl", "fit")
SMALL: dict[str, Any] = {
    "pairs": 64, "proxy_pairs": [16], "prompts": 6, "samples": 16, "max_tokens": 24, "running": 16,
    "steps": 6, "batch": 8, "every": 2, "probe_samples": 2, "microbatch": 8,
}  # fmt: skip
LARGE: dict[str, Any] = {
    "pairs": 1_000_000, "proxy_pairs": [64, 512], "prompts": 128, "samples": 256, "max_tokens": 64, "running": 512,
    "steps": 120, "batch": 128, "every": 8, "probe_samples": 4, "microbatch": 64,
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "part", "data")}
    settings["data"], file = str(options.data or "packaged"), options.out / "settings.json"
    if file.is_file() and read_json(file) != settings:
        raise ConfigError(f"{options.out} holds an experiment with other settings; give another --out")
    atomic_write(file, pretty_json(settings))
    lm: list[LanguageModel] = []

    def model() -> LanguageModel:
        if not lm:
            lm.append(load(options.model, dtype=options.dtype, device=options.device))
        return lm[0]

    work: dict[str, Callable[[], None]] = {
        "models": lambda: make_models(model(), options),
        "bon": lambda: sample_best_of_n(model(), options),
        "rl": lambda: optimise(model(), options),
        "fit": lambda: fit_and_draw(options),
    }
    for part in PARTS if options.part == "all" else (options.part,):
        started = time.perf_counter()
        work[part]()
        print(f"{part}: {time.perf_counter() - started:.0f} s", flush=True)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="comparisons, as `alignlab reward train` reads them")
    parser.add_argument("--out", type=Path, default=Path("overoptimisation"))
    parser.add_argument("--part", choices=("all", *PARTS), default="all")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="policy, and trunk of the rewards")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    for name, text in {
        "pairs": "comparisons that the gold reward learns from at most",
        "prompts": "held-out prompts to measure on",
        "samples": "answers to each, the largest n",
        "max_tokens": "tokens of an answer",
        "running": "answers that are generated at a time",
        "steps": "batches of PPO",
        "batch": "answers in each",
        "every": "steps from one measurement to the next",
        "probe_samples": "answers to each prompt at a measurement",
        "microbatch": "answers in a training pass",
    }.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=text)
    parser.add_argument("--proxy-pairs", type=int, nargs="+", help="comparisons of each proxy; PPO takes the first")
    parser.add_argument("--gold-rank", type=int, default=16)
    parser.add_argument("--proxy-rank", type=int, default=4)
    parser.add_argument("--policy-rank", type=int, default=16)
    parser.add_argument("--policy-rate", type=float, default=3e-4, help="learning rate of PPO")
    parser.add_argument("--kl", type=float, default=0.002, help="KL coefficient of PPO")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    for name, value in (SMALL if options.device == "cpu" else LARGE).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def comparisons(lm: LanguageModel, options: argparse.Namespace) -> tuple[list[RewardPair], list[RewardPair]]:
    """(to learn from, of other dialogues), with prompts that the model can spell."""
    if options.data is not None:
        pairs = read_pairs(options.data)
    else:
        pairs = [RewardPair([{"role": "user", "content": p.prompt}], p.harmless, p.harmful) for p in load_pairs()]
    pairs = plain_prompts(PreferenceModel(lm), pairs)
    learn, kept = split_dialogues(pairs, 0.2, seed=options.seed)
    return [pairs[i] for i in learn][: options.pairs], [pairs[i] for i in kept]


def distinct_prompts(lm: LanguageModel, pairs: list[RewardPair], most: int) -> list[Prompt]:
    """The prompts of different dialogues, the first of each that is short."""
    first: dict[str, Prompt] = {}
    for pair in pairs:
        dialogue = dialogue_of(pair.prompt)
        if dialogue not in first and len(lm.tokenizer.encode_prompt(pair.prompt)) <= LONGEST_PROMPT:
            first[dialogue] = pair.prompt
            if len(first) == most:
                break
    return list(first.values())


def held_prompts(lm: LanguageModel, kept: list[RewardPair], options: argparse.Namespace) -> list[Prompt]:
    """The prompts to measure on, the same in every part."""
    file = options.out / "prompts.json"
    if not file.is_file():
        atomic_write(file, json.dumps(distinct_prompts(lm, kept, options.prompts)))
    prompts: list[Prompt] = json.loads(file.read_text())
    return prompts


def precision_of(lm: LanguageModel) -> Literal["fp32", "bf16"]:
    """bf16 products where the weights are wide and on a GPU; narrow weights need no autocast."""
    weight = lm.model.embed.weight
    return "bf16" if weight.device.type == "cuda" and weight.dtype == torch.float32 else "fp32"


def make_models(lm: LanguageModel, options: argparse.Namespace) -> None:
    """Train the gold reward on the comparisons, and the proxies on the policy's answers as gold sees them."""
    learn, kept = comparisons(lm, options)
    prompts, answers = policy_answers(lm, distinct_prompts(lm, learn, max(options.proxy_pairs)), options)
    gold = trained(lm, "gold", learn, options, rank=options.gold_rank)
    accuracy = measure_reward(gold, kept).accuracy
    atomic_write(options.out / "gold.json", pretty_json({"pairs": len(learn), "accuracy": accuracy.as_dict()}))
    print(f"gold reward on dialogues that it has not seen: accuracy {accuracy}", flush=True)
    normalise(gold, prompts, answers, options.out / "gold")
    found = score_answers(gold, prompts, answers)
    labelled = [
        RewardPair(prompt, two[int(rewards.argmax())], two[int(rewards.argmin())])
        for prompt, two, rewards in zip(prompts, answers, found, strict=True)
        if rewards[0] != rewards[1]
    ]
    for size in options.proxy_pairs:
        proxy = trained(lm, f"proxy-{size}", labelled[:size], options, rank=options.proxy_rank)
        normalise(proxy, prompts, answers, options.out / f"proxy-{size}")


def policy_answers(
    lm: LanguageModel, prompts: list[Prompt], options: argparse.Namespace
) -> tuple[list[Prompt], list[list[str]]]:
    """Two answers to each prompt, to as many as the largest proxy wants; prompts recur where there are too few."""
    prompts = (prompts * -(-max(options.proxy_pairs) // len(prompts)))[: max(options.proxy_pairs)]
    file = options.out / "answers.json"
    if not file.is_file():
        sampling = sampling_of(options, "proxy answers", 2)
        sampler = sampler_of(lm, batch_size=options.running)
        drawn = sample_rewards(sampler, prompts, {}, sampling, progress=Progress(), at_a_time=options.running)
        atomic_write(file, json.dumps(drawn.answers))
    return prompts, json.loads(file.read_text())


def sampling_of(options: argparse.Namespace, name: str, n: int) -> SamplingParams:
    """The policy as it is, without filters: the KL of best-of-n is to this distribution."""
    return SamplingParams(max_tokens=options.max_tokens, n=n, seed=derive_seed(options.seed, name) % 2**31)


def trained(
    lm: LanguageModel, name: str, pairs: list[RewardPair], options: argparse.Namespace, *, rank: int
) -> PreferenceModel:
    """The reward model of that name: loaded, or trained on the pairs and saved."""
    folder = options.out / name
    if (folder / FILE).is_file():
        return reward_of(lm, name, options)
    seed, on_gpu = derive_seed(options.seed, name) % 2**31, options.device != "cpu"
    lora = LoraConfig(rank=rank, alpha=2.0 * rank, targets=(ALL_LINEAR,), seed=seed)
    model = PreferenceModel(lm, lora=lora, max_length=LENGTH, batch_size=4 * options.microbatch, seed=seed)
    train = TrainConfig(learning_rate=5e-4, warmup_steps=10, precision=precision_of(lm), seed=seed)
    # A small set gets as many updates as it takes to fit it; a large one is read once.
    epochs = max(1.0, 48 * BATCH / len(pairs)) if on_gpu else 1.0
    config = RewardConfig(epochs=epochs, batch_size=BATCH, loss=RewardLoss(centre=0.01), train=train)
    train_reward_model(model, pairs, config, name=name, progress=Progress())
    save_reward(model, folder, {"base": options.model, "pairs": len(pairs), "epochs": epochs})
    return model


def normalise(model: PreferenceModel, prompts: list[Prompt], answers: list[list[str]], folder: Path) -> None:
    """The policy's own answers have mean 0 and deviation 1, which is what PPO's KL coefficient is weighed against."""
    some = range(0, len(prompts), max(1, len(prompts) // 128))
    asked = [prompts[i] for i in some for _ in answers[i]]
    model.fit_normalisation(asked, [text for i in some for text in answers[i]])
    model.save(folder)


def reward_of(lm: LanguageModel, name: str, options: argparse.Namespace) -> PreferenceModel:
    """A saved reward, on the policy's own weights."""
    model = PreferenceModel.load(options.out / name, lm)
    model.batch_size = 4 * options.microbatch
    return model


def sample_best_of_n(lm: LanguageModel, options: argparse.Namespace) -> None:
    """Answers to the held-out prompts with the rewards of gold and of every proxy, a file a group of prompts."""
    prompts = held_prompts(lm, comparisons(lm, options)[1], options)
    names = ["gold", *(f"proxy-{size}" for size in options.proxy_pairs)]
    rewards = {name: reward_of(lm, name, options) for name in names}
    sampler = sampler_of(lm, batch_size=options.running)
    folder = options.out / "bon"
    folder.mkdir(exist_ok=True)
    with Progress().task("best of n", len(prompts), unit="prompts") as task:
        for start in range(0, len(prompts), GROUP):
            part, file = prompts[start : start + GROUP], folder / f"{start:05d}.json"
            if not file.is_file():
                sampling = sampling_of(options, f"best of n {start}", options.samples)
                drawn = sample_rewards(sampler, part, rewards, sampling)
                tables = {name: table.tolist() for name, table in drawn.rewards.items()}
                atomic_write(file, json.dumps({"rewards": tables, "answers": drawn.answers}))
            task.advance(len(part))


def optimise(lm: LanguageModel, options: argparse.Namespace) -> None:
    """PPO against the first proxy; every few steps the policy answers the held-out prompts."""
    learn, kept = comparisons(lm, options)
    rewards = {
        "gold": reward_of(lm, "gold", options),
        "proxy": reward_of(lm, f"proxy-{options.proxy_pairs[0]}", options),
    }
    config = PPOConfig(
        steps=options.steps, batch_size=options.batch, minibatch_size=max(1, options.batch // 2),
        microbatch_size=min(options.batch, options.microbatch), max_tokens=options.max_tokens,
        learning_rate=options.policy_rate, kl_coefficient=options.kl, on_equal_rewards="skip",
        lora=LoraConfig(rank=options.policy_rank, alpha=2.0 * options.policy_rank, targets=(ALL_LINEAR,)),
        precision=precision_of(lm), checkpoint_every=max(1, options.every),
        max_mismatch=0.1 if options.device == "cpu" else 0.3, seed=derive_seed(options.seed, "ppo") % 2**31,
    )  # fmt: skip
    trainer = PPOTrainer(
        lm, reward_function(rewards["proxy"]), None, config,
        sampler=sampler_of(lm, batch_size=options.running), checkpoint_dir=options.out / "ppo",
    )  # fmt: skip
    file = options.out / "rl.jsonl"
    held = held_prompts(lm, kept, options)
    probe = PolicyProbe(trainer, held, rewards, samples=options.probe_samples, every=options.every, file=file)
    if not probe.points:
        probe.measure(0)
    trainer.train(distinct_prompts(lm, learn, len(learn)), progress=Progress(), on_step=probe)


def fit_and_draw(options: argparse.Namespace) -> None:
    """Curves with fits from whatever parts are there."""
    groups = [json.loads(file.read_text())["rewards"] for file in sorted((options.out / "bon").glob("*.json"))]
    tables = {name: np.concatenate([np.array(group[name]) for group in groups]) for name in groups[0]}
    gold, first, file = tables.pop("gold"), f"proxy-{options.proxy_pairs[0]}", options.out / "rl.jsonl"
    rl = {}
    if file.is_file():
        start = {"proxy": tables[first].mean(axis=1), "gold": gold.mean(axis=1)}
        rl[f"PPO, {first}"] = (first, probe_curve(read_jsonl(file), start))
    found = measure_overoptimisation(tables, gold, rl)
    about = {"gold": read_json(options.out / "gold.json"), "prompts": len(gold), "samples": gold.shape[1]}
    atomic_write(options.out / "findings.json", pretty_json({**about, **found.as_dict()}))
    found.add_to(Page("Over-optimisation of a proxy reward")).save(options.out / "overoptimisation.html")
    print("\n".join(found.lines()))


if __name__ == "__main__":
    main()
