"""The stages that change weights: supervised fine-tuning, the preference model, reinforcement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignlab.align.critique import as_conversations
from alignlab.align.dpo import DPOConfig, train_dpo
from alignlab.align.pairs import PreferencePair
from alignlab.align.ppo import PPOTrainer
from alignlab.align.ppo_config import PPOConfig
from alignlab.align.preference_model import PreferenceModel
from alignlab.align.preference_training import (
    PreferenceConfig,
    preference_accuracy,
    train_preference_model,
)
from alignlab.align.preferences import read_pairs
from alignlab.align.sft import SFTConfig, SFTExample, sft
from alignlab.core.files import read_jsonl
from alignlab.core.rng import derive_seed
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.lora import ALL_LINEAR, LoraConfig
from alignlab.lm.lora_files import store_adapter
from alignlab.train.config import TrainConfig

if TYPE_CHECKING:
    from alignlab.align.pipeline import AlignmentPipeline


def adapter(rank: int, seed: int) -> LoraConfig:
    """An adapter of this rank on every linear layer."""
    return LoraConfig(rank=rank, alpha=2.0 * rank, targets=(ALL_LINEAR,), seed=seed)


def training(seed: int, learning_rate: float, name: str) -> TrainConfig:
    """What all stages share: a short warm-up, cosine decay, a checkpoint every ten updates."""
    return TrainConfig(learning_rate=learning_rate, warmup_steps=3, checkpoint_every=10, seed=derive_seed(seed, name))


def train_supervised(pipeline: AlignmentPipeline) -> dict[str, Any]:
    """SL-CAI: learn the kept revisions, mixed with reference answers to benign and helpful prompts."""
    config, settings = pipeline.config, pipeline.config.supervised
    examples = supervised_examples(pipeline)
    lm = pipeline.model_after("base")
    result = sft(
        lm,
        examples,
        SFTConfig(
            epochs=settings.epochs,
            row_length=settings.row_length,
            batch_size=settings.batch_size,
            lora=adapter(settings.rank, derive_seed(config.seed, "sl-adapter")),
            train=training(config.seed, settings.learning_rate, "supervised"),
        ),
        run=pipeline.run,
        name="supervised",
        progress=pipeline.progress,
    )
    store_adapter(lm.model, pipeline.adapter_path("sl-cai"), base_model=config.model)
    return {"examples": len(examples), "steps": result.steps, "loss": result.final_loss}


def supervised_examples(pipeline: AlignmentPipeline) -> list[SFTExample]:
    """Revisions of red-team responses, then reference answers, benign ones repeated."""
    revised = [row["text"] for row in read_jsonl(pipeline.run.artifacts / "revisions.jsonl")]
    examples = [
        SFTExample(as_conversations([record.prompt])[0], text)
        for record, text in zip(pipeline.prompts["harmful"], revised, strict=True)
        if text is not None
    ]
    for name, repeats in (("benign", pipeline.config.supervised.benign_repeats), ("helpful", 1)):
        for record in pipeline.prompts[name]:
            if record.reference:
                examples += [SFTExample(as_conversations([record.prompt])[0], record.reference)] * repeats
    return examples


def build_preference_model(pipeline: AlignmentPipeline, base: LanguageModel) -> PreferenceModel:
    """A fresh preference model over the supervised model's weights."""
    settings = pipeline.config.preference
    return PreferenceModel(
        base,
        lora=adapter(settings.rank, derive_seed(pipeline.config.seed, "pm-adapter")),
        max_length=512,
        seed=derive_seed(pipeline.config.seed, "pm-head"),
    )


def train_preferences(pipeline: AlignmentPipeline) -> dict[str, Any]:
    """Bradley-Terry on the preferences; accuracy on pairs kept back."""
    config, settings = pipeline.config, pipeline.config.preference
    learn, keep = read_pairs(pipeline)
    model = build_preference_model(pipeline, pipeline.model_after("sl-cai"))
    result = train_preference_model(
        model,
        learn,
        PreferenceConfig(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            train=training(config.seed, settings.learning_rate, "preference-model"),
        ),
        run=pipeline.run,
        name="preference_model",
        progress=pipeline.progress,
    )
    model.fit_normalisation([p.prompt for p in keep] * 2, [p.chosen for p in keep] + [p.rejected for p in keep])
    model.save(pipeline.run.artifacts / "preference-model")
    return {
        "pairs": len(learn),
        "heldout_pairs": len(keep),
        "heldout_accuracy": preference_accuracy(model, keep),
        "steps": result.steps,
        "loss": result.final_loss,
    }


def train_reinforcement(pipeline: AlignmentPipeline) -> dict[str, Any]:
    """RL-CAI: PPO against the preference model, or DPO on the pairs; the reference is SL-CAI."""
    lm = pipeline.model_after("sl-cai")
    if pipeline.config.reinforcement.method == "dpo":
        output = reinforce_by_dpo(pipeline, lm, read_pairs(pipeline)[0])
    else:
        output = reinforce_by_ppo(pipeline, lm)
    store_adapter(lm.model, pipeline.adapter_path("rl-cai"), base_model=pipeline.config.model)
    return output


def reinforce_by_ppo(pipeline: AlignmentPipeline, lm: LanguageModel) -> dict[str, Any]:
    """PPO on the training prompts of all three sets."""
    config, settings = pipeline.config, pipeline.config.reinforcement
    reward = PreferenceModel.load(pipeline.run.artifacts / "preference-model", pipeline.model_after("sl-cai"))
    trainer = PPOTrainer(
        lm,
        reward,
        None,
        PPOConfig(
            steps=settings.steps,
            batch_size=settings.batch_size,
            minibatch_size=max(1, settings.batch_size // 4),
            epochs=settings.passes,
            max_tokens=config.max_tokens,
            learning_rate=settings.learning_rate,
            kl_coefficient=settings.kl_coefficient,
            on_equal_rewards="skip",
            lora=adapter(settings.rank, derive_seed(config.seed, "rl-adapter")),
            checkpoint_every=2,
            seed=derive_seed(config.seed, "ppo"),
        ),
        run=pipeline.run,
    )
    prompts = as_conversations([record.prompt for records in pipeline.prompts.values() for record in records])
    result = trainer.train(prompts, progress=pipeline.progress)
    return {"method": "ppo", "steps": result.steps, "last": result.history[-1]}


def reinforce_by_dpo(pipeline: AlignmentPipeline, lm: LanguageModel, pairs: list[PreferencePair]) -> dict[str, Any]:
    """DPO on the same preferences that the preference model learned."""
    config, settings = pipeline.config, pipeline.config.reinforcement
    result = train_dpo(
        lm,
        pairs,
        DPOConfig(
            beta=settings.beta,
            epochs=settings.epochs,
            lora=adapter(settings.rank, derive_seed(config.seed, "rl-adapter")),
            train=training(config.seed, settings.learning_rate, "dpo"),
        ),
        run=pipeline.run,
        name="dpo",
        progress=pipeline.progress,
    )
    return {"method": "dpo", "steps": result.steps, "last": result.history[-1]}
