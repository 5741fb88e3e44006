"""`alignlab dynamics`: from an observed training to a page, measuring on its model, and every refusal in a sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from alignlab.core.errors import ConfigError, DataError, ModelError, RunError
from alignlab.core.runs import Run
from alignlab.data.loader import TokenLoader
from alignlab.data.shards import TokenizerInfo, TokenShards, write_shards
from alignlab.lm import dynamics_cli
from alignlab.lm.config import GPTConfig
from alignlab.lm.dynamics_cli import dynamics
from alignlab.lm.model import GPTModel
from alignlab.train.config import TrainConfig
from alignlab.train.language import language_model_loss
from alignlab.train.layer_statistics import LayerStatistics
from alignlab.train.noise_scale import GradientNoiseScale
from alignlab.train.trainer import Trainer

CONFIG = GPTConfig(vocab_size=257, n_ctx=16, d_model=16, n_layers=2, n_heads=2, d_mlp=32)


def documents() -> Iterator[tuple[list[int], int]]:
    from importlib.resources import files

    for path in sorted((files("alignlab.data") / "heldout").iterdir(), key=str):
        if path.name.endswith(".txt"):
            ids = list(path.read_bytes())
            yield ids, len(ids)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "prose"
    info = TokenizerInfo("byte", "0" * 64, 257)
    write_shards(documents(), path / "train", tokenizer=info, separator=256, source="packaged prose")
    return path


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GPTModel]:
    """A training with both observers."""
    path = tmp_path_factory.mktemp("runs") / "observed"
    model = GPTModel(CONFIG, seed=0)
    loader = TokenLoader(TokenShards.open(corpus / "train"), length=16, batch_size=4)
    with Run.create({"train": {"grad_clip": 1.0}}, name="pretrain", path=path) as run:
        observers = [GradientNoiseScale(), LayerStatistics(model, every=5)]
        config = TrainConfig(steps=30, learning_rate=3e-3, accumulate=4)
        Trainer(model, language_model_loss, config, run=run, name="pretrain", observers=observers).fit(loader)
    return path, model


def test_a_page_of_an_observed_run(trained: tuple[Path, GPTModel], capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = trained
    assert dynamics([str(path)]) == 0
    written = Path(capsys.readouterr().out.strip())
    assert written == path / "dynamics.html"
    text = written.read_text(encoding="utf-8")
    assert "Training dynamics: pretrain" in text
    assert "blocks.1.attn" in text
    assert "Not recorded" not in text


@pytest.fixture
def loaded(trained: tuple[Path, GPTModel], monkeypatch: pytest.MonkeyPatch) -> GPTModel:
    """The run's model under any name, as if it were registered."""
    from alignlab.lm import language_model

    class Loaded:
        model, name = trained[1], "trained"

    monkeypatch.setattr(language_model, "load", lambda spec, **_: Loaded)
    return trained[1]


def test_measuring_on_its_model(
    trained: tuple[Path, GPTModel], loaded: GPTModel, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [parameter.detach().clone() for parameter in loaded.parameters()]
    out = tmp_path / "page.html"
    arguments = ["--measure", str(corpus), "--examples", "24", "--range-test", "--out", str(out)]
    assert dynamics([str(trained[0]), *arguments]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    text = out.read_text(encoding="utf-8")
    assert "24 rows of 16 tokens from prose" in text
    assert "Learning-rate range test" in text
    assert all(torch.equal(a, b) for a, b in zip(before, loaded.parameters(), strict=True))


def test_a_run_without_observers(tmp_path: Path) -> None:
    with Run.create({}, name="bare", path=tmp_path / "bare") as run:
        run.log(1, {"pretrain/loss": 1.0, "pretrain/learning_rate": 0.1})
    with pytest.raises(RunError, match=r"to record them, pretrain with --noise-scale-every"):
        dynamics([str(tmp_path / "bare")])
    assert not (tmp_path / "bare" / "dynamics.html").exists()


def test_a_corpus_that_is_not_the_models(
    trained: tuple[Path, GPTModel], loaded: GPTModel, corpus: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    write_shards([(list(range(500)), 9)], foreign, tokenizer=TokenizerInfo("bpe", "1" * 64, 600), separator=599)
    with pytest.raises(ModelError, match="made by a tokenizer of 600 tokens, but trained has 257"):
        dynamics([str(trained[0]), "--measure", str(foreign)])
    manifest = foreign / "manifest.json"
    manifest.write_text(json.dumps({"version": 1}))
    with pytest.raises(DataError, match="lacks"):
        dynamics([str(trained[0]), "--measure", str(foreign)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--decay", "1"], "--decay is 1.0"),
        (["--examples", "2"], "--examples is 2, allowed: a whole number of at least 3"),
        (["--length", "1"], "--length is 1"),
        (["--range-test"], "need --measure CORPUS"),
        (["--model", "x"], "need --measure CORPUS"),
        (["--decai", "1"], "unrecognized arguments"),
    ],
)
def test_wrong_flags(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dynamics(["run", *arguments])


def test_unknown_run_and_help(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match="there is no run"):
        dynamics([str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as stop:
        dynamics(["--help"])
    assert stop.value.code == 0
    assert "usage: alignlab dynamics" in capsys.readouterr().out
    assert dynamics_cli.__doc__
