"""KTO: responses that are each good or bad, with or without a partner to compare them with (Ethayarajh et al. 2024)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.align.adapters import ensure_lora
from alignlab.align.batching import LengthBatches
from alignlab.align.direct.joint import EncodedPair
from alignlab.align.direct.losses import balanced_weights, kto_baseline, kto_loss
from alignlab.align.direct.objectives import DirectConfig
from alignlab.align.direct.scoring import pair_lengths, reference_scores, stack_pairs
from alignlab.align.pairs import Batch, PreferencePair, encode_response
from alignlab.align.policy import sequence_logprobs
from alignlab.align.sft import with_epochs
from alignlab.align.sft_data import examples_of
from alignlab.core.errors import DataError
from alignlab.core.progress import Progress
from alignlab.core.rng import derive_seed, torch_generator
from alignlab.core.runs import Run
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.model import GPTModel
from alignlab.lm.types import Prompt
from alignlab.tasks.pair_rows import sound_rows
from alignlab.train.trainer import Trainer, TrainResult


@dataclass(frozen=True)
class RatedExample:
    """One response and whether it is a good one."""

    prompt: Prompt
    """Raw text or messages, without the response."""
    response: str
    """What was answered."""
    good: bool
    """Whether that is wanted."""


def train_kto(
    lm: LanguageModel,
    examples: Sequence[RatedExample],
    config: DirectConfig | None = None,
    *,
    run: Run | None = None,
    name: str = "kto",
    progress: Progress | None = None,
) -> TrainResult:
    """Tune `lm` in place towards good responses and away from bad ones; with a `run`, logged and resumed under `name`.

    The baseline of a batch is KTO's estimate of KL(policy || reference) from prompts with a response to another prompt.
    Deviation: an example's other response is drawn once, over all examples, and not from its batch; its
    reference is then known before training. Where both weights are none, good and bad examples count the same in all.
    Raises DataError for fewer than two examples or only one kind of them.
    """
    config = config or DirectConfig(method="kto")
    n_good = check_examples(examples)
    ensure_lora(lm.model, config.lora)
    length = min(config.max_length, lm.model.config.n_ctx)
    other = mismatches([example.prompt for example in examples], seed=config.train.seed)
    rows: list[EncodedPair] = [
        (
            encode_response(lm.tokenizer, example.prompt, example.response, max_length=length),
            encode_response(lm.tokenizer, example.prompt, examples[j].response, max_length=length),
        )
        for example, j in zip(examples, other, strict=True)
    ]
    how = {"batch_size": config.batch_size, "precision": config.train.precision}
    reference = reference_scores(lm.model, rows, progress=progress, **how)  # type: ignore[arg-type]
    good = torch.tensor([example.good for example in examples])
    order = LengthBatches(pair_lengths(rows), config.batch_size, seed=config.train.seed)

    def batch_at(index: int) -> Batch:
        at = order(index)
        return stack_pairs([rows[i] for i in at]) | {"reference": reference[at], "good": good[at]}

    weights = balanced_weights(n_good, len(examples) - n_good)
    if config.good_weight is not None and config.bad_weight is not None:
        weights = (config.good_weight, config.bad_weight)
    loss_fn = kto_objective(config.strength, *weights)
    train = with_epochs(config.train, config.epochs, order.per_epoch)
    return Trainer(lm.model, loss_fn, train, run=run, name=name, progress=progress).fit(batch_at)


def kto_objective(
    beta: float, good_weight: float, bad_weight: float
) -> Callable[[nn.Module, Batch], tuple[Tensor, dict[str, Tensor]]]:
    """The loss function that `Trainer` calls: rows with their own response first, mismatched ones in the other half."""

    def loss_fn(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(model, GPTModel)
        (tokens, mixed), (mask, mixed_mask) = batch["tokens"].chunk(2), batch["loss_mask"].chunk(2)
        reference, good = batch["reference"], batch["good"]
        with torch.no_grad():
            baseline = kto_baseline(sequence_logprobs(model, mixed, mixed_mask), reference[:, 1])
        policy = sequence_logprobs(model, tokens, mask)
        weights = {"good_weight": good_weight, "bad_weight": bad_weight}
        rated = kto_loss(policy, reference[:, 0], good, baseline=baseline, beta=beta, **weights)
        held = rated.rewards - beta * baseline
        metrics = {
            "accuracy": ((held > 0) == good).float().mean(),
            "good_reward": _mean_where(rated.rewards, good),
            "bad_reward": _mean_where(rated.rewards, ~good),
            "baseline": baseline,
        }
        return rated.loss, metrics

    return loss_fn


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean over a part of the batch; 0 where the batch has none of it."""
    return (values * where).sum() / where.sum().clamp(min=1)


def mismatches(prompts: Sequence[Prompt], *, seed: int) -> list[int]:
    """For each example another one, each taken once, with another prompt wherever that is possible.

    Examples in random order, those of one prompt together, are shifted by the size of the largest such group.
    """
    keys = [json.dumps(prompt, sort_keys=True) for prompt in prompts]
    groups: dict[str, list[int]] = {}
    for i in torch.randperm(len(keys), generator=torch_generator(derive_seed(seed, "mismatches"))).tolist():
        groups.setdefault(keys[i], []).append(i)
    order = [i for group in groups.values() for i in group]
    shift = max(map(len, groups.values()))
    if shift == len(order):  # a single prompt: another response of its own
        shift = 1
    found = [0] * len(order)
    for place, i in enumerate(order):
        found[i] = order[(place + shift) % len(order)]
    return found


def rated_of_pairs(pairs: Sequence[PreferencePair]) -> list[RatedExample]:
    """The two sides of each pair, the chosen one good and the other bad."""
    return [
        RatedExample(pair.prompt, text, good)
        for pair in pairs
        for text, good in ((pair.chosen, True), (pair.rejected, False))
    ]


def check_examples(examples: Sequence[RatedExample]) -> int:
    """How many are good; DataError where there are too few examples, or there is only one kind."""
    if len(examples) < 2:
        raise DataError(f"KTO got {len(examples)} examples, at least two are needed")
    n_good = sum(example.good for example in examples)
    if n_good in (0, len(examples)):
        kind = "good" if n_good else "bad"
        raise DataError(f"all {len(examples)} examples are {kind}, KTO needs good and bad ones")
    return n_good


def read_rated(path: str | Path) -> list[RatedExample]:
    """Rated responses in JSON lines (also gzipped), a JSON list or Parquet: "prompt" (text or messages), "response" or
    "completion", and "good" or "label", true or false.

    Raises DataError for a file that is missing, damaged or empty, and for a record of another form, naming its line.
    """
    found = []
    for where, record in sound_rows(path):
        try:
            found.append(rated_of(record))
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    if not found:
        raise DataError(f"{path} has no example")
    return found


def is_rated(record: Mapping[str, Any]) -> bool:
    """Whether a record is of a single response rather than of a pair."""
    return "chosen" not in record and bool({"good", "label"} & record.keys())


def rated_of(record: Mapping[str, Any]) -> RatedExample:
    """The example that a record stands for; DataError for another form."""
    name = "good" if "good" in record else "label"
    if not isinstance(record.get(name), bool):
        raise DataError(f"{name} is {record.get(name)!r:.60}, allowed: true or false")
    completion = record.get("completion")
    if isinstance(completion, list) and len(completion) == 1 and isinstance(completion[0], Mapping):
        record = {**record, "completion": completion[0].get("content")}  # TRL's conversational form
    if not {"prompt"} <= record.keys() or not {"response", "completion"} & record.keys():
        raise DataError(f'the record has {", ".join(record)}, allowed: "prompt" with "response" or "completion"')
    (example,) = examples_of({key: record[key] for key in ("prompt", "response", "completion") if key in record})
    return RatedExample(example.prompt, example.response, record[name])
