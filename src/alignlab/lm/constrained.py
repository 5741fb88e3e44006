"""Constrained decoding: at every step, which tokens keep the answer inside a regular expression, schema or grammar.

The automaton over the vocabulary is `llguidance`'s (Earley parsing over derivatives of regular expressions); here are
what joins it to our tokenizers, what refuses a constraint that nothing satisfies, and the wrapping up before
`max_tokens`.
"""

from __future__ import annotations

import json
import weakref
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from alignlab.core.errors import SamplerError
from alignlab.core.extras import import_extra
from alignlab.lm.constraint_types import Constraint
from alignlab.lm.json_schema import has_finite_instance
from alignlab.lm.tokenizer import Tokenizer

WRAP_UP_ROOM = 48
"""A row looks for a way to the end in its last so many tokens (more where even the shortest answer is long)."""
CLOSERS, QUOTE, TEXT_ONLY = ("}", "]", '"', ","), ('"',), ("z", "Z", "@")
"""What finishes the parts of a JSON document soonest, what finishes a string, and what tells that a part is one:
characters of no other."""
FILLERS = ("1", "@", "a", ".", "0", ":", "1", "-")
"""What stands in turn where a part may not end yet: formats want signs between letters and digits."""
MOST_FILLERS, PAUSE, SURVEY = 64, 8, 16
"""Fillers of one way; tokens from one look without a find to the next, and from one look far from the end to the next.
"""
CHARACTERS = [chr(i) for i in range(33, 127) if chr(i) != "\\"]
"""What may have to stand before an end: no backslash, after which a quotation mark ends nothing."""
TRIED = 32
"""Tokens tried for one that makes the answer whole, where no printable character may come next."""
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""Patterns: one space at most, after commas and colons. Free to, small models write blanks for ever."""
NAMES = {"regex": "regular expression", "json_schema": "JSON schema", "grammar": "grammar"}

_VOCABULARIES: weakref.WeakKeyDictionary[Tokenizer, dict[int, Any]] = weakref.WeakKeyDictionary()


def vocabulary(tokenizer: Tokenizer, vocab_size: int) -> Any:
    """`llguidance`'s view of a tokenizer, for a model with `vocab_size` tokens.

    It takes a second for a large vocabulary and is kept as long as the tokenizer lives.
    """
    known = _VOCABULARIES.setdefault(tokenizer, {})
    if vocab_size not in known:
        llguidance = import_extra("llguidance", "constrained")
        # A tokenizer without an end token gets one past the vocabulary: it stands for "nothing may follow".
        ends, size = sorted(tokenizer.eos_ids) or [vocab_size], vocab_size + 1
        try:
            known[vocab_size] = llguidance.LLTokenizer(tokenizer.core.to_str(), n_vocab=size, eos_token=ends)
        except ValueError:  # it reads byte-level and SentencePiece vocabularies; others are spelled out for it
            spelled = llguidance.TokenizerWrapper(Spelling(tokenizer, size, ends[0]))
            known[vocab_size] = llguidance.LLTokenizer(spelled, n_vocab=size, eos_token=ends)
    return known[vocab_size]


class Spelling:
    """A vocabulary as text: what each token adds behind another one."""

    def __init__(self, tokenizer: Tokenizer, size: int, eos_token_id: int) -> None:
        special = set(tokenizer.control.values())
        anchor = next((i for i in range(tokenizer.vocab_size) if i not in special and tokenizer.decode([i])), 0)
        before = len(tokenizer.decode([anchor]))
        pieces = ["" if i in special else tokenizer.decode([anchor, i])[before:] for i in range(tokenizer.vocab_size)]
        # A token without text is none that an answer may use.
        self.special_token_ids = [i for i in range(size) if i >= len(pieces) or not pieces[i]]
        self.tokens = [f"<|{i}|>".encode() if i >= len(pieces) else pieces[i].encode() for i in range(size)]
        self.tokens = [piece or f"<|{i}|>".encode() for i, piece in enumerate(self.tokens)]
        self.eos_token_id, self.bos_token_id = eos_token_id, tokenizer.bos_id
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


class Guide:
    """A constraint compiled for one vocabulary: where every row that obeys it starts.

    Raises `SamplerError` where nothing satisfies the constraint, or it cannot be read or is not supported, and
    `MissingExtraError` without `llguidance`.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, constraint: Constraint) -> None:
        llguidance = import_extra("llguidance", "constrained")
        self.constraint, self.vocab_size, self.name = constraint, vocab_size, NAMES[constraint.kind]
        self.end_ids = tokenizer.eos_ids
        self.everything = torch.ones(vocab_size, dtype=torch.bool)
        words = vocabulary(tokenizer, vocab_size)
        self._matcher = llguidance.LLMatcher(words, _compile(llguidance.LLMatcher, constraint), log_level=0)
        if self._matcher.is_error():
            raise SamplerError(_refusal(self.name, self._matcher.get_error()))
        self.closers, self.quote, self.fillers, self.text_only, self.characters = (
            [ids[0] for piece in pieces if len(ids := words.greedy_tokenize(piece)) == 1]
            for pieces in (CLOSERS, QUOTE, FILLERS, TEXT_ONLY, CHARACTERS)
        )
        self.zone = WRAP_UP_ROOM
        start = self.start()
        start.allowed()
        way = start.way_out(8 * WRAP_UP_ROOM) if constraint.wrap_up else None
        self.zone = max(WRAP_UP_ROOM, 2 * len(way or ()))
        """With more than this many tokens left a row goes on freely, unless what it has begun takes longer to end."""

    def start(self) -> GuideState:
        """The state of an answer of which nothing is written."""
        return GuideState(self, self._matcher.deep_copy())


class GuideState:
    """What one answer has written so far, as its constraint sees it."""

    def __init__(self, guide: Guide, matcher: Any) -> None:
        self.guide, self._matcher = guide, matcher
        self.written = 0
        self._mask: Tensor | None = None
        self._way: list[int] | None = None
        self._next_way: list[int] | None = None
        self._zone, self._look_again = guide.zone, 0

    @property
    def finished(self) -> bool:
        """Whether the answer is whole and nothing but an end token may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def copy(self) -> GuideState:
        """The same state, to be advanced by itself."""
        twin = GuideState(self.guide, self._matcher.deep_copy())
        twin.written, twin._mask, twin._way = self.written, self._mask, self._way
        twin._zone, twin._look_again = self._zone, self._look_again
        return twin

    def allowed(self) -> Bool[Tensor, " vocab"]:
        """True at every token that may come next; raises `SamplerError` where no token keeps to the constraint."""
        if self._mask is None:
            self._mask = self._mask_of(self._matcher)
            if self._matcher.is_error() or not (bool(self._mask.any()) or self._matcher.is_accepting()):
                self._mask = None
                raise SamplerError(_dead_end(self.guide.name, self.written, self._matcher.get_error()))
        return self._mask

    def settle(self, token: int, remaining: int) -> int | None:
        """The token to write with `remaining` left, this one included; None: end here, the answer is whole.

        It is `token`, unless the answer could not be finished after it: then the next one of a way that does finish.
        """
        if not bool(self.allowed()[token]):
            return None  # nothing was allowed but the end that this tokenizer has no token for
        if not self.guide.constraint.wrap_up or token in self.guide.end_ids:
            return token
        if self.written % SURVEY == 0 and remaining > self._zone:
            self._zone = max(self._zone, 2 * len(self.way_out(remaining) or ()))
        if remaining > self._zone or self._look_again > self.written:
            return token
        after = self.copy()
        after.advance(token)
        self._next_way = after.way_out(remaining - 1)
        if self._next_way is not None:
            return token
        way = self._way if self._way is not None else self.way_out(remaining)
        if way is None:  # none is known that is short enough: the answer may break off at its last token
            self._look_again = self.written + PAUSE
            return token
        self._next_way = way[1:]
        return way[0] if way else min(self.guide.end_ids, default=None)

    def advance(self, token: int) -> None:
        """Write a token that is allowed."""
        if not self._matcher.consume_token(token):
            raise SamplerError(f"token {token} breaks the {self.guide.name} that the answer must match")
        self.written += 1
        self._mask, self._way, self._next_way = None, self._next_way, None

    def way_out(self, limit: int) -> list[int] | None:
        """Tokens, `limit` at most, that make the answer whole; not always the fewest, and None where none are found.

        Goes by simple rules: what is forced, what closes, what lets close, and fillers in turn.
        """
        matcher, way, fillers = self._matcher.deep_copy(), list[int](), 0
        while not matcher.is_accepting():
            step, fills = self._closing_step(matcher, fillers) if len(way) < limit else ([], False)
            if not step or fillers > MOST_FILLERS:
                return None
            fillers += fills
            way.extend(step)
        return way if len(way) <= limit else None

    def _closing_step(self, matcher: Any, turn: int) -> tuple[list[int], bool]:
        """The next tokens of a way out, consumed, and whether they are no more than filler."""
        forced = [token for token in matcher.compute_ff_tokens() if token not in self.guide.end_ids]
        if forced and (taken := matcher.try_consume_tokens(forced)):
            return forced[:taken], False
        mask, guide = self._mask_of(matcher), self.guide
        mask[list(guide.end_ids)] = False
        # Inside a string brackets are characters like others.
        closers = guide.quote if any(bool(mask[token]) for token in guide.text_only) else guide.closers
        found = next((token for token in closers if bool(mask[token])), None)
        if found is None:
            found = self._finishing(matcher, mask, closers)
        fills = found is None
        if found is None:
            start = turn % max(1, len(guide.fillers))
            turned = guide.fillers[start:] + guide.fillers[:start]
            found = next((token for token in turned if bool(mask[token])), int(mask.int().argmax()))
        return ([found] if bool(mask[found]) and matcher.consume_token(found) else []), fills

    def _finishing(self, matcher: Any, mask: Tensor, closers: list[int]) -> int | None:
        """The first character after which the answer is whole, or its part may be closed."""
        characters = [token for token in self.guide.characters if bool(mask[token])]
        for token in characters or mask.nonzero()[:TRIED, 0].tolist():
            probe = matcher.deep_copy()
            probe.consume_token(token)
            if probe.is_accepting() or any(probe.validate_tokens([closer]) for closer in closers):
                return int(token)
        return None

    def _mask_of(self, matcher: Any) -> Tensor:
        packed = torch.frombuffer(bytearray(matcher.compute_bitmask()), dtype=torch.uint8)
        bits = packed[:, None] >> torch.arange(8, dtype=torch.uint8) & 1
        return bits.view(-1)[: self.guide.vocab_size].bool()


def _compile(matcher: Any, constraint: Constraint) -> str:
    """The constraint in the form that `llguidance` reads."""
    if constraint.kind == "regex":
        return str(matcher.grammar_from_regex(constraint.source))
    if constraint.kind == "grammar":
        return str(matcher.grammar_from_lark(constraint.source))
    schema = json.loads(constraint.source)
    if not has_finite_instance(schema):
        raise SamplerError("nothing satisfies the JSON schema: it demands itself inside itself without end")
    if isinstance(schema, bool):
        schema = {} if schema else {"allOf": [False]}
    return str(matcher.grammar_from_json_schema(schema, overrides=JSON_STYLE))


def _clean(error: str) -> str:
    """The library's reason in one line, without the dump of its state."""
    return " ".join(error.split("<state>")[0].split())[:300]


def _refusal(name: str, error: str) -> str:
    reason = _clean(error)
    if reason.startswith("Unsatisfiable schema"):
        return f"nothing satisfies the {name}: {reason.partition(': ')[2]}"
    return f"the {name} cannot be enforced: {reason}"


def _dead_end(name: str, written: int, error: str) -> str:
    reason = _clean(error)
    if written == 0 and (not reason or reason.startswith("NoExtension")):
        return f"nothing satisfies the {name}: no token can begin an answer"
    return f"after {written} tokens no token keeps to the {name}" + (f" ({reason})" if reason else "")
