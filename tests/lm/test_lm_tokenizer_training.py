"""Tokenizers of our own: round trips, files that `transformers` loads, and merges equal to a naive training."""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path

import pytest
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.core.errors import DataError
from alignlab.lm.tokenizer import Tokenizer
from alignlab.lm.tokenizer_training import (
    SPECIAL_TOKENS,
    CharacterTable,
    byte_alphabet,
    byte_vocabulary,
    character_vocabulary,
    load_tokenizer,
    split_long,
    train_bpe,
)

TEXT = (
    "the quick brown fox jumps over the lazy dog and the other dog, then the fox sleeps\n"
    "the dogs don't sleep: they're over there, 12 of them in 2024\n\n  indented lines\tand tabs\n"
) * 3
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from(
    ["<|endoftext|>", "a<|im_end|>\n", "\x00", "\u0100Ġ", "\U0010ffff", "👩‍👩‍👧 e\u0301", " \n\r\u2028 ", "\ufeff"]
)


@functools.cache
def bpe() -> Tokenizer:
    return train_bpe([TEXT], 320)


@functools.cache
def by_bytes() -> Tokenizer:
    return byte_vocabulary()


@given(text=ANY_TEXT)
@settings(max_examples=300)
def test_every_text_round_trips_and_none_becomes_a_control_token(text: str) -> None:
    for tokenizer in (bpe(), by_bytes()):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids, skip_special=False) == text
        assert not set(ids) & set(tokenizer.control.values())
    assert by_bytes().encode(text) == list(text.encode())


@given(text=ANY_TEXT, other=ANY_TEXT)
@settings(max_examples=100)
def test_characters_round_trip_or_are_named(text: str, other: str) -> None:
    tokenizer = character_vocabulary([text + "x"])
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == len(set(text + "x")) + len(SPECIAL_TOKENS)
    unknown = [c for c in other if c not in text + "x"]
    if unknown:
        with pytest.raises(
            DataError, match=re.escape(f"the character {unknown[0]!r} (U+{ord(unknown[0]):04X}) is not")
        ):
            tokenizer.encode(other)
    else:
        assert tokenizer.decode(tokenizer.encode(other)) == other


def test_half_a_surrogate_pair_becomes_a_question_mark() -> None:
    for tokenizer in (bpe(), by_bytes(), character_vocabulary(["a?b", "\ud800"])):
        assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"
    with pytest.raises(DataError, match="the character '\\?'"):
        character_vocabulary(["ab"]).encode("a\ud800b")


def naive_merges(text: str, n: int) -> list[tuple[bytes, bytes]]:
    """BPE as it is defined: merge the most frequent pair, of equal ones the one whose parts have the lower ids."""
    # The words of the text, for which this pattern is enough: no digits and no apostrophes in it.
    words = Counter(re.findall(r" ?[a-z]+|\n", text))
    pieces = {word: [bytes([b]) for b in word.encode()] for word in words}
    spelled = sorted(byte_alphabet())
    rank = {bytes([byte_alphabet().index(symbol)]): i for i, symbol in enumerate(spelled)}
    merges = []
    for _ in range(n):
        counts: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words.items():
            for pair in zip(pieces[word], pieces[word][1:]):
                counts[pair] += count
        best = min(counts, key=lambda pair: (-counts[pair], rank[pair[0]], rank[pair[1]]))
        merges.append(best)
        rank[best[0] + best[1]] = len(rank)
        for word, parts in pieces.items():
            i, merged = 0, []
            while i < len(parts):
                both = tuple(parts[i : i + 2]) == best
                merged.append(parts[i] + parts[i + 1] if both else parts[i])
                i += 2 if both else 1
            pieces[word] = merged
    return merges


def test_merges_are_those_of_a_naive_training() -> None:
    text = "low low low low low lower lower newest newest newest newest newest newest widest widest widest\n" * 2
    expected = naive_merges(text, 12)
    tokenizer = train_bpe([text], 256 + 3 + 12)
    learned = [tokenizer.decode([256 + 3 + i]).encode() for i in range(12)]
    assert learned == [left + right for left, right in expected]


def test_the_same_corpus_gives_the_same_tokenizer_however_it_is_cut() -> None:
    lines = TEXT.splitlines(keepends=True)
    one, again = train_bpe(lines, 320), train_bpe(iter(lines), 320)
    assert one.core.to_str() == again.core.to_str()
    assert len(one.encode(TEXT)) < 0.6 * len(TEXT)


def test_vocabularies_have_the_size_and_the_roles_they_should() -> None:
    assert bpe().vocab_size == 320
    assert by_bytes().vocab_size == 259
    small = train_bpe(["ab ab ab"], 5000)
    assert 259 < small.vocab_size < 270  # there is no more to merge
    for tokenizer in (bpe(), by_bytes(), character_vocabulary(["abc"])):
        end = tokenizer.control["<|endoftext|>"]
        assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id) == (end, end, end)
        assert tokenizer.eos_ids == {end, tokenizer.control["<|im_end|>"]}
    plain = train_bpe([TEXT], 300, special_tokens=("<|end|>",))
    assert (plain.eos_id, plain.chat_template, list(plain.control)) == (0, None, ["<|end|>"])


def test_conversations_are_rendered_with_their_control_tokens() -> None:
    tokenizer = bpe()
    ids = tokenizer.encode_prompt([{"role": "user", "content": "the <|im_end|> fox"}])
    start, end = tokenizer.control["<|im_start|>"], tokenizer.control["<|im_end|>"]
    assert [i for i in ids if i in (start, end)] == [start, end, start]
    text = tokenizer.decode(ids, skip_special=False)
    assert text == "<|im_start|>user\nthe <|im_end|> fox<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("kind", ["bpe", "byte", "character"])
def test_saved_files_load_here_and_in_transformers_with_equal_ids(kind: str, tmp_path: Path) -> None:
    tokenizer = {"bpe": bpe, "byte": by_bytes, "character": lambda: character_vocabulary([TEXT])}[kind]()
    tokenizer.save(tmp_path)
    ours, plain, theirs = (
        load_tokenizer(tmp_path),
        Tokenizer.from_hf(tmp_path),
        hf.AutoTokenizer.from_pretrained(tmp_path),
    )
    text = "the fox sleeps over\n\nthere, don't\ttab  12"
    expected = tokenizer.encode(text)
    assert type(ours) is type(tokenizer)
    assert ours.encode(text) == plain.encode(text) == expected
    assert theirs.encode(text, add_special_tokens=False) == expected
    assert theirs.decode(expected) == ours.decode(expected) == text
    assert (ours.special, ours.chat_template, ours.vocab_size) == (
        tokenizer.special, tokenizer.chat_template, tokenizer.vocab_size,
    )  # fmt: skip
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.eos_token_id == tokenizer.eos_id


def test_unknown_characters_are_named_after_loading_too(tmp_path: Path) -> None:
    character_vocabulary(["abc"]).save(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(DataError, match=r"the character 'é' \(U\+00E9\) is not in the character vocabulary"):
        tokenizer.encode("abé")
    # Control tokens are read where that is asked for; the characters that spell them are not in the vocabulary.
    end = tokenizer.control["<|endoftext|>"]
    assert tokenizer.encode("a<|endoftext|>b", parse_special=True) == [0, end, 1]
    with pytest.raises(DataError, match="the character 'z'"):
        tokenizer.encode("a<|endoftext|>z", parse_special=True)
    with pytest.raises(DataError, match="the character '<'"):
        tokenizer.encode("a<|endoftext|>b")


@given(text=st.text(st.sampled_from("ab\n \t\r\u2028é'12,"), max_size=200), length=st.integers(1, 20))
@settings(max_examples=300)
def test_pieces_have_the_tokens_of_the_whole(text: str, length: int) -> None:
    pieces = list(split_long(text, length))
    assert "".join(pieces) == text
    assert [i for piece in pieces for i in bpe().encode(piece)] == bpe().encode(text)


def test_long_texts_are_cut_in_many_pieces() -> None:
    text = "one line of text\n" * 1000
    assert len(list(split_long(text, 100))) > 100
    assert list(split_long("no line break " * 1000, 100)) == ["no line break " * 1000]


@given(text=st.text(st.sampled_from("abcé🎉\n"), max_size=50))
def test_the_table_is_the_vocabulary(text: str) -> None:
    tokenizer = character_vocabulary(["abcé🎉\n"])
    assert CharacterTable(tokenizer.core).encode(text).tolist() == tokenizer.encode(text)


def test_the_byte_alphabet_is_that_of_the_library() -> None:
    from tokenizers import pre_tokenizers

    assert set(byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert [by_bytes().core.decode([b]) for b in range(128)] == [chr(b) for b in range(128)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: train_bpe([], 300), "the corpus is empty"),
        (lambda: train_bpe(["", ""], 300), "the corpus is empty"),
        (lambda: character_vocabulary([""]), "the corpus is empty"),
        (lambda: train_bpe(["a"], 258), "vocab_size is 258, allowed: at least 259"),
        (lambda: train_bpe(["a"], 300, special_tokens=()), "a list whose first token ends a text"),
        (lambda: byte_vocabulary(special_tokens="<|end|>"), "a list whose first token ends a text"),
        (lambda: byte_vocabulary(special_tokens=("<|a|>", "<|a|>")), "has a token twice"),
        (lambda: character_vocabulary(["a"], special_tokens=("a",)), "special token 'a' is too short"),
    ],
)
def test_wrong_settings(make: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()  # type: ignore[operator]
