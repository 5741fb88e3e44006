"""One text, one BPE vocabulary, the same batches: a transformer, an LSTM and Kneser-Ney counts, in bits per byte.

    python bench/baselines.py TEXT [--vocab-size 1024] [--steps 600] [--length 256]

The last tenth of the text is held out. Transformer and LSTM read windows of `--length` tokens, which do not overlap, so
that the first tokens of each are read with little before them; the counts see all that came before. The order of the
n-grams is chosen on the last tenth of the training text. Weights are those at the end of training.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from alignlab.core.progress import Progress
from alignlab.data.loader import Prefetch
from alignlab.lm.config import GPTConfig
from alignlab.lm.data_cli import tokenize
from alignlab.lm.lstm import LSTMConfig, LSTMModel
from alignlab.lm.model import GPTModel
from alignlab.lm.ngram import KneserNey
from alignlab.lm.pretrain import Pretraining
from alignlab.lm.pretrain_config import PretrainConfig, resolved
from alignlab.lm.tokenized_corpus import TokenizedCorpus, open_tokenized
from alignlab.train.config import TrainConfig
from alignlab.train.parallel import Parallel

LEARNING_RATES = {"transformer": 2e-3, "LSTM": 3e-3}


def neural(name: str, corpus: TokenizedCorpus, options: argparse.Namespace) -> tuple[float, int]:
    """Bits per byte at the end of training, and parameters."""
    train = TrainConfig(
        steps=options.steps,
        learning_rate=LEARNING_RATES[name],
        optimizer="muon" if name == "transformer" else "adamw",
        schedule="wsd",
        decay_fraction=0.4,
        warmup_steps=50,
        weight_decay=0.1,
        beta2=0.99,
        precision="bf16" if name == "transformer" else "fp32",
        log_every=50,
        validate_every=100,
    )
    shape = GPTConfig(d_model=256, n_layers=4, n_heads=4, d_mlp=704, qk_norm=True, dropout=options.dropout)
    config = PretrainConfig(
        options.corpus, model=shape, length=options.length, batch_size=16, train=train, validation_batches=0
    )
    config = resolved(config, corpus.tokenizer.vocab_size)
    model: nn.Module = GPTModel(config.model, seed=0)
    if name == "LSTM":
        lstm = LSTMConfig(vocab_size=config.model.vocab_size, d_model=384, n_layers=2, dropout=2 * options.dropout)
        model = LSTMModel(lstm, seed=0)
    job = Pretraining(config, corpus, None, Progress.silent(), Parallel())
    with Prefetch(job.loader(), ahead=2) as batch_at:
        job.trainer(model).fit(batch_at)  # type: ignore[arg-type]
    with torch.no_grad():
        bits = job.validate(model.eval())["validation_bits_per_byte"]
    return bits, sum(p.numel() for p in model.parameters())


def counted(corpus: TokenizedCorpus) -> tuple[float, int, int]:
    """Bits per byte of the best order, that order, and how many n-grams it keeps."""
    tokens, held = (shards.slice(0, len(shards)) for shards in (corpus.train, corpus.validation))
    size = corpus.tokenizer.vocab_size
    fitting, tuning = np.split(tokens, [len(tokens) * 9 // 10])
    order = min(
        range(2, 8),
        key=lambda n: -KneserNey.fit([fitting], vocab_size=size, order=n).log_probabilities(tuning).sum(),
    )
    model = KneserNey.fit([tokens], vocab_size=size, order=order)
    nats = -float(model.log_probabilities(held).sum())
    return nats / math.log(2) / corpus.validation.manifest.bytes, order, sum(model.ngrams)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options.corpus = Path(folder) / "corpus"
        tokenize([str(options.text), "--vocab-size", str(options.vocab_size), "--out", str(options.corpus)])
        corpus = open_tokenized(options.corpus)
        bits, order, kept = counted(corpus)
        print(f"Kneser-Ney, {order}-grams: {bits:.3f} bits per byte, {kept} n-grams", flush=True)
        for name in ("LSTM", "transformer"):
            started = time.perf_counter()
            bits, parameters = neural(name, corpus, options)
            minutes = (time.perf_counter() - started) / 60
            print(f"{name}: {bits:.3f} bits per byte, {parameters} parameters, {minutes:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
