"""`alignlab chat` and `alignlab compare`, with a tiny model and a scripted terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from alignlab.core.errors import ConfigError, ModelError
from alignlab.lm import chat as chat_module
from alignlab.lm.chat import chat, compare
from alignlab.lm.types import Completion, Prompt, SamplingParams


class FakeTokenizer:
    chat_template: str | None = "x"


class FakeLM:
    def __init__(self, name: str) -> None:
        self.name, self.tokenizer = name, FakeTokenizer()


class FakeSampler:
    """Answers with its name and what it was asked, so that histories can be read off."""

    seen: list[tuple[str, Prompt, SamplingParams]]

    def __init__(self, name: str, seen: list[tuple[str, Prompt, SamplingParams]]) -> None:
        self.lm, self.seen = FakeLM(name), seen

    def answer(self, prompt: Prompt, sampling: SamplingParams) -> str:
        frozen = prompt if isinstance(prompt, str) else [dict(m) for m in prompt]
        self.seen.append((self.lm.name, frozen, sampling))
        last = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        if last == "fail":
            raise ModelError("the sequence has 9999 tokens")
        return f"{self.lm.name} heard {last}"

    def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
        yield from self.answer(prompt, sampling).partition(" ")

    def generate(self, prompts: list[Prompt], sampling: SamplingParams) -> list[Completion]:
        return [Completion(self.answer(p, sampling), (), (), "stop") for p in prompts]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, SamplingParams]]:
    log: list[tuple[str, Any, SamplingParams]] = []
    monkeypatch.setattr(chat_module, "_sampler", lambda name, options: FakeSampler(name, log))
    return log


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{line}\n" for line in lines)))


def pipe_in(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))


def test_a_conversation_remembers_resets_and_ends(
    seen: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "one", "", "two", "/help", "/reset", "three", "/system be brief", "four", "/exit", "five")
    assert chat(["toy", "--system", "be kind", "--seed", "10", "--max-tokens", "9", "--temperature", "0"]) == 0
    printed = capsys.readouterr().out
    assert "toy heard one" in printed
    assert "forgets the conversation" in printed
    histories = [[m["content"] for m in prompt] for _, prompt, _ in seen]
    assert histories == [
        ["be kind", "one"],
        ["be kind", "one", "toy heard one", "two"],
        ["be kind", "three"],
        ["be brief", "four"],
    ]
    assert [(s.seed, s.max_tokens, s.temperature) for *_, s in seen] == [(10 + i, 9, 0.0) for i in range(4)]


def test_an_error_in_a_conversation_does_not_end_it_and_leaves_no_trace(
    seen: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "one", "fail", "two")
    assert chat(["toy"]) == 0  # Ctrl-D at the end
    assert "9999 tokens (/reset starts over)" in capsys.readouterr().err
    assert [m["content"] for m in seen[-1][1]] == ["one", "toy heard one", "two"]


def test_a_pipe_gets_one_answer(
    seen: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe_in(monkeypatch, b"hello\nthere\n")
    assert chat(["toy"]) == 0
    assert capsys.readouterr().out == "toy heard hello\nthere\n"
    for text, message in ((b"", "standard input is empty"), (b"\xff\xfe", "not valid UTF-8")):
        pipe_in(monkeypatch, text)
        with pytest.raises(ConfigError, match=message):
            chat(["toy"])
    pipe_in(monkeypatch, b"fail")
    with pytest.raises(ModelError, match="9999"):
        chat(["toy"])


def test_a_model_without_a_template_continues_text(seen: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeTokenizer, "chat_template", None)
    pipe_in(monkeypatch, b"Once upon")
    chat(["toy"])
    assert seen[0][1] == "Once upon"


def test_compare_gives_each_model_its_own_history(
    seen: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "one", "two", "/reset", "three")
    assert compare(["left", "right"]) == 0
    histories = [(name, [m["content"] for m in prompt]) for name, prompt, _ in seen]
    assert histories == [
        ("left", ["one"]), ("right", ["one"]),
        ("left", ["one", "left heard one", "two"]), ("right", ["one", "right heard one", "two"]),
        ("left", ["three"]), ("right", ["three"]),
    ]  # fmt: skip
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if "left heard one" in line)
    assert "right heard one" in row  # side by side


def test_wrong_arguments_are_told_before_a_model_is_loaded(seen: list[Any]) -> None:
    for argv, message in (
        (["toy", "--temperature", "-1"], "temperature is -1"),
        (["toy", "--dtype", "int3"], "invalid choice"),
        (["a", "b"], "unrecognized arguments: b"),
    ):
        with pytest.raises(ConfigError, match=message):
            chat(argv)
    with pytest.raises(ConfigError, match="MODEL"):
        compare(["only-one"])


def test_default_model_is_the_one_registered_last(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignlab.lm import registry

    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "home"))
    assert chat_module.default_model() == "smollm2-135m-instruct"
    (tmp_path / "config.json").write_text("{}")
    registry.register("mine", tmp_path)
    assert chat_module.default_model() == "latest"
