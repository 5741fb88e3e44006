"""Rollouts from a vLLM server that takes the policy's weights before every batch.

An adapter is written to a directory that the server sees and loaded by `/v1/load_lora_adapter` under a name of its own
for every version, so that nothing cached for an older one is used; the version before is unloaded. A policy without
adapter is written whole and reloaded by `/collective_rpc` (method `reload_weights`), which vLLM offers in its
development mode. Faster ways (NCCL, CUDA IPC) need vLLM in the training process and are not used.

After each transfer the server is asked for log-probabilities of answers it gave with the version before. If they moved
less than the policy did here, it has not taken the new weights, and the run stops with the numbers.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from alignlab.align.adapters import has_lora
from alignlab.align.policy import evaluating, token_logprobs
from alignlab.core.errors import SamplerError
from alignlab.core.rng import derive_seed
from alignlab.lm.hf_export import export_hf
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.lora_files import save_adapter
from alignlab.lm.model import GPTModel
from alignlab.lm.remote import RemoteSampler
from alignlab.lm.remote_limits import RemoteLimits, RemoteOptions
from alignlab.lm.remote_scores import scores_in
from alignlab.lm.remote_transport import _NoRedirect
from alignlab.lm.types import Completion, Prompt, SamplingParams

PROBES = 4
"""Answers that are scored again after a transfer."""
FLOOR = 1e-4
"""Nats per token: a policy that moved less cannot be told from one that did not."""


@dataclass(frozen=True)
class Probe:
    """An answer of the server with the weights of then."""

    prompt: list[int]
    answer: list[int]
    there: Tensor
    """Its log-probabilities as the server gave them."""
    here: Tensor
    """And as the policy had them in this process."""


class VLLMRollouts(RemoteSampler):
    """Samples from the policy in training at a vLLM server; goes wherever a `Sampler` goes, PPO and GRPO send it the
    weights.

    `folder` lies where this process writes and the server reads, under the same path. `model` is the name that the
    server gives the base. Start it with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora
    --max-lora-rank RANK`, or for whole weights with `VLLM_SERVER_DEV_MODE=1 vllm serve MODEL`.

    Raises SamplerError where the server refuses the weights, or answers as if it had not got them.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        lm: LanguageModel,
        folder: str | Path,
        api_key: str | None = None,
        limits: RemoteLimits | None = None,
    ) -> None:
        extra = {"return_token_ids": True, "stop_token_ids": sorted(lm.tokenizer.eos_ids)}
        options = RemoteOptions(dialect="vllm", token_prompts=True, ask_logprobs=True, extra=extra)
        limits = limits or RemoteLimits(concurrency=64)
        super().__init__(base_url, model, api_key=api_key, tokenizer=lm.tokenizer, limits=limits, options=options)
        self.lm, self.base, self.folder = lm, model, Path(folder).resolve()
        self.version = 0
        self._probes: list[Probe] = []
        self._policy: GPTModel | None = None
        self._key = api_key or os.environ.get("ALIGNLAB_API_KEY") or os.environ.get("OPENAI_API_KEY")
        self._open = urllib.request.build_opener(_NoRedirect()).open

    # Weights

    def send_weights(self, model: GPTModel) -> str:
        """Write the weights, have the server load them, and see that it answers from them."""
        self.version += 1
        name = f"policy-{self.version}" if has_lora(model) else self.base
        place = self.folder / f"version-{self.version}"
        shutil.rmtree(place, ignore_errors=True)  # of an earlier training
        if has_lora(model):
            save_adapter(model, place, base_model=self.base)
            self._tell("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(place)})
            if self.model != self.base:
                self._tell("/v1/unload_lora_adapter", {"lora_name": self.model})
        else:
            export_hf(LanguageModel(model, self.lm.tokenizer, self.base, self.lm.source), place)
            self._tell("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(place)}})
            self._tell("/reset_prefix_cache", {})
        shutil.rmtree(self.folder / f"version-{self.version - 1}", ignore_errors=True)
        self.refuse_stale(model, name)
        return name

    def use_weights(self, name: str, model: GPTModel) -> None:
        """Ask for the weights of that name from now on."""
        self.model, self._policy = name, model

    def refuse_stale(self, model: GPTModel, name: str) -> None:
        """SamplerError where the server's log-probabilities of earlier answers did not move with the policy's."""
        if not self._probes:
            return
        here = [self._scores_here(model, probe.prompt, probe.answer) for probe in self._probes]
        there = [self._scores_there(name, probe.prompt, probe.answer) for probe in self._probes]
        moved = _apart(here, [probe.here for probe in self._probes])
        noise = _apart([probe.there for probe in self._probes], [probe.here for probe in self._probes])
        apart = _apart(there, here)
        if moved > max(FLOOR, 4 * noise) and apart > max(moved / 2, 2 * noise):
            raise SamplerError(
                f"{self.base_url} has not taken version {self.version} of the weights: the policy's log-probabilities "
                f"of {len(here)} answers moved by {moved:.4g} nats a token, and the server's are {apart:.4g} from them "
                f"(before the update: {noise:.4g})"
            )

    def _tell(self, path: str, body: dict[str, Any]) -> None:
        """One request of the control plane; vLLM answers these with plain text or nothing."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        url = self.base_url.removesuffix("/v1") + path
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            with self._open(request, timeout=self.limits.timeout) as reply:
                reply.read(1 << 16)
        except urllib.error.HTTPError as error:
            with error:
                said = " ".join(error.read(2000).decode(errors="replace").split())[:300]
            self._refused(path, f"HTTP {error.code} {said}")
        except (OSError, http.client.HTTPException) as error:
            self._refused(path, str(error) or type(error).__name__)

    def _refused(self, path: str, why: str) -> NoReturn:
        lora = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora"
        raise SamplerError(
            f"{self.base_url} did not take version {self.version} of the weights ({path}: {why}); it must be started "
            f"with {lora if 'lora' in path else 'VLLM_SERVER_DEV_MODE=1'} and see {self.folder}"
        )

    # Answers

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
        """As `RemoteSampler.generate`; an answer without token ids or log-probabilities is refused."""
        found = super().generate(prompts, sampling)
        for i, completion in enumerate(found):
            if not completion.tokens or len(completion.tokens) != len(completion.logprobs):
                raise SamplerError(
                    f"{self.base_url} gave {len(completion.tokens)} token ids and {len(completion.logprobs)} "
                    f"log-probabilities for answer {i}; vLLM 0.10.2 and later give both (`return_token_ids`)"
                )
        if self._policy is not None:
            asked = [prompt for prompt in prompts for _ in range(sampling.n)]
            longest = sorted(range(len(found)), key=lambda i: -len(found[i].tokens))[:PROBES]
            self._probes = [self._probe(self._policy, asked[i], found[i]) for i in sorted(longest)]
        return found

    def _request(self, prompt: Prompt, sampling: SamplingParams, *, n: int, seed: int) -> tuple[str, dict[str, Any]]:
        # With one seed for all, vLLM would draw the answers to all prompts from the same random numbers.
        digest = hashlib.sha256(repr(prompt).encode()).hexdigest()
        return super()._request(prompt, sampling, n=n, seed=derive_seed(seed, digest) % 2**31)

    def _probe(self, model: GPTModel, prompt: Prompt, completion: Completion) -> Probe:
        tokens, answer = self.lm.tokenizer.encode_prompt(prompt), list(completion.tokens)
        return Probe(tokens, answer, torch.tensor(completion.logprobs), self._scores_here(model, tokens, answer))

    def _scores_here(self, model: GPTModel, prompt: list[int], answer: list[int]) -> Tensor:
        tokens = torch.tensor([prompt + answer], device=model.head_weight.device)
        mask = torch.arange(tokens.shape[1], device=tokens.device)[None] >= len(prompt)
        with torch.no_grad(), evaluating(model):
            return token_logprobs(model, tokens, mask)[0, len(prompt) - 1 :].float().cpu()

    def _scores_there(self, name: str, prompt: list[int], answer: list[int]) -> Tensor:
        body = {
            "model": name,
            "prompt": prompt + answer,
            "max_tokens": 1,
            "echo": True,
            "logprobs": 1,
            "temperature": 0,
        }
        reply = self._transport.post("/completions", body, tokens=len(prompt) + len(answer) + 1, stop=threading.Event())
        return scores_in(reply, self.base_url, prompt, answer)


def _apart(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Mean absolute difference per token, nats."""
    return float((torch.cat(list(some)) - torch.cat(list(others))).abs().mean())
