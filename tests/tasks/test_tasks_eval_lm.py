"""Scoring text: intervals that cover, windows that add up, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from alignlab.core.errors import ConfigError, DataError
from alignlab.lm.config import GPTConfig
from alignlab.lm.hf_export import export_hf
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler
from alignlab.lm.model import GPTModel
from alignlab.lm.tokenizer_training import byte_vocabulary
from alignlab.tasks.eval_lm_cli import eval_lm
from alignlab.tasks.language_modelling import WindowScores, score_windows

PROSE = [
    "The river was low that summer, and the mill stood still for weeks on end.",
    "Bread needs time; so does a wall.",
]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    config = GPTConfig(vocab_size=320, n_ctx=32, d_model=16, n_layers=1, n_heads=2, d_mlp=32)
    return LanguageModel(GPTModel(config, seed=1).eval(), byte_vocabulary(), "tiny", "memory")


def test_a_uniform_model_needs_log2_of_the_vocabulary_for_each_byte(lm: LanguageModel) -> None:
    flat = LanguageModel(GPTModel(lm.model.config), lm.tokenizer, "flat", "memory")
    for parameter in flat.model.parameters():
        parameter.data.zero_()
    scores = score_windows(LocalSampler(flat), PROSE, window=8)
    assert scores.bits_per_byte == pytest.approx(math.log2(320), rel=1e-5)
    assert scores.loss == pytest.approx(math.log(320), rel=1e-5)
    assert scores.tokens.sum() == sum(len(text.encode()) - 1 for text in PROSE) == pytest.approx(scores.n_bytes.sum())


def test_the_interval_covers_a_known_mean() -> None:
    """Windows drawn around 2 nats a token: 95 % intervals hold it in about 95 of 100 draws."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(100):
        tokens = rng.integers(50, 100, 40).astype(float)
        scores = WindowScores(tokens * rng.normal(2.0, 0.3, 40), tokens, tokens)
        interval = scores.interval("loss", seed=seed)
        held += interval.low <= 2.0 <= interval.high
    assert 87 <= held <= 100


def test_one_window_bounds_nothing() -> None:
    one = WindowScores(np.array([3.0]), np.array([2.0]), np.array([4.0]))
    assert one.interval("bits_per_byte").high == math.inf
    with pytest.raises(ConfigError, match="over is 'x'"):
        one.interval("x")


def test_text_without_two_tokens_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(DataError, match="at least two tokens"):
        score_windows(LocalSampler(lm), ["", "x"])


def test_the_command_scores_and_samples(lm: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_hf(lm, tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n".join(PROSE))
    flags = [str(tmp_path / "model"), str(tmp_path / "text.txt"), "--window", "16", "--dtype", "float32"]
    assert eval_lm([*flags, "--samples", "3", "--sample-tokens", "8", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert facts["bits per byte"] == pytest.approx(math.log2(320), rel=0.1)
    assert facts["perplexity"] == pytest.approx(math.exp(facts["nats per token"]))
    assert 0 <= facts["distinct-2"] <= 1
    assert eval_lm(flags) == 0
    assert "bits per byte, 95 %" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--window is 1, allowed"):
        eval_lm([*flags[:2], "--window", "1"])
