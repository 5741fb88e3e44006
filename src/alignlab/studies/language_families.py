"""The contestants of `autoregressive_families`: n-gram, LSTM and transformer over bytes, treated alike.

All read the same bytes, are scored on the same validation bytes with the same bytes before them, and continue the same
prompts. The two neural families share loss, optimiser, schedule, batches and the choice of the best weights.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from alignlab.core.errors import TrainingError
from alignlab.core.progress import Progress
from alignlab.core.rng import derive_seed, torch_generator
from alignlab.lm.config import GPTConfig
from alignlab.lm.generate import decode
from alignlab.lm.lstm import LSTMConfig, LSTMModel, sample
from alignlab.lm.model import GPTModel
from alignlab.lm.ngram import KneserNey
from alignlab.lm.types import SamplingParams
from alignlab.studies.family_plan import VOCABULARY, Bytes, Corpus, Plan, Size
from alignlab.train.config import TrainConfig
from alignlab.train.language import language_model_loss
from alignlab.train.losses import chunked_cross_entropy
from alignlab.train.trainer import Trainer

Neural = Literal["lstm", "transformer"]
NeuralModel = GPTModel | LSTMModel
Nats = NDArray[np.float64]
_ROWS = 32
"""Windows scored at once."""


@dataclass(frozen=True)
class Job:
    """One training of a neural model."""

    family: Neural
    size: Size
    train_bytes: int
    """Text it may learn from: the last so many bytes of the training text."""
    steps: int
    learning_rate: float
    seed: int


def make_model(family: Neural, size: Size, length: int, seed: int) -> NeuralModel:
    """A fresh model of a family that reads windows of `length` bytes and the one that follows."""
    if family == "lstm":
        layers, width = size.lstm
        return LSTMModel(LSTMConfig(vocab_size=VOCABULARY, d_model=width, n_layers=layers), seed=seed)
    layers, width = size.transformer
    config = GPTConfig(
        vocab_size=VOCABULARY, n_ctx=length + 1, d_model=width, n_layers=layers,
        n_heads=max(1, width // 32), d_mlp=round(width / 3) * 8,
    )  # fmt: skip
    return GPTModel(config, seed=seed)


def training_flops(family: Neural, size: Size, length: int) -> float:
    """Estimated floating-point operations to train on one byte.

    6 for each weight of a matrix product (2 forward, 4 backward; Kaplan et al. 2020, section 2.1), the unembedding
    included and the embedding not, and for the transformer 12 · layers · width · length for the attention scores and
    their use (Chowdhery et al. 2022, appendix B).
    """
    layers, width = size.lstm if family == "lstm" else size.transformer
    model = make_model(family, size, length, 0)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and not name.startswith("embed"))
    attention = 12.0 * layers * width * length if family == "transformer" else 0.0
    return 6.0 * (matrices + VOCABULARY * width) + attention


def train_neural(job: Job, corpus: Corpus, plan: Plan, device: str, progress: Progress) -> dict[str, Any]:
    """Train, keep the weights that read the tuning text best, score the validation text, continue the prompts.

    The result holds `tuning` (bits per byte), `best_at` (when that was, as a share of the training), `blocks` (bits per
    byte of every validation block), `flops`, `tokens`, `seconds` of training without the looks
    at the tuning text, `parameters`, and the `samples` as text.
    """
    model = make_model(job.family, job.size, plan.length, derive_seed(job.seed, "weights"))
    model.to(device)
    data = corpus.last(job.train_bytes)
    best = BestWeights(corpus, plan.length)
    started = time.perf_counter()
    trainer = Trainer(
        model, language_model_loss, _config(job, plan.looks),
        name=f"{job.family} {job.size.name}", progress=progress, validate=best,
    )  # fmt: skip
    trainer.fit(_Batches(data, plan, derive_seed(job.seed, "batches")))
    seconds = time.perf_counter() - started - best.seconds
    model.load_state_dict(best.weights)
    model.eval()
    nats = stream_nats(model, corpus.tuning, corpus.validation, plan.length)
    tokens = job.steps * plan.batch * plan.length
    return {
        "tuning": best.bits,
        "best_at": best.best_look / best.looks,
        "blocks": blocks(nats, plan.block),
        "flops": tokens * training_flops(job.family, job.size, plan.length),
        "tokens": tokens,
        "seconds": seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "samples": continue_neural(model, corpus.prompts(plan), plan.sample_bytes, seed=derive_seed(job.seed, "text")),
    }


def probe(job: Job, corpus: Corpus, plan: Plan, device: str) -> float | None:
    """Bits per byte of the tuning text after a short training, to choose learning rates by; None if it diverges."""
    model = make_model(job.family, job.size, plan.length, derive_seed(job.seed, "weights"))
    model.to(device)
    batches = _Batches(corpus.last(job.train_bytes), plan, derive_seed(job.seed, "batches"))
    try:
        Trainer(model, language_model_loss, _config(job)).fit(batches)
    except TrainingError:
        return None
    model.eval()
    return _bits(stream_nats(model, corpus.train, corpus.tuning, plan.length))


def _config(job: Job, looks: int = 1) -> TrainConfig:
    return TrainConfig(
        steps=job.steps,
        learning_rate=job.learning_rate,
        warmup_steps=min(100, job.steps // 10),
        min_lr_ratio=0.1,
        weight_decay=0.1,
        beta2=0.99,
        log_every=job.steps,
        validate_every=max(1, job.steps // looks),
        seed=job.seed,
    )


def train_ngram(corpus: Corpus, plan: Plan, train_bytes: int, seed: int) -> dict[str, Any]:
    """The n-gram model of the order that reads the tuning text best; the same fields as `train_neural`, and `order`."""
    data = corpus.last(train_bytes)
    started = time.perf_counter()
    fits: dict[int, tuple[float, float]] = {}
    for order in plan.orders:
        begun = time.perf_counter()
        model = KneserNey.fit([data], vocab_size=VOCABULARY, order=order)
        took = time.perf_counter() - begun
        fits[order] = (_bits(-model.log_probabilities(corpus.tuning, context=data[-64:])), took)
    order = min(fits, key=lambda n: fits[n][0])
    model = KneserNey.fit([data], vocab_size=VOCABULARY, order=order)
    prompts = np.stack(corpus.prompts(plan))
    texts = model.sample(prompts, plan.sample_bytes, seed=derive_seed(seed, "text"))
    nats = -model.log_probabilities(corpus.validation, context=corpus.tuning[-64:])
    return {
        "tuning": fits[order][0],
        "blocks": blocks(nats, plan.block),
        "order": order,
        "tokens": len(data),
        "seconds": fits[order][1],
        "seconds_with_choice": time.perf_counter() - started,
        "parameters": sum(model.ngrams),
        "samples": [text_of(row) for row in texts],
    }


@torch.no_grad()
def stream_nats(model: NeuralModel, before: Bytes, scored: Bytes, length: int) -> Nats:
    """Negative log-likelihood in nats of each byte of `scored`, (n,), read in windows of `length` predictions.

    Windows move by half their length and count only for their second half, so every byte has at least `length / 2`
    bytes of true text before it; those before the first come from `before`.
    """
    half = max(1, length // 2)
    stream = np.concatenate([before[-length:], scored])
    offset = len(stream) - len(scored)
    starts = offset - (length - half) - 1 + half * np.arange(-(-len(scored) // half))
    padded = np.concatenate([stream, np.zeros(length, dtype=np.int64)])
    windows = torch.from_numpy(padded[starts[:, None] + np.arange(length + 1)])  # (windows, length + 1)
    device = model.embed.weight.device
    found = []
    for part in windows.split(_ROWS):
        part = part.to(device)
        hidden = model.hidden_states(part[:, :-1])[:, -half:]
        nats = chunked_cross_entropy(
            hidden.reshape(-1, hidden.shape[-1]), model.head_weight, part[:, -half:].reshape(-1),
            softcap=model.config.logit_softcap,
        )  # fmt: skip
        found.append(nats.double().cpu().numpy())
    return np.concatenate(found)[: len(scored)]


def continue_neural(model: NeuralModel, prompts: list[Bytes], length: int, *, seed: int) -> list[str]:
    """Each prompt continued by `length` bytes drawn from the model as it is (temperature 1, nothing filtered)."""
    device = model.embed.weight.device
    if isinstance(model, LSTMModel):
        rows = sample(model, torch.from_numpy(np.stack(prompts)).to(device), length, seed=seed)
        return [text_of(row) for row in rows.cpu().numpy()]
    texts: dict[int, list[int]] = {}
    sampling = SamplingParams(max_tokens=length, temperature=1.0, seed=seed)
    for moved in decode(model, [prompt.tolist() for prompt in prompts], sampling, frozenset()):
        texts |= {row.index: row.tokens for row in moved}
    return [text_of(np.array(texts[i])) for i in range(len(prompts))]


def text_of(row: Int[np.ndarray, " n"]) -> str:
    """Bytes as text; what is no UTF-8 becomes a replacement character."""
    return bytes(row.astype(np.uint8)).decode("utf-8", "replace")


def blocks(nats: Nats, size: int) -> list[float]:
    """Bits per byte of each whole block of `size` bytes."""
    whole = nats[: len(nats) // size * size].reshape(-1, size)
    return [float(value) for value in whole.mean(axis=1) / math.log(2)]


def _bits(nats: Float[np.ndarray, " n"]) -> float:
    return float(nats.mean()) / math.log(2)


class _Batches:
    """Batch number i: random windows of the text, a pure function of i."""

    def __init__(self, data: Bytes, plan: Plan, seed: int) -> None:
        self.data, self.plan, self.seed = torch.from_numpy(data), plan, seed

    def __call__(self, index: int) -> dict[str, Tensor]:
        generator = torch_generator(derive_seed(self.seed, index))
        starts = torch.randint(len(self.data) - self.plan.length, (self.plan.batch,), generator=generator)
        return {"tokens": self.data[starts[:, None] + torch.arange(self.plan.length + 1)]}


class BestWeights:
    """A validation that reads the tuning text and keeps the weights that read it best."""

    def __init__(self, corpus: Corpus, length: int) -> None:
        self.corpus, self.length = corpus, length
        self.bits, self.seconds, self.looks, self.best_look = math.inf, 0.0, 0, 0
        self.weights: dict[str, Tensor] = {}

    def __call__(self, model: Any) -> dict[str, float]:
        started = time.perf_counter()
        bits = _bits(stream_nats(model, self.corpus.train, self.corpus.tuning, self.length))
        self.looks += 1
        if bits < self.bits:
            self.bits, self.best_look = bits, self.looks
            self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.seconds += time.perf_counter() - started
        return {"tuning_bits_per_byte": bits}
