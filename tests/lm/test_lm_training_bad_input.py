"""What goes wrong between a text and a trained model, as a user meets it: one sentence, and nothing is lost.

Every case runs `alignlab` itself. A training that was interrupted after its first checkpoint meets damage, is refused,
and, once the damage is undone, ends in the same bits as one that was never interrupted.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import alignlab.lm.pretrain as pretraining
from alignlab.__main__ import main
from alignlab.core.runs import Run
from alignlab.data import shards
from alignlab.train.checkpoint import list_checkpoints, read_checkpoint
from alignlab.train.parallel import Parallel

MILL = "the mill by the river grinds the corn, and the miller sings to the stones. " * 120
SHIP = "a ship with grey sails, far out on the sea, turns its bow towards the harbour. " * 120
SHAPE = ["--length", "16", "--batch-size", "4", "--model.d-model", "16", "--model.n-layers", "1", "--model.d-mlp", "32"]
FLAGS = [*SHAPE, "--train.steps", "8", "--train.checkpoint-every", "3", "--device", "cpu", "--name", "bad-input"]


@dataclass(frozen=True)
class Place:
    """A corpus, another one, a training that went through, and one that was interrupted."""

    corpus: Path
    other: Path
    straight: Path
    torn: Path


def tokenized(text: str, path: Path) -> Path:
    source = path.with_suffix(".txt")
    source.write_text(text)
    assert main(["tokenize", str(source), "--tokenizer", "byte", "--out", str(path)]) == 0
    return path


def out_of_memory(after: int) -> Callable[..., Any]:
    """The loss, until the device has no room at call number `after` + 1."""
    real, calls = pretraining.language_model_loss, 0

    def loss(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return real(*args, **kwargs)

    return loss


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a command ends with."""
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (sentence,) = [line for line in said.splitlines() if line.startswith("alignlab: ")]
    assert said.rstrip().endswith(sentence)
    return sentence


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("bad-input")
    corpus, other = tokenized(MILL, folder / "mill"), tokenized(SHIP, folder / "ship")
    straight, torn = folder / "straight", folder / "torn"
    assert main(["pretrain", str(corpus), *FLAGS, "--run", str(straight)]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "language_model_loss", out_of_memory(4))
        assert main(["pretrain", str(corpus), *FLAGS, "--run", str(torn)]) == 2
    return Place(corpus, other, straight, torn)


@pytest.fixture
def place(prepared: Place, tmp_path: Path) -> Iterator[Place]:
    """The same with a copy of the interrupted training; what a test does to the corpus is undone."""
    kept = shutil.copytree(prepared.corpus, tmp_path / "kept")
    torn = shutil.copytree(prepared.torn, tmp_path / "torn")
    yield Place(prepared.corpus, prepared.other, prepared.straight, torn)
    restore(prepared.corpus, kept)


def restore(corpus: Path, kept: Path) -> None:
    shutil.rmtree(corpus)
    shutil.copytree(kept, corpus)


def assert_ends_as_if_nothing_had_happened(place: Place) -> None:
    assert [path.name for path in list_checkpoints(place.torn / "checkpoints" / "pretrain")] == ["step_00000003"]
    assert main(["pretrain", str(place.corpus), *FLAGS, "--run", str(place.torn)]) == 0
    model = Path("model") / "model.safetensors"
    assert (place.torn / model).read_bytes() == (place.straight / model).read_bytes()


# --- the corpus ---


def edit(path: Path, change: Callable[[bytearray], Any]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def replace_folder(corpus: Path, other: Path, name: str) -> None:
    shutil.rmtree(corpus / name)
    shutil.copytree(other / name, corpus / name)


def other_tokenizer(corpus: Path, other: Path) -> None:
    source = corpus.parent / "characters.txt"
    source.write_text(MILL)
    made = corpus.parent / "characters"
    if not made.exists():
        assert main(["tokenize", str(source), "--tokenizer", "character", "--out", str(made)]) == 0
    replace_folder(corpus, made, "tokenizer")


def other_end_of_text(corpus: Path, other: Path) -> None:
    path = corpus / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "a"}))


SHARD = Path("train") / "shard-00000.bin"
DAMAGE: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "corrupt": (
        lambda corpus, other: edit(corpus / SHARD, lambda data: data.__setitem__(200, data[200] ^ 1)),
        r"shard-00000\.bin has another SHA-256 than the manifest says; it is damaged, or of another corpus: copy it",
    ),
    "corrupt validation": (
        lambda corpus, other: edit(
            corpus / "validation" / "shard-00000.bin", lambda data: data.__setitem__(21, data[21] ^ 255)
        ),
        r"validation/shard-00000\.bin has another SHA-256",
    ),
    "corrupt index": (
        lambda corpus, other: (corpus / "train" / "documents.idx").write_bytes(b"\xff" * 8),
        r"documents\.idx has another SHA-256",
    ),
    "truncated": (
        lambda corpus, other: edit(corpus / SHARD, lambda data: data.__delitem__(slice(-10, None))),
        r"shard-00000\.bin has \d+ bytes, but the manifest says \d+; it is cut, or of another corpus",
    ),
    "foreign": (
        lambda corpus, other: shutil.copy(other / SHARD, corpus / SHARD),
        r"shard-00000\.bin has \d+ bytes, but the manifest says \d+; it is cut, or of another corpus",
    ),
    "missing": (lambda corpus, other: (corpus / SHARD).unlink(), r"shard-00000\.bin is missing, though the manifest"),
    "manifest": (
        lambda corpus, other: (corpus / "train" / "manifest.json").write_text("{"),
        r"manifest\.json is not valid JSON",
    ),
    "tokenizer": (
        other_tokenizer,
        r"were made by the tokenizer 'byte' .* tokenize the text again or use the tokenizer",
    ),
    "end of text": (other_end_of_text, r"documents in .* end with token 256, but the end-of-text token of .* is 97;"),
    "another dataset": (
        lambda corpus, other: (replace_folder(corpus, other, "train"), replace_folder(corpus, other, "validation")),
        r"step_00000003 was trained on other data: corpus is \w{12}… there and \w{12}… here; go on with those data, or",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_to_the_corpus_is_refused_and_undone(
    kind: str, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, words = DAMAGE[kind]
    damage(place.corpus, place.other)
    said = refusal(["pretrain", str(place.corpus), *FLAGS, "--run", str(place.torn)], capsys)
    assert_matches(words, said)
    if kind != "another dataset":  # which is a good one
        assert_matches(words, refusal(["data", "show", str(place.corpus)], capsys))
        assert_matches(words, refusal(["eval-lm", "bad-input", str(place.corpus)], capsys))
    restore(place.corpus, tmp_path / "kept")
    assert_ends_as_if_nothing_had_happened(place)


def assert_matches(words: str, said: str) -> None:
    assert re.search(words, said), said


def test_ids_outside_the_vocabulary_of_a_corpus_too_large_to_hash(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "HASHED_BYTES", 0)
    size = (place.corpus / SHARD).stat().st_size
    (place.corpus / SHARD).write_bytes(b"\xff" * size)
    said = refusal(["pretrain", str(place.corpus), *FLAGS, "--run", str(place.torn)], capsys)
    assert_matches(r"train has token 65535, outside the vocabulary of 2\d\d: a shard is damaged; `alignlab data", said)
    restore(place.corpus, tmp_path / "kept")
    assert_ends_as_if_nothing_had_happened(place)


def test_another_corpus_for_the_same_run(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(["pretrain", str(place.other), *FLAGS, "--run", str(place.torn)], capsys)
    assert_matches(r"was started with another config, it differs in data \(was '.*mill', now '.*ship'\)", said)
    assert_ends_as_if_nothing_had_happened(place)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"empty\.txt: the corpus is empty, no document has any text$"),
        ("a", r"empty\.txt: too little text, without the 10% for validation none is left; use more text, or --val"),
    ],
)
@pytest.mark.parametrize("kind", ["byte", "character", "bpe"])
def test_hardly_any_text(kind: str, text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").write_text(text)
    arguments = ["tokenize", str(tmp_path / "empty.txt"), "--tokenizer", kind, "--out", str(tmp_path / "out")]
    assert_matches(words, refusal(arguments, capsys))
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


def test_a_corpus_of_one_token(prepared: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.txt").write_text("a")
    arguments = ["tokenize", str(tmp_path / "one.txt"), "--validation-source", str(tmp_path / "one.txt")]
    assert main([*arguments, "--tokenizer", "byte", "--out", str(tmp_path / "one")]) == 0  # and its end-of-text
    said = refusal(["pretrain", str(tmp_path / "one"), *FLAGS, "--run", str(tmp_path / "run")], capsys)
    assert_matches("has 2 tokens, but a row of length 16 needs 17; lower the length or use more text", said)
    said = refusal(["eval-lm", "bad-input", str(tmp_path / "one.txt")], capsys)
    assert_matches("needs a text of at least two tokens", said)


# --- sizes that do not fit ---


def test_a_sequence_longer_than_the_text_or_the_context(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["pretrain", str(place.corpus), *FLAGS, "--length", "9000", "--run", str(tmp_path / "run")]
    assert_matches(r"a row of length 9000 needs 9001; lower the length or use more text", refusal(arguments, capsys))
    said = refusal(["eval-lm", "bad-input", str(place.corpus), "--window", "17"], capsys)
    assert_matches("--window is 17, but .* reads at most 16 tokens; lower it", said)
    assert main(["eval-lm", "bad-input", str(place.corpus), "--window", "16"]) == 0


class Three(Parallel):
    """One of three processes, as far as the size of the batch goes."""

    world = 3


def test_a_world_size_that_does_not_divide_the_batch(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "start_parallel", lambda config: Three())
        said = refusal(["pretrain", str(place.corpus), *FLAGS, "--run", str(place.torn)], capsys)
    words = "3 processes cannot share a batch of 4 rows evenly; start 1, 2, 4 of them, or take a batch size that 3"
    assert_matches(words, said)
    assert_ends_as_if_nothing_had_happened(place)


@pytest.mark.slow
def test_a_world_size_that_torchrun_was_given(prepared: Place, tmp_path: Path) -> None:
    flags = [*FLAGS, "--batch-size", "3", "--fresh"]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "alignlab"]
    done = subprocess.run(
        [*start, "pretrain", str(prepared.corpus), *flags], capture_output=True, text=True, timeout=240
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("alignlab: ")]
    assert said
    for line in said:
        assert_matches("2 processes cannot share a batch of 3 rows evenly; start 1, 3 of them", line)


# --- while training ---


def test_a_gpu_out_of_memory_says_what_to_lower(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "language_model_loss", out_of_memory(1))
        said = refusal(["pretrain", str(place.corpus), *FLAGS, "--run", str(place.torn)], capsys)
    words = (
        r"ran out of GPU memory at step 5: lower the batch size .*lower the length, or set "
        r"gradient_checkpointing=True; checkpoints are intact\. "
        r"The device said: CUDA out of memory\. Tried to allocate 2\.00 GiB\.$"
    )
    assert_matches(words, said)
    assert Run.read(place.torn).state == "failed"
    assert_ends_as_if_nothing_had_happened(place)


def test_out_of_memory_in_validation_and_in_evaluation(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "language_model_loss", out_of_memory(8))  # its last update is the eighth
        said = refusal(["pretrain", str(place.corpus), *FLAGS, "--run", str(run)], capsys)
    assert_matches("ran out of GPU memory at step 8: lower the batch size", said)
    assert main(["pretrain", str(place.corpus), *FLAGS, "--run", str(run)]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("alignlab.tasks.eval_lm_cli.measure", out_of_memory(0))
        said = refusal(["eval-lm", "bad-input", str(place.corpus)], capsys)
    assert_matches("the GPU is out of memory: lower the batch size or the length, .* 2.00 GiB.$", said)


@pytest.mark.parametrize("spikes", [False, True])
def test_a_diverging_run_keeps_its_checkpoints(
    spikes: bool, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    wild = ["--train.learning-rate", "1e6", "--train.warmup-steps", "0", "--train.checkpoint-every", "1"]
    wild += ["--train.spike-factor", "10", "--train.max-rewinds", "2"] if spikes else []
    said = refusal(["pretrain", str(place.corpus), *FLAGS, *wild, "--run", str(run)], capsys)
    kept = list_checkpoints(run / "checkpoints" / "pretrain")
    words = r"pretrain/loss is nan at step \d+, it must be finite"
    words += r", again after 2 rewinds: pretrain diverges" if spikes else ""
    assert_matches(rf"{words}; the last checkpoint is {kept[-1]}, a lower learning rate or", said)
    assert read_checkpoint(kept[-1]).step >= 1
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    rewound = [event for event in events if "loss_spike" in event.values()]
    assert len(rewound) == (2 if spikes else 0)
    # The same command says the same; with a sane rate, that run is refused and a new one learns.
    assert refusal(["pretrain", str(place.corpus), *FLAGS, *wild, "--run", str(run)], capsys)
    said = refusal(["pretrain", str(place.corpus), *FLAGS, "--run", str(run)], capsys)
    assert_matches("was started with another config, it differs in", said)
    assert main(["pretrain", str(place.corpus), *FLAGS, "--run", str(tmp_path / "sane")]) == 0


def test_diverging_fine_tuning(prepared: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "hello", "response": "yes"}) + "\n")
    flags = ["sft", str(tmp_path / "pairs.jsonl"), "--model", "bad-input", "--rank", "0", "--row-length", "16"]
    flags += ["--checkpoint-every", "1", "--epochs", "9", "--warmup-steps", "0", "--name", "tuned"]
    run = tmp_path / "run"
    said = refusal([*flags, "--learning-rate", "1e9", "--run", str(run)], capsys)
    assert_matches(
        r"sft/loss is nan at step \d+, it must be finite; the last checkpoint is .*lower learning rate", said
    )
    assert list_checkpoints(run / "checkpoints" / "sft")
    assert main([*flags, "--run", str(tmp_path / "sane")]) == 0
