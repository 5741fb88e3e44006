"""`ConstitutionalTrainer`: a model answers, criticises its answer by a principle, revises it, and learns the revision.

The supervised half of Bai et al. 2022 (section 3). The critique and the revision are made by the model itself from
worked demonstrations; the principle of each round is drawn by weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from alignlab.align.adapters import ensure_lora, merged_for_decoding
from alignlab.align.constitution import Category, Constitution, Principle
from alignlab.align.pairs import encode_response
from alignlab.core.errors import DataError
from alignlab.core.rng import derive_seed
from alignlab.data.packing import Example, batches, pack
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.lora import LoraConfig
from alignlab.lm.samplers import sampler_of
from alignlab.lm.types import Prompt, Sampler, SamplingParams
from alignlab.train.language import language_model_loss
from alignlab.train.optim import trainable_parameters

CRITIQUE = SamplingParams(max_tokens=48, temperature=0.0, stop=("\n",))
REVISION = SamplingParams(max_tokens=64, temperature=0.0, stop=("\n",))


@dataclass(frozen=True)
class Critique:
    """What is wrong with one response, and by which principle."""

    principle: str
    text: str


def critique_prompts(
    constitution: Constitution, prompts: Sequence[str], responses: Sequence[str], rules: Sequence[Principle]
) -> list[Prompt]:
    """One conversation for each response that asks for its critique."""
    return [
        constitution.generate_critique_prompt(response, [rule], request=prompt)
        for prompt, response, rule in zip(prompts, responses, rules, strict=True)
    ]


def revision_prompts(
    constitution: Constitution,
    prompts: Sequence[str],
    responses: Sequence[str],
    critiques: Sequence[Critique],
    *,
    show_response: bool = False,
) -> list[Prompt]:
    """One conversation for each response that asks for its revision."""
    return [
        constitution.generate_revision_prompt(
            response, critique.text, [critique.principle], request=prompt, show_response=show_response
        )
        for prompt, response, critique in zip(prompts, responses, critiques, strict=True)
    ]


class ConstitutionalTrainer:
    """Critique, revision and learning with one model and one constitution.

    `critic` writes critiques and revisions where it is given (a larger model behind an endpoint, say); otherwise the
    model criticises itself, as in the paper. `show_response` puts the response into the revision prompt (see
    `Constitution.generate_revision_prompt`). `lora=None` trains every parameter.
    """

    def __init__(
        self,
        model: LanguageModel,
        constitution: Constitution,
        *,
        critic: Sampler | None = None,
        category: Category | None = "harmlessness",
        learning_rate: float = 1e-4,
        lora: LoraConfig | None = None,
        show_response: bool = False,
        seed: int = 0,
    ) -> None:
        self.model, self.constitution = model, constitution
        self.sampler = sampler_of(model)
        self.critic: Sampler = critic or self.sampler
        self.category, self.learning_rate, self.lora, self.seed = category, learning_rate, lora, seed
        self.show_response = show_response
        self.optimizer: torch.optim.Optimizer | None = None
        self.steps = 0

    def draw_principles(self, prompts: Sequence[str], *, round_index: int = 0) -> list[Principle]:
        """One principle for each prompt, by weight; it depends on the prompt and the round only."""
        return [
            self.constitution.draw(derive_seed(self.seed, "principle", round_index, prompt), category=self.category)
            for prompt in prompts
        ]

    def generate_critiques(
        self, prompts: Sequence[str], responses: Sequence[str], *, round_index: int = 0
    ) -> list[Critique]:
        """A critique of each response under a principle drawn for it."""
        check_pairing(prompts, responses)
        rules = self.draw_principles(prompts, round_index=round_index)
        asked = critique_prompts(self.constitution, prompts, responses, rules)
        written = self.critic.generate(asked, CRITIQUE)
        return [Critique(rule.id, done.text.strip()) for rule, done in zip(rules, written, strict=True)]

    def revise_responses(
        self, prompts: Sequence[str], responses: Sequence[str], critiques: Sequence[Critique]
    ) -> list[str]:
        """Each response rewritten in the light of its critique."""
        check_pairing(prompts, responses)
        check_pairing(prompts, critiques)
        asked = revision_prompts(self.constitution, prompts, responses, critiques, show_response=self.show_response)
        return [done.text.strip() for done in self.critic.generate(asked, REVISION)]

    def constitutional_training_step(self, prompts: Sequence[str]) -> dict[str, float]:
        """One whole round on a few prompts: respond, criticise, revise, and one optimiser step on the revisions.

        Returns the loss (nats per token), the gradient norm and how many revisions differ from their response. Empty
        revisions are left out; if all are empty there is nothing to learn and a `DataError` says so.
        """
        sampling = SamplingParams(max_tokens=64, seed=derive_seed(self.seed, "respond", self.steps))
        with self.decoding():
            responses = [done.text for done in self.sampler.generate(as_conversations(prompts), sampling)]
            critiques = self.generate_critiques(prompts, responses, round_index=self.steps)
            revisions = self.revise_responses(prompts, responses, critiques)
        kept = [(prompt, text) for prompt, text in zip(prompts, revisions, strict=True) if text]
        if not kept:
            raise DataError(f"all {len(prompts)} revisions are empty, there is nothing to learn from")
        metrics = self.learn(kept)
        self.steps += 1
        changed = sum(a != b for a, b in zip(responses, revisions, strict=True))
        return {**metrics, "revised": changed / len(prompts)}

    def learn(self, pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
        """One optimiser step on (prompt, revision) pairs: the likelihood of the revision's tokens."""
        length = min(512, self.model.model.config.n_ctx)
        encoded = [
            encode_response(self.model.tokenizer, conversation, text, max_length=length)
            for conversation, (_, text) in zip(as_conversations([p for p, _ in pairs]), pairs, strict=True)
        ]
        rows = pack([Example(tokens, mask) for tokens, mask in encoded], length)
        batch = batches(rows, len(rows), seed=self.seed)(0)
        if self.optimizer is None:
            ensure_lora(self.model.model, self.lora)
            learned = list(trainable_parameters(self.model.model).values())
            self.optimizer = torch.optim.AdamW(learned, lr=self.learning_rate, weight_decay=0.0)
        self.optimizer.zero_grad(set_to_none=True)
        loss, metrics = language_model_loss(self.model.model, batch)
        loss.backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        measured = {key: float(value) for key, value in metrics.items()}
        return {**measured, "loss": float(loss.detach()), "grad_norm": float(norm)}

    def decoding(self) -> AbstractContextManager[None]:
        """The model with its adapter folded in, which decodes faster."""
        return merged_for_decoding(self.model.model)


def as_conversations(prompts: Sequence[str]) -> list[Prompt]:
    """Each prompt as the first turn of a conversation."""
    return [[{"role": "user", "content": prompt}] for prompt in prompts]


def check_pairing(prompts: Sequence[object], others: Sequence[object]) -> None:
    """DataError unless both have one entry for each prompt."""
    if len(prompts) != len(others):
        raise DataError(f"{len(prompts)} prompts and {len(others)} texts do not pair up, right is one each")
