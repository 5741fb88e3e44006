"""Samples, scores, tasks, built-in solvers and scorers."""

from __future__ import annotations

import functools
import math

import pytest

from alignlab.core.errors import ConfigError, DataError
from alignlab.lm.types import Completion, SamplingParams
from alignlab.tasks.fingerprint import dataset_digest, describe, model_name
from alignlab.tasks.scorers import exact_match, includes, regex_match
from alignlab.tasks.solvers import Generate, generate
from alignlab.tasks.task import Sample, Score, Task


def said(text: str) -> Completion:
    return Completion(text, (1,), (0.0,), "stop")


@pytest.mark.parametrize(
    ("scorer", "text", "target", "value"),
    [
        (exact_match(), "  Paris \n", "paris", 1.0),
        (exact_match(), "Paris.", "paris", 0.0),
        (exact_match(ignore_case=False), "Paris", "paris", 0.0),
        (includes(), "It is\nParis, I think", "is paris", 1.0),
        (includes(ignore_case=False), "PARIS", "Paris", 0.0),
        (includes(), "", "Paris", 0.0),
        (regex_match(r"answer: (\w+)"), "The answer: Seven", "seven", 1.0),
        (regex_match(r"answer: (\w+)"), "The answer: six", "seven", 0.0),
        (regex_match(r"answer: (\w+)"), "seven", "seven", 0.0),
        (regex_match(r"<(\w+)>|\[(\w+)\]"), "[b]", "b", 1.0),
        (regex_match(r"\bsorry\b"), "I am sorry", None, 1.0),
        (regex_match(r"\bsorry\b", ignore_case=False), "Sorry", None, 0.0),
    ],
)
def test_scorers(scorer, text: str, target: str | None, value: float) -> None:
    assert scorer(Sample("a", "p", target), said(text)).value == value


@pytest.mark.parametrize("scorer", [exact_match(), includes(), regex_match("(a)")])
def test_no_target_is_unscorable(scorer) -> None:
    score = scorer(Sample("a", "p"), said("a"))
    assert score.value is None
    assert score.reason == "the sample has no target"


def test_empty_target_is_unscorable_not_always_right() -> None:
    assert includes()(Sample("a", "p", "  "), said("anything")).value is None


def test_system_message_goes_first() -> None:
    solver = generate(SamplingParams(), system="Be kind.")
    assert isinstance(solver, Generate)
    asked = [{"role": "user", "content": "hi"}]
    assert solver.prompt(Sample("a", asked)) == [{"role": "system", "content": "Be kind."}, *asked]
    both = [{"role": "system", "content": "Be brief."}, *asked]
    assert solver.prompt(Sample("a", both)) == [{"role": "system", "content": "Be kind.\n\nBe brief."}, *asked]
    assert both[0]["content"] == "Be brief."
    with pytest.raises(DataError, match="raw text"):
        solver.prompt(Sample("a", "hi"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Score(None), "needs a reason"),
        (lambda: Score(1.0, "why"), "both"),
        (lambda: Score(math.nan), "nan"),
        (lambda: Score("good"), "finite number"),  # type: ignore[arg-type]
        (lambda: Sample("", "p"), "non-empty string"),
        (lambda: Sample("a", []), "non-empty list"),
        (lambda: Sample("a", [{"role": "user"}]), "without 'role' and 'content'"),
        (lambda: Task("t", [], generate(SamplingParams()), includes()), "is empty"),
        (lambda: Task("t", [Sample("a", "p")] * 2, generate(SamplingParams()), includes()), "two samples with the id"),
    ],
)
def test_bad_data(call, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="pattern is '\\('"):
        regex_match("(")
    with pytest.raises(ConfigError, match="score_range"):
        Task("t", [Sample("a", "p")], generate(SamplingParams()), includes(), score_range=(1.0, 0.0))
    with pytest.raises(ConfigError, match="name"):
        Task("", [Sample("a", "p")], generate(SamplingParams()), includes())


def test_score_takes_bool_as_number() -> None:
    assert Score(True).value == 1.0
    assert isinstance(Score(True).value, float)


class Judge:
    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint


def test_descriptions_tell_settings_apart_and_hold_no_addresses() -> None:
    assert describe(generate(SamplingParams(seed=1))) != describe(generate(SamplingParams(seed=2)))
    assert describe(Judge("v1")) == "v1"
    assert describe(functools.partial(said, text=Judge("v2")))["keywords"] == {"text": "v2"}
    assert describe(object()) == "builtins.object"
    assert describe({"a": {3, 1}, "f": said}) == {"a": [1, 3], "f": f"{__name__}.said"}

    def outer(depth):
        def recurse(n):
            return recurse(n - 1) if n else depth

        return recurse

    assert describe(outer(3)) != describe(outer(4))
    assert describe(outer(3)) == describe(outer(3))


def test_metadata_must_be_json() -> None:
    task = Task("t", [Sample("a", "p", metadata={"x": object()})], generate(SamplingParams()), includes())
    with pytest.raises(DataError, match="metadata of sample 'a'"):
        dataset_digest(task)


@pytest.mark.parametrize(
    "other",
    [
        Sample("b", "p", "t", {"k": 1}, "c"),
        Sample("a", "q", "t", {"k": 1}, "c"),
        Sample("a", "p", "u", {"k": 1}, "c"),
        Sample("a", "p", "t", {"k": 2}, "c"),
        Sample("a", "p", "t", {"k": 1}, "d"),
    ],
)
def test_every_part_of_a_sample_counts(other: Sample) -> None:
    def digest(sample: Sample) -> str:
        return dataset_digest(Task("t", [sample], generate(SamplingParams()), includes()))

    assert digest(other) != digest(Sample("a", "p", "t", {"k": 1}, "c"))


def test_model_names() -> None:
    class Lm:
        name = "tiny"

    class Local:
        lm = Lm()

    assert model_name(Local()) == "tiny"  # type: ignore[arg-type]
    assert model_name(object()) == "object"  # type: ignore[arg-type]
