"""`RemoteSampler`: any server that speaks the OpenAI completions API, as a `Sampler`."""

from __future__ import annotations

import json
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message as Headers
from typing import IO, Any, TypeVar

import torch
from torch import Tensor

from alignlab.core.errors import SamplerError
from alignlab.lm.tokenizer import Tokenizer
from alignlab.lm.types import Completion, Prompt, SamplingParams

MAX_REPLY_BYTES = 64 * 2**20
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteLimits:
    """How patiently an endpoint is asked."""

    concurrency: int = 8
    """Requests in flight at once."""
    timeout: float = 120.0
    """Seconds for one request."""
    retries: int = 5
    """Further attempts after a refusal that may pass (429, 5xx) or a broken connection."""
    first_wait: float = 0.5
    """Seconds before the second attempt; doubled each time up to `longest_wait`, with jitter."""
    longest_wait: float = 30.0
    """Longest pause, also where the server asks for a longer one."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Headers, newurl: str
    ) -> None:
        return None


class RemoteSampler:
    """Samples from `model` at `base_url` (up to and including `/v1`).

    Conversations go to `/chat/completions`, raw text to `/completions`. The key is `api_key`, else $ALIGNLAB_API_KEY,
    else $OPENAI_API_KEY. With a `tokenizer`, conversations can be scored too: it renders them to text. Completions
    carry no token ids, and log-probabilities only where the server volunteers them.
    Raises `SamplerError` when the endpoint refuses, keeps failing, or answers something else than completions.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        tokenizer: Tokenizer | None = None,
        limits: RemoteLimits | None = None,
    ) -> None:
        if urllib.parse.urlsplit(base_url).scheme not in ("http", "https"):
            raise SamplerError(
                f"endpoint {base_url!r} is not a web address, expected for example http://localhost:8000/v1"
            )
        self.base_url, self.model, self.tokenizer = base_url.rstrip("/"), model, tokenizer
        self.limits = limits or RemoteLimits()
        self._key = api_key or os.environ.get("ALIGNLAB_API_KEY") or os.environ.get("OPENAI_API_KEY")
        self._open = urllib.request.build_opener(_NoRedirect()).open

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
        """One completion for each prompt, in order, `limits.concurrency` at a time."""
        return self._each(lambda prompt: self._complete(prompt, sampling), prompts)

    def logprobs(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Tensor]:
        """Log-probabilities of the completions' tokens, where the server supports `echo` with `logprobs`."""
        if len(prompts) != len(completions):
            raise SamplerError(f"{len(prompts)} prompts and {len(completions)} completions do not pair up")
        return self._each(lambda pair: self._score(*pair), list(zip(prompts, completions, strict=True)))

    def _each(self, work: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
        with ThreadPoolExecutor(max_workers=max(1, min(self.limits.concurrency, len(items)))) as pool:
            try:
                return list(pool.map(work, items))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _complete(self, prompt: Prompt, sampling: SamplingParams) -> Completion:
        request: dict[str, Any] = {
            "model": self.model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }
        if sampling.stop:
            request["stop"] = list(sampling.stop)
        # Extensions of open servers; a server that does not know them is only told when they matter.
        extras = {"top_k": (sampling.top_k, 0), "min_p": (sampling.min_p, 0.0)}
        extras["repetition_penalty"] = (sampling.repetition_penalty, 1.0)
        request |= {name: value for name, (value, off) in extras.items() if value != off}
        if isinstance(prompt, str):
            reply = self._post("/completions", request | {"prompt": prompt})
        else:
            reply = self._post("/chat/completions", request | {"messages": prompt})
        choice = _first_choice(reply)
        text = choice.get("text") if isinstance(prompt, str) else (choice.get("message") or {}).get("content")
        if text is not None and not isinstance(text, str):
            raise SamplerError(f"{self.base_url}: the completion is {type(text).__name__} instead of text")
        usage = reply.get("usage")
        return Completion(
            text=text or "",
            tokens=(),
            logprobs=tuple(_volunteered(choice)),
            finish_reason="length" if choice.get("finish_reason") == "length" else "stop",
            prompt_tokens=int(usage.get("prompt_tokens") or 0) if isinstance(usage, dict) else 0,
        )

    def _score(self, prompt: Prompt, completion: str) -> Tensor:
        if not isinstance(prompt, str):
            if self.tokenizer is None:
                raise SamplerError("scoring a conversation at an endpoint needs `tokenizer`, which renders it to text")
            prompt = self.tokenizer.render_chat(prompt)
        request = {"model": self.model, "prompt": prompt + completion, "max_tokens": 1, "echo": True, "logprobs": 1}
        scores = _first_choice(self._post("/completions", request | {"temperature": 0})).get("logprobs") or {}
        try:
            pairs = list(zip(scores["text_offset"], scores["token_logprobs"], scores["tokens"], strict=True))
            # One token more was generated than asked about; the first of the completion may begin inside the prompt.
            start, end = len(prompt), len(prompt) + len(completion)
            picked = [value for at, value, text in pairs if at < end and at + len(text) > start]
            return torch.tensor([float(value) for value in picked], dtype=torch.float32)
        except (TypeError, KeyError, ValueError):
            raise SamplerError(
                f"{self.base_url} does not return log-probabilities of a prompt (`echo` with `logprobs`); "
                "score with a local model instead"
            ) from None

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "User-Agent": "alignlab"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        url, data = self.base_url + path, json.dumps(body).encode()
        problem = ""
        for attempt in range(self.limits.retries + 1):
            request = urllib.request.Request(url, data, headers)
            asked = 0.0
            try:
                with self._open(request, timeout=self.limits.timeout) as reply:
                    return self._parse(url, reply.read(MAX_REPLY_BYTES + 1))
            except urllib.error.HTTPError as error:
                with error:
                    problem = f"answered {error.code}: {_reason(error)}"
                if error.code not in _RETRIED:
                    break
                asked = _seconds(error.headers.get("Retry-After"))
            except OSError as error:  # refused, reset, unresolved, timed out
                problem = f"cannot be reached: {getattr(error, 'reason', None) or error}"
            if attempt < self.limits.retries:
                time.sleep(self._pause(attempt, asked))
        raise SamplerError(f"{url} {problem}")

    def _pause(self, attempt: int, asked: float) -> float:
        wait = self.limits.first_wait * 2**attempt
        # The jitter spreads retries of parallel requests; it never touches a result.
        return min(max(wait, asked), self.limits.longest_wait) * random.uniform(0.75, 1.0)

    def _parse(self, url: str, raw: bytes) -> dict[str, Any]:
        if len(raw) > MAX_REPLY_BYTES:
            raise SamplerError(f"{url}: the reply is longer than {MAX_REPLY_BYTES} bytes")
        try:
            reply = json.loads(raw)
        except (ValueError, RecursionError):
            raise SamplerError(f"{url}: the reply is not JSON: {raw[:100]!r}") from None
        if not isinstance(reply, dict):
            raise SamplerError(f"{url}: the reply is a JSON {type(reply).__name__} instead of an object")
        return reply


def _first_choice(reply: dict[str, Any]) -> dict[str, Any]:
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise SamplerError(f"the endpoint's reply holds no completion: {json.dumps(reply)[:200]}")
    return choices[0]


def _volunteered(choice: dict[str, Any]) -> list[float]:
    scores = choice.get("logprobs")
    if not isinstance(scores, dict):
        return []
    content = scores.get("content")
    values = [t.get("logprob") for t in content if isinstance(t, dict)] if isinstance(content, list) else None
    values = values if values is not None else scores.get("token_logprobs") or []
    return [float(v) for v in values if isinstance(v, (int, float))]


def _reason(error: urllib.error.HTTPError) -> str:
    """The server's own words, from the JSON shapes that servers use, or the start of the text."""
    raw = error.read(10_000).decode("utf-8", "replace")
    try:
        said = json.loads(raw)
        said = said.get("error", said) if isinstance(said, dict) else said
        said = said.get("message", said) if isinstance(said, dict) else said
    except (ValueError, RecursionError):
        said = raw
    return " ".join(str(said).split())[:300] or str(error.reason)


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0
