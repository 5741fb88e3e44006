"""Flipped labels, linear functions and induction: planted learners, closed forms, the same items at every length."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from alignlab.core.errors import ConfigError, DataError, SamplerError
from alignlab.core.rng import derive_seed
from alignlab.lm.config import GPTConfig
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler
from alignlab.lm.model import GPTModel
from alignlab.lm.scoring import score
from alignlab.lm.scripted import ScriptedSampler
from alignlab.lm.taps import listen
from alignlab.lm.tokenizer_training import byte_vocabulary
from alignlab.lm.types import Completion, Prompt, SamplingParams
from alignlab.tasks import evaluate
from alignlab.tasks.builtin import TaskSettings, make_task
from alignlab.tasks.icl.flipped import flipped_task, own_reviews, read_labelled
from alignlab.tasks.icl.induction import (
    InductionScore,
    induction_task,
    induction_words_task,
    prefix_matching_scores,
    random_tokens,
)
from alignlab.tasks.icl.linear import LinearValue, least_squares, linear_task
from alignlab.tasks.icl.linear_tensors import (
    averaging_errors,
    least_squares_errors,
    linear_prompts,
    nearest_neighbour_errors,
    squared_errors,
)
from alignlab.tasks.task import Sample

# Flipped labels -------------------------------------------------------------------------------------------------------


def test_the_reviews_are_of_both_kinds() -> None:
    reviews = own_reviews()
    assert Counter(review.label for review in reviews) == {0: 50, 1: 50}
    assert len({review.text for review in reviews}) == len({review.id for review in reviews}) == 100
    kinds = {(review.category, review.label) for review in reviews}
    assert {(category, label) for category, _ in kinds for label in (0, 1)} == kinds  # no category gives the label away


def shown_labels(prompt: Prompt, labels: Sequence[str]) -> list[tuple[str, str]]:
    return re.findall(rf"Review: (.*)\nSentiment: ({'|'.join(labels)})", str(prompt))


TRUE = {review.text: ("negative", "positive")[review.label] for review in own_reviews()}


@pytest.mark.parametrize(("fraction", "wrong"), [(0.0, 0), (0.25, 4), (0.5, 8), (1.0, 16)])
def test_the_fraction_of_wrong_labels_is_exact_balanced_and_nested(fraction: float, wrong: int) -> None:
    shown = shown_labels(flipped_task(own_reviews(), flipped=fraction).dataset[0].prompt, ("negative", "positive"))
    assert len(shown) == 16
    assert Counter(label for _, label in shown) == {"negative": 8, "positive": 8}
    lies = {text for text, label in shown if label != TRUE[text]}
    assert len(lies) == wrong
    everything = shown_labels(flipped_task(own_reviews(), flipped=1.0).dataset[0].prompt, ("negative", "positive"))
    half = shown_labels(flipped_task(own_reviews(), flipped=0.5).dataset[0].prompt, ("negative", "positive"))
    lies_at_half = {text for text, label in half if label != TRUE[text]}
    assert lies <= lies_at_half or lies_at_half <= lies
    assert [text for text, _ in everything] == [text for text, _ in shown]


def test_prompts_of_a_curve_ask_the_same_texts_and_open_alike() -> None:
    few, many = (flipped_task(own_reviews(), shots=k, seed=3).dataset for k in (2, 16))
    assert [sample.id for sample in few] == [sample.id for sample in many]
    labels = ("negative", "positive")
    assert shown_labels(few[0].prompt, labels) == shown_labels(many[0].prompt, labels)[:2]
    other = flipped_task(own_reviews(), shots=2, seed=4).dataset
    assert shown_labels(other[0].prompt, labels) != shown_labels(few[0].prompt, labels)


class Reader:
    """Likes the label that the examples most often give to the true one of the asked text, or, if stubborn, the truth.

    Without examples, or when they are split, it knows the truth.
    """

    def __init__(self, stubborn: bool) -> None:
        self.stubborn = stubborn

    def logprobs(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[torch.Tensor]:
        found = []
        for prompt, text in zip(prompts, completions, strict=True):
            shown = shown_labels(prompt, ("negative", "positive"))
            asked = str(prompt).rsplit("Review: ", 1)[1].split("\n")[0]
            lies = sum(label != TRUE[review] for review, label in shown)
            turned = not self.stubborn and 2 * lies > len(shown)
            said = text.strip() == TRUE[asked]
            found.append(torch.tensor([-1.0 if said != turned else -3.0]))
        return found

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
        raise AssertionError("nothing is generated")


def test_who_follows_examples_falls_and_who_does_not_stays(tmp_path: Path) -> None:
    for stubborn, expected in ((False, [1.0, 1.0, 0.0]), (True, [1.0, 1.0, 1.0])):
        means = []
        for fraction in (0.0, 0.5, 1.0):
            task = flipped_task(own_reviews(), flipped=fraction, limit=20)
            done = evaluate(task, Reader(stubborn), log_dir=tmp_path / f"{stubborn}{fraction}")
            means.append(done.aggregate.mean.estimate)  # type: ignore[union-attr]
        assert means == expected


def test_meaningless_labels_replace_both(tmp_path: Path) -> None:
    task = make_task("lab-sentiment-foo", TaskSettings(shots=8))
    assert task.dataset[0].metadata["choices"] == [" foo", " bar"]
    labels = {TRUE[text]: label for text, label in shown_labels(task.dataset[0].prompt, ("foo", "bar"))}
    assert labels == {"negative": "foo", "positive": "bar"}


def test_bad_labelled_texts_are_named(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    for row, reason in (
        ({"text": "", "label": "negative"}, "line 1: field 'text' is '', allowed: text"),
        ({"text": "x", "label": "neutral"}, "line 1: field 'label' is 'neutral', allowed: negative or positive"),
    ):
        path.write_text(json.dumps(row))
        with pytest.raises(DataError, match=reason):
            read_labelled(str(path))
    path.write_text("")
    with pytest.raises(DataError, match="has no texts"):
        read_labelled(str(path))
    with pytest.raises(DataError, match="16 texts of class 0 are needed as examples, there are 0"):
        flipped_task([review for review in own_reviews() if review.label])
    with pytest.raises(ConfigError, match=r"flipped is 1\.5, allowed: a number from 0 to 1"):
        flipped_task(own_reviews(), flipped=1.5)


# Linear functions -----------------------------------------------------------------------------------------------------


def test_items_do_not_depend_on_the_shots_and_examples_obey_the_function() -> None:
    short, long = (linear_task(shots=k, dims=2, n=30, seed=5).dataset for k in (3, 40))
    for a, b in zip(short, long, strict=True):
        assert (a.id, a.target, a.metadata["x"]) == (b.id, b.target, b.metadata["x"])
        assert a.metadata["examples"] == b.metadata["examples"][:3]
        w = np.array(b.metadata["w"])
        assert all(w @ np.array(x) == y for x, y in b.metadata["examples"])
        assert w @ np.array(b.metadata["x"]) == b.metadata["y"]
        assert b.metadata["x"] not in [x for x, _ in b.metadata["examples"]]


@pytest.mark.no_cover
def test_least_squares_is_exact_once_examples_span_the_inputs(tmp_path: Path) -> None:
    found = {}
    for dims, shots in ((1, 0), (1, 1), (2, 1), (2, 6), (4, 16)):
        task = least_squares(linear_task(shots=shots, dims=dims, n=60))
        done = evaluate(task, ScriptedSampler(), log_dir=tmp_path / f"{dims}-{shots}", model="least squares")
        found[dims, shots] = done.aggregate.mean.estimate  # type: ignore[union-attr]
    assert found[1, 0] == 0.0
    assert found[1, 1] == found[2, 6] == found[4, 16] == 1.0
    assert found[2, 1] < 0.5


@pytest.mark.no_cover
def test_answering_nothing_costs_one_on_average() -> None:
    scorer = LinearValue("error")
    for dims in (1, 2):
        task = linear_task(shots=0, dims=dims, n=300, seed=1, measure="error")
        assert not task.higher_is_better
        squares = [float(s.metadata["y"]) ** 2 / float(s.metadata["scale"]) for s in task.dataset]
        assert np.mean(squares) == pytest.approx(1.0, abs=0.3)  # four standard errors
        capped = [scorer(s, Completion("0", (), (), "stop")).value for s in task.dataset]
        assert max(capped) == 1.0  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("text", "finish", "value"),
    [
        (" -21", "stop", 1.0),
        (" −21\n", "stop", 1.0),
        ("Output: -21.2", "stop", 1.0),
        (" 21", "stop", 0.0),
        (" none", "stop", 0.0),
        ("", "stop", 0.0),
        (" -21", "length", None),  # may have become -214
        (" -21 is it", "length", 1.0),
        (" 1,000", "stop", 0.0),
    ],
)
def test_numbers_are_read_and_never_right_by_being_cut(text: str, finish: Any, value: float | None) -> None:
    sample = Sample("a", "Input: 3", "-21", {"y": -21, "scale": 100.0})
    assert LinearValue()(sample, Completion(text, (), (), finish)).value == value


def test_examples_can_be_turns_of_a_conversation() -> None:
    (sample,) = linear_task(shots=2, n=1, chat=True).dataset
    assert [message["role"] for message in sample.prompt] == ["user", "assistant", "user", "assistant", "user"]  # type: ignore[index]
    for shots, reason in ((65, "shots is 65"), (-1, "shots is -1")):
        with pytest.raises(ConfigError, match=reason):
            linear_task(shots=shots)
    with pytest.raises(ConfigError, match="dims is 5"):
        linear_task(dims=5)


def test_tensor_prompts_give_the_papers_baselines() -> None:
    prompts = linear_prompts(n=400, points=13, dims=4, seed=2)
    least = least_squares_errors(prompts).mean(0)
    assert least[4:].max() < 1e-10  # four examples determine four weights
    # Minimum norm with k < d examples leaves the share 1 - k/d of the squared weights.
    for k in range(4):
        assert float(least[k]) == pytest.approx(1 - k / 4, abs=0.25)
    zero = squared_errors(lambda x: torch.zeros(x.shape[:2]), prompts).mean(0)
    assert float(zero.mean()) == pytest.approx(1.0, abs=0.1)
    assert float(averaging_errors(prompts).mean(0)[-1]) < float(zero[-1])
    assert float(nearest_neighbour_errors(prompts).mean(0)[-1]) < float(zero[-1])
    noisy = linear_prompts(n=400, points=13, dims=4, noise=0.5, seed=2)
    assert float(least_squares_errors(noisy)[:, -1].mean()) > 0.05


def test_a_head_of_linear_attention_is_the_averaging_estimator() -> None:
    """What the embedded form shows is enough: attention over (x_i, y_i) without softmax predicts mean(y_i x_i)·x."""
    prompts = linear_prompts(n=20, points=6, dims=3, seed=4)

    def attend(embedded: torch.Tensor) -> torch.Tensor:
        xs, ys = embedded[:, ::2], embedded[:, 1::2, 0]
        said = torch.zeros(embedded.shape[:2], dtype=embedded.dtype)
        for k in range(1, xs.shape[1]):
            said[:, 2 * k] = torch.einsum("bkd,bd,bk->b", xs[:, :k], xs[:, k], ys[:, :k]) / k
        return said

    assert torch.allclose(squared_errors(attend, prompts), averaging_errors(prompts))
    with pytest.raises(DataError, match=r"the predictor gives \(20,\), allowed: \(20, 12\)"):
        squared_errors(lambda x: torch.zeros(20), prompts)
    with pytest.raises(DataError, match="not finite"):
        squared_errors(lambda x: torch.full(x.shape[:2], math.nan), prompts)


# Induction ------------------------------------------------------------------------------------------------------------


class Copier(torch.nn.Module):
    """Gives probability `sure` to the token that followed the last token before, and spreads the rest evenly."""

    def __init__(self, sure: float, vocabulary: int = 320) -> None:
        super().__init__()
        self.sure, self.vocabulary = sure, vocabulary
        self.embed = torch.nn.Embedding(1, 1)
        self.config = SimpleNamespace(n_ctx=256, vocab_size=vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out = torch.full((*tokens.shape, self.vocabulary), 1 / self.vocabulary)
        for row, sequence in enumerate(tokens.tolist()):
            for i, token in enumerate(sequence):
                before = [j for j in range(i) if sequence[j] == token]
                if before:
                    out[row, i] = (1 - self.sure) / (self.vocabulary - 1)
                    out[row, i, sequence[before[-1] + 1]] = self.sure
        return out.log()


def copier(sure: float) -> Any:
    return SimpleNamespace(lm=SimpleNamespace(model=Copier(sure), tokenizer=byte_vocabulary()), name="copier")


def test_a_planted_copier_is_measured_exactly(tmp_path: Path) -> None:
    task = induction_task(n=4, length=20)
    assert evaluate(task, copier(0.5), log_dir=tmp_path / "right").values == dict.fromkeys(
        (f"repeat-{i}" for i in range(1, 5)), 1.0
    )
    saved = evaluate(induction_task(measure="saved", n=4, length=20), copier(0.5), log_dir=tmp_path / "saved")
    assert list(saved.values.values()) == pytest.approx([math.log(320) + math.log(0.5)] * 4, rel=1e-5)
    assert saved.score_range is None
    chance = evaluate(induction_task(measure="saved", n=4, length=20), copier(1 / 320), log_dir=tmp_path / "chance")
    assert list(chance.values.values()) == pytest.approx([0.0] * 4, abs=1e-5)


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    config = GPTConfig(vocab_size=320, n_ctx=64, d_model=16, n_layers=2, n_heads=2, d_mlp=32)
    return LanguageModel(GPTModel(config, seed=1).eval(), byte_vocabulary(), "tiny", "memory")


def test_random_tokens_are_ordinary_distinct_and_seeded(tiny: LanguageModel) -> None:
    drawn = random_tokens(tiny, 50, 1)
    assert drawn == random_tokens(tiny, 50, 1) != random_tokens(tiny, 50, 2)
    assert len(set(drawn)) == 50
    assert not {*tiny.tokenizer.eos_ids, tiny.tokenizer.bos_id} & set(drawn)


def test_losses_are_those_of_the_sampler(tiny: LanguageModel, tmp_path: Path) -> None:
    """The same tokens as a continuation of the first one, through the path that scores continuations."""
    done = evaluate(induction_task(n=2, length=20), LocalSampler(tiny), log_dir=tmp_path)
    completion = done.results[0].completion
    assert completion is not None
    tokens = list(completion.tokens)
    drawn = random_tokens(tiny, 20, done.results[0].metadata["seed"])  # type: ignore[index]
    assert tokens[-20:] == drawn
    bos = tiny.tokenizer.bos_id
    row = ([] if bos is None else [bos]) + drawn * 2
    (expected,) = score(tiny.model, [row[:1]], [row[1:]])
    assert torch.tensor(completion.logprobs) == pytest.approx(expected.tolist(), abs=1e-4)
    said = json.loads(completion.text)
    assert said["second"] == pytest.approx(-float(expected[-19:].mean()), abs=1e-4)


def test_what_cannot_be_repeated_is_refused(tiny: LanguageModel, tmp_path: Path) -> None:
    for task, sampler, reason in (
        (induction_task(n=1, length=40), LocalSampler(tiny), "twice 40 tokens do not fit into the context of 64"),
        (induction_task(n=1), ScriptedSampler(), "an endpoint can do lab-induction-words"),
    ):
        done = evaluate(task, sampler, log_dir=tmp_path / reason[:5]).aggregate
        assert (done.mean, done.n_unscorable) == (None, 1)
        assert reason in next(iter(done.reasons))
    with pytest.raises(ConfigError, match="length is 1"):
        induction_task(length=1)
    with pytest.raises(SamplerError, match="twice 40 tokens"):
        prefix_matching_scores(tiny, length=40)
    sample = Sample("a", "x")
    for text, reason in (("{}", "holds no losses"), ('{"first": NaN, "second": 1, "second_right": 1}', "not finite")):
        assert reason in str(InductionScore()(sample, Completion(text, (), (), "stop")).reason)


def test_words_said_before_are_cheaper_for_who_remembers(tmp_path: Path) -> None:
    def remembers(prompt: Prompt, text: str) -> float:
        return -1.0 if text.strip() in str(prompt) else -4.0

    done = evaluate(induction_words_task(n=5), ScriptedSampler(score=remembers), log_dir=tmp_path)
    assert set(done.values.values()) == {3.0}
    for sample in induction_words_task(n=20, seed=3).dataset:
        words, other = str(sample.prompt).split(", "), sample.metadata["other"].split(", ")
        assert len({*words, *other}) == 40
    with pytest.raises(ConfigError, match="length is 40"):
        induction_words_task(length=40)


def test_prefix_matching_is_the_attention_to_what_followed(tiny: LanguageModel) -> None:
    """The definition in words, read off the patterns that the taps give: find the token's first appearance, go on by
    one, and look up how much attention falls there."""
    bos = [] if tiny.tokenizer.bos_id is None else [tiny.tokenizer.bos_id]
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in (0, 1)]
    patterns: dict[str, torch.Tensor] = {}

    def keep(pattern: torch.Tensor, name: str) -> None:
        patterns[name] = pattern[0]

    expected = torch.zeros(2, 2)
    for i in range(3):
        row = bos + 2 * random_tokens(tiny, 20, derive_seed(7, "heads", i))
        with torch.no_grad(), listen(tiny.model, dict.fromkeys(names, keep)):
            tiny.model(torch.tensor([row]))
        queries = range(len(bos) + 20, len(row) - 1)
        for query in queries:
            target = row.index(row[query]) + 1
            assert row[target] == row[query + 1]
            for layer, name in enumerate(names):
                expected[layer] += patterns[name][:, query, target] / (3 * len(queries))
    found = prefix_matching_scores(tiny, n=3, length=20, seed=7)
    assert torch.allclose(found, expected, atol=1e-5)
