"""`ScriptedSampler`: a `Sampler` whose answers are written down: tests, and pipelines tried without a model."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from alignlab.core.errors import SamplerError
from alignlab.lm.types import Completion, Prompt, SamplingParams

Script = Mapping[str, str] | Sequence[str] | Callable[[Prompt], str]
Score = Callable[[Prompt, str], float]


class ScriptedSampler:
    """Answers from a script; words stand for tokens.

    `responses` is a mapping from prompt text (of a conversation: its last message) to answer, a sequence that is used
    up in order, or a function of the prompt. `score(prompt, completion)` gives the log-probability of every token;
    without it a hash of prompt and text does, so equal calls score equally. `calls` lists the prompts it was given.
    """

    def __init__(self, responses: Script = (), *, score: Score | None = None) -> None:
        self.responses, self.score = responses, score
        self.calls: list[Prompt] = []
        self._used = 0

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
        """The scripted answers, cut at stop strings and after `max_tokens` words."""
        return [self._complete(prompt, sampling) for prompt in prompts]

    def logprobs(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Tensor]:
        """One log-probability for each word of each completion."""
        if len(prompts) != len(completions):
            raise SamplerError(f"{len(prompts)} prompts and {len(completions)} completions do not pair up")
        return [
            torch.tensor(self._scores(p, c), dtype=torch.float32) for p, c in zip(prompts, completions, strict=True)
        ]

    def _complete(self, prompt: Prompt, sampling: SamplingParams) -> Completion:
        self.calls.append(prompt)
        text = self._answer(prompt)
        cuts = [text.index(stop) for stop in sampling.stop if stop in text]
        text = text[: min(cuts)] if cuts else text
        words = _words(text)
        finished = len(words) <= sampling.max_tokens
        text = "".join(words[: sampling.max_tokens])
        return Completion(
            text=text,
            tokens=tuple(zlib.crc32(word.encode()) for word in words[: sampling.max_tokens]),
            logprobs=tuple(self._scores(prompt, text)),
            finish_reason="stop" if finished else "length",
            prompt_tokens=len(_words(last_text(prompt))),
        )

    def _answer(self, prompt: Prompt) -> str:
        if callable(self.responses):
            return self.responses(prompt)
        if isinstance(self.responses, Mapping):
            key = last_text(prompt)
            if key not in self.responses:
                raise SamplerError(f"the script has no answer to {key!r:.200}")
            return self.responses[key]
        if self._used >= len(self.responses):
            raise SamplerError(f"the script has {len(self.responses)} answers and all are used up")
        self._used += 1
        return self.responses[self._used - 1]

    def _scores(self, prompt: Prompt, text: str) -> list[float]:
        words = _words(text)
        if self.score is not None:
            return [self.score(prompt, text)] * len(words)
        digest = hashlib.sha256(f"{prompt!r}\0{text}".encode()).digest()
        return [-(1 + digest[i % len(digest)]) / 64 for i in range(len(words))]


def last_text(prompt: Prompt) -> str:
    """The text of a raw prompt, or of a conversation's last message."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _words(text: str) -> list[str]:
    """The text cut before each run of spaces; joined, they are the text."""
    return re.findall(r"\s*\S+|\s+$", text)
