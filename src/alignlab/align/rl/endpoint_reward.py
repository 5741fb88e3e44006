"""A reward that another process gives: prompts and responses go out as JSON, scores come back."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from alignlab.align.rl.rewards import RewardError, finite_scores
from alignlab.core.config import require
from alignlab.lm.remote_limits import RemoteLimits
from alignlab.lm.remote_transport import Transport
from alignlab.lm.remote_usage import UsageMeter
from alignlab.lm.types import Prompt


class EndpointReward:
    """Posts `{"prompts": [...], "responses": [...]}` to `url`, which answers `{"scores": [number, ...]}`.

    At most `batch_size` pairs a request; broken connections and refusals that may pass are tried again as `limits`
    says. A key, where there is one, is $ALIGNLAB_REWARD_KEY. Nothing is sent before the first call of `score`. Raises
    SamplerError where `url` is no web address or its patience ends, RewardError for an answer without good scores.
    """

    def __init__(self, url: str, *, limits: RemoteLimits | None = None, batch_size: int = 64) -> None:
        require(batch_size >= 1, "batch_size", batch_size, "a whole number of at least 1")
        self.name, self.batch_size = url, batch_size
        key = os.environ.get("ALIGNLAB_REWARD_KEY")
        self._transport = Transport(url, key, limits or RemoteLimits(), UsageMeter())

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " batch"]:
        """One score for each response."""
        scores: list[object] = []
        for start in range(0, len(responses), self.batch_size):
            some, texts = (
                list(prompts[start : start + self.batch_size]),
                list(responses[start : start + self.batch_size]),
            )
            body = {"prompts": some, "responses": texts}
            reply = self._transport.post("", body, tokens=1, stop=threading.Event())
            found = reply.get("scores")
            if not isinstance(found, list) or len(found) != len(texts):
                has = f"{len(found)} scores" if isinstance(found, list) else f"the keys {', '.join(reply) or 'none'}"
                raise RewardError(f"{self.name} answered {len(texts)} responses with {has}, right is one each")
            scores += found
        return finite_scores(scores, len(responses), self.name)
