"""Sentences and words against NLTK with the same model, and the models themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alignlab.core.errors import ConfigError, DataError
from alignlab.tasks.ifeval.english import built_in_model, read_model, sentence_model
from alignlab.tasks.ifeval.sentences import SentenceModel, split_sentences
from alignlab.tasks.ifeval.words import count_capital_words, count_words, treebank_tokens

BUILT_IN = built_in_model()
# The built-in model has no collocations and few cases; this one exercises every branch.
FULL = SentenceModel(
    "full",
    BUILT_IN.abbreviations | {"e.g"},
    BUILT_IN.starters,
    frozenset({("##number##", "cats"), ("no", "dogs"), ("j", "ross")}),
    {**BUILT_IN.cases, "cats": 0b1010, "dogs": 0b100100, "say": 0b10000, "ever": 0b10010, "zebra": 0b1000000},
)
PIECES = [
    "Mr. ", "Dr. Who ", "U.S. ", "U.S. The ", "e.g. ", "i.e. ", "etc. ", "J. Ross ", "J. The ", "J. zebra ",
    "p.m. It ", "No. dogs ", "3. cats ", "1. ", "2. First ", "3.5 ", "1990. then ", "1990. say ", "... ", "… ",
    "...The ", "..", ". ", ".", "!", "?! ", ".\"", ".\" ", "\"", "'", "“", "”.", "’ ", "«", ".) ", ").", "(", "[",
    "]", "--", "- ", ", ", ": ", ";", "*", "**", "#", "$5", "%", "&", "\n", "\n\n", " ", "\t", "\u00a0", "Cats ",
    "cats ", "word", "Word ", "WORD ", "I'M ", "can't ", "CAN'T. ", "NASA's ", "NASA'S. ", "gonna ", "wanna ",
    "cannot ", "'tis ", "more'n ", "gimme.", "''", "``", "<", "a,b", "1,000", "well-known", "inc.-co. ", "日本語。",
    "é", "–", "_",
]  # fmt: skip
# NLTK 3.10 matches with the `regex` package, whose \w and \s differ from those of `re` for control characters, marks
# and fractions; these characters are the same to both.
PLAIN = st.characters(max_codepoint=0x17F, categories=("Lu", "Ll", "Po", "Ps", "Pe", "Nd", "Zs"))
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(PLAIN, max_size=3), max_size=14).map("".join)


def reference(text: str, model: SentenceModel) -> list[str]:
    """NLTK's splitter with the same knowledge."""
    punkt = pytest.importorskip("nltk.tokenize.punkt")
    parameters = punkt.PunktParameters()
    parameters.abbrev_types = set(model.abbreviations)
    parameters.sent_starters = set(model.starters)
    parameters.collocations = set(model.collocations)
    parameters.ortho_context.update(model.cases)
    return punkt.PunktSentenceTokenizer(parameters).tokenize(text)


@settings(max_examples=300)
@given(TEXTS, st.sampled_from([BUILT_IN, FULL]))
@example("Fine.  (Really.) He said \"no.\" Then 'yes!' and left... The end.", FULL)
@example("...\n.", FULL)
@example("It was 1990. say after 1991. ever after", FULL)
@pytest.mark.no_cover
def test_sentences_equal_those_of_nltk(text: str, model: SentenceModel) -> None:
    assert split_sentences(text, model) == reference(text, model)


@settings(max_examples=300)
@given(TEXTS)
@example("'Tis NASA's and I can't, wanna go? (U.S.) \"Gimme.\" more'n 'twas")
@pytest.mark.no_cover
def test_tokens_equal_those_of_nltk(text: str) -> None:
    tokenizer = pytest.importorskip("nltk.tokenize").NLTKWordTokenizer()
    assert treebank_tokens(text) == tokenizer.tokenize(text)


@settings(max_examples=200)
@given(TEXTS)
@pytest.mark.no_cover
def test_word_counts_equal_those_of_nltk(text: str) -> None:
    tokenizer = pytest.importorskip("nltk.tokenize").RegexpTokenizer(r"\w+")
    assert count_words(text) == len(tokenizer.tokenize(text))


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Mr. Smith met Dr. Jones at 5 p.m. and left.", 1),
        ("Mr. Smith left. He was late.", 2),
        ("It rains... The sun is gone.", 2),
        ("It rains... sometimes.", 1),
        ("He lives in the U.S. The end.", 2),
        ("J. Bach wrote it.", 1),
        ("1. First\n2. Second", 3),  # a number with a full stop is a sentence before a capital
        ("See e.g. the sea", 2),  # the reference's model does not know "e.g."
        ("No end", 1),
        ("", 0),
    ],
)
def test_the_built_in_model(text: str, sentences: int) -> None:
    assert len(split_sentences(text, BUILT_IN)) == sentences


def test_capitals_depend_on_sentences() -> None:
    """A possessive is divided before a sentence's full stop, and not before one inside the sentence."""
    assert count_capital_words("It was NASA's. Then it went.", BUILT_IN) == 1
    assert count_capital_words("It was NASA's.x", BUILT_IN) == 0


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "abbrev_types.txt").write_text("qq\nzz")
    (folder / "sent_starters.txt").write_text("so\n")
    (folder / "collocations.tab").write_text("##number##\tcats\n")
    (folder / "ortho_context.tab").write_text("cats\t36\nso\t110")
    return folder


def test_nltk_data_are_found_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NLTK_DATA", f"/nowhere:{tmp_path}")
    write_model(tmp_path / "tokenizers" / "punkt_tab" / "english")
    model = sentence_model()
    assert model.name == "punkt_tab"
    assert model.abbreviations == {"qq", "zz"}
    assert model.collocations == {("##number##", "cats")}
    assert model.cases == {"cats": 36, "so": 110}
    assert len(split_sentences("A qq. dog. So it is.", model)) == 2
    assert sentence_model("built-in").name == "built-in"


def test_without_nltk_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignlab.tasks.ifeval.english.data_folders", lambda: iter([Path("/nowhere")]))
    assert sentence_model().name == "built-in"
    with pytest.raises(DataError, match=r"punkt_tab data are not on this machine: python -m nltk\.downloader"):
        sentence_model("punkt_tab")
    with pytest.raises(ConfigError, match="sentences is 'spacy', allowed"):
        sentence_model("spacy")


@pytest.mark.parametrize("text", ["cats", "cats\tx", "a\t1\t2"])
def test_damaged_nltk_data(tmp_path: Path, text: str) -> None:
    folder = write_model(tmp_path / "english")
    (folder / "ortho_context.tab").write_text(text)
    with pytest.raises(DataError, match="damaged punkt_tab model"):
        read_model(folder)
    (folder / "ortho_context.tab").unlink()
    with pytest.raises(DataError, match=r"ortho_context\.tab, a part of NLTK's"):
        read_model(folder)
