"""Who generates in a benchmark: ours, and the peers that are installed, on the same weights and the same prompts."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alignlab.core.errors import AlignlabError, SamplerError
from alignlab.lm.hf_export import export_hf
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler
from alignlab.lm.types import Prompt, Sampler, SamplingParams

Generate = Callable[[list[list[int]], int], None]
"""Continue prompts, given as token ids, by exactly that many tokens each, greedily."""


@dataclass(frozen=True)
class Contender:
    """Something that generates."""

    name: str
    generate: Generate
    largest_batch: int = 0
    """Most prompts at once; 0 is no limit."""


@dataclass(frozen=True)
class Room:
    """The largest that will be asked for."""

    batch: int
    """Prompts at once."""
    tokens: int
    """Tokens of a prompt and its answer."""


class _GivenTokens:
    """A tokenizer whose prompts are given as ids, written as text, and whose answers never end early.

    So the sampler that is measured is the one that everything else uses, and every prompt has exactly the length asked.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.eos_ids: frozenset[int] = frozenset()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode_prompt(self, prompt: Prompt, *, generation_prompt: bool = True) -> list[int]:
        return [int(word) for word in str(prompt).split()]


def ours(lm: LanguageModel, batch: int) -> Contender:
    """`LocalSampler` on the model, `batch` prompts at a time."""
    return _sampling("alignlab", LocalSampler(_given(lm), batch_size=batch))


def engine(lm: LanguageModel, room: Room) -> Contender:
    """The lab's own engine (`alignlab.lm.engine`), with a cache that holds the largest setting and no more."""
    from alignlab.lm.engine.engine import Engine
    from alignlab.lm.engine.sampler import EngineSampler

    block = 16
    blocks = room.batch * (-(-room.tokens // block) + 1)
    return _sampling(
        "engine", EngineSampler(Engine(_given(lm), blocks=blocks, block_size=block, max_running=room.batch))
    )


def _given(lm: LanguageModel) -> LanguageModel:
    given: Any = _GivenTokens(lm.tokenizer)
    return dataclasses.replace(lm, tokenizer=given)


def _sampling(name: str, sampler: Sampler) -> Contender:
    def generate(prompts: list[list[int]], new: int) -> None:
        texts = [" ".join(map(str, ids)) for ids in prompts]
        done = sampler.generate(texts, SamplingParams(max_tokens=new, temperature=0.0))
        _check(name, [len(completion.tokens) for completion in done], new)

    return Contender(name, generate)


def transformers_peer(lm: LanguageModel, folder: Path) -> Contender:
    """Hugging Face `generate` on the same weights, through an export to `folder`. Raises `AlignlabError`."""
    if importlib.util.find_spec("transformers") is None:
        raise SamplerError("transformers is not installed")
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # ours is enough
    weight = lm.model.embed.weight
    export_hf(lm, folder)
    peer = AutoModelForCausalLM.from_pretrained(str(folder), dtype=weight.dtype).eval().to(weight.device)

    @torch.no_grad()
    def generate(prompts: list[list[int]], new: int) -> None:
        tokens = torch.tensor(prompts, device=weight.device)
        done = peer.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )
        _check("transformers", [done.shape[1] - tokens.shape[1]], new)

    return Contender("transformers", generate)


def llama_cpp_peer(file: Path, n_ctx: int, *, gpu: bool) -> Contender:
    """llama.cpp on a GGUF file, one prompt at a time. Raises `SamplerError`."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise SamplerError("llama-cpp-python is not installed")
    llama = importlib.import_module("llama_cpp")
    threads = torch.get_num_threads()
    try:
        peer = llama.Llama(
            model_path=str(file),
            n_ctx=n_ctx,
            n_batch=min(512, n_ctx),
            n_threads=threads,
            n_threads_batch=threads,
            n_gpu_layers=-1 if gpu else 0,
            verbose=False,
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise SamplerError(f"llama.cpp does not load {file}: {error}") from error

    def generate(prompts: list[list[int]], new: int) -> None:
        (prompt,) = prompts
        peer.reset()
        peer.eval(prompt)
        for step in range(new):
            token = peer.sample(temp=0.0)
            # As everywhere, the last token is only drawn.
            if step < new - 1:
                peer.eval([token])

    return Contender("llama.cpp", generate, largest_batch=1)


def find_peers(
    lm: LanguageModel, names: Sequence[str], folder: Path, *, gguf: Path | None, room: Room
) -> tuple[list[Contender], dict[str, str]]:
    """The peers of `names` that can run this model here, and why the others cannot."""
    found, left_out = [], {}
    for name in names:
        try:
            if name == "engine":
                found.append(engine(lm, room))
            elif name == "transformers":
                found.append(transformers_peer(lm, folder))
            elif gguf is None:
                raise SamplerError("it reads GGUF files; the model is none and --gguf names none")
            else:
                found.append(llama_cpp_peer(gguf, room.tokens, gpu=lm.model.embed.weight.device.type == "cuda"))
        except AlignlabError as error:
            left_out[name] = str(error)
        except Exception as error:  # a peer that fails to start must not cost our own figures
            left_out[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return found, left_out


def _check(name: str, lengths: list[int], new: int) -> None:
    wrong = [length for length in lengths if length != new]
    if wrong:
        raise SamplerError(f"{name} generated {wrong[0]} tokens where {new} were asked for: the timing would not count")
