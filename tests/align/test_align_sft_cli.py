"""`alignlab sft`: what files it reads, what it learns, and what it says about a wrong file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from alignlab.align.conversations import Conversation
from alignlab.align.sft_cli import sft
from alignlab.align.sft_data import examples_of, read_examples
from alignlab.core.errors import ConfigError, DataError
from alignlab.lm.gguf_export import export_gguf
from alignlab.lm.language_model import load
from alignlab.lm.local import LocalSampler
from alignlab.lm.types import SamplingParams

USER, MODEL = {"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}


def test_every_form_of_record_gives_its_examples() -> None:
    (talk,) = examples_of({"messages": [USER, MODEL, USER, {"role": "assistant", "content": "c"}]})
    assert isinstance(talk, Conversation)
    assert (talk.learned, len(talk.prompt), talk.response) == ((1, 3), 3, "c")
    assert examples_of({"prompt": "once", "completion": " upon"})[0].prompt == "once"
    assert examples_of({"prompt": [USER], "response": "b"})[0].prompt == [USER]
    told = examples_of({"instruction": "add", "input": "1 and 2", "output": "3"})[0]
    assert told.prompt == [{"role": "user", "content": "add\n\n1 and 2"}]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"text": "x"}, "the record has text, allowed"),
        ({"prompt": "x"}, "the record has prompt, allowed"),
        ({"messages": []}, "messages must be a list of messages that is not empty"),
        ({"messages": [USER]}, "no turn of the assistant"),
        ({"messages": [{"role": "user"}]}, '"role", "content"'),
        ({"prompt": "x", "response": 3}, "response must be a text that is not empty"),
        ([1], "list is no example"),
    ],
)
def test_another_form_is_refused(record: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        examples_of(record)


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n" + json.dumps({"text": "c"}) + "\n")
    with pytest.raises(DataError, match=r"data\.jsonl, line 2: the record has text"):
        read_examples(path)
    path.write_text("")
    with pytest.raises(DataError, match="has no example"):
        read_examples(path)
    with pytest.raises(DataError, match="is no file"):
        read_examples(tmp_path / "absent")


def test_a_cut_last_line_is_an_error_and_not_one_example_less(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "c", "resp')
    with pytest.raises(DataError, match=r"data\.jsonl, line 2 is not valid JSON"):
        read_examples(path)


@pytest.mark.parametrize("rank", [4, 0])
def test_the_command_teaches_an_answer(rank: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_run.build_model(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": [USER], "response": "yes yes"}) + "\n" for _ in range(8)))
    flags = [str(data), "--model", str(model), "--name", f"taught-{rank}", "--rank", str(rank), "--epochs", "20"]
    flags += ["--learning-rate", "0.02", "--row-length", "64", "--batch-size", "2", "--dtype", "float32"]
    assert sft([*flags, "--run", str(tmp_path / "run")]) == 0
    assert f"alignlab chat taught-{rank}" in capsys.readouterr().out
    sampler = LocalSampler(load(f"taught-{rank}", dtype="float32"))
    said = sampler.generate([[USER]], SamplingParams(max_tokens=12, temperature=0.0))[0]
    assert said.text == "yes yes"
    assert said.finish_reason == "stop"


def test_a_conversation_is_taught_beside_the_codes_of_a_gguf_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """QLoRA as a user does it: the file's own codes stay packed, both turns are learned, noise or not."""
    built = load(str(tiny_run.build_model(tmp_path / "model")), dtype="float32", device="cpu")
    export_gguf(built, tmp_path / "blocks.gguf", "q8_0")
    talk = [{"role": r, "content": c} for r, c in zip(["user", "assistant"] * 2, ["a?", "yes yes", "b?", "no"])]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"messages": talk}) + "\n" for _ in range(8)))
    flags = ["--model", str(tmp_path / "blocks.gguf"), "--packed", "--name", "packed-talk", "--rank", "4"]
    flags += ["--epochs", "24", "--learning-rate", "0.02", "--row-length", "64", "--batch-size", "4"]
    flags += ["--dtype", "float32", "--system", "Be brief.", "--neftune-alpha", "1"]
    assert sft([str(data), *flags, "--run", str(tmp_path / "run")]) == 0
    assert "8 examples" in capsys.readouterr().out
    system = {"role": "system", "content": "Be brief."}
    sampler = LocalSampler(load("packed-talk", dtype="float32"))
    said = sampler.generate([[system, *talk[:1]], [system, *talk[:3]]], SamplingParams(max_tokens=12, temperature=0.0))
    assert [(one.text, one.finish_reason) for one in said] == [("yes yes", "stop"), ("no", "stop")]


def test_values_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="epochs is 0"):
        sft([str(tmp_path / "x"), "--epochs", "0"])
