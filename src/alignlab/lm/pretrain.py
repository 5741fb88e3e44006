"""Pretraining: from a tokenised corpus to a registered model, in one resumable run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.core.config import require
from alignlab.core.device import pick_device
from alignlab.core.errors import DataError
from alignlab.core.progress import Progress
from alignlab.core.rng import derive_seed
from alignlab.core.runs import Run
from alignlab.data.loader import Batch, Prefetch, TokenLoader, evaluation_batches
from alignlab.lm import registry
from alignlab.lm.generate import decode
from alignlab.lm.init import learning_rate_scales
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.model import GPTModel
from alignlab.lm.native import export_model
from alignlab.lm.pretrain_config import PretrainConfig
from alignlab.lm.tokenized_corpus import TokenizedCorpus, open_tokenized
from alignlab.lm.types import SamplingParams
from alignlab.train.language import language_model_loss
from alignlab.train.layer_statistics import LayerStatistics
from alignlab.train.noise_scale import GradientNoiseScale
from alignlab.train.observer import Observer
from alignlab.train.parallel import Parallel, parallel_from_env
from alignlab.train.trainer import Metrics, Trainer, TrainResult

STAGE = "pretrain"
SAMPLES, SAMPLE_TOKENS = 3, 100


@dataclass
class Pretraining:
    """One pretraining: `execute` trains, measures, exports and registers. `run` is None on ranks other than 0."""

    config: PretrainConfig
    corpus: TokenizedCorpus
    run: Run | None
    progress: Progress
    parallel: Parallel

    def execute(self) -> TrainResult:
        """Train to the end, from the last checkpoint if there is one; then export and register the model."""
        config = self.config
        place = self.parallel.broadcast(None if self.run is None else str(self.run.path))
        if place is not None:
            self.parallel.open_log(place)
        model = GPTModel(config.model, seed=derive_seed(config.train.seed, "weights")).to(self.device())
        trainer = self.trainer(model)
        with Prefetch(self.loader(), ahead=2) as batch_at:
            result = trainer.fit(batch_at)
        kept = dict(model.state_dict())
        if config.weights == "average" and trainer.average is not None:
            kept |= trainer.average.tensors
        whole = self.parallel.whole(kept)  # every rank gives its part
        if self.run is not None:
            self.keep(whole)
        return result

    def device(self) -> torch.device:
        """Where this process computes; among several, the parallel kind has chosen a GPU for it already."""
        device = pick_device(self.config.device)
        several = device.type == "cuda" and self.parallel.world > 1
        return torch.device("cuda", torch.cuda.current_device()) if several else device

    def trainer(self, model: GPTModel) -> Trainer:
        """The loop for `model` with everything that the configuration switches on."""
        config = self.config
        return Trainer(
            model,
            language_model_loss,
            replace(config.train, accumulate=self.micro_batches),
            run=self.run,
            name=STAGE,
            progress=self.progress,
            parallel=self.parallel,
            observers=self.observers(model),
            scales=learning_rate_scales(model) if config.model.init == "mup" else None,
            data_fingerprint=self.loader().fingerprint(),
            validate=self.validate,
        )

    @property
    def micro_batches(self) -> int:
        """Forward passes of one process in an update."""
        self.parallel.check_batch_size(self.config.batch_size)
        share = self.config.batch_size // self.parallel.world
        rows = min(self.config.micro_batch or share, share)
        require(share % rows == 0, "micro_batch", rows, f"a divisor of the {share} rows of each process")
        return share // rows

    def loader(self) -> TokenLoader:
        """Micro-batches over the training shards: this process's rows."""
        config = self.config
        return TokenLoader(
            self.corpus.train,
            length=config.length,
            batch_size=config.batch_size // self.micro_batches,
            seed=derive_seed(config.train.seed, "data"),
            rank=self.parallel.rank,
            world=self.parallel.world,
            documents=config.documents,
        )

    def observers(self, model: GPTModel) -> list[Observer]:
        """What watches the training."""
        found: list[Observer] = []
        if self.config.noise_scale_every:
            found.append(GradientNoiseScale(every=self.config.noise_scale_every))
        if self.config.statistics_every:
            found.append(LayerStatistics(model, every=self.config.statistics_every))
        return found

    def validation(self) -> Iterator[Batch]:
        """The batches that validation looks at, the same every time."""
        rows = max(1, self.config.batch_size // self.micro_batches)
        found = evaluation_batches(self.corpus.validation, length=self.config.length, batch_size=rows)
        return islice(found, self.config.validation_batches or None)

    def validate(self, model: nn.Module) -> Metrics:
        """Mean nats a token and bits a byte on the validation set."""
        device = next(model.parameters()).device
        total = tokens = 0.0
        for batch in self.validation():
            batch = {key: value.to(device) for key, value in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16"):
                loss, metrics = language_model_loss(model, batch)
            count = float(metrics["tokens"])
            total, tokens = total + float(loss) * count, tokens + count
        manifest = self.corpus.validation.manifest
        nats = total / tokens
        return {
            "validation_loss": nats,
            "validation_bits_per_byte": nats / math.log(2) * manifest.tokens / manifest.bytes,
        }

    def keep(self, weights: dict[str, Tensor]) -> None:
        """Write the model with these weights, register it, and note what it says unprompted."""
        assert self.run is not None
        run, path = self.run, self.run.path / "model"
        model = GPTModel(self.config.model)
        model.load_state_dict(weights)
        lm = LanguageModel(model.to(self.device()).eval(), self.corpus.tokenizer, self.config.name, str(path))
        texts = samples(lm, seed=self.config.train.seed)
        run.write_artifact("samples.json", texts)
        run.stage("export", lambda: self.export(lm, path))
        self.progress.say("a sample of it:\n" + texts[0])

    def export(self, lm: LanguageModel, path: Path) -> dict[str, Any]:
        """Write the model in the format that holds it, and register it."""
        assert self.run is not None
        exported = export_model(lm, path)
        self.progress.say(str(exported))
        info = {"base": str(self.config.data), "run": str(self.run.path), "stage": STAGE}
        registry.register(self.config.name, path, info)
        return {"path": str(path), "name": self.config.name, "format": exported.format}


def samples(lm: LanguageModel, *, seed: int) -> list[str]:
    """What the model writes from the beginning of a text, at temperature 0.8."""
    start = lm.tokenizer.bos_id if lm.tokenizer.bos_id is not None else lm.tokenizer.eos_id
    if start is None:
        raise DataError("the tokenizer has no token that begins a text")
    longest = max(1, min(SAMPLE_TOKENS, lm.model.config.n_ctx - 2))
    sampling = SamplingParams(max_tokens=longest, temperature=0.8, seed=seed)
    rows: dict[int, list[int]] = {}
    for moved in decode(lm.model, [[start]] * SAMPLES, sampling, lm.tokenizer.eos_ids):
        rows |= {row.index: row.tokens for row in moved}
    return [lm.tokenizer.decode(rows[index]) for index in sorted(rows)]


def pretrain(config: PretrainConfig, run: Run | None, *, progress: Progress, parallel: Parallel) -> TrainResult:
    """Do what a resolved configuration says; see `Pretraining`."""
    return Pretraining(config, open_tokenized(config.data), run, progress, parallel).execute()


def start_parallel(config: PretrainConfig) -> Parallel:
    """The processes that train together, as the configuration and torchrun's variables say."""
    return parallel_from_env(config.parallel, precision=config.train.precision)
