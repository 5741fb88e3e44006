"""Filters of fine-tuning data: planted faults are caught by their filter, nothing goes silently, and the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch

from alignlab.__main__ import main
from alignlab.align.reward.saved import load_reward
from alignlab.align.sft_data import Reading, examples_of
from alignlab.align.sft_filter_settings import DEFAULT, FilterSettings
from alignlab.align.sft_filters import FILTERS, Filtered, Record, run_filters
from alignlab.core.errors import ConfigError, DataError
from alignlab.core.files import read_jsonl
from alignlab.core.runs import Run
from alignlab.lm.language_model import load


def answer(i: int) -> str:
    """Sound, and unlike any other."""
    letters = np.random.default_rng(i).integers(97, 123, size=(24, 5))
    return " ".join("".join(map(chr, word)) for word in letters) + "."


def record(i: int, said: str | None = None, asked: str | None = None) -> dict[str, Any]:
    user = {"role": "user", "content": asked or f"Tell me about item number {i} in our list"}
    return {"id": i, "messages": [user, {"role": "assistant", "content": said or answer(i)}]}


SOUND = [record(i) for i in range(20)]
FAULTS = {
    "exact": record(3),
    "near": record(4, answer(4) + " Yes."),
    "length": record(102, "x. " * 9000),
    "repetition": record(103, "I do not know what to say. " * 12),
    "characters": record(104, answer(104) + " It\u2019s caf\ufffd."),
    "ending": record(105, answer(105)[:-1]),
    "copy": record(106, answer(106), f"Repeat: {answer(106)}"),
}


def records(rows: list[dict[str, Any]]) -> list[Record]:
    return [Record(line, row, examples_of(row)) for line, row in enumerate(rows, start=1)]


def caught(found: Filtered) -> dict[str, list[int]]:
    return {
        name: [c.record.line for c in found.dropped if c.filter == name] for name in {c.filter for c in found.dropped}
    }


def test_each_planted_fault_is_caught_by_its_filter_and_nothing_else_is() -> None:
    found = run_filters(records([*SOUND, *FAULTS.values()]), DEFAULT)
    assert caught(found) == {name: [line] for line, name in enumerate(FAULTS, start=len(SOUND) + 1)}
    assert [one.line for one in found.kept] == list(range(1, len(SOUND) + 1))
    assert [(c.name, c.seen, c.dropped) for c in found.counts] == [
        (name, len(SOUND) + len(FAULTS) - i, 1) for i, name in enumerate(DEFAULT)
    ]
    reasons = {one.filter: one.reason for one in found.dropped}
    assert reasons["exact"] == "says what line 4 says"
    assert reasons["near"] == "is at least 80% like line 5"


def test_one_bad_turn_takes_its_conversation_unless_it_is_not_learned() -> None:
    turns = [*record(1)["messages"], *record(2, answer(2)[:-1])["messages"], *record(3)["messages"]]
    every, last = (Record(1, {}, examples_of({"messages": turns}, Reading(learn=learn))) for learn in ("all", "last"))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="dropped all 1 records: ending 1; the first: ends in the middle"):
        run_filters([every], ["ending"])
    assert run_filters([last], ["ending"]).kept == [last]


def test_language_says_what_it_cannot_tell() -> None:
    texts = [
        "The bridge hangs from cables that pull on two tall towers of stone.",
        "Die Brücke hängt an Seilen, die an zwei hohen Türmen aus Stein ziehen.",
        "Le pont est suspendu à des câbles qui tirent sur deux hautes tours de pierre.",
        "42 km",
    ]
    rows = records([record(i, text) for i, text in enumerate(texts)])
    found = run_filters(rows, ["language"], FilterSettings(language="en"))
    assert caught(found) == {"language": [2, 3]}
    assert found.counts[0].undecided == 1
    cyrillic = run_filters(
        records([*SOUND, record(50, "Мост висит на тросах.")]), ["characters"], FilterSettings(scripts=("latin",))
    )
    assert caught(cyrillic) == {"characters": [21]}


def test_contamination_names_the_item(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    items = ["How many legs have three dogs and a bird that sit on one bench in the park?", answer(5)]
    path.write_text("".join(json.dumps({"question": item}) + "\n" for item in items))
    asked = record(
        60, "Fourteen.", "Please: how many legs have three dogs and a bird that sit on one bench in the park"
    )
    settings = FilterSettings(against=(str(path),))
    found = run_filters(records([*SOUND, asked]), ["contamination"], settings)
    assert caught(found) == {"contamination": [6, 21]}
    assert f"shares 13 words in a row with item 1 of {path}: 'How many legs" in found.dropped[1].reason


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tiny_run.build_model(tmp_path_factory.mktemp("model") / "model")
    return path


def test_likelihood_quantiles_drop_the_least_likely(model: Path) -> None:
    """The nats are those of the model's own forward pass; of 20 records the two above the quantile 0.9 go."""
    settings = FilterSettings(perplexity=str(model), perplexity_quantiles=(0.0, 0.9))
    rows = records(SOUND)
    found = run_filters(rows, ["perplexity"], settings)
    lm = load(str(model))
    nats = []
    for row in SOUND:
        prompt = lm.tokenizer.encode_prompt(row["messages"][:1])
        said = lm.tokenizer.encode(row["messages"][1]["content"])
        with torch.no_grad():
            logprobs = lm.model(torch.tensor([prompt + said]))[0].float().log_softmax(-1)
        nats.append(-float(sum(logprobs[len(prompt) - 1 + i, t] for i, t in enumerate(said))) / len(said))
    worst = sorted(sorted(range(20), key=lambda i: nats[i])[-2:])
    assert caught(found) == {"perplexity": [i + 1 for i in worst]}
    assert f"{nats[worst[0]]:.2f}"[:-1] in found.dropped[0].reason


@pytest.mark.slow
def test_the_lowest_rewards_go(model: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"about {i}", "chosen": answer(i), "rejected": "no no no"} for i in range(12)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [
        "--model",
        str(model),
        "--epochs",
        "1",
        "--rank",
        "2",
        "--run",
        str(tmp_path / "reward"),
        "--batch-size",
        "4",
    ]
    assert main(["reward", "train", str(pairs), *flags]) == 0
    settings = FilterSettings(reward=str(tmp_path / "reward"), reward_quantile=0.25)
    found = run_filters(records(SOUND), ["reward"], settings)
    assert found.counts[0].dropped == 5
    scores = load_reward(tmp_path / "reward")[0].score(
        [r["messages"][:1] for r in SOUND], [answer(i) for i in range(20)]
    )
    lowest = sorted(scores.argsort()[:5].tolist())
    assert caught(found) == {"reward": [i + 1 for i in lowest]}


def test_the_command_writes_what_stays_and_what_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "clean.jsonl"
    rows = [*SOUND, *FAULTS.values()]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["data", "filter", str(data)]) == 0
    assert not out.exists()
    said = capsys.readouterr().out
    assert "20 of 27 records stay (74.1%)" in said
    assert "line 21: says what line 4 says" in said
    assert main(["data", "filter", str(data), "--out", str(out)]) == 0
    assert read_jsonl(out) == SOUND
    dropped = read_jsonl(tmp_path / "clean.dropped.jsonl")
    assert [row["record"] for row in dropped] == list(FAULTS.values())
    assert [row["filter"] for row in dropped] == list(FAULTS)
    assert json.loads((tmp_path / "clean.report.json").read_text())["kept"] == 20
    capsys.readouterr()
    assert main(["data", "filter", str(data), "--out", str(out)]) == 2
    assert "is there already and is not written over" in capsys.readouterr().err


def test_sft_filters_before_it_trains(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = tmp_path / "data.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps(row) + "\n" for row in [*SOUND[:4], FAULTS["exact"], FAULTS["ending"]]))
    flags = ["--model", str(model), "--rank", "2", "--epochs", "1", "--row-length", "256", "--run", str(run)]
    assert main(["sft", str(data), *flags, "--filters", "exact", "ending", "--neftune-alpha", "5"]) == 0
    assert "4 examples" in capsys.readouterr().out
    record = Run.read(run)
    assert [row["filter"] for row in read_jsonl(record.artifacts / "dropped.jsonl")] == ["exact", "ending"]
    assert json.loads((record.artifacts / "filters.json").read_text())["records"] == 6
    assert next(e for e in record.events() if e["kind"] == "examples")["examples"] == 4


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--filters", "exakt"], "unknown filter 'exakt', did you mean 'exact'?"),
        (["--filters", "copy", "copy"], "the filter 'copy' is named twice"),
        (["--filters", "language"], "the filter 'language' needs --filter.language, which is not given"),
        (["--filter.against", "x.jsonl"], "--filter.against is given, but the filter 'contamination' is not named"),
        (["--filters", "contamination", "--filter.against", "absent"], "neither a file nor a built-in task"),
        (["--filter.near", "1.5"], "filter.near is 1.5, allowed: a number above 0 and up to 1"),
        (["--out", "{tmp}/no/where.jsonl"], "is no folder"),
    ],
)
def test_bad_input_is_one_sentence(
    flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(SOUND[0]) + "\n")
    assert main(["data", "filter", str(data), *(flag.format(tmp=tmp_path) for flag in flags)]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_files_that_are_no_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"label": 1}\n')
    with pytest.raises(DataError, match="line 1 has label, allowed: one of messages, prompt"):
        run_filters(records(SOUND), ["contamination"], FilterSettings(against=(str(path),)))
    with pytest.raises(ConfigError, match=r"filter\.perplexity_quantiles"):
        FilterSettings(perplexity_quantiles=(0.9, 0.1))
    assert set(DEFAULT) < set(FILTERS)
