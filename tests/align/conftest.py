"""A language model small enough to train in a test: one token a character, a few thousand weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from alignlab.lm.config import GPTConfig
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.model import GPTModel

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 "


class CharTokenizer:
    """The given letters; 0 begins a prompt, 1 ends a sequence, 2 ends a chat turn."""

    bos_id, pad_id, eos_id = 0, 0, 1
    eos_ids = frozenset({1, 2})

    def __init__(self, letters: str, chat: bool = False) -> None:
        self.letters, self.vocab_size = letters, 3 + len(letters)
        self.chat_template = "letters" if chat else None

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        pieces = text.replace("|", "\n|\n").split("\n")
        ids = [i for piece in pieces for i in ([2] if piece == "|" else [3 + self.letters.index(c) for c in piece])]
        return [0, *ids] if bos else ids

    def decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        return "".join(self.letters[i - 3] if i > 2 else ("" if skip_special else "|") for i in ids)

    def render_chat(self, messages: list[dict[str, str]], *, generation_prompt: bool = True) -> str:
        return "".join(message["content"] + "|" for message in messages) + ("a " if generation_prompt else "")

    def encode_prompt(self, prompt: str | list[dict[str, str]], *, generation_prompt: bool = True) -> list[int]:
        text = prompt if isinstance(prompt, str) else self.render_chat(prompt, generation_prompt=generation_prompt)
        return [0, *self.encode(text)]


@pytest.fixture
def make_lm() -> Callable[..., LanguageModel]:
    """Builds the same model for the same seed; its head is untied and wide, so that its distributions are not flat."""

    def make(
        seed: int = 0, *, chat: bool = False, d_model: int = 32, n_layers: int = 1, letters: str = LETTERS
    ) -> LanguageModel:
        tokenizer = CharTokenizer(letters, chat)
        config = GPTConfig(
            vocab_size=tokenizer.vocab_size,
            n_ctx=64,
            d_model=d_model,
            n_layers=n_layers,
            n_heads=2,
            d_mlp=2 * d_model,
            tie_embeddings=False,
        )
        model = GPTModel(config, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
            model.embed.weight.normal_(0, 1, generator=generator)
        return LanguageModel(model, tokenizer, "tiny", "test")  # type: ignore[arg-type]

    return make
