"""From texts to token batches: preference pairs, supervised examples, and the responses a policy gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from alignlab.core.errors import DataError
from alignlab.lm.tokenizer import Tokenizer
from alignlab.lm.types import Prompt

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class PreferencePair:
    """Two responses to one prompt, the better one first."""

    prompt: Prompt
    """Raw text or messages, without the response."""
    chosen: str
    """The preferred response."""
    rejected: str
    """The other response."""
    probability: float = 1.0
    """How sure the judge is that `chosen` is the better one; 1 is a hard label."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise DataError(f"probability of a preference pair is {self.probability!r}, allowed: a number in [0, 1]")


def check_pairs(pairs: Sequence[PreferencePair]) -> None:
    """Refuse a set of pairs that cannot teach a preference: an empty one, or one whose two sides never differ."""
    if not pairs:
        raise DataError("the list of preference pairs is empty, at least one pair is needed")
    if all(pair.chosen == pair.rejected for pair in pairs):
        raise DataError(
            f"chosen and rejected are the same text in all {len(pairs)} preference pairs, at least one must differ"
        )


def end_token(tokenizer: Tokenizer, prompt: Prompt) -> int:
    """The token that closes a response to this kind of prompt: what the chat template puts after an assistant turn
    (`<|im_end|>`, `<end_of_turn>`, ...), for raw text the end-of-sequence token.

    Raises DataError when the tokenizer has no end token.
    """
    return _end_token(tokenizer, not isinstance(prompt, str))


@lru_cache(maxsize=16)  # rendering a template costs far more than encoding a response
def _end_token(tokenizer: Tokenizer, chat: bool) -> int:
    if not tokenizer.eos_ids:
        raise DataError("the tokenizer has no end-of-sequence token, so a response cannot be closed")
    if chat:
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        closing = [i for i in tokenizer.encode_prompt(turn, generation_prompt=False) if i in tokenizer.eos_ids]
        if closing:
            return closing[-1]
    return min(tokenizer.eos_ids) if tokenizer.eos_id is None else tokenizer.eos_id


def encode_response(
    tokenizer: Tokenizer, prompt: Prompt, response: str, *, max_length: int | None = None
) -> tuple[list[int], list[bool]]:
    """(tokens of prompt, response and end token; mask that is True on response and end token).

    Prompt and response are encoded apart, as generation sees them. A row longer than `max_length` loses the start of
    its prompt first (the response is what is learned from), and then the end of the response.
    """
    prompt_ids = tokenizer.encode_prompt(prompt)
    response_ids = [*tokenizer.encode(response), end_token(tokenizer, prompt)]
    if not prompt_ids:
        raise DataError("a prompt has no tokens, so the first token of its response has nothing to be predicted from")
    if max_length is not None and len(prompt_ids) + len(response_ids) > max_length:
        response_ids = response_ids[: max_length - 1]
        prompt_ids = prompt_ids[-(max_length - len(response_ids)) :]
    return prompt_ids + response_ids, [False] * len(prompt_ids) + [True] * len(response_ids)


def pad_rows(rows: Sequence[Sequence[int]], pad: int = 0) -> Int[Tensor, "batch pos"]:
    """Rows of different lengths as one int64 tensor, padded on the right (under causal attention padding there changes
    nothing before it)."""
    if not rows:
        raise DataError("a batch has no rows, at least one is needed")
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], dtype=torch.int64)


def pad_masks(masks: Sequence[Sequence[bool]]) -> Bool[Tensor, "batch pos"]:
    """The same for masks; padding is False."""
    return pad_rows([[int(value) for value in row] for row in masks]).bool()


def last_index(lengths: Sequence[int], device: torch.device | str = "cpu") -> Int[Tensor, " batch"]:
    """Position of the last real token of each right-padded row."""
    if min(lengths, default=0) < 1:
        raise DataError(f"row lengths are {list(lengths)}, each row needs at least one token")
    return torch.tensor([length - 1 for length in lengths], dtype=torch.int64, device=device)
