"""Log-probabilities of a given continuation out of an endpoint's echo of it."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.core.errors import SamplerError


def scores_in(
    reply: dict[str, Any], url: str, prompt: str | list[int], completion: str | list[int]
) -> Float[Tensor, " tokens"]:
    """Log-probabilities (nats) of the completion's tokens in the echo of prompt and completion.

    As tokens, they are counted off. As text, a token belongs to the completion if it carries a character of it, so the
    first may begin inside the prompt. Raises `SamplerError` where the server did not echo, its tokens do not spell the
    text, or a value is missing or not finite.
    """
    refusal = SamplerError(
        f"{url} does not return log-probabilities of a prompt (`echo` with `logprobs`); "
        "score with a local model instead"
    )
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    scores = choice.get("logprobs")
    if not isinstance(scores, dict) or not isinstance(scores.get("token_logprobs"), list):
        raise refusal
    values = scores["token_logprobs"]
    if isinstance(prompt, list):
        before, whole = len(prompt), len(prompt) + len(completion)
        # One token more was generated than asked about; not every server gives its value.
        if len(values) not in (whole, whole + 1):
            raise refusal
        picked = values[before:whole]
    else:
        assert isinstance(completion, str)
        picked = _by_text(scores, prompt + completion, len(prompt), refusal, url)
    if not all(isinstance(v, int | float) and not math.isnan(v) for v in picked):
        raise SamplerError(f"{url}: a token of the completion has no log-probability; the prompt may be empty")
    return torch.tensor([float(v) for v in picked], dtype=torch.float32)


def _by_text(scores: dict[str, Any], text: str, start: int, refusal: SamplerError, url: str) -> list[Any]:
    tokens, values = scores.get("tokens"), scores["token_logprobs"]
    if not isinstance(tokens, list) or len(tokens) != len(values) or not all(isinstance(t, str) for t in tokens):
        raise refusal
    if not text[start:]:
        return []
    offsets: Any
    joined = "".join(tokens)
    at = joined.find(text)
    if at >= 0:
        # What comes before are control tokens that the server put there, such as the beginning of the text. Offsets
        # are counted here because SGLang sends -1 for all of them, and vLLM counts those control tokens.
        offsets = [end - len(token) - at for token, end in zip(tokens, accumulate(map(len, tokens)), strict=True)]
    else:
        offsets = scores.get("text_offset")
        if not _covers(offsets, len(tokens), len(text)):
            if len(joined) < len(text) // 2:  # only what was generated
                raise refusal
            raise SamplerError(
                f"{url}: the echoed tokens do not spell the text that was sent; give the sampler the model's tokenizer "
                "and set token_prompts=True"
            )
    return [v for o, v, t in zip(offsets, values, tokens, strict=True) if o < len(text) and o + len(t) > start]


def _covers(offsets: Any, count: int, length: int) -> bool:
    """Whether the server's own offsets rise from the start of the text to its end."""
    if not isinstance(offsets, list) or len(offsets) != count or not all(isinstance(o, int) for o in offsets):
        return False
    return count > 1 and offsets[0] == 0 and offsets[-1] >= length and offsets == sorted(offsets)
