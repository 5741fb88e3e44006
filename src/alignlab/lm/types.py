"""What goes into and comes out of a language model: prompts, sampling parameters, completions, and the `Sampler`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from alignlab.core.config import require
from alignlab.core.errors import SamplerError
from alignlab.lm.constraint_types import Constraint

if TYPE_CHECKING:
    from torch import Tensor

Message = dict[str, str]
"""One turn of a conversation: `{"role": "system" | "user" | "assistant", "content": text}`."""

Prompt = str | list[Message]
"""Raw text that the model continues, or a conversation that the chat template renders and the assistant answers."""


@dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn. A filter at its default does nothing."""

    max_tokens: int = 64
    """Most new tokens."""
    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most likely token (greedy)."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose mass reaches p (nucleus, Holtzman et al. 2020)."""
    min_p: float = 0.0
    """Keep tokens at least min_p times as likely as the most likely one."""
    typical_p: float = 1.0
    """Keep the tokens whose surprise is nearest the expected one, up to mass p (Meister et al. 2022)."""
    repetition_penalty: float = 1.0
    """Divide positive (multiply negative) logits of tokens already seen, prompt included (Keskar et al. 2019)."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs (token, nats): added to the token's logit before everything else; -100 in effect forbids it."""
    constraint: Constraint | None = None
    """The whole answer has this form (`Constraint.regex`, `.json_schema`, `.grammar`)."""
    n: int = 1
    """Answers for each prompt, which is read once for all of them."""
    stop: tuple[str, ...] = ()
    """A completion ends before the first of these strings."""
    seed: int = 0
    """Same seed, same prompt, same model: same completion, whatever else is in the batch."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", tuple(self.stop))
        require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "a whole number of at least 1")
        require(self.temperature >= 0, "temperature", self.temperature, "0 (greedy) or a positive number")
        require(self.top_k >= 0, "top_k", self.top_k, "0 (off) or a positive whole number")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "a number above 0 and up to 1")
        require(0 <= self.min_p < 1, "min_p", self.min_p, "a number from 0 to below 1")
        require(0 < self.typical_p <= 1, "typical_p", self.typical_p, "a number above 0 and up to 1")
        require(self.n >= 1, "n", self.n, "a whole number of at least 1")
        pairs = self.logit_bias.items() if isinstance(self.logit_bias, dict) else self.logit_bias
        object.__setattr__(self, "logit_bias", tuple((token, float(nats)) for token, nats in pairs))
        for token, nats in self.logit_bias:
            whole = isinstance(token, int) and token >= 0
            require(whole and math.isfinite(nats), "logit_bias", (token, nats), "pairs of a token id and a number")
        constraint = self.constraint
        require(constraint is None or isinstance(constraint, Constraint), "constraint", constraint, "a Constraint")
        require(self.repetition_penalty > 0, "repetition_penalty", self.repetition_penalty, "a positive number")
        require(all(self.stop), "stop", self.stop, "non-empty strings")


@dataclass(frozen=True)
class Completion:
    """One continuation of one prompt."""

    text: str
    """Decoded text, without control tokens and without the stop string."""
    tokens: tuple[int, ...]
    """The sampled tokens, the end-of-turn token included where it was drawn."""
    logprobs: tuple[float, ...]
    """Log-probability of each token under the model at temperature 1 before any filter, in nats."""
    finish_reason: Literal["stop", "length"]
    """`stop`: an end token or a stop string; `length`: `max_tokens` or the context ran out."""
    prompt_tokens: int = 0
    """Length of the prompt in tokens."""


class GenerationError(SamplerError):
    """Some requests of a call failed while the others went on.

    `errors` says what was wrong, by the index of the completion in the call (prompt * n + answer); `completions` holds
    what the others gave, None where there is an error, and is empty where whoever raised it keeps none.
    """

    def __init__(self, errors: dict[int, str], completions: Sequence[Completion | None] = (), *, n: int = 1) -> None:
        self.errors, self.completions = dict(errors), list(completions)
        first = min(errors)
        answer = f", answer {first % n}" if n > 1 else ""
        more = f"; {len(errors) - 1} more failed" if len(errors) > 1 else ""
        kept = sum(completion is not None for completion in completions)
        rest = f"; the other {kept} are in `completions` of this error" if kept else ""
        super().__init__(f"prompt {first // n}{answer}: {errors[first]}{more}{rest}")


@runtime_checkable
class Sampler(Protocol):
    """Anything that continues prompts and scores continuations: the local engine, an endpoint, a scripted fake."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
        """`sampling.n` completions for each prompt, prompts in order and answers adjacent.

        No completion depends on the other prompts.
        """
        ...

    def logprobs(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Tensor]:
        """For each pair, the log-probability (nats) of each token of the completion given the prompt."""
        ...
