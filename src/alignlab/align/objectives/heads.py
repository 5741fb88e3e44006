"""The objectives of one reward model as rewards of their own; a batch goes through its trunk once for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.align.preference_model import PreferenceModel
from alignlab.align.reward_validation.sampled import answer_features
from alignlab.core.errors import DataError
from alignlab.lm.types import Prompt

Scales = Mapping[str, tuple[float, float]]
"""Mean and deviation of each objective, which become 0 and 1."""


class SharedHeads:
    """What a model with several objectives (`HeadConfig.objectives`) says of each, members of an ensemble averaged.

    The last batch is remembered, so that rewards asked one after the other cost one pass.
    """

    def __init__(self, model: PreferenceModel, scales: Scales | None = None) -> None:
        self.model = model
        self.scales = dict(scales or {})
        self._asked: tuple[list[str], list[str]] | None = None
        self._found: Tensor | None = None

    @property
    def rewards(self) -> dict[str, ObjectiveReward]:
        """A reward for each objective, by its name."""
        return {name: ObjectiveReward(self, name) for name in self.model.heads.objectives}

    def scores(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, "batch objective"]:
        """Scaled scores of every objective, on the CPU."""
        if len(prompts) != len(responses) or not prompts:
            raise DataError(
                f"got {len(prompts)} prompts and {len(responses)} responses, right is one each, at least one"
            )
        asked = [repr(prompt) for prompt in prompts], list(responses)
        if self._found is None or asked != self._asked:
            different = dict(zip(asked[0], prompts, strict=True))
            place = {key: i for i, key in enumerate(different)}
            pairs = [(place[key], text) for key, text in zip(*asked, strict=True)]
            features = answer_features(self.model, list(different.values()), pairs)
            with torch.no_grad():
                self._found = self.model.rewards(features).mean(dim=1).float().cpu()
            self._asked = asked
        scales = [self.scales.get(name, (0.0, 1.0)) for name in self.model.heads.objectives]
        mean, deviation = torch.tensor(scales).T
        return (self._found - mean) / deviation

    def fit_scales(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Scales:
        """Make every objective have mean 0 and deviation 1 on these responses; DataError where one does not vary."""
        self.scales = {}
        found = self.scores(prompts, responses)
        for k, name in enumerate(self.model.heads.objectives):
            deviation = float(found[:, k].std(correction=0))
            if not deviation > 0:
                raise DataError(f"{name} is the same for all {len(found)} responses, it must vary to be scaled")
            self.scales[name] = float(found[:, k].mean()), deviation
        return self.scales


@dataclass(frozen=True)
class ObjectiveReward:
    """One objective of a shared model."""

    shared: SharedHeads
    name: str

    @property
    def tokenizer(self) -> object:
        """The model's, which must be the policy's."""
        return self.shared.model.tokenizer

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " batch"]:
        """The objective's score of each response."""
        return self.shared.scores(prompts, responses)[:, self.shared.model.heads.objectives.index(self.name)]
