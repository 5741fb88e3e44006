"""A policy under optimisation, measured on prompts that it does not learn from: KL, proxy and gold reward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignlab.align.adapters import merged_for_decoding
from alignlab.align.policy import evaluating, token_logprobs
from alignlab.align.ppo import Metrics, PPOTrainer
from alignlab.align.reward_validation.best_of_n import FloatArray
from alignlab.align.reward_validation.curves import Curve
from alignlab.align.reward_validation.sampled import Reward, score_answers
from alignlab.align.rollout import Response, by_length, row_lengths, stack_responses
from alignlab.core.config import require
from alignlab.core.errors import DataError
from alignlab.core.files import append_jsonl, read_jsonl
from alignlab.core.rng import derive_seed
from alignlab.lm.types import Prompt, SamplingParams


class PolicyProbe:
    """Call it with each step (`PPOTrainer.train(..., on_step=probe)`); every `every` steps it measures the policy.

    `rewards` has at least `proxy` and `gold`. With `file`, points are kept there as JSON lines and survive a restart; a
    step that is done again replaces its point.
    """

    def __init__(
        self,
        trainer: PPOTrainer,
        prompts: Sequence[Prompt],
        rewards: Mapping[str, Reward],
        *,
        samples: int = 4,
        every: int = 10,
        file: Path | None = None,
    ) -> None:
        for name, value in (("samples", samples), ("every", every)):
            require(value >= 1, name, value, "a whole number of at least 1")
        if not prompts or not {"proxy", "gold"} <= set(rewards):
            raise DataError(f"a probe needs prompts (got {len(prompts)}) and rewards 'proxy' and 'gold'")
        self.trainer, self.prompts, self.rewards = trainer, list(prompts), rewards
        self.samples, self.every, self.file = samples, every, file
        self.points: dict[int, dict[str, Any]] = {}
        if file is not None and file.is_file():
            self.points = {row["step"]: row for row in read_jsonl(file)}

    def __call__(self, step: int, responses: list[Response], metrics: Metrics) -> None:
        if step % self.every == 0 or step == self.trainer.config.steps:
            self.measure(step)

    def measure(self, step: int) -> dict[str, Any]:
        """Sample, score and keep the point of this step: lists with one mean a prompt."""
        config = self.trainer.config
        sampling = SamplingParams(
            max_tokens=config.max_tokens,
            stop=config.stop,
            n=self.samples,
            seed=derive_seed(config.seed, "probe", step) % 2**31,
        )
        with evaluating(self.trainer.policy), merged_for_decoding(self.trainer.model):
            completions = self.trainer.sampler.generate(self.prompts, sampling)
        encoded = [tuple(self.trainer.tokenizer.encode_prompt(prompt)) for prompt in self.prompts]
        responses = [
            Response(self.prompts[i // self.samples], encoded[i // self.samples], completion)
            for i, completion in enumerate(completions)
        ]
        answers = [
            [c.text for c in completions[i * self.samples : (i + 1) * self.samples]] for i in range(len(self.prompts))
        ]
        point: dict[str, Any] = {"step": step, "kl": self.kl(responses).mean(axis=1).tolist()}
        for name, reward in self.rewards.items():
            point[name] = score_answers(reward, self.prompts, answers).mean(axis=1).tolist()
        point["length"] = float(np.mean([len(c.tokens) for c in completions]))
        point["example"] = answers[0][0]
        self.points[step] = point
        if self.file is not None:
            append_jsonl(self.file, [point])
        return point

    @torch.no_grad()
    def kl(self, responses: Sequence[Response]) -> FloatArray:
        """log policy - log reference of each response, (prompts, samples): unbiased for the KL (k1).

        Both by the trainer's own passes, so that rounding in a sampler does not pass for distance.
        """
        trainer = self.trainer
        device = trainer.model.head_weight.device
        tokens, mask, _ = (tensor.to(device) for tensor in stack_responses(responses))
        lengths, found = row_lengths(mask), torch.zeros(len(responses), device=device)
        every = torch.arange(len(responses), device=device)
        with evaluating(trainer.policy), trainer.autocast():
            for rows, width in by_length(every, lengths, max(16, trainer.config.microbatch_size)):
                part = tokens[rows, :width], mask[rows, :width]
                ratio = token_logprobs(trainer.model, *part).float() - trainer.reference_logprobs(*part).float()
                found[rows] = ratio.sum(dim=1)
        return np.asarray(found.double().cpu().numpy().reshape(len(self.prompts), self.samples))


def probe_curve(points: Iterable[Mapping[str, Any]], start: Mapping[str, FloatArray] | None = None) -> Curve:
    """Points of a `PolicyProbe` (of a step measured twice, the later) as a curve.

    `start` gives the reference's `proxy` and `gold` by prompt, from more answers than the point of step 0 has; without
    it step 0 must be among the points.
    """
    by_step = {int(point["step"]): point for point in points}
    if start is None and 0 not in by_step:
        raise DataError("step 0 was not measured; call measure(0) before training, or give start")
    kept = sorted(step for step in by_step if step > 0)
    tables = {}
    for name in ("kl", "proxy", "gold"):
        columns = [np.asarray(by_step[step][name], dtype=np.float64) for step in kept]
        first = np.zeros_like(columns[0]) if name == "kl" and columns else (start or by_step[0])[name]
        tables[name] = np.stack([np.asarray(first), *columns], axis=1)
    return Curve("rl", np.array([0, *kept], dtype=np.float64), tables["kl"], tables["proxy"], tables["gold"])
