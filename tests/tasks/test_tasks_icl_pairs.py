"""Pairs of answers: every format read, likelihood and choice in both orders, flaws unscorable; bits a byte of texts."""

from __future__ import annotations

import gzip
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from alignlab.core.errors import ConfigError, DataError
from alignlab.lm.config import GPTConfig
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler
from alignlab.lm.model import GPTModel
from alignlab.lm.scripted import ScriptedSampler
from alignlab.lm.tokenizer_training import byte_vocabulary
from alignlab.lm.types import Completion, Prompt, SamplingParams
from alignlab.tasks import evaluate
from alignlab.tasks.builtin import TaskSettings, make_task
from alignlab.tasks.icl.pairs import AnswerPair, own_pairs, read_dialogues, read_hhh, read_pairs
from alignlab.tasks.icl.perplexity import BitsPerByte, perplexity_task, ratio_interval, total_bits_per_byte, windows
from alignlab.tasks.icl.preference import AskWhich, choice_of_two_task, likelihood_task
from alignlab.tasks.language_modelling import score_windows
from alignlab.tasks.task import Sample

PAIRS = [
    AnswerPair("a", "How tall is it?", "Two metres.", "I will not say.", "helpful"),
    AnswerPair("b", [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"},
                     {"role": "user", "content": "Bye?"}], "Goodbye.", "No.", "honest"),
]  # fmt: skip


class Liking:
    """Gives each continuation the nats a character planted for its text; everything else gets -5."""

    def __init__(self, nats: dict[str, float]) -> None:
        self.nats = nats
        self.asked: list[tuple[Prompt, str]] = []

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
        raise AssertionError("nothing is generated")

    def logprobs(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[torch.Tensor]:
        self.asked += zip(prompts, completions, strict=True)
        return [torch.full((len(c),), self.nats.get(c.strip(), -5.0)) for c in completions]


def test_our_pairs_are_balanced() -> None:
    pairs = own_pairs()
    assert Counter(pair.category for pair in pairs) == {"helpful": 16, "honest": 16, "harmless": 16}
    assert len({pair.id for pair in pairs}) == len({str(pair.prompt) for pair in pairs}) == 48
    longer = Counter(pair.category for pair in pairs if len(pair.better) > len(pair.worse))
    assert all(7 <= longer[kind] <= 9 for kind in ("helpful", "honest", "harmless"))  # length does not give it away
    assert all(pair.flaw is None for pair in pairs)


def test_the_likelier_answer_is_scored_after_the_conversation(tmp_path: Path) -> None:
    sampler = Liking({"Two metres.": -1.0, "No.": -1.0})
    done = evaluate(likelihood_task("pairs", PAIRS), sampler, log_dir=tmp_path / "raw")
    assert done.values == {"a": 1.0, "b": 0.0}
    assert sampler.asked[0] == ("Human: How tall is it?\n\nAssistant:", " Two metres.")
    assert sampler.asked[2][0] == "Human: Hello\n\nAssistant: Hi\n\nHuman: Bye?\n\nAssistant:"
    chat = Liking({"Two metres.": -1.0})
    evaluate(likelihood_task("pairs", PAIRS, chat=True), chat, log_dir=tmp_path / "chat")
    assert chat.asked[0] == ([{"role": "user", "content": "How tall is it?"}], "Two metres.")
    assert chat.asked[2][0] == PAIRS[1].prompt


def test_lengths_decide_without_normalising_and_not_with_it(tmp_path: Path) -> None:
    pair = [AnswerPair("a", "Which?", "A long and careful answer.", "No.")]
    same = Liking({"A long and careful answer.": -1.0, "No.": -1.1})
    by_length = {
        how: evaluate(likelihood_task("p", pair, normalise=how), same, log_dir=tmp_path / how).values["a"]  # type: ignore[arg-type]
        for how in ("none", "bytes", "tokens")
    }
    assert by_length == {"none": 0.0, "bytes": 1.0, "tokens": 1.0}


def test_who_always_says_a_gets_half_of_each_pair(tmp_path: Path) -> None:
    task = choice_of_two_task("choice", PAIRS)
    assert [(sample.id, sample.target, sample.cluster) for sample in task.dataset] == [
        ("a:ab", "0", "a"), ("a:ba", "1", "a"), ("b:ab", "0", "b"), ("b:ba", "1", "b"),
    ]  # fmt: skip
    assert "(A) Two metres.\n\n(B) I will not say." in str(task.dataset[0].prompt)
    assert "(A) I will not say.\n\n(B) Two metres." in str(task.dataset[1].prompt)
    biased = evaluate(task, Liking({"A": -1.0}), log_dir=tmp_path)
    assert biased.aggregate.mean is not None
    assert biased.aggregate.mean.estimate == 0.5


def test_pairs_with_a_flaw_are_unscorable_and_counted(tmp_path: Path) -> None:
    flawed = [AnswerPair("empty", "?", "x", " "), AnswerPair("same", "?", "x", "x "), PAIRS[0]]
    sampler = Liking({"Two metres.": -1.0, "A": -1.0})
    for task in (likelihood_task("p", flawed), choice_of_two_task("q", flawed)):
        done = evaluate(task, sampler, log_dir=tmp_path / task.name)
        each = len(task.dataset) // 3
        assert done.aggregate.n_unscorable == 2 * each
        assert done.aggregate.reasons == {
            "an answer of the pair is empty": each, "both answers are the same text": each,
        }  # fmt: skip
    tied = evaluate(likelihood_task("tie", [AnswerPair("t", "?", "abc", "xyz")]), Liking({}), log_dir=tmp_path / "tie")
    assert tied.aggregate.reasons == {"two choices are equally likely": 1}


def test_a_question_that_leaves_something_out_is_refused() -> None:
    for text, reason in (
        ("{prompt} {first}", r"leaves out \{second\}"),
        ("{prompt} {first} {second} {third}", r"asks for \{third\}"),
        ("{prompt", "question is"),
    ):
        with pytest.raises(ConfigError, match=reason):
            AskWhich(text)
    with pytest.raises(ConfigError, match="scores letters with style 'letter', and normalise 'bytes'"):
        make_task("lab-hhh", TaskSettings(style="letter", normalise="bytes"))
    assert make_task("lab-hhh", TaskSettings(style="letter", limit=3)).name == "lab-hhh-choice"


# Readers --------------------------------------------------------------------------------------------------------------


def written(path: Path, *rows: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_hhh_is_read_in_each_of_its_forms(tmp_path: Path) -> None:
    example = {"input": "Is it safe?", "target_scores": {"Yes.": 0, "I am not sure.": 1}}
    expected = ("Is it safe?", "I am not sure.", "Yes.", "honest")
    hub = {"input": "Is it safe?", "targets": {"choices": ["I am not sure.", "Yes."], "labels": [1, 0]}}
    for path in (
        written(tmp_path / "honest" / "task.json", {"name": "hhh", "examples": [example]}),
        written(tmp_path / "honest.jsonl", example),
        written(tmp_path / "hub.jsonl", hub | {"category": "honest"}),
    ):
        (pair,) = read_hhh(path)
        assert (pair.prompt, pair.better, pair.worse, pair.category) == expected


def test_dialogues_part_at_the_last_shared_turn(tmp_path: Path) -> None:
    start = "\n\nHuman: Hello\n\nAssistant: Hi\n\nHuman: Which?\n\nAssistant:"
    rows = [
        {"chosen": f"{start} This one.", "rejected": f"{start} That one."},
        {"chosen": f"{start} This one.\n\nHuman: Sure?\n\nAssistant: Yes.", "rejected": f"{start} That one."},
        {"chosen": f"{start} This one.", "rejected": start},
    ]
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    plain, early, empty = read_dialogues(path)
    assert [message["role"] for message in plain.prompt] == ["user", "assistant", "user"]  # type: ignore[index]
    assert (plain.better, plain.worse, plain.flaw) == ("This one.", "That one.", None)
    assert early.flaw == "the dialogues part before their last answer"
    assert empty.flaw == "an answer of the pair is empty"


BAD: list[tuple[Callable[[Path], object], object, str]] = [
    (read_pairs, {"prompt": "", "better": "x", "worse": "y"}, "line 1: field 'prompt' is '', allowed: text"),
    (read_pairs, {"prompt": [{"role": "user"}], "better": "x", "worse": "y"}, "field 'prompt' is .* list of messages"),
    (read_pairs, {"prompt": "p", "better": 3, "worse": "y"}, "line 1: field 'better' is 3, allowed: text"),
    (read_pairs, {"prompt": "p", "better": "x", "worse": "y", "category": []}, r"field 'category' is \[\]"),
    (read_pairs, '{"prompt": "p"', "line 1 is not valid JSON"),
    (read_pairs, "", "has no pairs"),
    (read_hhh, {"input": "q", "target_scores": {"x": 1}}, "line 1: field 'target_scores' is .*, allowed: two answers"),
    (read_hhh, {"input": "q", "target_scores": {"x": 1, "y": 1}}, "gives both answers the score 1"),
    (read_hhh, {"input": "q", "targets": {"choices": ["x", "y"], "labels": [1]}}, "field 'targets' is"),
    (read_hhh, {"target_scores": {"x": 1, "y": 0}}, "field 'input' is None"),
    (read_dialogues, {"chosen": "\n\nHuman: a\n\nAssistant: b"}, "line 1: field 'rejected' is None"),
    (read_dialogues, {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
     "line 1: fields .* share no turn that the assistant answers"),
    (read_dialogues, {"chosen": "x\n\nAssistant: b", "rejected": "x\n\nAssistant: c"}, "does not begin with 'Human:'"),
]  # fmt: skip


@pytest.mark.parametrize(("read", "row", "reason"), BAD, ids=[f"{b[0].__name__}-{i}" for i, b in enumerate(BAD)])
def test_a_bad_row_is_named(read: Callable[[Path], object], row: object, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason):
        read(written(tmp_path / "data.jsonl", row))


def test_a_bad_big_bench_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no list 'examples'"):
        read_hhh(written(tmp_path / "task.json", {"name": "x"}))
    with pytest.raises(DataError, match="example 1 is int, allowed: a JSON object"):
        read_hhh(written(tmp_path / "other.json", {"examples": [3]}))
    with pytest.raises(DataError, match=r"cannot read .*absent"):
        read_hhh(tmp_path / "absent.json")


def test_the_published_dialogues_are_read_whole() -> None:
    folder = os.environ.get("ALIGNLAB_SHARED_DATA")
    if not folder:
        pytest.skip("ALIGNLAB_SHARED_DATA names no folder with public data")
    pairs = read_dialogues(Path(folder) / "preference" / "hh_rlhf_harmless_base_test.jsonl.gz")
    assert len(pairs) == 2312
    flaws = Counter(pair.flaw for pair in pairs if pair.flaw)
    assert flaws == {"the dialogues part before their last answer": 5, "an answer of the pair is empty": 4}


# Perplexity -----------------------------------------------------------------------------------------------------------

TEXTS = [
    "The river was low that summer, and the mill stood still for weeks on end. " * 4,
    "Bread needs time, so it is.",
]


@pytest.mark.parametrize(("window", "context"), [(20, 30), (100, 1), (10_000, 10)])
def test_windows_cover_a_text_once_after_its_first_word(window: int, context: int) -> None:
    for text in TEXTS:
        parts = windows(text, window, context)
        assert text.split()[0] + "".join(own for _, own in parts) == text
        seen = text.split()[0]
        for before, own in parts:
            assert seen.endswith(before)
            assert len(before.split()) == 1 or len(before.encode()) <= context
            seen += own
        sizes = [len(own.encode()) for _, own in parts]
        assert all(2 * size >= window for size in sizes) or len(sizes) == 1
    assert windows("word", 10, 10) == []


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    config = GPTConfig(vocab_size=320, n_ctx=512, d_model=16, n_layers=1, n_heads=2, d_mlp=32)
    return LanguageModel(GPTModel(config, seed=1).eval(), byte_vocabulary(), "tiny", "memory")


def test_a_uniform_model_needs_log2_of_the_vocabulary_for_each_byte(lm: LanguageModel, tmp_path: Path) -> None:
    flat = LanguageModel(GPTModel(lm.model.config), lm.tokenizer, "flat", "memory")
    for parameter in flat.model.parameters():
        parameter.data.zero_()
    task = perplexity_task(TEXTS, window=50, context=50)
    assert (task.higher_is_better, task.score_range) == (False, None)
    done = evaluate(task, LocalSampler(flat), log_dir=tmp_path)
    assert list(done.values.values()) == pytest.approx([math.log2(320)] * len(task.dataset), rel=1e-5)
    total = total_bits_per_byte(done)
    assert (total.estimate, total.low, total.high) == pytest.approx([math.log2(320)] * 3, rel=1e-5)
    assert {result.cluster for result in done.results} == {"document 1", "document 2"}


def test_one_window_is_the_text_scored_whole(lm: LanguageModel, tmp_path: Path) -> None:
    """Against the window scorer of `alignlab eval-lm`, which reads tokens: nats after the first word of one text."""
    text = TEXTS[0]
    task = perplexity_task([text], window=10_000)
    done = evaluate(task, LocalSampler(lm), log_dir=tmp_path)
    whole, opening = (score_windows(LocalSampler(lm), [part], window=512) for part in (text, text.split()[0]))
    bits = float(whole.nats.sum() - opening.nats.sum()) / math.log(2)
    assert total_bits_per_byte(done).estimate == pytest.approx(bits / len(text[3:].encode()), rel=1e-5)
    assert total_bits_per_byte(done).high == math.inf  # one window bounds nothing


def test_the_total_weighs_windows_by_their_bytes(tmp_path: Path) -> None:
    sampler = ScriptedSampler(score=lambda prompt, text: -math.log(2) * (1 if "Bread" in str(prompt) else 3))
    done = evaluate(perplexity_task(TEXTS, window=40, context=400), sampler, log_dir=tmp_path)
    words = [(3 * len(TEXTS[0].split()) - 3 + 3), len(TEXTS[1].split()) - 1]  # the first text ends in a space: a token
    n_bytes = [len(TEXTS[0].encode()) - 3, len(TEXTS[1].encode()) - 5]
    assert total_bits_per_byte(done).estimate == pytest.approx(sum(words) / sum(n_bytes))


@pytest.mark.parametrize("documents", [4, 8, 30])
def test_the_interval_of_the_total_covers(documents: int) -> None:
    """Documents of very unequal length around 1 bit a byte, nominal 95 %; standard error of the share 0.6 %, seed
    fixed."""
    rng = np.random.default_rng(documents)
    held, n = 0, 1500
    for _ in range(n):
        sizes = np.exp(rng.normal(7, 0.7, documents))
        found = ratio_interval(sizes * rng.normal(1.0, 0.2, documents), sizes)
        held += found.low <= 1.0 <= found.high
    assert 0.93 <= held / n <= 0.97


def test_equal_sizes_give_students_interval() -> None:
    values = np.array([1.0, 2.0, 4.0, 5.0])
    found = ratio_interval(values * 7, np.full(4, 7.0))
    half = 3.182446 * values.std(ddof=1) / 2
    assert (found.estimate, found.low, found.high) == pytest.approx((3.0, 3.0 - half, 3.0 + half), rel=1e-5)
    with pytest.raises(DataError, match="as many numbers as positive sizes"):
        ratio_interval([1.0], [0.0])


def test_texts_that_cannot_be_scored_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no document has two words"):
        perplexity_task(["word", ""])
    with pytest.raises(ConfigError, match="window is 0"):
        perplexity_task(TEXTS, window=0)
    with pytest.raises(DataError, match="does not exist"):
        make_task("perplexity", TaskSettings(data=tmp_path / "absent.txt"))
    sample = Sample("a", "x", " y")
    for text, reason in (
        ("", "holds no bits"),
        ('{"bits": Infinity, "bytes": 3, "tokens": 1}', "not finite"),
        ('{"bits": 1, "bytes": 3, "tokens": 0}', "no tokens"),
    ):
        assert reason in str(BitsPerByte()(sample, Completion(text, (), (), "stop")).reason)
    quiz = evaluate(likelihood_task("p", PAIRS), Liking({"Two metres.": -1.0}), log_dir=tmp_path / "log")
    with pytest.raises(DataError, match="holds no bits"):
        total_bits_per_byte(quiz)


def test_the_task_reads_files_and_counts_windows(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text * 20}) for text in TEXTS))
    task = make_task("perplexity", TaskSettings(data=path, limit=3))
    assert [sample.id for sample in task.dataset] == ["1-1", "1-2", "1-3"]
    assert [sample.cluster for sample in task.dataset] == [None] * 3  # of one document: they stand for themselves
