"""Tokenised corpora: ids equal those of encoding each document, and a changed tokenizer or shard is refused."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.core.errors import AlignlabError, DataError
from alignlab.lm import tokenized_corpus as module
from alignlab.lm.tokenized_corpus import (
    check_tokenizer,
    encode_documents,
    open_tokenized,
    separator_id,
    tokenizer_info,
    write_tokenized,
)
from alignlab.lm.tokenizer import SpecialTokens, Tokenizer
from alignlab.lm.tokenizer_training import byte_vocabulary, character_vocabulary, load_tokenizer, train_bpe

ALPHABET = "abc <|endoftext|>é🎉\n\t"
DOCUMENTS = ["the fox and the dog\n" * 5, "a dog 🎉", "the <|endoftext|> is text", "foxes\n\n\tand more"]


def kinds() -> dict[str, Tokenizer]:
    return {
        "bpe": train_bpe(DOCUMENTS, 300),
        "byte": byte_vocabulary(),
        "character": character_vocabulary([*DOCUMENTS, ALPHABET]),
    }


KINDS = kinds()


@pytest.mark.parametrize("kind", KINDS)
@given(documents=st.lists(st.text(st.sampled_from(ALPHABET), max_size=80), max_size=8), batch=st.integers(1, 100))
@settings(max_examples=40)
def test_batches_encode_as_single_documents(kind: str, documents: list[str], batch: int) -> None:
    tokenizer = KINDS[kind]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH_CHARACTERS", batch)
        encoded = list(encode_documents(documents, tokenizer))
    assert [ids.tolist() for ids, _ in encoded] == [tokenizer.encode(document) for document in documents]
    assert [n for _, n in encoded] == [len(document.encode()) for document in documents]


def test_other_tokenizers_are_encoded_whole() -> None:
    """Splitting at spaces marks the start of a text, so that pieces would have other ids."""
    core = tokenizers.Tokenizer(
        tokenizers.models.Unigram([("▁", -3.0), ("a", -2.0), ("b", -2.0), ("\n", -2.0)], unk_id=0)
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer = Tokenizer(core, SpecialTokens(eos=0))
    text = "a b\n" * 40_000
    (ids, _), *rest = encode_documents([text], tokenizer)
    assert not rest
    assert ids.tolist() == tokenizer.encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_opened(kind: str, tmp_path: Path) -> None:
    tokenizer = KINDS[kind]
    made = write_tokenized(tmp_path / "out", tokenizer, DOCUMENTS[:3], DOCUMENTS[3:], name=kind, source="toy")
    corpus = open_tokenized(tmp_path / "out", check="hash")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["tokenizer", "train", "validation"]
    end = separator_id(tokenizer)
    expected = list(itertools.chain.from_iterable([*tokenizer.encode(d), end] for d in DOCUMENTS[:3]))
    for opened in (made, corpus):
        assert opened.train.slice(0, len(opened.train)).tolist() == expected
    manifest = corpus.train.manifest
    assert (manifest.documents, manifest.separator, manifest.tokenizer.name) == (3, end, kind)
    assert manifest.bytes == sum(len(d.encode()) for d in DOCUMENTS[:3])
    assert corpus.tokenizer.decode(expected).replace("<|endoftext|>", "") == "".join(DOCUMENTS[:3]).replace(
        "<|endoftext|>", ""
    )


@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading_keeps_the_digest(kind: str, tmp_path: Path) -> None:
    tokenizer = KINDS[kind]
    tokenizer.save(tmp_path / "a")
    once = load_tokenizer(tmp_path / "a")
    once.save(tmp_path / "b")
    assert len({tokenizer_info(t).sha256 for t in (tokenizer, once, load_tokenizer(tmp_path / "b"))}) == 1
    assert tokenizer_info(Tokenizer(tokenizer.core, tokenizer.special, "another template")) == tokenizer_info(tokenizer)


def test_a_changed_tokenizer_is_refused(tmp_path: Path) -> None:
    write_tokenized(tmp_path / "out", KINDS["bpe"], DOCUMENTS[:3], DOCUMENTS[3:])
    others = {
        "trained on other text": train_bpe(["another text, another text"], 300),
        "smaller": train_bpe(DOCUMENTS, 265),
        "bytes": byte_vocabulary(),
        "other control tokens": train_bpe(DOCUMENTS, 300, special_tokens=("<|end|>", "<|im_start|>", "<|im_end|>")),
    }
    manifest = open_tokenized(tmp_path / "out").train.manifest
    check_tokenizer(manifest, KINDS["bpe"])
    for other in others.values():
        with pytest.raises(DataError, match="tokenize the text again or use the tokenizer beside the shards"):
            check_tokenizer(manifest, other)
    shutil.rmtree(tmp_path / "out" / "tokenizer")
    others["smaller"].save(tmp_path / "out" / "tokenizer")
    with pytest.raises(DataError, match="were made by the tokenizer"):
        open_tokenized(tmp_path / "out")


def test_shards_of_another_corpus_are_refused(tmp_path: Path) -> None:
    for name in ("bpe", "byte"):
        write_tokenized(tmp_path / name, KINDS[name], DOCUMENTS[:3], DOCUMENTS[3:])
    shutil.rmtree(tmp_path / "bpe" / "validation")
    shutil.copytree(tmp_path / "byte" / "validation", tmp_path / "bpe" / "validation")
    with pytest.raises(DataError, match="were made by the tokenizer"):
        open_tokenized(tmp_path / "bpe")


@pytest.mark.parametrize("part", ["train", "validation", "tokenizer"])
def test_missing_parts(part: str, tmp_path: Path) -> None:
    write_tokenized(tmp_path / "out", KINDS["byte"], DOCUMENTS[:3], DOCUMENTS[3:])
    shutil.rmtree(tmp_path / "out" / part)
    with pytest.raises(AlignlabError, match=part):
        open_tokenized(tmp_path / "out")
    with pytest.raises(DataError, match="is no directory"):
        open_tokenized(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("kind", "train", "validation", "message"),
    [
        ("bpe", [], ["a"], r"\(train\): the corpus is empty"),
        ("bpe", ["a"], [""], r"\(validation\): the corpus is empty"),
        ("character", ["a"], ["b", "aЖ"], r"document 1: the character 'Ж' \(U\+0416\) is not in"),
    ],
)
def test_wrong_texts_leave_nothing_behind(
    kind: str, train: list[str], validation: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        write_tokenized(tmp_path / "out", KINDS[kind], train, validation)
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_not_overwritten_and_a_separator_is_needed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="already exists"):
        write_tokenized(tmp_path / "out", KINDS["byte"], ["a"], ["b"])
    core: Any = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
    with pytest.raises(DataError, match="has no end-of-text token"):
        separator_id(Tokenizer(core, SpecialTokens()))
