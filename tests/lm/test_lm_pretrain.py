"""Pretraining from a text file: it learns, resumes to the same bits, exports, and says what is wrong."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from alignlab.core.config import parse_cli
from alignlab.core.errors import AlignlabError, ConfigError
from alignlab.core.progress import Progress
from alignlab.core.runs import Run
from alignlab.lm.config import GPTConfig
from alignlab.lm.data_cli import tokenize
from alignlab.lm.depth import plan_for_depth
from alignlab.lm.language_model import load
from alignlab.lm.pretrain import pretrain
from alignlab.lm.pretrain_cli import pretrain as command
from alignlab.lm.pretrain_config import PretrainConfig, resolved
from alignlab.train.config import TrainConfig
from alignlab.train.parallel import Parallel

TEXT = "the mill by the river grinds the corn, and the miller sings to the stones. " * 120


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text(TEXT)
    out = folder / "tokens"
    tokenize([str(folder / "text.txt"), "--tokenizer", "character", "--out", str(out)])
    return out


def config_for(corpus: Path, **changes: object) -> PretrainConfig:
    train = TrainConfig(steps=60, learning_rate=1e-2, warmup_steps=3, checkpoint_every=14, validate_every=10)
    model = GPTConfig(d_model=32, n_layers=2, n_heads=4, d_mlp=64)
    config = PretrainConfig(corpus, model=model, length=32, batch_size=8, train=train, validation_batches=2)
    return resolved(replace(config, **changes), 20)  # type: ignore[arg-type]


def train(config: PretrainConfig, path: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    from alignlab.lm.tokenized_corpus import open_tokenized

    config = resolved(config, open_tokenized(config.data).tokenizer.vocab_size)
    with Run.open(path) if path.exists() else Run.create(config, name="pretrain", path=path) as run:
        result = pretrain(config, run, progress=Progress.silent(), parallel=Parallel())
    return result.history, load(str(path), dtype="float32").model.state_dict()


def test_a_model_learns_a_text_by_heart_and_loads_in_transformers(corpus: Path, tmp_path: Path) -> None:
    config = config_for(corpus)
    history, weights = train(config, tmp_path / "run")
    first, last = history[0], history[-1]
    assert first["loss"] == pytest.approx(math.log(config.model.vocab_size), abs=0.7)
    assert last["loss"] < 1.0 < first["loss"]
    assert last["validation_bits_per_byte"] == pytest.approx(last["validation_loss"] / math.log(2), rel=0.02)
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype=torch.float32)
    ours = load("pretrained", dtype="float32")
    tokens = torch.tensor([ours.tokenizer.encode("the mill by the river")])
    with torch.no_grad():
        assert (peer(tokens).logits - ours.model(tokens)).abs().max() < 1e-4
    assert len(json.loads((tmp_path / "run" / "artifacts" / "samples.json").read_text())) == 3
    assert weights.keys() == ours.model.state_dict().keys()


@pytest.mark.slow
def test_an_interrupted_pretraining_ends_in_the_same_bits(corpus: Path, tmp_path: Path) -> None:
    config = config_for(corpus, micro_batch=4, documents=True)
    _, whole = train(config, tmp_path / "whole")
    path = tmp_path / "torn"

    class Stop(Exception):
        pass

    def stop_at(_: object, metrics: dict[str, float]) -> None:
        raise Stop

    with pytest.raises(Stop), Run.create(config_for(corpus), name="pretrain", path=path) as run:
        run.log = lambda step, metrics: stop_at(step, metrics) if step == 37 else None  # type: ignore[method-assign]
        from alignlab.lm.tokenized_corpus import open_tokenized

        again = resolved(config, open_tokenized(corpus).tokenizer.vocab_size)
        pretrain(again, run, progress=Progress.silent(), parallel=Parallel())
    _, torn = train(config, path)
    assert all(torch.equal(whole[name], torn[name]) for name in whole)


def test_the_depth_dial_derives_what_is_left_alone() -> None:
    plan = plan_for_depth(4, vocab_size=1024, n_ctx=128)
    assert (plan.model.d_model, plan.model.n_layers, plan.model.n_heads, plan.model.d_mlp) == (256, 4, 4, 704)
    assert plan.parameters == 4 * (4 * 256**2 + 3 * 256 * 704) + 1024 * 256
    compute = 6 * plan.parameters * plan.tokens
    assert plan.learning_rate == pytest.approx(0.3118 * compute**-0.125, rel=1e-3)
    free = resolved(PretrainConfig(Path("x"), depth=4, length=128), 1000)
    assert free.model.vocab_size == 1024  # rounded up
    assert free.train.steps * free.batch_size * 128 == pytest.approx(plan.tokens, rel=0.05)
    own = PretrainConfig(Path("x"), depth=4, length=128, batch_size=7, model=GPTConfig(positions="alibi"))
    held = resolved(own, 1000)
    assert held.batch_size == 7
    assert held.model.positions == "alibi"
    assert held.model.d_model == 256
    assert resolved(held, 1000) == held


def test_the_command_trains_and_goes_on(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [str(corpus), "--name", "tiny-mill", "--length", "16", "--batch-size", "4", "--model.d-model", "16"]
    flags += ["--model.n-layers", "1", "--model.d-mlp", "32", "--train.steps", "5", "--run", str(tmp_path / "run")]
    assert command(flags) == 0
    first = capsys.readouterr().out
    assert "5 updates" in first
    assert "alignlab chat tiny-mill" in first
    assert command(flags) == 0  # nothing is left to do
    assert "5 updates" in capsys.readouterr().out


@pytest.mark.slow  # what two processes compute is held by the fast tests of alignlab.train
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_several_processes_leave_one_model_and_their_logs(
    corpus: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What two processes trained is exported, is what one process trains, and each rank has kept its own metrics."""
    flags = [str(corpus), "--length", "16", "--batch-size", "4", "--model.d-model", "16", "--model.n-layers", "1"]
    flags += ["--model.d-mlp", "32", "--train.steps", "4", "--train.ema-decay", "0.5", "--weights", "average"]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    own = ["--name", f"two-{kind}", "--parallel", kind]  # not --run, which torchrun takes for a flag of its own
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "runs"))
    done = subprocess.run(
        [*start, "-m", "alignlab", "pretrain", *flags, *own], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert command([*flags, "--run", str(tmp_path / "one"), "--name", f"one-{kind}"]) == 0
    two, one = (load(f"{name}-{kind}", dtype="float32").model.state_dict() for name in ("two", "one"))
    assert all(torch.allclose(two[name], one[name], atol=1e-5) for name in one)
    assert len(list((tmp_path / "runs").glob("*/metrics-rank-1.jsonl"))) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"micro_batch": 3}, "micro_batch is 3, allowed: a divisor of the 8 rows"),
        ({"length": 9000}, "lower the length or use more text"),
    ],
)
def test_what_does_not_fit_is_told(corpus: Path, tmp_path: Path, changes: dict[str, int], words: str) -> None:
    with pytest.raises(AlignlabError, match=words):
        train(config_for(corpus, **changes), tmp_path / "run")


def test_settings_that_contradict_each_other_are_refused(corpus: Path) -> None:
    with pytest.raises(ConfigError, match="weights is 'average', allowed: last, unless"):
        PretrainConfig(corpus, weights="average")
    with pytest.raises(ConfigError, match=r"train\.accumulate is 2, allowed: 1"):
        PretrainConfig(corpus, train=TrainConfig(accumulate=2))


def test_what_follows_from_other_fields_follows_their_flags(tmp_path: Path) -> None:
    found = parse_cli(PretrainConfig, ["--model.n-heads", "6", "--model.d-model", "96"], prog="alignlab pretrain").model
    assert (found.n_heads, found.n_kv_heads, found.d_head, found.rotary_dim) == (6, 6, 16, 16)
    (tmp_path / "c.yaml").write_text("model: {d_model: 96, n_heads: 4, n_kv_heads: 2}")
    arguments = ["--config", str(tmp_path / "c.yaml"), "--model.n-heads", "2"]
    found = parse_cli(PretrainConfig, arguments, prog="alignlab pretrain").model
    assert (found.n_heads, found.n_kv_heads, found.d_head, found.rotary_dim) == (2, 2, 48, 48)
