"""`VLLMSampler` against a stand-in with the shape of vLLM's API that runs one of our small models."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from alignlab.core.errors import MissingExtraError, SamplerError
from alignlab.lm.constraint_types import Constraint
from alignlab.lm.generate import decode
from alignlab.lm.hf_export import export_hf
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler
from alignlab.lm.native import export_native
from alignlab.lm.types import GenerationError, Prompt, SamplingParams
from alignlab.lm.vllm_sampler import VLLMSampler


@dataclass
class FakeParams:
    """The fields of `vllm.SamplingParams` that we use, with vLLM's names, defaults and refusals."""

    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    structured_outputs: Any = None
    logit_bias: dict[int, float] | None = None

    def __post_init__(self) -> None:
        if self.top_k < -1 or not 0 < self.top_p <= 1 or self.temperature < 0 or (self.max_tokens or 1) < 1:
            raise ValueError("a sampling parameter is out of its range")


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class FakeLLM:
    """`vllm.LLM`: `generate(prompts, sampling_params, *, use_tqdm)` gives `RequestOutput`s in order."""

    made: list[dict[str, Any]] = []  # noqa: RUF012
    lm: LanguageModel
    max_len = 0

    def __init__(self, model: str, **kwargs: Any) -> None:
        if kwargs.get("dtype") == "wrong":
            raise ValueError("unknown dtype: wrong\nmore lines")
        self.made.append({"model": model, **kwargs})
        self.params: list[FakeParams] = []
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=self.max_len))
        self.change: Callable[[Any], None] = lambda output: None
        self.refused: list[int] = []

    def generate(
        self, prompts: Any, sampling_params: Any = None, *, use_tqdm: bool = True, lora_request: Any = None
    ) -> list[Any]:
        assert len(prompts) == len(sampling_params)
        assert not use_tqdm
        for prompt in prompts:
            ids = prompt["prompt_token_ids"]
            if len(ids) >= self.max_len:
                raise ValueError(f"The decoder prompt (length {len(ids)}) is longer than the maximum model length")
            if ids == self.refused:
                raise ValueError("not this one")
        self.params += sampling_params
        outputs = [self._output(p["prompt_token_ids"], s) for p, s in zip(prompts, sampling_params, strict=True)]
        for output in outputs:
            self.change(output)
        return outputs

    def _output(self, ids: list[int], params: FakeParams) -> Any:
        return SimpleNamespace(
            request_id="0",
            prompt=None,
            prompt_token_ids=ids,
            prompt_logprobs=None if params.prompt_logprobs is None else self._prompt_logprobs(ids),
            outputs=[self._completion(ids, params, i) for i in range(params.n)],
            finished=True,
        )

    def _completion(self, ids: list[int], params: FakeParams, index: int) -> Any:
        model, ends = self.lm.model, frozenset(params.stop_token_ids or ())
        own = SamplingParams(max_tokens=params.max_tokens or 16, temperature=params.temperature)
        for rows in decode(model, [ids], own, ends, seeds=[(params.seed or 0) + index]):
            row = rows[0]
        ended = row.tokens[-1] in ends
        return SimpleNamespace(
            index=index,
            text=self.lm.tokenizer.decode(row.tokens),
            token_ids=list(row.tokens),
            cumulative_logprob=sum(row.logprobs),
            logprobs=[{t: Logprob(v)} for t, v in zip(row.tokens, row.logprobs, strict=True)],
            finish_reason="stop" if ended else "length",
            stop_reason=None,
        )

    @torch.no_grad()
    def _prompt_logprobs(self, ids: list[int]) -> list[dict[int, Logprob] | None]:
        """As vLLM gives them: None first, then the most likely token and the token itself."""
        scores = self.lm.model(torch.tensor([ids]))[0].log_softmax(-1)
        found: list[dict[int, Logprob] | None] = [None]
        for i, token in enumerate(ids[1:]):
            best = int(scores[i].argmax())
            found.append({t: Logprob(float(scores[i, t])) for t in (best, token)})
        return found


@dataclass
class FakeStructured:
    json: Any = None
    regex: str | None = None
    grammar: str | None = None


@pytest.fixture
def lm(make_lm: Callable[..., LanguageModel]) -> LanguageModel:
    return make_lm("llama", seed=3)


@pytest.fixture
def directory(lm: LanguageModel, tmp_path: Path) -> str:
    return str(export_hf(lm, tmp_path / "model"))


@pytest.fixture
def vllm(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    module, params = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    FakeLLM.made.clear()
    FakeLLM.lm, FakeLLM.max_len = lm, lm.model.config.n_ctx
    module.LLM, module.SamplingParams = FakeLLM, FakeParams  # type: ignore[attr-defined]
    params.SamplingParams, params.StructuredOutputsParams = FakeParams, FakeStructured  # type: ignore[attr-defined]
    module.__path__ = []
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)
    return FakeLLM


PROMPTS: list[Prompt] = ["abcd", "ab cd", "h"]


def test_without_vllm_the_error_says_what_to_install() -> None:
    with pytest.raises(MissingExtraError, match=r"vllm is not installed.*alignlab\[vllm\]"):
        VLLMSampler("anything")


def test_greedy_text_and_scores_are_those_of_the_local_sampler(
    lm: LanguageModel, directory: str, vllm: type[FakeLLM]
) -> None:
    sampler, local = VLLMSampler(directory, gpu_memory_utilization=0.5), LocalSampler(lm)
    assert vllm.made == [{"model": directory, "gpu_memory_utilization": 0.5}]
    greedy = SamplingParams(max_tokens=8, temperature=0.0)
    for here, there in zip(local.generate(PROMPTS, greedy), sampler.generate(PROMPTS, greedy), strict=True):
        assert (here.text, here.tokens, here.finish_reason) == (there.text, there.tokens, there.finish_reason)
        assert here.prompt_tokens == there.prompt_tokens
        assert here.logprobs == pytest.approx(there.logprobs, abs=2e-5)
    completions = ["abab", "", "cd h"]
    for mine, theirs in zip(local.logprobs(PROMPTS, completions), sampler.logprobs(PROMPTS, completions), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=0)


def test_parameters_have_vllms_names_and_every_prompt_a_seed(directory: str, vllm: type[FakeLLM]) -> None:
    sampler = VLLMSampler(directory)
    sampling = SamplingParams(
        max_tokens=50, temperature=0.7, top_p=0.9, min_p=0.1, repetition_penalty=1.2, stop=("X",), seed=4, n=2,
        logit_bias=((5, -3.0),), constraint=Constraint.json_schema({"type": "integer"}),
    )  # fmt: skip
    done = sampler.generate(["abcd", "abcd", "a" * 40], sampling)
    assert len(done) == 6
    first, second, long = sampler.llm.params
    assert (first.n, first.top_k, first.top_p, first.min_p) == (2, -1, 0.9, 0.1)
    assert (first.stop, first.stop_token_ids, first.logprobs, first.logit_bias) == (["X"], [0], 0, {5: -3.0})
    assert first.structured_outputs == FakeStructured(json='{"type": "integer"}')
    assert first.seed != second.seed  # a repeat of a prompt is not its copy
    assert (first.max_tokens, long.max_tokens) == (50, 24)  # the context holds 64
    again = sampler.generate(["abcd"], sampling)
    assert [c.tokens for c in again] == [c.tokens for c in done[:2]]
    sampler.generate(["h"], SamplingParams(top_k=7, constraint=Constraint.regex("a+")))
    assert (sampler.llm.params[-1].top_k, sampler.llm.params[-1].structured_outputs.regex) == (7, "a+")
    with pytest.raises(SamplerError, match=r"typical_p is 0.5, which vLLM does not know"):
        sampler.generate(["h"], SamplingParams(typical_p=0.5))


def test_what_one_prompt_lacks_the_others_do_not_pay_for(directory: str, vllm: type[FakeLLM]) -> None:
    sampler = VLLMSampler(directory)
    sampler.llm.refused = sampler.tokenizer.encode_prompt("cd")
    greedy = SamplingParams(max_tokens=3, temperature=0.0, n=2)
    with pytest.raises(
        GenerationError, match="prompt 0, answer 0: it has 64 tokens, the model reads at most 63"
    ) as raised:
        sampler.generate(["h" * 64, "abcd", "cd", "", "h"], greedy)
    assert {i // 2: message for i, message in raised.value.errors.items() if i % 2} == {
        0: "it has 64 tokens, the model reads at most 63 before answering",
        2: "vLLM refused: not this one",
        3: "it is empty: the model needs at least one token to continue",
    }
    assert [c is not None for c in raised.value.completions] == [i in (1, 4) for i in range(5) for _ in range(2)]
    with pytest.raises(SamplerError, match=r"prompt 1 and its completion have 60 \+ 4 tokens"):
        sampler.logprobs(["h", "h" * 60], ["h", "hhhh"])
    with pytest.raises(SamplerError, match="do not pair up"):
        sampler.logprobs(["h"], [])
    assert sampler.generate([], greedy) == []


def test_outputs_that_are_no_answers_are_told(directory: str, vllm: type[FakeLLM]) -> None:
    sampler = VLLMSampler(directory)

    def spoiled(change: Callable[[Any], None]) -> str:
        sampler.llm.change = change
        with pytest.raises(SamplerError) as raised:
            sampler.generate(["h"], SamplingParams(max_tokens=2))
        return str(raised.value)

    assert "gave the answer up (finish_reason 'abort')" in spoiled(
        lambda o: setattr(o.outputs[0], "finish_reason", "abort")
    )
    assert "returned 0 answers, 1 were asked for" in spoiled(lambda o: o.outputs.clear())
    assert "returned 0 log-probabilities" in spoiled(lambda o: setattr(o.outputs[0], "logprobs", None))
    assert "no log-probability of token" in spoiled(lambda o: setattr(o.outputs[0], "logprobs", [{}] * 2))
    sampler.llm.change = lambda o: setattr(o, "prompt_logprobs", None)
    with pytest.raises(SamplerError, match="prompt 0: vLLM returned no log-probabilities of the prompt"):
        sampler.logprobs(["h"], ["h"])


def test_models_that_vllm_does_not_read_are_refused(
    lm: LanguageModel, directory: str, vllm: type[FakeLLM], tmp_path: Path
) -> None:
    with pytest.raises(SamplerError, match=r"vLLM does not start with .*: unknown dtype: wrong$"):
        VLLMSampler(directory, dtype="wrong")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(
        SamplerError, match=r"reads model directories, model\.gguf is a file; make one with: alignlab models"
    ):
        VLLMSampler(str(tmp_path / "model.gguf"))
    export_native(lm, tmp_path / "native")
    with pytest.raises(SamplerError, match="in alignlab's own format"):
        VLLMSampler(str(tmp_path / "native"))
