"""Each of the 25 instructions on responses made to follow it and not to, the peculiar cases included."""

from __future__ import annotations

from typing import Any

import pytest

from alignlab.core.errors import DataError
from alignlab.tasks.ifeval import INSTRUCTIONS, follows, judge, sentence_model, variants

OWN = sentence_model("built-in")

# identifier, arguments, responses that follow it, responses that do not
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "keywords:existence",
        {"keywords": ["river", "boat"]},
        ["A boat on the river.", "RIVERSIDE Boats", "steamboat\nriver"],
        ["A boat.", "The rive r and a boat"],
    ),
    ("keywords:existence", {"keywords": ["a.c"]}, ["abc", "a.c"], ["ac", "a\nc"]),  # a regular expression
    (
        "keywords:frequency",
        {"keyword": " tea ", "frequency": 2, "relation": "at least"},
        ["tea, TEA", "steam and teacups and tea"],
        ["one tea", "t ea te a"],
    ),
    (
        "keywords:frequency",
        {"keyword": "tea", "frequency": 2, "relation": "less than"},
        ["one tea", "coffee"],
        ["tea tea", "teatea"],
    ),
    ("keywords:frequency", {"keyword": "aa", "frequency": 2, "relation": "at least"}, ["aaaa"], ["aaa"]),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["can", "ride"]},
        ["A canal and a bride", "candid"],
        ["I CAN.", "can't", "a ride"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "Q", "let_frequency": 2, "let_relation": "at least"},
        ["Quick queue", "qq"],
        ["Quick", "none"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 3, "let_relation": "less than"},
        ["# one ## no"[:6], "none"],
        ["###", "# # #"],
    ),
    ("keywords:letter_frequency", {"letter": "İ", "let_frequency": 1, "let_relation": "less than"}, ["İ"], []),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        ["One. Two! Three?", "One.\nTwo.\nThree.", "Dr. No came. He saw. He left."],
        ["One. Two.", "Dr. No met Mr. Smith in the U.S. embassy.", "1.5 and 2.5 and 3.5", "One.Two.Three."],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "less than"},
        ["One", "It was 5 p.m. when I left", 'He said "no" loudly.'],
        ["One. Two.", 'He said "no." loudly', "See e.g. this one", "Really?! Yes"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": "at least"},
        ["one two three four", "well-known, isn't", "a_b 1 é 字"],
        ["one two three", "--- *** ---", "a_b_c_d"],
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["don't"], ["don't go"]),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***a***b***", "a *** b", "a***b\n***\n"],
        ["a", "a\n***\n\n***\nb", "a\n\nb", "a***b***c", "a\n******\nb"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "It"},
        ["One.\n\nIt is.", "One.\n\n'it's so", 'One.\n\n"IT", he said', "One.\n\nIt\n\n", "One.\n\n'\"it is"],
        ["It is.", "One.\n\nIts", "One.\nIt is.", "It\n\nOne\n\nIt", "One.\n\n \n\nIt is.", "One.\n\n(it)"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] and [address]", "[][x]", "[a [b] c] [d]", "[link](url) [x]"],
        ["[name]", "[na\nme] [x]", "(a) (b)", "[a [b] c]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. Write.", "p.s. hello", "P. S. hello", "so far p.s.", "P.S.\nmore after it"],
        ["PS: hello", "P.S hello", "P.P.S hello", "Bye."],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["P.P.S. hi", "p. p. s hi", "P.P.S", "P.P.Some"],
        ["P.S. hi", "PPS hi", "P.P.  S"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "NB:"}, ["nb: this", "see NB: this"], ["NB this"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\n- b", "* a\n  - b", "intro\n*a\n*b", "---\n* a", "* a\n\n* b"],
        ["* a", "** a\n** b", "a\nb", "• a\n• b", "* a\n* b\n* c", "text * a\ntext - b", "1. a\n2. b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well: My answer is maybe. Really."],
        ["My answer is yes", "my answer is no.", "yes."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** and **b**", "*a* then **b**", "***a*** *b*"],
        ["*a*", "* * and *a*", "*a\nb* c", "**** ****", "a*b"],
    ),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, ["**a**"], ["****", "** **"]),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": " Section ", "num_sections": 2},
        ["Section 1\na\nSection 2\nb", "Section1 a Section22 b", "Section 1 Section 2 Section 3"],
        ["SECTION 1\nSECTION 2", "Section one, Section two", "Section 1", "Section  1 Section  2"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', "[1, 2]", '```json\n{"a": 1}\n```', '``` {"a": [1]} ```', "3", '"text"', '```JSON\n"a"```', "NaN"],
        ["{'a': 1}", 'Here: {"a": 1}', '{"a": 1,}', "```json", "text", '```jSON\n{"a": 1}\n```', "[" * 100_000],
    ),
    (
        "detectable_format:title",
        {},
        ["<<Joy>>", "a <<b>> c", "<<<<a>>>>", "<<>> <<a>>", "<<a> b>>"],
        ["<Joy>", "<<>>", "<< >>", "<<a\nb>>", "«Joy»"],
    ),
    (
        "combination:two_responses",
        {},
        ["a\n******\nb", "******a******b******", "a****** b"],
        ["a", "a******a", "a****** a ", "a******b******c", "a************b", "a***b", "a*******"[:7]],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Tell me why. "},
        ["Tell me why. Because.", "  TELL ME WHY.", "tell me why.x"],
        ["Because. Tell me why.", "Tell me  why.", '"Tell me why."'],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Any other questions? "},
        ["Done. Any other questions?", "any OTHER questions?\n", '"Done. Any other questions?"'],
        ["Any other questions? No.", "Any other questions", "Any other questions?'"],
    ),
    (
        "startend:quotation",
        {},
        ['"a"', ' "a" b "c"\n', '""'],
        ['"', 'a"', '"a', "'a'", "“a”", '"a".'],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 3, "capital_relation": "at least"},
        ["NASA AND ESA", "I AM I", "CAN'T GO", "A.B, C1 and D-E", "X; NASA's Y.", "cannot CANNOT I"],
        ["Nasa And ESA", "NASA and ESA", "1 2 3", "NASA's\nbest AND", "WELL-KNOWN IT"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 1, "capital_relation": "less than"},
        ["All quiet here.", "Nothing"],
        ["A cat", "OK?"],
    ),
    ("punctuation:no_comma", {}, ["a; b", "a، b", "a，b"], ["a, b", "1,000"]),
]  # fmt: skip

ENGLISH = "The weather in the mountains was cold and the travellers were looking for a place to sleep"
GERMAN = "Das Wetter in den Bergen war kalt und die Reisenden suchten einen Platz zum Schlafen"
LANGUAGE_CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "language:response_language",
        {"language": "de"},
        [GERMAN, GERMAN.upper(), "123 456"],
        [ENGLISH, "これは日本語です"],
    ),
    ("language:response_language", {"language": "hi"}, ["यह एक लंबा वाक्य है जो हिन्दी में लिखा गया है"], [ENGLISH]),
    ("change_case:english_capital", {}, [ENGLISH.upper()], [ENGLISH, GERMAN.upper(), "123", ENGLISH.upper() + "s"]),
    ("change_case:english_lowercase", {}, [ENGLISH.lower()], [ENGLISH, GERMAN.lower(), "123", ENGLISH.lower() + "I"]),
]


@pytest.mark.parametrize(("identifier", "arguments", "good", "bad"), CASES)
def test_followed_and_not(identifier: str, arguments: dict[str, Any], good: list[str], bad: list[str]) -> None:
    for response in good:
        assert follows(identifier, arguments, response, OWN), response
    for response in [*bad, "", " \n"]:  # a blank response follows nothing, whatever it avoids
        assert not follows(identifier, arguments, response, OWN), response


@pytest.mark.parametrize(("identifier", "arguments", "good", "bad"), LANGUAGE_CASES)
def test_languages(identifier: str, arguments: dict[str, Any], good: list[str], bad: list[str]) -> None:
    pytest.importorskip("langdetect")
    test_followed_and_not(identifier, arguments, good, bad)


def test_all_twenty_five_have_cases() -> None:
    assert len(INSTRUCTIONS) == 25
    assert {case[0] for case in CASES + LANGUAGE_CASES} == set(INSTRUCTIONS)


def test_language_detection_repeats_itself() -> None:
    """A text between languages, on which an unseeded langdetect changes its mind, has one verdict."""
    pytest.importorskip("langdetect")
    assert len({follows("language:response_language", {"language": "en"}, "ok no", OWN) for _ in range(20)}) == 1


def test_case_decides_without_langdetect(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not in capitals needs no detection, and what is asks for the package by its extra."""
    from alignlab.core.errors import MissingExtraError
    from alignlab.tasks.ifeval import language

    def missing(module: str, extra: str) -> None:
        raise MissingExtraError(f"{module} is missing, pip install 'alignlab[{extra}]'")

    monkeypatch.setattr(language, "import_extra", missing)
    assert not follows("change_case:english_capital", {}, "Not in capitals", OWN)
    with pytest.raises(MissingExtraError, match=r"alignlab\[ifeval\]"):
        follows("change_case:english_capital", {}, "IN CAPITALS", OWN)


def test_eight_variants() -> None:
    assert variants("*a*\nb\nc*") == [
        "*a*\nb\nc*", "b\nc*", "*a*\nb", "b",
        "a\nb\nc", "b\nc", "a\nb", "b",
    ]  # fmt: skip
    assert variants("one") == ["one", "", "", "", "one", "", "", ""]


@pytest.mark.parametrize(
    ("identifier", "arguments", "response"),
    [
        ("detectable_format:json_format", {}, 'Sure, here it is:\n{"a": 1}'),
        ("startend:end_checker", {"end_phrase": "The end."}, "The end.\n\nI hope that helps!"),
        ("startend:quotation", {}, 'Here:\n"text"\nGood luck!'),
        ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi"}, "**Say hi**\nhi"),
        ("punctuation:no_comma", {}, "Sure, I can.\nNo commas here"),
    ],
)
def test_loose_forgives(identifier: str, arguments: dict[str, Any], response: str) -> None:
    verdict = judge(response, [(identifier, arguments)], OWN)
    assert (verdict.strict, verdict.loose) == ((False,), (True,))


def test_a_blank_variant_follows_nothing() -> None:
    """Without its only line nothing is left, and nothing has no comma."""
    assert judge("a, b", [("punctuation:no_comma", {})], OWN).loose == (False,)


def test_loose_includes_strict() -> None:
    for identifier, arguments, good, bad in CASES:
        for response in good + bad:
            verdict = judge(response, [(identifier, arguments)], OWN)
            assert verdict.all_loose or not verdict.all_strict


@pytest.mark.parametrize(
    ("identifier", "arguments", "message"),
    [
        ("punctuation:no_dots", {}, "the instruction 'punctuation:no_dots' is unknown, allowed: change_case"),
        (["a"], {}, r"the instruction \['a'\] is unknown"),
        ("punctuation:no_comma", {"n": 1}, "has the unknown argument 'n', allowed: none"),
        ("keywords:existence", {}, "lacks the argument 'keywords'"),
        ("keywords:existence", {"keywords": None}, "lacks the argument 'keywords'"),
        ("keywords:existence", {"keywords": []}, "allowed: a non-empty list of texts"),
        ("keywords:existence", {"keywords": ["("]}, "a valid regular expression"),
        ("keywords:existence", {"keywords": "word"}, "allowed: a non-empty list of texts"),
        ("keywords:frequency", {"keyword": " ", "frequency": 1, "relation": "at least"}, "keyword of"),
        ("keywords:frequency", {"keyword": "a", "frequency": -1, "relation": "at least"}, "frequency of .* is -1"),
        ("keywords:frequency", {"keyword": "a", "frequency": True, "relation": "at least"}, "is True"),
        ("keywords:frequency", {"keyword": "a", "frequency": 1.5, "relation": "at least"}, "is 1.5"),
        ("keywords:frequency", {"keyword": "a", "frequency": float("inf"), "relation": "at least"}, "is inf"),
        ("keywords:frequency", {"keyword": "a", "frequency": 1, "relation": "at most"}, '"less than" or "at least"'),
        ("keywords:letter_frequency", {"letter": "ab", "let_frequency": 1, "let_relation": "at least"}, "one char"),
        ("language:response_language", {"language": "xx"}, "allowed: one of ar, bg"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"},
            "nth_paragraph of .* is 3, allowed: at most num_paragraphs, 2",
        ),
    ],
)
def test_wrong_arguments(identifier: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        follows(identifier, arguments, "text", OWN)


def test_whole_floats_and_nulls_are_read() -> None:
    """Some copies of the data hold every argument of every instruction, null or as a float."""
    assert follows("length_constraints:number_words", {"num_words": 2.0, "relation": "at least", "letter": None}, "a b")
    given = {"num_paragraphs": 1.0, "nth_paragraph": 1.0, "first_word": "a"}
    assert follows("length_constraints:nth_paragraph_first_word", given, "a b")
