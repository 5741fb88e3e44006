"""Constrained answers: the exact distribution on an enumerable language, and one error for what cannot be."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import tokenizers
import torch
from scipy.stats import chi2

from alignlab.core.errors import ConfigError, SamplerError
from alignlab.lm.constrained import Guide
from alignlab.lm.constraint_types import Constraint
from alignlab.lm.json_schema import has_finite_instance
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler
from alignlab.lm.model import GPTModel
from alignlab.lm.tokenizer import SpecialTokens, Tokenizer
from alignlab.lm.types import Completion, SamplingParams

MakeModel = Callable[..., GPTModel]
MakeLM = Callable[..., LanguageModel]
POINT = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}, "required": ["x", "y"]}
POINT["additionalProperties"] = False
NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "additionalProperties": False}


def answers(lm: LanguageModel, constraint: Constraint, count: int = 8, **params: Any) -> list[Completion]:
    sampling = SamplingParams(**({"max_tokens": 40, "n": count, "constraint": constraint} | params))  # type: ignore[arg-type]
    return LocalSampler(lm, batch_size=count).generate(["ab"], sampling)


# The distribution -----------------------------------------------------------------------------------------------------


def tiny_language(make_model: MakeModel) -> LanguageModel:
    core = tokenizers.Tokenizer(tokenizers.models.BPE({"</s>": 0, "a": 1, "b": 2, "c": 3, "ab": 4}, [("a", "b")]))
    core.add_special_tokens(["</s>"])
    core.decoder = tokenizers.decoders.Fuse()
    return LanguageModel(make_model(vocab_size=5), Tokenizer(core, SpecialTokens(eos=0)), "tiny", "test")


@torch.no_grad()
def spelled(model: GPTModel, pattern: str, temperature: float) -> dict[tuple[int, ...], float]:
    """Every token sequence whose text matches, with the probability of drawing only from what can still match."""
    text = ["", "a", "b", "c", "ab"]
    words = ("".join(letters) for length in range(1, 5) for letters in itertools.product("abc", repeat=length))
    whole = [word for word in words if re.fullmatch(pattern, word)]

    def continuations(tokens: tuple[int, ...]) -> list[int]:
        so_far = "".join(text[t] for t in tokens)
        fits = [t for t in range(1, 5) if any(w.startswith(so_far + text[t]) for w in whole)]
        return [*([0] if so_far in whole else []), *fits]

    found: dict[tuple[int, ...], float] = {}
    open_ones: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while open_ones:
        tokens, p = open_ones.pop()
        allowed = continuations(tokens)
        # Where only the end is left, the answer is whole without an end token.
        if tokens and (tokens[-1] == 0 or allowed == [0]):
            found[tokens] = p
            continue
        logits = model(torch.tensor([[1, 3, *tokens]]))[0, -1] / temperature
        shares = logits[torch.tensor(allowed)].softmax(-1).tolist()
        open_ones.extend(((*tokens, t), p * share) for t, share in zip(allowed, shares, strict=True))
    return found


@pytest.mark.no_cover
def test_answers_are_drawn_from_what_can_still_match(make_model: MakeModel) -> None:
    """Every spelling of every match, 2,000 samples, chi-square; a correct program fails with probability 1e-6.

    Each step is the model's distribution over the tokens that keep to the pattern (locally normalised; not the
    model's distribution given that the whole matches). Text that is forced would get the tokenizer's own tokens; here
    there is always a choice."""
    lm, pattern, temperature, n = tiny_language(make_model), "[ab]{1,3}c?", 2.0, 2000
    expected = spelled(lm.model, pattern, temperature)
    assert sum(expected.values()) == pytest.approx(1)
    assert len(expected) > 28  # 28 words, some with two spellings
    sampling = SamplingParams(n=n, temperature=temperature, constraint=Constraint.regex(pattern))
    drawn = [done.tokens for done in LocalSampler(lm, batch_size=500).generate(["ac"], sampling)]
    assert set(drawn) <= set(expected)
    common = {tokens: n * p for tokens, p in expected.items() if n * p >= 5}
    statistic = sum((drawn.count(tokens) - mean) ** 2 / mean for tokens, mean in common.items())
    assert len(common) >= 20
    assert chi2.sf(statistic, len(common) - 1) > 1e-6
    wrong = spelled(lm.model, pattern, 1.0)
    assert chi2.sf(sum((drawn.count(t) - n * wrong[t]) ** 2 / (n * wrong[t]) for t in common), len(common)) < 1e-6


def test_a_constraint_that_the_model_keeps_anyway_changes_nothing(make_lm: MakeLM) -> None:
    lm = make_lm()
    free = LocalSampler(lm).generate(["ab"], SamplingParams(max_tokens=30, temperature=0))[0]
    valid = free.text.partition("�")[0]
    bound = answers(lm, Constraint.grammar("start: /(?s:.)*/"), 1, max_tokens=30, temperature=0)[0]
    assert bound.text.startswith(valid)


# Each kind ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [r"[a-c]{2,5}", r"(ab|cd)+!", r"\d{3}-\d{4}", r"é+ü?", r"(?i)yes|no", r""])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_whole_answers_match_the_expression(pattern: str, temperature: float, make_lm: MakeLM) -> None:
    for done in answers(make_lm(), Constraint.regex(pattern), temperature=temperature, max_tokens=60):
        assert re.fullmatch(pattern, done.text), done
        assert len(done.logprobs) == len(done.tokens)


def test_answers_follow_a_grammar(make_lm: MakeLM) -> None:
    """Balanced brackets are no regular language."""
    lark = 'start: pair+\npair: "(" start? ")" | "[" start? "]"'
    kept = [done for done in answers(make_lm(), Constraint.grammar(lark), 20) if done.finish_reason == "stop"]
    assert len(kept) >= 10
    for done in kept:
        text = done.text
        while "()" in text or "[]" in text:
            text = text.replace("()", "").replace("[]", "")
        assert (done.text, text) == (done.text, "")


def test_answers_satisfy_a_schema_and_read_as_one_line(make_lm: MakeLM) -> None:
    for done in answers(make_lm(), Constraint.json_schema(POINT), max_tokens=60):
        jsonschema.validate(json.loads(done.text), POINT)
        assert re.fullmatch(r'\{"x": ?-?\d+, ?"y": ?-?\d+\}', done.text)
        assert done.finish_reason == "stop"


def test_two_rows_of_a_batch_are_constrained_each_by_itself(make_lm: MakeLM) -> None:
    lm, constraint = make_lm(), Constraint.json_schema(POINT)
    sampling = SamplingParams(max_tokens=50, constraint=constraint)
    words = ["ab", "hag", "deed"]
    together = LocalSampler(lm).generate(words, sampling)
    alone = [LocalSampler(lm).generate([word], sampling)[0] for word in words]
    assert [done.tokens for done in together] == [done.tokens for done in alone]
    assert len({done.text for done in together}) > 1


def test_a_stream_keeps_to_the_constraint(make_lm: MakeLM) -> None:
    sampler, sampling = LocalSampler(make_lm()), SamplingParams(max_tokens=40, constraint=Constraint.regex("[a-f]{5}!"))
    assert "".join(sampler.stream("ab", sampling)) == sampler.generate(["ab"], sampling)[0].text


def test_bias_and_penalty_choose_among_what_is_allowed(make_lm: MakeLM) -> None:
    lm = make_lm()
    c = lm.tokenizer.encode("c")[0]
    done = answers(lm, Constraint.regex("[abc]{4}"), 1, temperature=0, logit_bias=((c, 90.0),))[0]
    assert done.text == "cccc"


def test_a_tokenizer_without_an_end_token(make_model: MakeModel) -> None:
    """Neither end token nor a decoder that the library knows: characters, as the lab's own character tokenizers."""
    core = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate("abc")}, []))
    core.decoder = tokenizers.decoders.Fuse()
    lm = LanguageModel(make_model(vocab_size=3), Tokenizer(core, SpecialTokens()), "tiny", "test")
    for pattern in ("ab{1,2}", "(abc)+", "a?"):
        for done in answers(lm, Constraint.regex(pattern), max_tokens=11):
            assert re.fullmatch(pattern, done.text), done


# Wrapping up ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [20, 21, 23, 30, pytest.param(60, marks=pytest.mark.slow)])
def test_answers_are_finished_before_max_tokens(max_tokens: int, make_lm: MakeLM) -> None:
    """Strings and lists without bounds would go on for ever; they end in time, whole."""
    entry = {"type": "object", "properties": {"tag": {"type": "string"}, "more": {"type": "array"}}}
    entry["required"] = ["tag"]
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": entry, "minItems": 1}},
        "required": ["a"],
    }
    lm = make_lm()
    for temperature in (0.0, 1.0):
        for done in answers(lm, Constraint.json_schema(schema), max_tokens=max_tokens, temperature=temperature):
            jsonschema.validate(json.loads(done.text), schema)
            assert len(done.tokens) <= max_tokens


def test_without_wrapping_up_they_break_off(make_lm: MakeLM) -> None:
    cut = Constraint("json_schema", '{"type": "string"}', wrap_up=False)
    done = answers(make_lm(), cut, max_tokens=20)
    assert {c.finish_reason for c in done} == {"length"}
    whole = answers(make_lm(), Constraint.json_schema({"type": "string"}), max_tokens=20)
    assert all(isinstance(json.loads(c.text), str) for c in whole)


def test_far_from_max_tokens_wrapping_up_changes_nothing(make_lm: MakeLM) -> None:
    lm, source = make_lm(), json.dumps(POINT)
    for one, other in zip(
        answers(lm, Constraint("json_schema", source, wrap_up=True), max_tokens=60),
        answers(lm, Constraint("json_schema", source, wrap_up=False), max_tokens=60),
        strict=True,
    ):
        if len(other.tokens) < 12:
            assert one == other


def test_where_nothing_short_enough_is_known_the_answer_breaks_off(make_lm: MakeLM) -> None:
    done = answers(make_lm(), Constraint.regex("[ab]{30}"), max_tokens=10)
    assert {(c.finish_reason, len(c.tokens) <= 10) for c in done} == {("length", True)}


# What cannot be -------------------------------------------------------------------------------------------------------

UNSATISFIABLE: list[Any] = [
    False,
    {"type": "string", "minLength": 3, "maxLength": 2},
    {"type": "integer", "minimum": 5, "maximum": 4},
    {"type": "integer", "enum": ["a", "b"]},
    {"allOf": [{"type": "string"}, {"type": "number"}]},
    {"type": "object", "properties": {"a": False}, "required": ["a"]},
    {"anyOf": [{"type": "string", "minLength": 3, "maxLength": 2}, False]},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    {"$ref": "#/$defs/n", "$defs": {"n": NODE | {"required": ["next"]}, "node": {"$ref": "#/$defs/n"}}},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
]


@pytest.mark.parametrize("schema", UNSATISFIABLE, ids=json.dumps)
def test_a_schema_that_nothing_satisfies_is_one_clear_error(schema: Any, make_lm: MakeLM) -> None:
    with pytest.raises(SamplerError, match=r"^nothing satisfies the JSON schema: ") as caught:
        answers(make_lm(), Constraint.json_schema(schema))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint.regex(r"[^\x00-\U0010FFFF]"), "nothing satisfies the regular expression"),
        (Constraint.grammar("start: B\nB: /a/ & /b/"), "nothing satisfies the grammar"),
        (Constraint.regex("(a"), "the regular expression cannot be enforced: .*unclosed group"),
        (Constraint.regex("(?=a)b"), "the regular expression cannot be enforced: .*look-around"),
        (Constraint.grammar("start: foo"), "the grammar cannot be enforced: .*unknown name"),
        (Constraint.json_schema({"not": {"type": "string"}}), 'the JSON schema cannot be enforced: .*"not"'),
        (Constraint.json_schema({"type": "strng"}), "the JSON schema cannot be enforced: .*strng"),
    ],
)
def test_constraints_that_cannot_be_enforced_say_why(constraint: Constraint, message: str, make_lm: MakeLM) -> None:
    with pytest.raises(SamplerError, match=message) as caught:
        answers(make_lm(), constraint)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_that_cannot_spell_the_answer_is_told(make_model: MakeModel) -> None:
    lm = tiny_language(make_model)
    with pytest.raises(SamplerError, match="nothing satisfies the regular expression: no token can begin an answer"):
        answers(lm, Constraint.regex("x"))
    with pytest.raises(SamplerError, match="after 1 tokens no token keeps to the regular expression"):
        answers(lm, Constraint.regex("cx"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constraint.json_schema("{"), "the JSON schema is not JSON"),
        (lambda: Constraint.json_schema("[1]"), "the JSON schema is .1., allowed: an object, true or false"),
        (lambda: Constraint.json_schema({"enum": [{1, 2}]}), "cannot be written as JSON"),
        (lambda: Constraint("xml", "a"), "kind is 'xml', allowed: regex, json_schema, grammar"),
        (lambda: SamplingParams(constraint="a+"), "constraint is 'a.', allowed: a Constraint"),
    ],
)
def test_what_is_no_constraint_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


# Recursion ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "finite"),
    [
        (True, True),
        ({"$ref": "#/$defs/node", "$defs": {"node": NODE}}, True),  # the next one is optional
        ({"$ref": "#/$defs/node", "$defs": {"node": NODE | {"required": ["next"]}}}, False),
        ({"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 2}]}, True),
        ({"type": "array", "prefixItems": [{"type": "null"}, {"$ref": "#"}], "minItems": 1}, True),
        ({"type": "array", "prefixItems": [{"type": "null"}, {"$ref": "#"}], "minItems": 2}, False),
        ({"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, True),
        ({"type": "object", "additionalProperties": {"$ref": "#"}, "required": ["a"]}, False),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, False),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "null"}}}, True),
        ({"$ref": "https://elsewhere"}, True),
        ({"allOf": [{"$ref": "#/$defs/x"}], "$defs": {"x": {"allOf": [{"$ref": "#/$defs/x"}]}}}, False),
    ],
)
def test_depth_of_recursive_schemas(schema: Any, finite: bool) -> None:
    assert has_finite_instance(schema) is finite


def test_an_optional_recursion_is_written_and_validates(make_lm: MakeLM) -> None:
    schema = {"$ref": "#/$defs/node", "$defs": {"node": NODE}}
    written = [json.loads(done.text) for done in answers(make_lm(), Constraint.json_schema(schema), 10, max_tokens=60)]
    assert len(written) == 10
    assert all(jsonschema.Draft202012Validator(schema).is_valid(value) for value in written)


def test_the_guide_of_a_tokenizer_is_made_once(make_lm: MakeLM, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignlab.lm import constrained

    lm = make_lm()
    Guide(lm.tokenizer, 300, Constraint.regex("a"))
    monkeypatch.setattr(type(lm.tokenizer.core), "to_str", None, raising=False)
    assert constrained.vocabulary(lm.tokenizer, 300) is constrained.vocabulary(lm.tokenizer, 300)
