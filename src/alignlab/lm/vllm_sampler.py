"""`VLLMSampler`: vLLM in this process as a `Sampler`, for models and batches that want its kernels and several GPUs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignlab.core.errors import SamplerError
from alignlab.core.extras import import_extra
from alignlab.lm.constraint_types import Constraint
from alignlab.lm.generate import row_seeds
from alignlab.lm.tokenizer import Tokenizer
from alignlab.lm.types import Completion, GenerationError, Prompt, SamplingParams


class VLLMSampler:
    """Samples with `vllm.LLM` from a model directory in Hugging Face's format.

    `model` is what `alignlab.load` takes, as long as such a directory is behind it (`alignlab models export` makes one
    of anything else). Further arguments go to `vllm.LLM` (`tensor_parallel_size`, `gpu_memory_utilization`,
    `max_model_len`, `quantization`, ...); `llm` is one that exists already. Prompts are rendered and tokenised by our
    own tokenizer, so that vLLM reads the very ids that `LocalSampler` reads.

    A prompt that cannot be answered does not stop the others: `generate` raises `GenerationError` with what they got.
    Raises `MissingExtraError` without vLLM, `SamplerError` for a model or a parameter that it does not take. Random
    numbers are vLLM's: the same seed does not give the texts of `LocalSampler`. vLLM raises temperatures between 0 and
    0.01 to 0.01. Written for vLLM 0.9 and later.
    """

    def __init__(self, model: str, *, tokenizer: Tokenizer | None = None, llm: Any = None, **engine: Any) -> None:
        self._vllm = import_extra("vllm", "vllm")
        directory = Path(model).expanduser() if llm is not None else _directory(model)
        if tokenizer is None:
            from alignlab.lm.tokenizer_training import load_tokenizer

            tokenizer = load_tokenizer(directory)
        self.tokenizer, self.model = tokenizer, str(directory)
        try:
            self.llm = llm if llm is not None else self._vllm.LLM(model=str(directory), **engine)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            raise SamplerError(f"vLLM does not start with {directory}: {_first_line(error)}") from error
        self.n_ctx = int(self.llm.llm_engine.model_config.max_model_len)

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
        """`sampling.n` completions for each prompt, prompts in order and answers adjacent.

        `logprobs` are those of the model before temperature and filters, as long as vLLM's `logprobs_mode` is left at
        `raw_logprobs`.
        """
        encoded = [self.tokenizer.encode_prompt(prompt) for prompt in prompts]
        seeds = row_seeds(encoded, sampling.seed)
        errors = {i: problem for i, ids in enumerate(encoded) if (problem := self._unfit(ids))}
        asked = [i for i in range(len(encoded)) if i not in errors]
        params = [self._params(sampling, seeds[i], self.n_ctx - len(encoded[i])) for i in asked]
        outputs = self._run([encoded[i] for i in asked], params)
        answers: dict[int, list[Completion]] = {}
        for i, output in zip(asked, outputs, strict=True):
            try:
                if isinstance(output, str):
                    raise SamplerError(output)
                answers[i] = _completions(output, sampling.n)
            except SamplerError as error:
                errors[i] = str(error)
        found = [c for i in range(len(encoded)) for c in answers.get(i, [None] * sampling.n)]
        if errors:
            n = sampling.n
            raise GenerationError({i * n + k: errors[i] for i in sorted(errors) for k in range(n)}, found, n=n)
        return [c for c in found if c is not None]

    def logprobs(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Tensor]:
        """Log-probability (nats, float32) of each token of each completion after its prompt."""
        if len(prompts) != len(completions):
            raise SamplerError(f"{len(prompts)} prompts and {len(completions)} completions do not pair up")
        before = [self.tokenizer.encode_prompt(prompt) for prompt in prompts]
        rows = [ids + self.tokenizer.encode(c) for ids, c in zip(before, completions, strict=True)]
        for i, (ids, row) in enumerate(zip(before, rows, strict=True)):
            # vLLM always generates a token after what it reads.
            if not ids or len(row) >= self.n_ctx:
                raise SamplerError(
                    f"prompt {i} and its completion have {len(ids)} + {len(row) - len(ids)} tokens; "
                    f"at least 1 and together at most {self.n_ctx - 1} can be scored with vLLM"
                )
        params = self._vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False)
        outputs = self._run(rows, [params] * len(rows))
        return [_scores(i, output, rows[i], len(before[i])) for i, output in enumerate(outputs)]

    def _unfit(self, ids: list[int]) -> str:
        if not ids:
            return "it is empty: the model needs at least one token to continue"
        if len(ids) >= self.n_ctx:
            return f"it has {len(ids)} tokens, the model reads at most {self.n_ctx - 1} before answering"
        return ""

    def _params(self, sampling: SamplingParams, seed: int, room: int) -> Any:
        if sampling.typical_p != 1.0:
            raise SamplerError(f"typical_p is {sampling.typical_p}, which vLLM does not know; leave it at 1")
        fields: dict[str, Any] = {
            "n": sampling.n,
            "max_tokens": min(sampling.max_tokens, room),
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or -1,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "stop": list(sampling.stop),
            "stop_token_ids": sorted(self.tokenizer.eos_ids),
            "seed": seed,
            "logprobs": 0,
        }
        if sampling.logit_bias:
            fields["logit_bias"] = dict(sampling.logit_bias)
        if sampling.constraint is not None:
            fields |= _structured(sampling.constraint)
        return self._vllm.SamplingParams(**fields)

    def _run(self, prompts: list[list[int]], params: list[Any]) -> list[Any]:
        """vLLM's outputs in order; where it refuses the whole call, the refused ones' reasons in their place."""
        if not prompts:
            return []
        try:
            return self._ask(prompts, params)
        except (ValueError, TypeError) as error:
            if len(prompts) == 1:
                return [f"vLLM refused: {_first_line(error)}"]
        except RuntimeError as error:
            raise SamplerError(f"vLLM stopped: {_first_line(error)}") from error
        # It checks all before it begins, and does not say which one is wrong.
        return [self._run([prompt], [one])[0] for prompt, one in zip(prompts, params, strict=True)]

    def _ask(self, prompts: list[list[int]], params: list[Any]) -> list[Any]:
        outputs = self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        if len(outputs) != len(prompts):
            raise SamplerError(f"vLLM returned {len(outputs)} results for {len(prompts)} prompts")
        return list(outputs)


def _directory(model: str) -> Path:
    from alignlab.lm.language_model import resolve

    path = resolve(model)
    if not path.is_dir():
        raise SamplerError(
            f"vLLM reads model directories, {path.name} is a file; "
            f"make one with: alignlab models export {model} DIRECTORY"
        )
    kind = json.loads((path / "config.json").read_text()).get("model_type")
    if kind == "alignlab":
        raise SamplerError(f"{path} is in alignlab's own format, which vLLM does not read; it takes Hugging Face's")
    return path


def _structured(constraint: Constraint) -> dict[str, Any]:
    module = import_extra("vllm.sampling_params", "vllm")
    value = {{"json_schema": "json"}.get(constraint.kind, constraint.kind): constraint.source}
    if hasattr(module, "StructuredOutputsParams"):
        return {"structured_outputs": module.StructuredOutputsParams(**value)}
    return {"guided_decoding": module.GuidedDecodingParams(**value)}  # before vLLM 0.11


def _completions(output: Any, n: int) -> list[Completion]:
    answers = sorted(output.outputs, key=lambda answer: answer.index)
    if len(answers) < n:
        raise SamplerError(f"vLLM returned {len(answers)} answers, {n} were asked for")
    return [_completion(answer, len(output.prompt_token_ids)) for answer in answers]


def _completion(answer: Any, prompt_tokens: int) -> Completion:
    if answer.finish_reason not in ("stop", "length"):
        raise SamplerError(f"vLLM gave the answer up (finish_reason {answer.finish_reason!r})")
    tokens = tuple(int(token) for token in answer.token_ids)
    rows = answer.logprobs or []
    if len(rows) != len(tokens):
        raise SamplerError(f"vLLM returned {len(rows)} log-probabilities for {len(tokens)} tokens")
    return Completion(
        text=answer.text,
        tokens=tokens,
        logprobs=tuple(_value(row, token) for row, token in zip(rows, tokens, strict=True)),
        finish_reason=answer.finish_reason,
        prompt_tokens=prompt_tokens,
    )


def _scores(index: int, output: Any, row: list[int], start: int) -> Tensor:
    if isinstance(output, str):
        raise SamplerError(f"prompt {index}: {output}")
    found = output.prompt_logprobs
    if found is None or len(found) != len(row):
        raise SamplerError(f"prompt {index}: vLLM returned no log-probabilities of the prompt")
    return torch.tensor([_value(found[i], row[i]) for i in range(start, len(row))], dtype=torch.float32)


def _value(row: Any, token: int) -> float:
    """The log-probability of the token itself among those of its position."""
    if row is None or token not in row:
        raise SamplerError(f"vLLM returned no log-probability of token {token}")
    return float(getattr(row[token], "logprob", row[token]))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
