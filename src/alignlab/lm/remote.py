"""`RemoteSampler`: any server that speaks the OpenAI completions API, as a `Sampler`: the way beyond one machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch import Tensor

from alignlab.core.errors import SamplerError
from alignlab.lm.remote_limits import RemoteLimits, RemoteOptions, Stopped
from alignlab.lm.remote_request import completions_in, repeat_seed, rough_tokens, sampling_fields
from alignlab.lm.remote_scores import scores_in
from alignlab.lm.remote_transport import EndpointError, Transport
from alignlab.lm.remote_usage import Price, UsageMeter
from alignlab.lm.tokenizer import Tokenizer
from alignlab.lm.types import Completion, GenerationError, Prompt, SamplingParams

__all__ = ["Price", "RemoteLimits", "RemoteOptions", "RemoteSampler", "UsageMeter"]

T = TypeVar("T")


class RemoteSampler:
    """Samples from `model` at `base_url` (up to and including `/v1`).

    Conversations go to `/chat/completions`, raw text to `/completions`. The key is `api_key`, else $ALIGNLAB_API_KEY,
    else $OPENAI_API_KEY. With a `tokenizer`, conversations can be scored too: it renders them to text. Completions
    carry token ids and log-probabilities only where the server volunteers them. A prompt given several times in one
    call gets another seed each time. `usage` adds up tokens and cost.

    One request that fails does not stop the others: `generate_each` and `logprobs_each` return its `SamplerError` in
    its place. `generate` raises when all are done, a `GenerationError` that holds what the others got. Only what every
    request would meet (a wrong key, an unknown model, a server that is not there) ends the call at once.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        tokenizer: Tokenizer | None = None,
        limits: RemoteLimits | None = None,
        options: RemoteOptions | None = None,
        usage: UsageMeter | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.limits, self.options = limits or RemoteLimits(), options or RemoteOptions()
        self.usage = usage or UsageMeter()
        if self.options.token_prompts and tokenizer is None:
            raise SamplerError("token_prompts needs `tokenizer`: the one of the model that the server runs")
        key = api_key or os.environ.get("ALIGNLAB_API_KEY") or os.environ.get("OPENAI_API_KEY")
        self._transport = Transport(base_url, key, self.limits, self.usage)
        self.base_url = self._transport.base_url

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
        """`sampling.n` completions for each prompt, in order, `limits.concurrency` requests at a time."""
        n, errors = sampling.n, dict[int, str]()
        completions: list[Completion | None] = []
        for i, outcome in enumerate(self.generate_each(prompts, sampling)):
            if isinstance(outcome, SamplerError):
                errors |= {i * n + answer: str(outcome) for answer in range(n)}
                completions += [None] * n
            else:
                completions += outcome
        if errors:
            raise GenerationError(errors, completions, n=n)
        return [completion for completion in completions if completion is not None]

    def generate_each(
        self, prompts: Sequence[Prompt], sampling: SamplingParams
    ) -> list[list[Completion] | SamplerError]:
        """For each prompt its `sampling.n` completions, or what went wrong with it."""
        jobs, seen = [], dict[str, int]()
        for prompt in prompts:
            repeat = seen.get(repr(prompt), 0)
            seen[repr(prompt)] = repeat + 1
            jobs.append((prompt, repeat))
        return self._each(lambda job, stop: self._complete(job[0], job[1], sampling, stop), jobs)

    def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
        """The text of one completion, piece by piece as it comes.

        Raises `SamplerError` when the stream is cut, falls silent for `limits.timeout` seconds, or holds garbage.
        """
        path, request = self._request(prompt, sampling, n=1, seed=sampling.seed)
        try:
            yield from self._transport.stream(path, request, tokens=self._tokens(request, sampling.max_tokens))
        finally:
            self.usage.write()

    def logprobs(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Tensor]:
        """Log-probabilities of the completions' tokens, where the server supports `echo` with `logprobs`."""
        scored = self.logprobs_each(prompts, completions)
        for i, outcome in enumerate(scored):
            if isinstance(outcome, SamplerError):
                raise SamplerError(f"prompt {i}: {outcome}") from outcome
        return [outcome for outcome in scored if not isinstance(outcome, SamplerError)]

    def logprobs_each(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Tensor | SamplerError]:
        """The same, with an error in the place of a pair that could not be scored."""
        if len(prompts) != len(completions):
            raise SamplerError(f"{len(prompts)} prompts and {len(completions)} completions do not pair up")
        pairs = list(zip(prompts, completions, strict=True))
        return self._each(lambda pair, stop: self._score(pair[0], pair[1], stop), pairs)

    def _each(self, work: Callable[[Any, threading.Event], T], items: Sequence[Any]) -> list[T | SamplerError]:
        """`work` on every item at once, as far as `concurrency` goes; what one raises stands in its place."""
        if not items:
            return []
        stop = threading.Event()
        found: list[T | SamplerError | None] = [None] * len(items)
        places, lock, crashes = iter(range(len(items))), threading.Lock(), list[BaseException]()

        def serve() -> None:
            try:
                while True:
                    with lock:
                        place = next(places, None)
                    if place is None:
                        return
                    found[place] = _guarded(work, items[place], stop)
            except BaseException as crash:  # no mistake of a user's or a server's
                crashes.append(crash)
                stop.set()

        # Not a pool: its threads would keep Ctrl-C waiting for the replies in flight.
        threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(self.limits.concurrency, len(items)))]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            stop.set()
            self.usage.write()
        if crashes:
            raise crashes[0]
        cause = next((f for f in found if isinstance(f, EndpointError) and f.fatal), None)
        return [SamplerError(f"not asked, because of another: {cause}") if f is None else f for f in found]

    def _complete(
        self, prompt: Prompt, repeat: int, sampling: SamplingParams, stop: threading.Event
    ) -> list[Completion]:
        together = self.options.n_in_one
        send = self._transport.collect if self.options.streamed else self._transport.post
        answers: list[Completion] = []
        for answer in range(1 if together else sampling.n):
            n = sampling.n if together else 1
            path, request = self._request(prompt, sampling, n=n, seed=repeat_seed(sampling.seed, repeat, answer))
            reply = send(path, request, tokens=self._tokens(request, n * sampling.max_tokens), stop=stop)
            answers += completions_in(reply, n, self.base_url)
        return answers

    def _request(self, prompt: Prompt, sampling: SamplingParams, *, n: int, seed: int) -> tuple[str, dict[str, Any]]:
        request = {"model": self.model, **sampling_fields(sampling, self.options.dialect, n=n, seed=seed)}
        if self.options.token_prompts and self.tokenizer is not None:
            path, request["prompt"] = "/completions", self.tokenizer.encode_prompt(prompt)
        elif isinstance(prompt, str):
            path, request["prompt"] = "/completions", prompt
        else:
            path, request["messages"] = "/chat/completions", prompt
        if self.options.ask_logprobs:
            request["logprobs"] = True if "messages" in request else 1
        return path, request | self.options.extra

    def _tokens(self, request: dict[str, Any], new: int) -> int:
        prompt = request.get("messages") or request.get("prompt") or ""
        if isinstance(prompt, str) and self.tokenizer is not None and self.limits.tokens_per_minute:
            return len(self.tokenizer.encode(prompt)) + new
        return rough_tokens(prompt, new)

    def _score(self, prompt: Prompt, completion: str, stop: threading.Event) -> Tensor:
        before: str | list[int]
        after: str | list[int] = completion
        if self.options.token_prompts and self.tokenizer is not None:
            before, after = self.tokenizer.encode_prompt(prompt), self.tokenizer.encode(completion)
        elif isinstance(prompt, str):
            before = prompt
        elif self.tokenizer is None:
            raise SamplerError("scoring a conversation at an endpoint needs `tokenizer`, which renders it to text")
        else:
            before = self.tokenizer.render_chat(prompt)
        if self.options.dialect == "llama.cpp":
            raise SamplerError("llama.cpp's server does not score a given text (it refuses `echo`); load the GGUF here")
        request = {"model": self.model, "prompt": before + after, "max_tokens": 1, "echo": True, "logprobs": 1}  # type: ignore[operator]
        request |= {"temperature": 0, **self.options.extra}
        reply = self._transport.post("/completions", request, tokens=self._tokens(request, 1), stop=stop)
        return scores_in(reply, self.base_url, before, after)


def _guarded(work: Callable[[Any, threading.Event], T], item: Any, stop: threading.Event) -> T | SamplerError | None:
    """What `work` makes of the item, or its error; None where it was not done because the call has been given up."""
    if stop.is_set():
        return None
    try:
        return work(item, stop)
    except Stopped:
        return None
    except SamplerError as error:
        if getattr(error, "fatal", False):
            stop.set()
        return error
