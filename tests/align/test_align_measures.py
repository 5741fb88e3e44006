"""The measures of every stage: bits per byte and the scorers of the held-out tasks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny_run
import torch

from alignlab.align.measures import TASKS, Helpful, bits_per_byte, held_out_tasks, samples
from alignlab.core.errors import DataError
from alignlab.data.prompts import heldout_text, load_prompts
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.local import LocalSampler
from alignlab.lm.types import Completion
from alignlab.tasks.task import Sample


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(str(tiny_run.build_model(tmp_path_factory.mktemp("model"))), dtype="float32")


def naive_bits_per_byte(lm: LanguageModel, texts: list[str], window: int) -> float:
    """Every token but a text's first, each from a context of its own, over the bytes that they spell."""
    bits, n_bytes = 0.0, 0
    for text in filter(None, texts):
        tokens = lm.tokenizer.encode(text)
        n_bytes += len(text.encode()) - len(token_bytes(lm, tokens[0]))
        for i in range(1, len(tokens)):
            begin = (i - 1) // (window - 1) * (window - 1)
            with torch.no_grad():
                logits = lm.model(torch.tensor([tokens[begin:i]]))[0, -1].double()
            bits -= float(logits.log_softmax(-1)[tokens[i]]) / math.log(2)
    return bits / n_bytes


def token_bytes(lm: LanguageModel, token: int) -> bytes:
    """The bytes of one token of a byte-level vocabulary."""
    spelled = lm.tokenizer.token(token) or ""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in visible}
    hidden = [byte for byte in range(256) if byte not in visible]
    table |= {chr(256 + i): byte for i, byte in enumerate(hidden)}
    return bytes(table[letter] for letter in spelled)


@pytest.mark.parametrize("window", [2, 5, 6, 7, 64, 512])
@pytest.mark.parametrize(
    "texts",
    [
        ["The river was low that summer, and the mill stood still.", "Bread needs time; so does a wall."],
        ["A größere naïveté, 東京 and 🙂 are words that take more bytes than letters."],  # windows end inside letters
        ["one two three", "", "x"],
    ],
)
def test_bits_per_byte_equals_the_naive_computation(lm: LanguageModel, texts: list[str], window: int) -> None:
    found = bits_per_byte(LocalSampler(lm, batch_size=3), texts, window=window)
    assert found == pytest.approx(naive_bits_per_byte(lm, texts, window), rel=1e-5)


def test_bits_per_byte_needs_something_to_score(lm: LanguageModel) -> None:
    with pytest.raises(DataError, match="at least two tokens"):
        bits_per_byte(LocalSampler(lm), ["", "x"])


def test_bits_per_byte_reads_the_held_out_prose(lm: LanguageModel) -> None:
    found = bits_per_byte(LocalSampler(lm))
    assert found == pytest.approx(bits_per_byte(LocalSampler(lm, batch_size=1), heldout_text()), rel=1e-5)
    # A random model spends about the logarithm of its vocabulary on each token; a token is a few bytes.
    n_bytes = sum(len(text.encode()) for text in heldout_text())
    n_tokens = sum(len(lm.tokenizer.encode(text)) for text in heldout_text())
    assert found == pytest.approx(math.log2(lm.tokenizer.vocab_size) * n_tokens / n_bytes, rel=0.25)


def test_a_better_model_has_fewer_bits(lm: LanguageModel, tmp_path: Path) -> None:
    """A model that knows nothing beats a random one that is sure of itself."""
    better = load(str(tiny_run.build_model(tmp_path / "model")), dtype="float32")
    with torch.no_grad():
        better.model.head_weight.zero_()  # uniform: exactly log2(vocabulary) a token
    text = heldout_text()[:1]
    tokens = better.tokenizer.encode(text[0])
    n_bytes = len(text[0].encode()) - len(token_bytes(better, tokens[0]))
    uniform = bits_per_byte(LocalSampler(better), text)
    assert uniform == pytest.approx(math.log2(better.tokenizer.vocab_size) * (len(tokens) - 1) / n_bytes, rel=1e-5)
    assert uniform < bits_per_byte(LocalSampler(lm), text)


def completion(text: str) -> Completion:
    return Completion(text, (), (), "stop", 0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The capital is Paris.", 1.0),
        ("It is PARIS, of course.", 1.0),
        ("The capital is Lyon.", 0.0),
        ("I'm sorry, but I can't talk about Paris.", 0.0),
        ("comparison", 0.0),
    ],
)
def test_helpful(text: str, value: float) -> None:
    score = Helpful()(Sample("a", "q", metadata={"keywords": ["paris"]}), completion(text))
    assert score.value == value
    assert score.explanation


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_answer_is_neither_helpful_nor_not(text: str) -> None:
    score = Helpful()(Sample("a", "q", metadata={"keywords": ["paris"]}), completion(text))
    assert score.value is None
    assert score.reason == "the response is empty"


def test_tasks_are_the_held_out_prompts() -> None:
    tasks = held_out_tasks()
    assert tuple(task.name for task in tasks) == TASKS
    for task, name in zip(tasks, ("harmful", "benign", "helpful"), strict=True):
        held = load_prompts(name, "heldout")  # type: ignore[arg-type]
        assert [sample.id for sample in task.dataset] == [record.id for record in held]
        assert not {r.prompt for r in load_prompts(name, "train")} & {s.prompt[0]["content"] for s in task.dataset}  # type: ignore[arg-type, index]
    assert len(tasks[0].dataset) >= 100
    assert [task.higher_is_better for task in tasks] == [True, False, True]
    assert [len(task.dataset) for task in held_out_tasks(limit=5)] == [5, 5, 5]
    assert all(sample.metadata["keywords"] for sample in tasks[2].dataset)


def test_references_are_helpful_and_do_not_decline() -> None:
    """The sets' own right answers get full marks from the scorers that measure models."""
    task = held_out_tasks()[2]
    scores = {s.id: task.scorer(s, completion(s.target or "")).value for s in task.dataset}
    assert sum(value == 1.0 for value in scores.values()) >= 0.97 * len(scores), [n for n, v in scores.items() if not v]


def test_samples_carry_the_record() -> None:
    record = load_prompts("helpful", "heldout")[0]
    (sample,) = samples([record])
    assert sample.prompt == [{"role": "user", "content": record.prompt}]
    assert (sample.id, sample.target) == (record.id, record.reference)
    assert sample.metadata == {"category": record.category, "keywords": list(record.keywords)}
