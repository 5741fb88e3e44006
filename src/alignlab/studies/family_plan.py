"""How much of everything `autoregressive_families` uses at each scale, and the text cut into its parts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignlab.core.errors import ConfigError, DataError
from alignlab.studies.study import Scale

Bytes = NDArray[np.int64]
"""Byte values, (n,)."""
VOCABULARY = 256
"""Byte values: with one vocabulary for all families, bits per byte compares nothing but the models."""
DEFAULT_TEXT = "kjv"
"""The pulled text that is taken where none is named."""


@dataclass(frozen=True)
class Size:
    """Layers and width for each neural family; the two have about as many parameters."""

    name: str
    transformer: tuple[int, int]
    lstm: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """One scale of the study."""

    train_bytes: tuple[int, ...]
    """Amounts of training text for the comparison at equal data, rising."""
    passes: tuple[int, ...]
    """How often the neural families read each of them; the best weights on the way count."""
    compute_bytes: int
    """Training text for the comparison at equal compute: more, so that compute is what is short; at least the largest
    of `train_bytes`."""
    tuning_bytes: int
    """Text for choosing order, size, learning rate and weights."""
    validation_bytes: int
    """Text for scoring."""
    block: int
    """Bytes of a block: the unit that the bootstrap draws."""
    length: int
    """Bytes that the neural models read before the one they predict, at most."""
    batch: int
    """Windows per update."""
    sizes: tuple[Size, ...]
    budgets: tuple[float, ...]
    """Training FLOPs for the comparison at equal compute, rising."""
    learning_rates: tuple[float, ...]
    """Tried for each family and size in short trainings, unless there is one only."""
    orders: tuple[int, ...]
    """Orders of the n-gram model that are tried."""
    looks: int
    """How often a training measures the tuning text."""
    seeds: int
    """Trainings of each neural model, with other weights and batches."""
    samples: int
    """Prompts that every family continues."""
    prompt_bytes: int
    sample_bytes: int
    """Bytes of a continuation; with the prompt, at most `length`."""

    @property
    def total(self) -> int:
        """Bytes of text that the plan uses."""
        return self.compute_bytes + self.tuning_bytes + self.validation_bytes

    def scaled(self, available: int) -> Plan:
        """The plan with its amounts of text reduced in proportion where only so much is there."""
        factor = min(1.0, available / self.total)
        return dataclasses.replace(
            self,
            train_bytes=tuple(int(n * factor) for n in self.train_bytes),
            compute_bytes=int(self.compute_bytes * factor),
            tuning_bytes=int(self.tuning_bytes * factor),
            validation_bytes=int(self.validation_bytes * factor),
        )


PLANS: dict[Scale, Plan] = {
    "smoke": Plan(
        train_bytes=(3_000, 12_000), passes=(2, 2), compute_bytes=12_000, tuning_bytes=2_000, validation_bytes=4_096,
        block=128, length=64, batch=8, sizes=(Size("tiny", (1, 32), (1, 40)),), budgets=(4e8, 4e9),
        learning_rates=(5e-3,), orders=(2, 3, 4), looks=2, seeds=1, samples=24, prompt_bytes=16, sample_bytes=48,
    ),
    "cpu": Plan(
        train_bytes=(8_192, 32_768, 131_072), passes=(32, 32, 24), compute_bytes=786_432,
        tuning_bytes=16_384, validation_bytes=65_536, block=1_024, length=128, batch=16,
        sizes=(Size("small", (2, 64), (2, 76)), Size("medium", (3, 96), (2, 144))),
        budgets=(2e10, 2e11, 2e12), learning_rates=(1e-3, 3e-3, 1e-2), orders=(3, 4, 5, 6, 7, 8), looks=8, seeds=3,
        samples=200, prompt_bytes=32, sample_bytes=96,
    ),
    "gpu": Plan(
        train_bytes=(1 << 20, 4 << 20, 16 << 20), passes=(16, 12, 8), compute_bytes=32 << 20,
        tuning_bytes=262_144, validation_bytes=1 << 20, block=4_096, length=512, batch=64,
        sizes=(Size("small", (4, 256), (2, 448)), Size("medium", (8, 384), (3, 768))),
        budgets=(1e14, 1e15, 1e16), learning_rates=(5e-4, 1e-3, 2e-3, 4e-3), orders=(5, 6, 7, 8, 10, 12), looks=8,
        seeds=3, samples=1_000, prompt_bytes=128, sample_bytes=256,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """A text cut in three, in its order: what is scored follows what was learnt."""

    train: Bytes
    tuning: Bytes
    validation: Bytes
    name: str
    """Where the text is from."""

    def last(self, n: int) -> Bytes:
        """The last `n` bytes of the training text: smaller amounts are parts of larger ones, next to what is scored."""
        return self.train[-n:]

    def prompts(self, plan: Plan) -> list[Bytes]:
        """Evenly spaced pieces of the validation text to continue."""
        return [self.validation[at : at + plan.prompt_bytes] for at in self._places(plan)]

    def continuations(self, plan: Plan) -> list[Bytes]:
        """How the text itself goes on after each prompt."""
        return [self.validation[at + plan.prompt_bytes :][: plan.sample_bytes] for at in self._places(plan)]

    def elsewhere(self, plan: Plan) -> list[Bytes]:
        """As many pieces of the training text, of the same length: what human text scores against human text."""
        at = np.linspace(0, len(self.train) - plan.sample_bytes, plan.samples).astype(int)
        return [self.train[i : i + plan.sample_bytes] for i in at]

    def _places(self, plan: Plan) -> list[int]:
        last = len(self.validation) - plan.prompt_bytes - plan.sample_bytes
        return [int(at) for at in np.linspace(0, last, plan.samples)]


def cut(data: bytes, plan: Plan, name: str) -> tuple[Corpus, Plan]:
    """The beginning of `data` as training, tuning and validation text, and the plan reduced to what there is.

    DataError where that is too little for the scale.
    """
    whole, plan = plan.total, plan.scaled(len(data))
    enough = (
        plan.train_bytes[0] > 2 * plan.length
        and plan.tuning_bytes >= 2 * plan.length
        and plan.validation_bytes >= max(4 * plan.block, plan.prompt_bytes + plan.sample_bytes)
    )
    if not enough:
        raise DataError(f"{name} has {len(data)} bytes of text, too few for this scale, which uses up to {whole}")
    stream = np.frombuffer(data[: plan.total], dtype=np.uint8).astype(np.int64)
    first, second = plan.compute_bytes, plan.compute_bytes + plan.tuning_bytes
    return Corpus(stream[:first], stream[first:second], stream[second : plan.total], name), plan


def read_text(text: Path | None, scale: Scale, limit: int) -> tuple[bytes, str]:
    """The beginning of the text of a study, and its name.

    `text` is a file, or the name of a text that `alignlab data pull` fetched. None takes the prose that the package
    carries, which is enough for the smoke scale only, and above it the King James Bible where it was pulled.
    ConfigError where there is no text for the scale; DataError for a file that cannot be read or is empty.
    """
    from alignlab.data.prompts import heldout_text
    from alignlab.data.text_catalogue import find_text

    if text is None and scale == "smoke":
        return "\n\n".join(heldout_text()).encode(), "the packaged prose"
    wanted = DEFAULT_TEXT if text is None else str(text)
    pulled = None if text is not None and text.expanduser().exists() else find_text(wanted)
    if pulled is not None:
        return _documents(pulled, limit), wanted
    if text is None:
        raise ConfigError(
            f"text is not given, and the packaged prose is too short for the scale {scale!r}; give --text FILE with a "
            f"text of your own, or fetch one with `alignlab data pull {DEFAULT_TEXT}`"
        )
    try:
        with text.expanduser().open("rb") as stream:
            data = stream.read(limit)
    except OSError as error:
        raise DataError(f"cannot read {text}: {(error.strerror or str(error)).lower()}") from error
    if not data:
        raise DataError(f"{text} is empty, allowed: a file with text")
    return data, text.name


def _documents(path: Path, limit: int) -> bytes:
    """The first `limit` bytes of the documents in a JSONL file, a blank line between them."""
    from alignlab.data.corpus import jsonl_documents

    parts: list[bytes] = []
    size = 0
    for document in jsonl_documents(path):
        parts.append(document.encode("utf-8", "replace"))
        size += len(parts[-1]) + 2
        if size > limit:
            break
    return b"\n\n".join(parts)[:limit]
