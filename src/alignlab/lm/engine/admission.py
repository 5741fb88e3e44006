"""What may enter the engine: requests that can be served, each with one clear error where it cannot."""

from __future__ import annotations

from collections.abc import Sequence

from alignlab.core.errors import SamplerError
from alignlab.lm.config import GPTConfig
from alignlab.lm.engine.request import Request
from alignlab.lm.generate import check_bias


def check_request(name: str, request: Request, config: GPTConfig, capacity: int, block_size: int) -> int:
    """The most new tokens that `request` can get from a model with `config` and a cache for `capacity` tokens.

    Raises `SamplerError` where it can never be served; a request that only has to wait for room passes.
    """
    n_tokens = len(request.tokens)
    check_tokens(name, request.tokens, config.vocab_size)
    if request.score_from is None:
        budget = room_for_answer(name, request, config)
        needed = n_tokens + budget - 1  # the last new token is never read
    else:
        check_score(name, request, config)
        budget, needed = 0, n_tokens - 1
    if -(-needed // block_size) * block_size > capacity:
        raise SamplerError(
            f"request {name!r} has {n_tokens} tokens and may get {budget} more, the cache holds {capacity} in all; "
            "allowed: a shorter prompt, fewer max_tokens, or an engine with more blocks"
        )
    return budget


def check_tokens(name: str, tokens: Sequence[int], vocab_size: int) -> None:
    """No tokens, or one that the model does not have, is a `SamplerError`."""
    if not tokens:
        raise SamplerError(f"request {name!r} is empty: the model needs at least one token to continue")
    outside = [token for token in tokens if not 0 <= token < vocab_size]
    if outside:
        raise SamplerError(f"request {name!r} has token {outside[0]}, the model has tokens 0 to {vocab_size - 1}")


def room_for_answer(name: str, request: Request, config: GPTConfig) -> int:
    """The most new tokens in the model's context; a `SamplerError` where there is no room or more than one answer."""
    n_tokens, sampling = len(request.tokens), request.sampling
    if n_tokens >= config.n_ctx:
        raise SamplerError(
            f"request {name!r} has {n_tokens} tokens, the model reads at most {config.n_ctx - 1} before answering"
        )
    if sampling.n != 1:
        raise SamplerError(f"request {name!r} asks for {sampling.n} answers; submit it once for each")
    check_bias(sampling, config.vocab_size)
    return min(sampling.max_tokens, config.n_ctx - n_tokens)


def check_score(name: str, request: Request, config: GPTConfig) -> None:
    """A text too long to score, or scores from outside it, are a `SamplerError`."""
    n_tokens, start = len(request.tokens), request.score_from
    if n_tokens > config.n_ctx:
        raise SamplerError(f"request {name!r} has {n_tokens} tokens to score, the model reads at most {config.n_ctx}")
    if start is None or not 1 <= start <= n_tokens:
        raise SamplerError(f"request {name!r}: score_from is {start}, allowed: 1 to {n_tokens}, the text's length")
