"""Speculative decoding: a cheap drafter proposes several tokens, the model checks them all in one pass.

Exact: what comes out is distributed as the model's own samples. Where the drafter proposes one fixed token (prompt
lookup, or temperature 0), each position draws with the number that plain decoding would use there, so even the tokens
are the same. A draft model that samples is followed by the rule of Leviathan et al. 2023, which accepts more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from alignlab.core.config import require
from alignlab.core.errors import SamplerError
from alignlab.core.rng import derive_seed, torch_generator
from alignlab.lm.cache import KVCache
from alignlab.lm.constrained import Guide, GuideState
from alignlab.lm.generate import NOT_FINITE, Row, check_bias, check_prompts, count_seen, make_rows
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.model import GPTModel
from alignlab.lm.sampling import choose, draw, filter_logits, shape_logits
from alignlab.lm.types import GenerationError, SamplingParams


@dataclass
class Tally:
    """How speculation went; acceptance is `accepted / drafted`, tokens a pass `written / passes`."""

    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    written: int = 0


@dataclass(frozen=True)
class Speculation:
    """Draft up to `tokens` at a time, by a model or (without one) by looking the last words up in the text so far."""

    draft: LanguageModel | None = None
    """A smaller model with the same tokenizer; None looks up (Saxena 2023, "prompt lookup decoding")."""
    tokens: int = 4
    """Most tokens drafted for one pass."""
    ngram: int = 3
    """Longest ending that is looked up; shorter ones follow, down to one token."""
    tally: Tally = field(default_factory=Tally, compare=False)
    """Counts over all calls."""

    def __post_init__(self) -> None:
        require(self.tokens >= 1, "tokens", self.tokens, "a whole number of at least 1")
        require(self.ngram >= 1, "ngram", self.ngram, "a whole number of at least 1")


def check_draft(lm: LanguageModel, how: Speculation) -> None:
    """A draft model whose tokens mean something else is a `SamplerError`."""
    if how.draft is None or how.draft.tokenizer is lm.tokenizer:
        return
    ours, theirs = (m.tokenizer.core.get_vocab(with_added_tokens=True) for m in (lm, how.draft))
    if ours == theirs:
        return
    differ = sum(theirs.get(piece) != i for piece, i in ours.items()) + len(theirs.keys() - ours.keys())
    raise SamplerError(
        f"{how.draft.name} cannot draft for {lm.name}: {differ} entries of their vocabularies differ; "
        "take a draft model with the same tokenizer"
    )


class Reader:
    """A model with what it has read of one text; another text is read from where it first differs."""

    def __init__(self, model: GPTModel, capacity: int) -> None:
        weight = model.embed.weight
        self.model, self.text = model, list[int]()
        self.cache = KVCache(model.config, 1, capacity, device=weight.device, dtype=weight.dtype)

    def logits(self, text: Sequence[int], last: int) -> Float[Tensor, "last vocab"]:
        """Logits after each of the `last` last tokens of `text`."""
        known = 0
        limit = min(len(self.text), len(text) - last)
        while known < limit and self.text[known] == text[known]:
            known += 1
        self.text = self.text[:known]
        self.cache.length = known
        self.cache.next_position.fill_(known)
        new = torch.tensor([text[known:]], device=self.cache.positions.device)
        hidden = self.model.hidden_states(new, cache=self.cache)[0, -last:]
        self.text = list(text)
        return self.model.unembed(hidden).float()


def look_up(text: Sequence[int], ngram: int, count: int) -> list[int]:
    """Up to `count` tokens that followed the latest earlier occurrence of the text's ending.

    The longest ending of at most `ngram` tokens that occurs earlier is taken; nothing where none does.
    """
    for size in range(min(ngram, len(text) - 1), 0, -1):
        ending = list(text[-size:])
        for start in range(len(text) - size - 1, -1, -1):
            if text[start] == ending[0] and list(text[start : start + size]) == ending:
                return list(text[start + size : start + size + count])
    return []


@dataclass
class Draft:
    """Proposed tokens, what may stand at each position and after them, and the distributions they were drawn from."""

    tokens: list[int] = field(default_factory=list)
    allowed: list[Tensor] = field(default_factory=list)
    probabilities: list[Tensor] = field(default_factory=list)


class Speculator:
    """The two readers, and one round of drafting and checking."""

    def __init__(self, lm: LanguageModel, sampling: SamplingParams, how: Speculation, capacity: int) -> None:
        self.sampling, self.how, self.model = sampling, how, lm.model
        self.target = Reader(lm.model, capacity)
        self.helper = (
            None if how.draft is None else Reader(how.draft.model, min(capacity, how.draft.model.config.n_ctx))
        )

    @property
    def samples(self) -> bool:
        """Whether drafts are drawn at random."""
        return self.helper is not None and self.sampling.temperature > 0

    def draft(self, row: Row, text: list[int], generator: torch.Generator) -> Draft:
        """Tokens that may come next, at most what the row still needs besides the pass's own."""
        count = min(self.how.tokens, row.budget - len(row.tokens) - 1)
        found = Draft()
        state = None if row.state is None else row.state.copy()
        guesses = [] if self.helper else look_up(text, self.how.ngram, count)
        for i in range(count + 1):
            if state is not None and not self._allow(state, found):
                break
            if i == count or (state is not None and state.finished):
                break
            token = self._guess(text, found, generator) if self.helper else guesses[i] if i < len(guesses) else None
            if token is None or (state is not None and not bool(found.allowed[-1][token])):
                break
            found.tokens.append(token)
            if state is not None:
                if token in state.guide.end_ids:
                    found.allowed.append(state.guide.everything)
                    break
                state.advance(token)
        return found

    @staticmethod
    def _allow(state: GuideState, found: Draft) -> bool:
        """Add what may come next; a last guess that leads nowhere is taken back."""
        try:
            found.allowed.append(state.allowed())
        except SamplerError:
            if not found.tokens:
                raise
            found.tokens.pop()
            del found.probabilities[len(found.tokens) :]
            return False
        return True

    def _guess(self, text: list[int], found: Draft, generator: torch.Generator) -> int | None:
        """The draft model's next token, and into `found` the distribution that it is drawn from."""
        assert self.helper is not None
        whole, limits = text + found.tokens, self.helper.model.config
        # (A vocabulary may be padded to another size; what only one model has, no tokenizer writes.)
        if len(whole) > limits.n_ctx or max(whole) >= limits.vocab_size:
            return None
        logits = self._fit(self.helper.logits(whole, 1)).to(self.model.embed.weight.device)
        seen = self._seen(text, found.tokens)[-1:] if self.sampling.repetition_penalty != 1.0 else None
        mask = found.allowed[-1].to(logits.device)[None] if found.allowed else None
        uniform = torch.rand(1, generator=generator).to(logits.device)
        if self.sampling.temperature == 0:
            return int(choose(logits, self.sampling, uniform, seen, mask))
        filtered = filter_logits(shape_logits(logits, self.sampling, seen, mask), self.sampling)
        if not bool(filtered.logsumexp(-1).isfinite()):
            return None
        found.probabilities.append(filtered.softmax(-1))
        return int(draw(filtered, uniform))

    def _fit(self, logits: Tensor) -> Tensor:
        """Logits over the model's vocabulary: the draft model's may be padded to another size."""
        short = self.model.config.vocab_size - logits.shape[-1]
        return F.pad(logits, (0, short), value=-math.inf) if short > 0 else logits[:, : self.model.config.vocab_size]

    def _seen(self, text: list[int], drafted: Sequence[int]) -> Int[Tensor, "position vocab"]:
        """Which tokens stand before each drafted position, and before the one after them."""
        device, vocab_size = self.model.embed.weight.device, self.model.config.vocab_size
        seen = count_seen([Row(0, text, 0, torch.zeros(0))], vocab_size, device).repeat(len(drafted) + 1, 1)
        for i, token in enumerate(drafted):
            seen[i + 1 :, token] = 1
        return seen

    def check(self, row: Row, text: list[int], draft: Draft, generator: torch.Generator) -> list[tuple[int, float]]:
        """One pass of the model over the draft: the tokens that stand, with one more, and their log-probabilities."""
        width = len(draft.tokens) + 1
        logits = self.target.logits(text + draft.tokens, width)
        device = logits.device
        seen = self._seen(text, draft.tokens) if self.sampling.repetition_penalty != 1.0 else None
        allowed = torch.stack(draft.allowed).to(device) if draft.allowed else None
        if self.samples and draft.tokens:
            filtered = filter_logits(shape_logits(logits, self.sampling, seen, allowed), self.sampling)
            uniform = torch.rand(width + 1, generator=generator).to(device)
            tokens = accept(filtered.softmax(-1), torch.cat(draft.probabilities), draft.tokens, uniform)
        else:
            start = len(row.tokens)
            uniform = row.uniforms[start : start + width].to(device)
            chosen = choose(logits, self.sampling, uniform, seen, allowed).tolist()
            same = next((i for i, token in enumerate(draft.tokens) if chosen[i] != token), width - 1)
            tokens = chosen[: same + 1]
        own = logits[: len(tokens)]
        gained = own.gather(1, torch.tensor(tokens, device=device)[:, None]).squeeze(1) - own.logsumexp(-1)
        self.how.tally.passes += 1
        self.how.tally.drafted += len(draft.tokens)
        self.how.tally.accepted += len(tokens) - 1
        return list(zip(tokens, gained.tolist(), strict=True))


def accept(
    target: Float[Tensor, "position_and_one vocab"],
    drafted: Float[Tensor, "position vocab"],
    tokens: Sequence[int],
    uniform: Float[Tensor, " position_and_two"],
) -> list[int]:
    """The accepted beginning of `tokens` and one more, distributed as `target` (Leviathan et al. 2023, alg. 1).

    A token x drawn from q stands with probability min(1, p(x) / q(x)); at the first that falls, another is drawn from
    max(p - q, 0), normalised, and after all that stand from the next p.
    """
    places = torch.arange(len(tokens), device=target.device)
    ids = torch.tensor(tokens, device=target.device)
    falls = (uniform[:-2] * drafted[places, ids] >= target[places, ids]).tolist()
    stand = falls.index(True) if True in falls else len(tokens)
    rest = target[stand]
    if stand < len(tokens):
        left = (rest - drafted[stand]).clamp(min=0)
        # Where rounding alone made it fall, nothing is left.
        rest = left if bool(left.sum() > 0) else rest
    return [*tokens[:stand], int(draw(rest.log()[None], uniform[-1:]))]


@torch.no_grad()
def decode_speculatively(
    lm: LanguageModel,
    prompts: Sequence[list[int]],
    sampling: SamplingParams,
    how: Speculation,
    *,
    seeds: Sequence[int],
    guide: Guide | None = None,
) -> Iterator[list[Row]]:
    """Continue the prompts one after the other (speculation is for few rows); yields the row after each token.

    Rows end as in `decode`, and fail as there: alone, with a `GenerationError` after the others. What consecutive
    prompts have in common is read once.
    """
    n_ctx = lm.model.config.n_ctx
    check_draft(lm, how)
    check_prompts(prompts, n_ctx)
    check_bias(sampling, lm.model.config.vocab_size)
    rows = make_rows(prompts, sampling, n_ctx, seeds, guide)
    speculator = Speculator(lm, sampling, how, max(len(row.prompt) + row.budget for row in rows))
    errors: dict[int, str] = {}
    for row, seed in zip(rows, seeds, strict=True):
        generator = torch_generator(derive_seed(seed, "speculation"))
        try:
            while not row.done:
                text = row.prompt + row.tokens
                found = speculator.check(row, text, speculator.draft(row, text, generator), generator)
                for token, logprob in found:
                    written = _write(row, token, logprob, lm.tokenizer.eos_ids)
                    how.tally.written += 1
                    yield [row]
                    if row.done or written != token:
                        break
        except SamplerError as error:
            errors[row.index], row.done = str(error), True
    if errors:
        raise GenerationError(errors)


def _write(row: Row, token: int, logprob: float, end_ids: frozenset[int]) -> int | None:
    """Give the row its next token, or what its constraint needs instead of it; returns what was written."""
    if not math.isfinite(logprob):
        raise SamplerError(NOT_FINITE.format(len(row.prompt) + len(row.tokens)))
    written = token if row.state is None else row.state.settle(token, row.budget - len(row.tokens))
    if written is None:
        row.ended = row.done = True
    else:
        row.take(written, logprob, end_ids)
    return written
