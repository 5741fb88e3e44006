"""The first study: its pieces against exact cases, and the whole of it at a scale below smoke."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from alignlab.core.errors import ConfigError, DataError
from alignlab.core.progress import SILENT
from alignlab.core.runs import Run
from alignlab.data.text_catalogue import store_text
from alignlab.lm.ngram import KneserNey
from alignlab.studies import family_plan, language_families
from alignlab.studies.autoregressive_families import AutoregressiveFamilies
from alignlab.studies.family_plan import PLANS, Size, cut, read_text
from alignlab.studies.language_families import BestWeights, Job, make_model, stream_nats, training_flops
from alignlab.studies.runner import read_findings, run_study

TINY = dataclasses.replace(
    PLANS["smoke"], train_bytes=(1_000, 3_000), passes=(1, 1), compute_bytes=3_000,
    tuning_bytes=300, validation_bytes=600, block=40,
    length=16, batch=4, sizes=(Size("tiny", (1, 32), (1, 16)),), budgets=(1e7, 4e7), orders=(2, 3), samples=6,
    prompt_bytes=4, sample_bytes=12,
)  # fmt: skip
TEXT = ("the quick brown fox jumps over the lazy dog. " * 200).encode()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(family_plan.PLANS, "smoke", TINY)


@pytest.mark.parametrize("family", ["lstm", "transformer"])
@pytest.mark.parametrize("length", [16, 17])
def test_every_byte_is_scored_once_with_what_comes_before_it(family: str, length: int) -> None:
    model = make_model(family, TINY.sizes[0], length, 3).eval()  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    before, scored = rng.integers(0, 256, 40), rng.integers(0, 256, 53)
    found = stream_nats(model, before, scored, length)
    assert found.shape == (53,)
    stream = np.concatenate([before, scored])
    half = length // 2
    for i in range(len(scored)):
        # Windows begin every half length; the byte is predicted in the one whose second half holds it.
        start = 40 - (length - half) - 1 + half * (i // half)
        window = torch.from_numpy(stream[start : 40 + i])[None]
        logits = model(window)[0, -1].double()
        assert found[i] == pytest.approx(-float(logits.log_softmax(-1)[scored[i]].detach()), abs=1e-4)


def test_families_of_one_size_cost_about_the_same() -> None:
    for plan in PLANS.values():
        for size in plan.sizes:
            counts = [
                sum(p.numel() for p in make_model(family, size, 8, 0).parameters())
                for family in ("lstm", "transformer")
            ]
            assert max(counts) / min(counts) < 1.2, (size, counts)


def test_flops_of_a_model_counted_by_hand() -> None:
    size = Size("x", (2, 64), (2, 64))
    lstm = 6 * (2 * 8 * 64**2 + 256 * 64)
    assert training_flops("lstm", size, 32) == lstm
    mlp = round(64 / 3) * 8
    blocks = 2 * (4 * 64**2 + 3 * 64 * mlp)
    assert training_flops("transformer", size, 32) == 6 * (blocks + 256 * 64) + 12 * 2 * 64 * 32


def test_training_keeps_the_best_weights_and_reports_their_score() -> None:
    corpus, plan = cut(TEXT, TINY, "fox")
    job = Job("lstm", plan.sizes[0], 3_000, 30, 1e-2, seed=1)
    one = language_families.train_neural(job, corpus, plan, "cpu", SILENT)
    two = language_families.train_neural(job, corpus, plan, "cpu", SILENT)
    for record in (one, two):
        record.pop("seconds")
    assert one == two
    assert one["tuning"] < 8 > np.mean(one["blocks"])
    assert len(one["blocks"]) == 15
    assert one["tokens"] == 30 * 4 * 16
    assert [len(text) for text in one["samples"]] == [12] * 6 or all(one["samples"])


def test_weights_that_got_worse_are_not_the_ones_kept() -> None:
    corpus, plan = cut(TEXT, TINY, "fox")
    model = make_model("lstm", plan.sizes[0], plan.length, 0).eval()
    best = BestWeights(corpus, plan.length)
    first = best(model)["tuning_bits_per_byte"]
    good = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.embed.weight[:128] *= -3.0
    assert best(model)["tuning_bits_per_byte"] > first == best.bits
    assert all(torch.equal(best.weights[name], value) for name, value in good.items())


def test_a_learning_rate_that_diverges_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, plan = cut(TEXT, TINY, "fox")
    job = Job("lstm", plan.sizes[0], 3_000, 2, 1e-2, 0)
    assert math.isfinite(language_families.probe(job, corpus, plan, "cpu") or math.nan)

    def broken(model: object, batch: dict) -> tuple[torch.Tensor, dict]:
        return torch.tensor(math.nan, requires_grad=True) * model.embed.weight.sum(), {}  # type: ignore[attr-defined]

    monkeypatch.setattr(language_families, "language_model_loss", broken)
    assert language_families.probe(job, corpus, plan, "cpu") is None


def test_the_ngram_order_is_the_one_that_reads_the_tuning_text_best() -> None:
    corpus, plan = cut(TEXT, dataclasses.replace(TINY, orders=(1, 2, 5)), "fox")
    record = language_families.train_ngram(corpus, plan, 3_000, 0)
    scores = {
        n: KneserNey.fit([corpus.train], vocab_size=256, order=n).bits_per_byte(
            corpus.tuning, 300, context=corpus.train[-20:]
        )
        for n in plan.orders
    }
    assert record["order"] == min(scores, key=lambda n: scores[n]) == 5
    assert record["tuning"] == pytest.approx(scores[5])


def test_cutting_a_text() -> None:
    corpus, plan = cut(bytes(range(200)) * 30, TINY, "x")
    assert plan == TINY
    assert (len(corpus.train), len(corpus.tuning), len(corpus.validation)) == (3_000, 300, 600)
    assert corpus.tuning[0] == 3_000 % 200
    assert corpus.validation[0] == 3_300 % 200
    assert corpus.last(10).tolist() == corpus.train[-10:].tolist()
    for prompt, after in zip(corpus.prompts(plan), corpus.continuations(plan), strict=True):
        assert len(prompt) == 4
        assert len(after) == 12
        assert after[0] == (prompt[-1] + 1) % 200
    less, reduced = cut(bytes(2_000), TINY, "x")
    assert len(less.train) == reduced.train_bytes[-1] == int(3_000 * 2_000 / 3_900)
    with pytest.raises(DataError, match="x has 90 bytes of text, too few"):
        cut(bytes(90), TINY, "x")


def test_where_the_text_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, name = read_text(None, "smoke", 10**6)
    assert name == "the packaged prose"
    assert len(data) > PLANS["smoke"].total
    with pytest.raises(ConfigError, match="--text FILE"):
        AutoregressiveFamilies().check("cpu")
    with pytest.raises(DataError, match="cannot read"):
        AutoregressiveFamilies(text=tmp_path / "absent.txt").check("smoke")
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "home"))
    store_text("kjv", ["In the beginning", "was the word"], source="a test", licence="none")
    assert read_text(None, "cpu", 10**6) == (b"In the beginning\n\nwas the word", "kjv")
    assert read_text(Path("kjv"), "smoke", 20) == (b"In the beginning\n\nwa", "kjv")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="is empty"):
        AutoregressiveFamilies(text=tmp_path / "empty.txt").check("smoke")
    with pytest.raises(ConfigError, match="seeds is -1"):
        AutoregressiveFamilies(seeds=-1).check("smoke")
    with pytest.raises(ConfigError, match="device is 'abacus'"):
        AutoregressiveFamilies(device="abacus").check("smoke")


@pytest.mark.usefixtures("tiny")
def test_the_whole_study(tmp_path: Path) -> None:
    text = tmp_path / "fox.txt"
    text.write_bytes(TEXT)
    study = AutoregressiveFamilies(text=text, seeds=2)
    path = run_study(study, "smoke", seed=3, root=tmp_path / "runs")
    found = read_findings(path)
    assert len(found.claims) == 5
    assert all(claim.observed is not None for claim in found.claims)
    # A text that repeats itself is what counting is best at: more so than a network after a few updates.
    bits = found.numbers["bits_per_byte"]["data"]
    assert bits["ngram"]["3000"] < min(bits["lstm"]["3000"], bits["transformer"]["3000"])
    verdicts = {claim.statement: claim.verdict for claim in found.claims}
    assert next(v for s, v in verdicts.items() if "the transformer predicts better than the n-gram" in s) == "failed"
    assert next(v for s, v in verdicts.items() if "least text" in s) == "confirmed"
    quality = next(table for table in found.tables if table.title == "Quality of generated text")
    assert [row[0] for row in quality.rows] == [
        "the text itself", "other parts of the text", "n-gram", "LSTM", "transformer",
    ]  # fmt: skip
    page = (path / "report.html").read_text(encoding="utf-8")
    assert "At equal compute" in page
    stages = list(Run.read(path).stages())
    assert "ngram-3000" in stages
    assert "transformer-tiny-data-1000-seed-4" in stages
    assert "lstm-tiny-flops-4e07-seed-3" in stages
    # Going on with another text under the same name is refused.
    text.write_bytes(TEXT.upper())
    with pytest.raises(DataError, match="contents have changed"):
        run_study(study, "smoke", seed=3, path=path)


@pytest.mark.usefixtures("tiny")
@pytest.mark.slow
def test_the_same_seed_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = dataclasses.replace(TINY, train_bytes=(3_000,), passes=(1,), budgets=(1e7,))
    monkeypatch.setitem(family_plan.PLANS, "smoke", short)
    text = tmp_path / "fox.txt"
    text.write_bytes(TEXT)
    study = AutoregressiveFamilies(text=text, seeds=1)
    one, two, other = (study.run("smoke", seed, SILENT) for seed in (0, 0, 1))
    assert one.numbers["bits_per_byte"] == two.numbers["bits_per_byte"]
    assert [claim.observed for claim in one.claims] == [claim.observed for claim in two.claims]
    assert one.examples == two.examples
    assert one.numbers["bits_per_byte"] != other.numbers["bits_per_byte"]


@pytest.mark.usefixtures("tiny")
def test_learning_rates_are_chosen_by_short_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "fox.txt"
    text.write_bytes(TEXT)
    two = dataclasses.replace(TINY, learning_rates=(1e-6, 1e-2), budgets=(1e7, 2e8))
    monkeypatch.setitem(family_plan.PLANS, "smoke", two)
    found = AutoregressiveFamilies(text=text).run("smoke", 0, SILENT)
    assert found.numbers["learning_rates"] == {"lstm-tiny": 1e-2, "transformer-tiny": 1e-2}


@pytest.mark.slow
def test_smoke_runs_on_the_packaged_prose(tmp_path: Path) -> None:
    path = run_study(AutoregressiveFamilies(), "smoke", root=tmp_path)
    found = read_findings(path)
    assert {claim.verdict for claim in found.claims} <= {"confirmed", "failed", "tied"}
    bits = found.numbers["bits_per_byte"]["data"]
    for family in ("ngram", "lstm", "transformer"):
        assert bits[family]["12000"] < bits[family]["3000"] < 8.0
