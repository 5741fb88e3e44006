"""Models for the tests of Chat: scripted ones that answer when they are told to, and a real one of a few weights."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alignlab.app.chat_models import Offer
from alignlab.core.errors import SamplerError
from alignlab.lm.types import Prompt, SamplingParams

WAIT_SECONDS = 20.0
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "


class ScriptedTokenizer:
    """One token a character; with a template unless told otherwise."""

    def __init__(self, chat: bool = True) -> None:
        self.chat_template = "x" if chat else None

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        return [0] * len(prompt if isinstance(prompt, str) else "".join(m["content"] for m in prompt))


class ScriptedModel:
    """Stands for a sampler: streams what `answer` says, a word at a time, each once `gate` lets it pass."""

    def __init__(self, answer: Callable[[Prompt], str], *, chat: bool = True, n_ctx: int = 1000) -> None:
        self.answer, self.gate = answer, threading.Semaphore(10_000)
        self.asked: list[tuple[Prompt, SamplingParams]] = []
        self.at_once = self.most_at_once = 0
        self.lm: Any = type("LM", (), {})()
        self.lm.tokenizer = ScriptedTokenizer(chat)
        self.lm.model = type("M", (), {"config": type("C", (), {"n_ctx": n_ctx})()})()

    def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
        self.asked.append((prompt, sampling))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            for word in self.answer(prompt).split(" "):
                if not self.gate.acquire(timeout=WAIT_SECONDS):
                    raise SamplerError("the test let no word pass")
                yield f"{word} "
        finally:
            self.at_once -= 1


def last_words(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def echo(name: str) -> ScriptedModel:
    return ScriptedModel(lambda prompt: f"{name} heard {last_words(prompt)}")


def loader(models: Mapping[str, Any]) -> Callable[[str], Any]:
    return lambda name: models[name]


def offer(name: str) -> Offer:
    return Offer(name, name)


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.005)


def plant_model(folder: Path, seed: int = 0, *, chat: bool = True, n_ctx: int = 512, ends: bool = True) -> Path:
    """A real model directory with random weights and one token a character; without `ends` it talks on and on."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    from alignlab.lm.config import GPTConfig
    from alignlab.lm.hf_export import export_hf
    from alignlab.lm.language_model import LanguageModel
    from alignlab.lm.model import GPTModel
    from alignlab.lm.tokenizer import SpecialTokens, Tokenizer

    words = ["<unk>", *"abcdefghijklmnopqrstuvwxyz .,[]\n", *(["</s>"] if ends else [])]
    core = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    core.add_special_tokens(["</s>"] if ends else [])
    core.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = Tokenizer(core, SpecialTokens(eos=len(words) - 1 if ends else None), TEMPLATE if chat else None)
    # Widths that the compiled step does not know: each test process would wait for its compiler.
    config = GPTConfig(vocab_size=len(words), n_ctx=n_ctx, d_model=20, n_layers=1, n_heads=2, d_mlp=36)
    return export_hf(LanguageModel(GPTModel(config, seed=seed).eval(), tokenizer, folder.name, "test"), folder)
