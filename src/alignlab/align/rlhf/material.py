"""What an RLHF run learns from and is measured on, split so that nothing measured was learned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from alignlab.align.pairs import PreferencePair
from alignlab.align.reward.examples import RewardPair, dialogue_of, split_dialogues
from alignlab.align.rlhf.config import RLHFConfig
from alignlab.align.rlhf.sources import (
    Asked,
    Asking,
    Demonstration,
    apart,
    distinct,
    read_asked,
    read_comparisons,
    read_demonstrations,
    turns_of,
)
from alignlab.align.sft import SFTExample
from alignlab.core.errors import ConfigError, DataError
from alignlab.core.rng import derive_seed, torch_generator
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.types import Prompt


@dataclass
class Material:
    """Everything that was read, in its parts; the same for the same configuration and files."""

    asking: Asking
    examples: list[Demonstration] = field(default_factory=list)
    """For supervised fine-tuning."""
    learn: list[RewardPair] = field(default_factory=list)
    """Comparisons for the reward model."""
    judge: list[RewardPair] = field(default_factory=list)
    """Comparisons for the held-out judge."""
    kept: list[RewardPair] = field(default_factory=list)
    """Comparisons that nothing learns from: the reward model and the judge are measured on them."""
    train: list[Prompt] = field(default_factory=list)
    """What the policy is asked in training."""
    heldout: list[Prompt] = field(default_factory=list)
    """What it is asked when it is measured."""
    account: dict[str, int] = field(default_factory=dict)
    """How many of each, and how many were left out for which reason."""


def gather(config: RLHFConfig, lm: LanguageModel, brought: Asked | None = None) -> Material:
    """Read and split the files of `config`; `brought` are the prompts that a reward has of its own (a task's).

    Held-out prompts and held-out comparisons share no dialogue with anything that is learned from. Raises DataError for
    files that are wrong, and where nothing is left to train or to measure on.
    """
    room = lm.model.config.n_ctx - config.rl.max_tokens
    if config.max_prompt_tokens > room:
        raise ConfigError(
            f"max_prompt_tokens is {config.max_prompt_tokens}, allowed: up to {room}, the model's context of "
            f"{lm.model.config.n_ctx} less rl.max_tokens ({config.rl.max_tokens})"
        )
    dialogues = lm.tokenizer.chat_template is not None
    found = Material(Asking(config.template, not config.raw, dialogues))
    split_comparisons(config, found)
    if config.demonstrations is not None:
        found.examples = read_demonstrations(config.demonstrations, found.asking)
    choose_prompts(config, found, brought, lambda prompt: len(lm.tokenizer.encode_prompt(prompt)))
    if config.sft_source == "chosen":
        found.examples = [SFTExample(pair.prompt, pair.chosen) for pair in found.learn]
    elif config.sft_source == "none":
        found.examples = []
    keep_apart(found)
    cut_to_size(config, found)
    if config.sft_source != "none" and not found.examples:
        raise DataError("no example is left to fine-tune on once the held-out prompts are taken out; lower heldout")
    sizes = {
        "examples": len(found.examples),
        "comparisons": len(found.learn),
        "judge_comparisons": len(found.judge),
        "kept_comparisons": len(found.kept),
        "train_prompts": len(found.train),
        "heldout_prompts": len(found.heldout),
    }
    found.account = sizes | found.account
    return found


def split_comparisons(config: RLHFConfig, found: Material) -> None:
    """Whole dialogues for the reward model, for the held-out judge where one is trained, and to measure both on."""
    if config.comparisons is None:
        return
    pairs = read_comparisons(config.comparisons, found.asking)
    learn, kept = split_dialogues(pairs, config.heldout, seed=config.split_seed)
    found.learn, found.kept = [pairs[i] for i in learn], [pairs[i] for i in kept]
    if config.judge.reward == "comparisons":
        mine, other = split_dialogues(found.learn, config.judge.share, seed=derive_seed(config.split_seed, "judge"))
        found.judge, found.learn = [found.learn[i] for i in other], [found.learn[i] for i in mine]


def choose_prompts(config: RLHFConfig, found: Material, brought: Asked | None, length: Callable[[Prompt], int]) -> None:
    """Training and held-out prompts: those of the files, of the reward, of the comparisons or of the demonstrations."""
    heldout: list[Prompt] = []
    if config.prompts is not None:
        asked = read_asked(config.prompts, found.asking)
        train, heldout = asked.train, asked.heldout
    elif brought is not None and brought.train:
        train, heldout = brought.train, brought.heldout
    elif config.comparisons is not None:
        train = [pair.prompt for pair in [*found.learn, *found.judge]]
        heldout = [pair.prompt for pair in found.kept]
    elif found.examples:
        train = [prompt for example in found.examples for prompt, _ in turns_of(example)]
    else:
        raise ConfigError("prompts is none, and neither the reward nor another file brings some: give --prompts FILE")
    if config.eval_prompts is not None:
        asked = read_asked(config.eval_prompts, found.asking)
        heldout = [*asked.train, *asked.heldout]
    train, heldout = distinct(train), distinct(heldout)
    if not heldout:
        alone = [PreferencePair(prompt, "", "") for prompt in train]
        try:
            mine, other = split_dialogues(alone, config.heldout, seed=derive_seed(config.split_seed, "prompts"))
        except DataError:
            raise DataError(
                f"there are {len(train)} different prompts, at least two are needed to keep some back to measure on"
            ) from None
        train, heldout = [train[i] for i in mine], [train[i] for i in other]
    before = len(train)
    train = apart(train, heldout)
    found.account["prompts_also_heldout"] = before - len(train)
    limit = config.max_prompt_tokens
    found.train, long = taken(train, config.n_prompts, lambda p: length(p) <= limit, derive_seed(config.seed, "train"))
    found.heldout, longer = taken(
        heldout, config.n_eval, lambda p: length(p) <= limit, derive_seed(config.split_seed, "eval")
    )
    found.account["prompts_too_long"] = long + longer
    for name, prompts in (("training", found.train), ("held-out", found.heldout)):
        if not prompts:
            raise DataError(
                f"no {name} prompt is left: {found.account['prompts_too_long']} are longer than max_prompt_tokens "
                f"({limit}) and {found.account['prompts_also_heldout']} are also held out"
            )


def taken(prompts: Sequence[Prompt], most: int, fits: Callable[[Prompt], bool], seed: int) -> tuple[list[Prompt], int]:
    """At most `most` (0: all) of the prompts that fit, in an order drawn by `seed`; and how many did not fit."""
    order = torch.randperm(len(prompts), generator=torch_generator(seed)).tolist()
    found: list[Prompt] = []
    refused = 0
    for i in order:
        if most and len(found) == most:
            break
        if fits(prompts[i]):
            found.append(prompts[i])
        else:
            refused += 1
    return found, refused


def keep_apart(found: Material) -> None:
    """Nothing is learned from a dialogue that the policy, or a judge, is measured on."""
    measured = {dialogue_of(prompt) for prompt in found.heldout} | {dialogue_of(pair.prompt) for pair in found.kept}
    for name in ("examples", "learn", "judge"):
        items = getattr(found, name)
        left = [item for item in items if dialogue_of(item.prompt) not in measured]
        setattr(found, name, left)
        if len(left) < len(items):
            found.account[f"{name}_also_heldout"] = len(items) - len(left)


def cut_to_size(config: RLHFConfig, found: Material) -> None:
    """At most as many examples and comparisons as the configuration says, the first of a drawn order."""
    for name, most in (
        ("examples", config.sft.most),
        ("learn", config.reward_model.most),
        ("judge", config.reward_model.most),
    ):
        items = getattr(found, name)
        if most and len(items) > most:
            order = torch.randperm(len(items), generator=torch_generator(derive_seed(config.seed, name))).tolist()
            setattr(found, name, [items[i] for i in sorted(order[:most])])
    if config.trains_reward and not found.learn:
        raise DataError("no comparison is left for the reward model once the held-out ones are taken out")
