"""PPO for language models: sample, score, estimate advantages, improve; one loop that reads from top to bottom.

After Ziegler et al. 2019 and Ouyang et al. 2022. What is left out: the pretraining-loss mix (PPO-ptx), a separate value
network (a linear head reads the policy's own hidden states) and reward models per token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from alignlab.align.adapters import ensure_lora, has_lora, merged_for_decoding, reference_mode
from alignlab.align.advantages import KLController, explained_variance, gae, token_rewards, whiten
from alignlab.align.losses import kl_estimate
from alignlab.align.policy import Policy, evaluating, sampled_entropy, token_logprobs
from alignlab.align.ppo_config import PPOConfig
from alignlab.align.ppo_loss import ppo_loss
from alignlab.align.ppo_state import load_state, save_state
from alignlab.align.rl.rewards import Guarded, Reward
from alignlab.align.rl.tokenizers import check_reward_tokenizer
from alignlab.align.rollout import (
    EncodesPrompts,
    Response,
    Rollout,
    check_ends,
    check_mismatch,
    prompts_from,
    row_lengths,
    stack_responses,
)
from alignlab.align.shared_work import SharedWork
from alignlab.align.weight_sync import bring_up_to_date
from alignlab.core.errors import ConfigError, DataError, TrainingError
from alignlab.core.progress import Progress
from alignlab.core.rng import derive_seed, torch_generator
from alignlab.core.runs import Run
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.model import GPTModel
from alignlab.lm.samplers import sampler_of
from alignlab.lm.types import Prompt, Sampler, SamplingParams
from alignlab.train.losses import check_variance
from alignlab.train.optim import trainable_parameters
from alignlab.train.parallel import Parallel
from alignlab.train.schedule import learning_rate_at

Metrics = dict[str, float]


@dataclass(frozen=True)
class PPOResult:
    """What `PPOTrainer.train` did."""

    steps: int
    """Rollout batches done, those before a resume included."""
    history: list[Metrics]
    """Metrics of every rollout batch."""


class PPOTrainer:
    """Improves a policy against a reward, held near a reference by a KL penalty.

    `reward_model` is a `PreferenceModel` or a plain function `(prompts, responses) -> one number each`.
    `ref_model=None` takes the policy's own weights with the LoRA adapter off. Everything random derives from
    `config.seed` and the step. With `parallel` several processes share the work (`shared_work`); `run` and `on_step`
    are rank 0's.
    """

    def __init__(
        self,
        model: LanguageModel | GPTModel,
        reward_model: Reward,
        ref_model: LanguageModel | GPTModel | None = None,
        config: PPOConfig | None = None,
        *,
        sampler: Sampler | None = None,
        tokenizer: EncodesPrompts | None = None,
        run: Run | None = None,
        checkpoint_dir: Path | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        self.config = config = config or PPOConfig()
        self.run = run
        self.model = model.model if isinstance(model, LanguageModel) else model
        ensure_lora(self.model, config.lora)
        self.policy = Policy(self.model, detach_value=config.detach_value)
        self.work = SharedWork(self.policy, parallel)
        if isinstance(model, LanguageModel):
            tokenizer = tokenizer or model.tokenizer
            sampler = sampler or sampler_of(model, batch_size=config.batch_size)
        if tokenizer is None or sampler is None:
            raise ConfigError("a bare GPTModel needs sampler= and tokenizer=, or pass a LanguageModel, which has both")
        self.tokenizer, self.sampler, self.reward_model = tokenizer, sampler, reward_model
        self.reward = Guarded(reward_model, config.reward_time_limit)
        if config.reward_tokenizer == "same":
            check_reward_tokenizer(reward_model, tokenizer)
        self.reference = ref_model.model if isinstance(ref_model, LanguageModel) else ref_model
        if self.reference is None and not has_lora(self.model):
            raise ConfigError("ref_model is None and the policy has no LoRA adapter to switch off, pass a ref_model")
        if self.reference is not None:
            self.reference.to(self.model.head_weight.device)
        self.parameters = trainable_parameters(self.work.trained)
        heads = {p for name, p in self.parameters.items() if name.startswith("value_head.")}
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.parameters.values() if p not in heads], "peak": config.learning_rate},
                {"params": [p for p in self.parameters.values() if p in heads], "peak": config.value_learning_rate},
            ],
            weight_decay=0.0,
            fused=True,
        )
        self.kl_controller = KLController(config.kl_coefficient, config.kl_target, config.kl_gain)
        self.checkpoint_dir = self.work.place(checkpoint_dir or (run.checkpoints / "ppo" if run is not None else None))
        self.step = 0
        self.history: list[Metrics] = []

    def train(
        self,
        prompts: Sequence[Prompt],
        *,
        progress: Progress | None = None,
        on_step: Callable[[int, list[Response], Metrics], None] | None = None,
    ) -> PPOResult:
        """Run `config.steps` rollout batches over the prompts, going on from the last checkpoint if there is one."""
        if not prompts:
            raise DataError("PPO got an empty list of prompts, at least one is needed")
        if self.checkpoint_dir is not None:
            load_state(self, self.checkpoint_dir)
        config, total = self.config, self.config.steps
        with (
            self.work.company(lambda: self.step),
            (progress or Progress.silent()).task("PPO", total, "batches") as task,
        ):
            task.advance(min(self.step, total))
            while self.step < total:
                responses = self.generate(self.prompts_at(prompts, self.step))
                scores = self.compute_rewards(responses)
                if config.on_equal_rewards == "skip" and bool((scores == scores[0]).all()):
                    metrics = {"reward": float(scores[0]), "skipped": 1.0}
                else:
                    metrics = self.ppo_step(self.prepare(responses, scores))
                metrics |= self.work.main(self.reward.after_step)
                self.step += 1
                self.history.append(metrics)
                if self.run is not None:
                    self.run.log(self.step, {f"ppo/{name}": value for name, value in metrics.items()})
                if on_step is not None:
                    self.work.main(partial(on_step, self.step, responses, metrics))
                if self.checkpoint_dir is not None and (self.step % config.checkpoint_every == 0 or self.step == total):
                    save_state(self, self.checkpoint_dir)
                task.advance(1, tokens=sum(len(response.completion.tokens) for response in responses))
        return PPOResult(self.step, self.history)

    def prompts_at(self, prompts: Sequence[Prompt], step: int) -> list[Prompt]:
        """The prompts of a rollout batch: consecutive pieces of one shuffled pass after the other."""
        return prompts_from(prompts, step * self.config.batch_size, self.config.batch_size, self.config.seed)

    def generate(self, prompts: Sequence[Prompt]) -> list[Response]:
        """One response to each prompt from the present policy, at temperature 1 without filters."""
        seed = derive_seed(self.config.seed, "rollout", self.step)
        sampling = SamplingParams(max_tokens=self.config.max_tokens, stop=self.config.stop, seed=seed)
        bring_up_to_date(self.sampler, self.model, self.work)
        with evaluating(self.policy), merged_for_decoding(self.model):
            completions = self.work.speak(self.sampler, prompts, sampling)
        responses = [
            Response(prompt, tuple(self.tokenizer.encode_prompt(prompt)), completion)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        check_ends(responses, self.tokenizer, self.config.stop)
        return responses

    def compute_rewards(self, responses: Sequence[Response]) -> Tensor:
        """One score for each response: the reward's, clipped, less the penalty for a missing end."""
        prompts, texts = [r.prompt for r in responses], [r.completion.text for r in responses]
        scores = self.work.score(self.reward, prompts, texts)
        if self.config.reward_clip is not None:
            scores = scores.clamp(-self.config.reward_clip, self.config.reward_clip)
        unended = torch.tensor([float(r.completion.finish_reason == "length") for r in responses])
        return scores - self.config.missing_end_penalty * unended

    def prepare(self, responses: Sequence[Response], scores: Tensor) -> Rollout:
        """Score the responses under policy and reference, and turn the rewards into advantages."""
        check_variance(scores)
        config, device = self.config, self.model.head_weight.device
        tokens, mask, sampled = (tensor.to(device) for tensor in stack_responses(responses))
        scores, where = scores.to(device), mask[:, 1:]
        logprobs, reference, values = (torch.zeros_like(sampled) for _ in range(3))
        lengths = row_lengths(mask)
        with torch.no_grad(), evaluating(self.policy), self.autocast():
            rows_of_all = torch.arange(len(lengths), device=device)
            for rows, width in self.work.own_rows(rows_of_all, lengths, config.microbatch_size):
                out = self.policy(tokens[rows, :width], mask[rows, :width])
                logprobs[rows, : width - 1], values[rows, : width - 1] = out.logprobs, out.values
                reference[rows, : width - 1] = self.reference_logprobs(tokens[rows, :width], mask[rows, :width])
        logprobs, reference, values = self.work.added(logprobs, reference, values)
        metrics = check_mismatch(sampled, logprobs, where, limit=config.max_mismatch)
        beta = self.kl_controller.coefficient
        rewards = token_rewards(scores, logprobs, reference, where, kl_coefficient=beta, estimator=config.kl_estimator)
        advantages, returns = gae(rewards, values, where, config.gamma, config.lam)
        kl = torch.where(where, kl_estimate(logprobs, reference), 0.0).sum(dim=1)
        metrics |= {
            "reward": float(scores.mean()),
            "reward_std": float(scores.std(correction=0)),
            "objective": float(rewards.sum(dim=1).mean()),
            "kl": float(kl.mean()),
            "kl_coefficient": beta,
            "entropy": sampled_entropy(logprobs, where),
            "explained_variance": explained_variance(values, returns, where),
            "response_length": float(where.sum(dim=1).float().mean()),
            "ended": sum(r.completion.finish_reason == "stop" for r in responses) / len(responses),
        }
        if config.whiten_advantages:
            advantages = whiten(advantages, where)
        if config.advantage_clip is not None:
            metrics["advantages_clipped"] = float((advantages.abs() > config.advantage_clip)[where].float().mean())
            advantages = advantages.clamp(-config.advantage_clip, config.advantage_clip)
        return Rollout(tokens, mask, scores, logprobs, reference, values, advantages, returns, metrics)

    def ppo_step(self, batch: Rollout) -> Metrics:
        """Improve policy and value head on one rollout batch; its metrics, means over the updates tried."""
        config, size = self.config, batch.tokens.shape[0]
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(
                self.step,
                peak=group["peak"],
                steps=config.steps,
                warmup_steps=config.warmup_steps,
                schedule=config.schedule,
            )
        updates: list[Metrics] = []
        made = 0
        for epoch in range(config.epochs):
            generator = torch_generator(derive_seed(config.seed, "minibatches", self.step, epoch))
            order = torch.randperm(size, generator=generator).to(batch.tokens.device)
            for rows in order.split(config.minibatch_size):
                updates.append(self.update(batch, rows))
                if updates[-1].pop("stop"):
                    break
                made += 1
            else:
                continue
            break  # too far from the policy that gave these responses
        self.work.refresh()
        means = {name: sum(update[name] for update in updates) / len(updates) for name in updates[0]}
        self.kl_controller.update(batch.metrics["kl"])
        return {**batch.metrics, **means, "updates": float(made)}

    def update(self, batch: Rollout, rows: Tensor) -> Metrics:
        """One optimiser step on some rows, in microbatches whose gradients add up to the minibatch's."""
        config = self.config
        total = float(batch.loss_mask[rows].sum())
        sums: dict[str, float] = defaultdict(float)
        self.optimizer.zero_grad(set_to_none=True)
        with evaluating(self.work.trained):  # no dropout: the ratio compares two evaluations of one function
            for part, width, weight, last in self.work.parts(rows, batch.lengths, config.microbatch_size):
                share = weight * float(batch.loss_mask[part].sum()) / total
                with self.work.passing(last):
                    pieces = partial(ppo_loss, batch, part, width, self.config, self.autocast())
                    loss, numbers = self.work.compute(pieces)
                    (loss * (share * self.work.world)).backward()
                for name, number in numbers.items():
                    sums[name] += share * float(number.detach())
        sums = self.work.added_numbers(sums)
        stop = config.max_policy_kl is not None and sums["approx_kl"] > config.max_policy_kl
        # Apart, so that a value head far from its target does not shrink the policy's step.
        norms = [self.work.clip(g["params"], config.grad_clip) for g in self.optimizer.param_groups]
        if not all(bool(norm.isfinite()) for norm in norms):
            raise TrainingError(
                f"the gradient of PPO step {self.step + 1} is not finite (policy loss {sums['policy_loss']:g}, "
                f"value loss {sums['value_loss']:g}); lower the learning rate or check the rewards"
            )
        if not stop:
            self.optimizer.step()
        return {**sums, "grad_norm": float(norms[0]), "value_grad_norm": float(norms[1]), "stop": float(stop)}

    def reference_logprobs(self, tokens: Tensor, loss_mask: Tensor) -> Tensor:
        """Log-probabilities under the reference: the given one, or this model with its adapter off."""
        if self.reference is not None:
            with evaluating(self.reference):
                return token_logprobs(self.reference, tokens, loss_mask)
        with reference_mode(self.model):
            return token_logprobs(self.model, tokens, loss_mask)

    def autocast(self) -> torch.autocast:
        """bf16 matrix products where the config asks for them."""
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.model.head_weight.device.type, dtype=torch.bfloat16, enabled=enabled)
