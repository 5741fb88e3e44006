"""Answers kept in a file: the same as asked anew, never another model's, whole after a crash."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from alignlab.core.errors import DataError, SamplerError
from alignlab.lm.config import GPTConfig
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler
from alignlab.lm.model import GPTModel
from alignlab.lm.scripted import ScriptedSampler
from alignlab.lm.tokenizer_training import byte_vocabulary
from alignlab.lm.types import Completion, GenerationError, Prompt, SamplingParams
from alignlab.tasks.model_identity import model_identity
from alignlab.tasks.response_cache import CachedSampler

DRAWN = SamplingParams(max_tokens=6, temperature=1.0, seed=3)
TALK = [{"role": "user", "content": "Hello"}]


def tiny(seed: int = 1) -> LocalSampler:
    config = GPTConfig(vocab_size=320, n_ctx=64, d_model=16, n_layers=1, n_heads=2, d_mlp=32)
    return LocalSampler(LanguageModel(GPTModel(config, seed=seed).eval(), byte_vocabulary(), "tiny", "memory"))


class Counting:
    """Counts what reaches the sampler behind the cache."""

    def __init__(self, inner: LocalSampler | ScriptedSampler, fingerprint: str = "counted") -> None:
        self.inner, self.fingerprint = inner, fingerprint
        self.generated: list[Prompt] = []
        self.scored: list[tuple[Prompt, str]] = []

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
        self.generated += prompts
        return self.inner.generate(prompts, sampling)

    def logprobs(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[torch.Tensor]:
        self.scored += zip(prompts, completions, strict=True)
        return self.inner.logprobs(prompts, completions)


def test_answers_and_likelihoods_are_those_of_the_model_and_asked_once(tmp_path: Path) -> None:
    model = Counting(tiny())
    prompts, pairs = ["one", "two", "one"], (["a", "a", "b"], ["xy", "xy", "z"])
    fresh, scores = model.inner.generate(prompts, DRAWN), model.inner.logprobs(*pairs)
    for _ in range(2):  # the second time from a new connection
        with CachedSampler(model, tmp_path / "c.db") as cached:
            for _ in range(2):
                assert cached.generate(prompts, DRAWN) == fresh
                for one, other in zip(cached.logprobs(*pairs), scores, strict=True):
                    assert torch.equal(one, other)
    assert model.generated == prompts
    assert model.scored == [("a", "xy"), ("b", "z")]  # a pair that is given twice is asked once
    assert (cached.hits, cached.misses) == (12, 0)


def test_occurrences_of_one_prompt_are_different_answers(tmp_path: Path) -> None:
    model = Counting(tiny())
    three = model.inner.generate(["one"] * 3, DRAWN)
    assert len({one.text for one in three}) > 1
    with CachedSampler(model, tmp_path / "c.db") as cached:
        assert cached.generate(["one"], DRAWN) == three[:1]
        assert cached.generate(["one"] * 3, DRAWN) == three  # the two new ones get their own random streams
        assert cached.generate(["one"] * 2, DRAWN) == three[:2]


@pytest.mark.parametrize("n", [1, 3])
def test_several_answers_a_prompt(tmp_path: Path, n: int) -> None:
    sampling = SamplingParams(max_tokens=4, n=n)
    model = tiny()
    with CachedSampler(model, tmp_path / "c.db") as cached:
        cached.generate(["b"], sampling)
        found, expected = cached.generate(["a", "b"], sampling), model.generate(["a", "b"], sampling)
    # Not the log-probabilities: the last bit of a sum depends on the batch.
    assert [one.tokens for one in found] == [one.tokens for one in expected]


def test_settings_seeds_and_models_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    first, second = tiny(1), tiny(2)
    assert model_identity(first) != model_identity(second)
    assert model_identity(first) == model_identity(tiny(1))
    with CachedSampler(first, path) as cached:
        cached.generate(["one"], DRAWN)
        cached.logprobs(["one"], ["x"])
        for sampling in (SamplingParams(max_tokens=6, seed=4), SamplingParams(max_tokens=7, seed=3)):
            assert cached.generate(["one"], sampling) == first.generate(["one"], sampling)
        assert cached.hits == 0
    with CachedSampler(second, path) as cached:
        assert cached.generate(["one"], DRAWN) == second.generate(["one"], DRAWN)
        assert torch.equal(cached.logprobs(["one"], ["x"])[0], second.logprobs(["one"], ["x"])[0])
        assert cached.hits == 0


def test_one_changed_weight_is_another_model() -> None:
    one = tiny()
    before = model_identity(one)
    with torch.no_grad():
        next(iter(one.lm.model.parameters()))[0, 0] += 1e-6
    assert model_identity(one) != before


def test_a_sampler_without_identity_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SamplerError, match="ScriptedSampler has no identity that tells its model from others"):
        CachedSampler(ScriptedSampler(), tmp_path / "c.db")


def test_a_call_that_fails_in_parts_keeps_what_it_got(tmp_path: Path) -> None:
    class Failing(Counting):
        def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
            self.generated += prompts
            done = [None if p == "bad" else Completion(f"{p}!", (), (), "stop") for p in prompts]
            errors = {i: "broken" for i, one in enumerate(done) if one is None}
            if errors:
                raise GenerationError(errors, done)
            return [one for one in done if one is not None]

    model = Failing(ScriptedSampler())
    with CachedSampler(model, tmp_path / "c.db") as cached:
        assert cached.generate(["a"], DRAWN)[0].text == "a!"
        with pytest.raises(GenerationError) as caught:
            cached.generate(["a", "b", "bad", "c"], DRAWN)
        assert caught.value.errors == {2: "broken"}
        assert [one and one.text for one in caught.value.completions] == ["a!", "b!", None, "c!"]
        cached.generate(["a", "b", "c"], DRAWN)
    assert model.generated == ["a", "b", "bad", "c"]


def test_threads_share_one_cache(tmp_path: Path) -> None:
    model = Counting(tiny())
    expected = model.inner.generate(["p", "q"], DRAWN)
    found: list[list[Completion]] = []
    with CachedSampler(model, tmp_path / "c.db") as cached:
        threads = [threading.Thread(target=lambda: found.append(cached.generate(["p", "q"], DRAWN))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [expected] * 6


FILL = """
import os, sys
from alignlab.lm.types import Completion, SamplingParams
from alignlab.tasks.response_cache import CachedSampler
class Echo:
    def generate(self, prompts, sampling):
        return [Completion(f"answer to {p}", (), (), "stop") for p in prompts]
start = 20 if os.fork() else 0  # one interpreter imports for both
with CachedSampler(Echo(), sys.argv[1], identity="counted") as cached:
    for i in range(start, start + 40):
        cached.generate([f"prompt {i}"], SamplingParams(max_tokens=6, temperature=1.0, seed=3))
if start:
    sys.exit(bool(os.wait()[1]))
"""


def test_processes_share_one_file(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    assert subprocess.run([sys.executable, "-c", FILL, str(path)], timeout=120).returncode == 0
    model = Counting(ScriptedSampler())
    with CachedSampler(model, path) as cached:
        texts = [one.text for one in cached.generate([f"prompt {i}" for i in range(60)], DRAWN)]
    assert texts == [f"answer to prompt {i}" for i in range(60)]
    assert model.generated == []


def test_conversations_are_kept_too_and_other_attributes_pass_through(tmp_path: Path) -> None:
    model = Counting(ScriptedSampler(["only once"]))
    with CachedSampler(model, tmp_path / "c.db") as cached:
        assert [cached.generate([TALK], DRAWN)[0].text for _ in range(2)] == ["only once"] * 2
        assert cached.fingerprint == "counted"
        with pytest.raises(AttributeError):
            _ = cached.nothing


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    text, other = tmp_path / "notes.txt", tmp_path / "other.db"
    text.write_text("not a database, and long enough to be looked at as one " * 20)
    with pytest.raises(DataError, match="is not a response cache"):
        CachedSampler(Counting(ScriptedSampler()), text)
    assert text.read_text().startswith("not a database")
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE birds (name TEXT)")
    connection.commit()
    connection.close()
    with pytest.raises(DataError, match="is a database of something else"):
        CachedSampler(Counting(ScriptedSampler()), other)
