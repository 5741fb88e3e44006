"""Whether a reward model reads what the policy wrote: the same tokens, and none that it has no weights for."""

from __future__ import annotations

from typing import Any

from alignlab.align.rl.rewards import Reward, RewardError, name_of

PROBES = ("The quick brown fox.", "3 + 4 = 7", "don't", " two  spaces", "naïve café", "日本語")


def check_reward_tokenizer(reward: Reward, tokenizer: object, probes: tuple[str, ...] = PROBES) -> None:
    """Refuse a reward model with another tokenizer than the policy's; a reward without a tokenizer passes.

    Texts are handed over, not token ids, so another tokenizer is no error in itself: an embedding model has its own,
    and `reward_tokenizer="any"` allows it. Where it was not meant, rewards look fine and mean nothing. Raises
    RewardError with the vocabulary sizes and the first text that the two read differently.
    """
    theirs = getattr(reward, "tokenizer", None)
    if theirs is None or theirs is tokenizer:
        return
    name, advice = name_of(reward), "set reward_tokenizer to 'any' if that is meant"
    sizes = tuple(getattr(each, "vocab_size", None) for each in (theirs, tokenizer))
    if None not in sizes and sizes[0] != sizes[1]:
        raise RewardError(
            f"the tokenizer of reward {name} has {sizes[0]} tokens and the policy's {sizes[1]}, they must have one "
            f"tokenizer; {advice}"
        )
    for text in probes:
        own, other = _read(tokenizer, text), _read(theirs, text)
        if own is not None and other is not None and own != other:
            raise RewardError(
                f"reward {name} reads {text!r} as {len(other)} tokens {other[:8]} and the policy as {len(own)} "
                f"{own[:8]}, they must have one tokenizer; {advice}"
            )


def _read(tokenizer: Any, text: str) -> list[int] | None:
    try:
        return list(tokenizer.encode(text))
    except Exception:  # a tokenizer without this text or this method says nothing about it
        return None
