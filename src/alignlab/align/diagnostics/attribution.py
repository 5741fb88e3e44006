"""Which parts of a response earned its reward: leave-one-out for any reward, gradients for those of this package.

Both say how far their parts add up: `interaction` is what the reward makes of the parts together and no part alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from alignlab.align.pairs import encode_response, last_index, pad_rows
from alignlab.align.policy import evaluating
from alignlab.align.preference_model import PreferenceModel
from alignlab.align.reward.encoder import WordPieces
from alignlab.core.config import require
from alignlab.core.errors import ConfigError
from alignlab.lm.types import Prompt

Unit = Literal["words", "sentences", "lines"]
Score = Callable[[list[Prompt], list[str]], Sequence[float] | Tensor]
MOST_SPANS = 48
_PARTS = {"words": r"\S+\s*", "sentences": r".+?(?:[.!?]+\s+|\n+|\Z)", "lines": r"[^\n]*\n+|[^\n]+"}


@dataclass(frozen=True)
class Attribution:
    """A response in parts, each with its contribution to the reward."""

    spans: tuple[str, ...]
    """The parts in their order; joined they are the response."""
    values: tuple[float, ...]
    """Contribution of each."""
    total: float
    """Reward of the whole response."""
    baseline: float
    """Reward without any of it."""
    method: str

    @property
    def interaction(self) -> float:
        """`total - baseline - sum(values)`: 0 for a reward that is a sum over the parts."""
        return self.total - self.baseline - sum(self.values)


def split(text: str, unit: Unit = "words", most: int = MOST_SPANS) -> list[str]:
    """A text in at most `most` parts that join to it: units, neighbours put together where there are more."""
    require(unit in _PARTS, "unit", unit, " or ".join(_PARTS))
    require(most >= 1, "most", most, "a positive whole number")
    parts = re.findall(_PARTS[unit], text, re.S)
    lead = text[: len(text) - len("".join(parts))]
    if not parts:
        return [text] if text else []
    parts[0] = lead + parts[0]
    count = min(most, len(parts))
    edges = [round(i * len(parts) / count) for i in range(count + 1)]
    return ["".join(parts[edges[i] : edges[i + 1]]) for i in range(count)]


def leave_one_out(
    reward: Score,
    prompt: Prompt,
    response: str,
    *,
    unit: Unit = "words",
    most: int = MOST_SPANS,
    instead: str = "",
) -> Attribution:
    """What the reward loses when a part is left out (or `instead` stands in its place): r(all) - r(all but the part).

    One call of the reward with as many responses as there are parts, and two. Exact for a reward that is a sum over
    the parts; parts that only count together, or stand in for each other, show in `interaction`.
    """
    spans = split(response, unit, most)
    without = ["".join([*spans[:i], instead, *spans[i + 1 :]]) for i in range(len(spans))]
    asked = [response, instead, *without]
    scores = [float(value) for value in reward([prompt] * len(asked), asked)]
    total, baseline, *left = scores
    return Attribution(tuple(spans), tuple(total - value for value in left), total, baseline, "leave-one-out")


def gradient_attribution(model: PreferenceModel, prompt: Prompt, response: str, *, points: int = 1) -> Attribution:
    """Gradient times input of each token of the response, in units of `score`; integrated gradients with more `points`.

    The input of a token is its embedding, the baseline zero: `x_t * mean over a of dr/dx_t (a x)` at the midpoints of
    `points` equal parts of [0, 1]; `points=1` takes a = 1, the plain gradient (Sundararajan et al. 2017, eq. 3; the sum
    tends to total - baseline as points grow). The length correction, which reads characters, is not part of it.
    """
    require(points >= 1, "points", points, "a positive whole number")
    if not isinstance(model, PreferenceModel):
        raise ConfigError(
            f"model is a {type(model).__name__}, allowed: a PreferenceModel; leave_one_out takes any reward"
        )
    row = model.encode(prompt, response)
    own = _response_start(model, prompt, row, response)
    device = model.head.weight.device
    tokens, last = pad_rows([row]).to(device), last_index([len(row)], device)
    summed: Tensor | None = None
    where = [1.0] if points == 1 else [(i + 0.5) / points for i in range(points)]
    for part in where:
        embedded, gradient, _ = _embedding_gradient(model, tokens, last, own, part)
        product = (embedded.double() * gradient.double()).sum(dim=-1)[0] / part
        summed = product if summed is None else summed + product
    assert summed is not None
    scale, shift = float(model.reward_deviation), float(model.reward_mean)
    ends = [(_embedding_gradient(model, tokens, last, own, part)[2] - shift) / scale for part in (1.0, 0.0)]
    values = (summed[own:] / len(where) / scale).tolist()
    spans = tuple(_piece(model, token) for token in row[own:])
    return Attribution(spans, tuple(values), ends[0], ends[1], "gradient" if points == 1 else "integrated gradients")


def _embedding_gradient(
    model: PreferenceModel, tokens: Tensor, last: Tensor, start: int, part: float
) -> tuple[Tensor, Tensor, float]:
    """(embeddings, gradient of the raw reward by them, reward) with the response's embeddings times `part`."""
    kept: list[Tensor] = []

    def scale(module: torch.nn.Module, given: object, out: Tensor) -> Tensor:
        scaled = out.detach().clone()
        scaled[:, start:] *= part
        kept.append(scaled.requires_grad_())
        return kept[0]

    hook = model.trunk.embed.register_forward_hook(scale)
    try:
        with evaluating(model), torch.enable_grad():
            reward = model(tokens, last)[0]
            (gradient,) = torch.autograd.grad(reward, kept[0])
    finally:
        hook.remove()
    return kept[0].detach(), gradient, float(reward.detach())


def _response_start(model: PreferenceModel, prompt: Prompt, row: Sequence[int], response: str) -> int:
    """Position of the response's first token."""
    if isinstance(model.tokenizer, WordPieces):
        return row.index(model.tokenizer.separator) + 1
    assert model.tokenizer is not None  # `encode` has refused that
    return encode_response(model.tokenizer, prompt, response, max_length=model.max_length)[1].index(True)


def _piece(model: PreferenceModel, token: int) -> str:
    tokenizer = model.tokenizer
    decode = getattr(tokenizer, "decode", None) or getattr(getattr(tokenizer, "pieces", None), "decode", None)
    if decode is None:
        return f"<{token}>"
    return str(decode([token])) or "⏹"
