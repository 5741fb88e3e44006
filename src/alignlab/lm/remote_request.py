"""What is sent to an endpoint, in its dialect, and how the answers in a reply become completions."""

from __future__ import annotations

import json
from typing import Any

from alignlab.core.errors import SamplerError
from alignlab.core.rng import derive_seed
from alignlab.lm.constraint_types import Constraint
from alignlab.lm.remote_limits import Dialect
from alignlab.lm.types import Completion, Prompt, SamplingParams

_REPETITION = {"llama.cpp": "repeat_penalty"}
_NO_TOP_K = {"sglang": -1}


def sampling_fields(sampling: SamplingParams, dialect: Dialect, *, n: int, seed: int) -> dict[str, Any]:
    """The fields of a request that say how its answers are drawn.

    Dialects other than `openai` get every filter explicitly: vLLM and SGLang otherwise take defaults from the model's
    `generation_config.json`, llama.cpp its own (top_k 40, min_p 0.05).
    """
    request: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed,
    }
    if n > 1:
        request["n"] = n
    if sampling.stop:
        request["stop"] = list(sampling.stop)
    extras: dict[str, tuple[Any, Any]] = {
        "top_k": (sampling.top_k or _NO_TOP_K.get(dialect, 0), 0),
        "min_p": (sampling.min_p, 0.0),
        _REPETITION.get(dialect, "repetition_penalty"): (sampling.repetition_penalty, 1.0),
    }
    request |= {name: value for name, (value, off) in extras.items() if value != off or dialect != "openai"}
    if sampling.typical_p != 1.0:
        if dialect != "llama.cpp":
            raise SamplerError(
                f"typical_p is {sampling.typical_p}: of servers only llama.cpp's knows it; leave it at 1"
            )
        request["typical_p"] = sampling.typical_p
    if sampling.logit_bias:
        request["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.constraint is not None:
        request |= constraint_fields(sampling.constraint, dialect)
    return request


def constraint_fields(constraint: Constraint, dialect: Dialect) -> dict[str, Any]:
    """The field that holds answers to a form. Every dialect knows JSON schemas; of the others only vLLM knows Lark's
    notation of grammars, and only vLLM and SGLang regular expressions. Raises `SamplerError` for the rest."""
    kind, source = constraint.kind, constraint.source
    if kind == "json_schema" and dialect == "llama.cpp":
        return {"json_schema": json.loads(source)}  # `response_format` is only known to its conversations
    if kind == "json_schema":
        schema = {"name": "answer", "schema": json.loads(source), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if dialect == "vllm":
        return {"structured_outputs": {kind: source}}
    if dialect == "sglang" and kind == "regex":
        return {"regex": source}
    raise SamplerError(f"an endpoint of dialect {dialect!r} cannot hold an answer to a {kind}, but to a JSON schema")


def repeat_seed(seed: int, repeat: int, answer: int = 0) -> int:
    """The seed of a prompt's `repeat`-th occurrence in a call and its `answer`-th request: the first keeps its own."""
    # 31 bits are what every server takes.
    return seed if repeat == answer == 0 else derive_seed(seed, repeat, answer) % 2**31


def completions_in(reply: dict[str, Any], n: int, url: str) -> list[Completion]:
    """The `n` answers of a reply in order of their index; `SamplerError` where they are fewer or no answers."""
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise SamplerError(f"{url}: the endpoint's reply holds no completion: {json.dumps(reply)[:200]}")
    if len(choices) < n:
        raise SamplerError(
            f"{url}: {n} answers were asked for and {len(choices)} came; a server that ignores `n` needs n_in_one=False"
        )
    usage = reply.get("usage")
    prompt_tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else 0
    prompt_tokens = prompt_tokens if isinstance(prompt_tokens, int) else 0
    places = [c.get("index") for c in choices]
    order = [p for p in places if isinstance(p, int)]
    if len(set(order)) == len(choices):  # a server that leaves indices out, or repeats them, means the order given
        choices = sorted(choices, key=lambda choice: choice["index"])
    return [_completion(choice, prompt_tokens, url) for choice in choices[:n]]


def _completion(choice: dict[str, Any], prompt_tokens: int, url: str) -> Completion:
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    if text is not None and not isinstance(text, str):
        raise SamplerError(f"{url}: the completion is {type(text).__name__} instead of text")
    reason = choice.get("finish_reason")
    if reason in ("abort", "error"):
        raise SamplerError(f"{url}: the server gave the answer up (finish_reason {reason!r})")
    ids = choice.get("token_ids")
    return Completion(
        text=text or "",
        tokens=tuple(i for i in ids if isinstance(i, int)) if isinstance(ids, list) else (),
        logprobs=tuple(_volunteered(choice)),
        finish_reason="length" if reason == "length" else "stop",
        prompt_tokens=prompt_tokens,
    )


def _volunteered(choice: dict[str, Any]) -> list[float]:
    scores = choice.get("logprobs")
    if not isinstance(scores, dict):
        return []
    content = scores.get("content")
    values = [t.get("logprob") for t in content if isinstance(t, dict)] if isinstance(content, list) else None
    values = values if values is not None else scores.get("token_logprobs") or []
    return [float(v) for v in values if isinstance(v, (int, float))]


def rough_tokens(prompt: Prompt | list[int], sampling_tokens: int) -> int:
    """Tokens that a request may take, before the server has counted them."""
    if isinstance(prompt, str):
        return len(prompt) // 4 + 1 + sampling_tokens
    if prompt and isinstance(prompt[0], dict):
        return sum(len(str(m.get("content") or "")) // 4 + 5 for m in prompt if isinstance(m, dict)) + sampling_tokens
    return len(prompt) + sampling_tokens
