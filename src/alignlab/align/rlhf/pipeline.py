"""`alignlab rlhf`: from demonstrations and comparisons to an aligned model and an account of what was gained.

The stages, in order: setup → supervised fine-tuning → reward model → held-out judge → reinforcement → answers of every
model to held-out prompts → measures → export. Those that have nothing to do are left out. Each records its output in
the run; started again after a crash, the run goes on at the first unfinished stage and ends with the same numbers.

After Stiennon et al. 2020 and Ouyang et al. 2022. What differs: reward model, policy and reference are adapters over
one set of weights; the value function is a head on the policy; there is no mix of the pretraining loss.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignlab.align.adapters import share_weights
from alignlab.align.config import AlignConfig
from alignlab.align.diagnostics.watched import Watched
from alignlab.align.learning import adapter, training
from alignlab.align.pipeline import resolve_dtype
from alignlab.align.preference_model import PreferenceModel
from alignlab.align.resumable import generate_logged
from alignlab.align.reward.examples import RewardPair
from alignlab.align.reward.measures import measure_reward
from alignlab.align.reward.saved import save_reward
from alignlab.align.reward.training import RewardConfig, RewardLoss, train_reward_model
from alignlab.align.rl.rewards import Reward
from alignlab.align.rlhf.config import TRAINED, RLHFConfig
from alignlab.align.rlhf.material import Material, gather
from alignlab.align.rlhf.measuring import measure_run
from alignlab.align.rlhf.methods import improve, method_config
from alignlab.align.rlhf.rewards import RewardSpec, joined, named_parts, open_reward, prompts_of
from alignlab.align.rlhf.sources import Asked
from alignlab.align.sft import SFTConfig, sft
from alignlab.core.errors import ConfigError
from alignlab.core.files import sha256_file
from alignlab.core.progress import Progress
from alignlab.core.rng import derive_seed
from alignlab.core.runs import Run
from alignlab.lm import registry
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.lora_files import load_adapter, store_adapter
from alignlab.lm.native import export_model
from alignlab.lm.quant.adapted import settle_adapters
from alignlab.lm.samplers import sampler_of
from alignlab.lm.types import SamplingParams

CENTRE = 0.01
"""Weight that keeps the mean of a reward model's rewards near 0."""


@dataclass
class RLHFPipeline:
    """One run; `execute` does what is not done yet."""

    config: RLHFConfig
    run: Run
    progress: Progress
    base: LanguageModel = field(init=False)
    material: Material = field(init=False)
    opened: dict[str, Reward] = field(init=False, default_factory=dict)
    """The rewards that are there without training, by specification."""
    settled: dict[str, LanguageModel] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        config = self.config
        config.check_sources()
        method_config(config.method, config.rl, config.seed)  # a wrong option is refused before anything is loaded
        setup = self.run.stage("setup", lambda: {"dtype": self.dtype(), "files": self.digests()})
        changed = [name for name, digest in self.digests().items() if setup["files"].get(name) != digest]
        if changed:
            raise ConfigError(f"{changed[0]} has changed since this run was started, start a new one with --fresh")
        self.base = load(config.model, dtype=setup["dtype"], device=config.device)
        brought: Asked | None = None
        for spec in self.specs():
            if spec.spec not in (TRAINED, "comparisons"):
                self.opened[spec.spec] = open_reward(
                    spec.spec, config.task, dtype=setup["dtype"], device=config.device, seed=config.seed
                )
        for spec in map(RewardSpec.parse, config.rewards):
            if spec.spec in self.opened and (brought is None or not brought.train):
                brought = prompts_of(self.opened[spec.spec])
        self.material = gather(config, self.base, brought)

    def dtype(self) -> str:
        """The precision that the run is started with, also when it goes on elsewhere."""
        return resolve_dtype(AlignConfig(dtype=self.config.dtype, device=self.config.device))

    def specs(self) -> list[RewardSpec]:
        """Every reward that is named: to maximise, to look at, to judge by."""
        named = [self.config.gold, self.config.judge.reward]
        return [RewardSpec.parse(text) for text in (*self.config.rewards, *filter(None, named))]

    def digests(self) -> dict[str, str]:
        """SHA-256 of the user's own files, which a run must find again as they were."""
        config = self.config
        files = [config.comparisons, config.demonstrations, config.prompts, config.eval_prompts, config.task.data]
        files += [spec.file for spec in self.specs()]
        labels = config.judge.labels
        if labels is not None and labels not in ("lab", "none"):
            files.append(Path(labels))
        return {str(path): sha256_file(path) for path in files if path is not None and path.is_file()}

    def stages(self) -> list[tuple[str, Any]]:
        """Names and work of the stages that this run has, in order."""
        found: list[tuple[str, Any]] = []
        if self.config.sft_source != "none":
            found.append(("supervised", self.fine_tune))
        if self.config.trains_reward:
            found.append(("reward-model", lambda: self.train_reward("reward-model", self.material.learn)))
        if self.config.judge.reward == "comparisons":
            found.append(("judge-model", lambda: self.train_reward("judge-model", self.material.judge)))
        found.append(("reinforcement", self.reinforce))
        found += [(f"answers-{name}", lambda name=name: self.answer(name)) for name in self.models]
        return [*found, ("measures", lambda: measure_run(self)), ("export", self.export)]

    def execute(self) -> None:
        """Every stage that has no recorded output yet, in order."""
        self.run.stage("material", lambda: dict(self.material.account))
        stages = self.stages()
        for number, (name, work) in enumerate(stages, 1):
            done = self.run.stage_record(name) is not None
            self.progress.say(f"[{number}/{len(stages)}] {name}{' (already done)' if done else ''}")
            self.run.stage(name, work)

    # Models and rewards

    @property
    def models(self) -> list[str]:
        """The models that are measured, in the order in which they come to be."""
        return ["base", *(["sft"] if self.config.sft_source != "none" else []), "rl"]

    def model_after(self, stage: str) -> LanguageModel:
        """A frozen model over the base weights with the adapters trained up to `stage` in it, or beside its codes."""
        if stage not in self.settled:  # one copy of what merging changes, whoever asks for it
            model = share_weights(self.base.model)
            for name in self.models[1 : self.models.index(stage) + 1]:
                load_adapter(model, self.adapter_path(name))
                settle_adapters(model)
            self.settled[stage] = LanguageModel(model, self.base.tokenizer, stage, self.base.source)
        held = self.settled[stage]
        return LanguageModel(share_weights(held.model), held.tokenizer, stage, held.source)

    @property
    def before(self) -> str:
        """The model that reinforcement learning starts from, which is also its reference."""
        return self.models[-2]

    def adapter_path(self, stage: str) -> Path:
        """Where the adapter of a stage lies."""
        return self.run.artifacts / f"adapter-{stage}"

    def reward_of(self, spec: str) -> Reward:
        """The reward that a specification stands for: opened, or trained in this run."""
        if spec in self.opened:
            return self.opened[spec]
        stage = "judge-model" if spec == "comparisons" else "reward-model"
        return PreferenceModel.load(self.run.artifacts / stage, self.model_after(self.before))

    def objective(self) -> Reward:
        """What is maximised."""
        parts = {
            name: (self.reward_of(spec.spec), spec.weight) for name, spec in named_parts(self.config.rewards).items()
        }
        return joined(parts, self.config.combine, self.config.rl.reward_time_limit)

    # Stages

    def fine_tune(self) -> dict[str, Any]:
        """Learn the demonstrations, or the chosen answers."""
        settings, seed = self.config.sft, self.config.seed
        lm = self.model_after("base")
        result = sft(
            lm,
            self.material.examples,
            SFTConfig(
                epochs=settings.epochs,
                row_length=settings.row_length,
                batch_size=settings.batch_size,
                lora=adapter(settings.rank, derive_seed(seed, "sft-adapter")),
                train=training(seed, settings.learning_rate, "supervised"),
            ),
            run=self.run,
            name="supervised",
            progress=self.progress,
        )
        store_adapter(lm.model, self.adapter_path("sft"), base_model=self.config.model)
        return {"examples": len(self.material.examples), "steps": result.steps, "loss": result.final_loss}

    def train_reward(self, name: str, pairs: list[RewardPair]) -> dict[str, Any]:
        """Bradley-Terry on comparisons, over the model that reinforcement learning starts from; its agreement with
        comparisons of other dialogues."""
        settings, seed = self.config.reward_model, derive_seed(self.config.seed, name)
        model = PreferenceModel(
            self.model_after(self.before),
            lora=adapter(settings.rank, derive_seed(seed, "adapter")),
            max_length=settings.max_length,
            seed=derive_seed(seed, "head"),
        )
        how = RewardConfig(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            loss=RewardLoss(centre=CENTRE),
            train=training(seed, settings.learning_rate, "reward"),
        )
        result = train_reward_model(
            model, pairs, how, run=self.run, name=name.replace("-", "_"), progress=self.progress
        )
        some = pairs[:128]
        asked, texts = [p.prompt for p in some] * 2, [p.chosen for p in some] + [p.rejected for p in some]
        model.fit_normalisation(asked, texts)
        measures = measure_reward(model, self.material.kept).as_dict()
        directory = self.run.artifacts / name
        if self.before == "base":  # anybody can load it then: `alignlab reward score RUN/artifacts/reward-model`
            save_reward(model, directory, {"base": self.config.model, "run": str(self.run.path), "measures": measures})
        else:
            model.save(directory)
        return {"pairs": len(pairs), "steps": result.steps, "loss": result.final_loss, "measures": measures}

    def reinforce(self) -> dict[str, Any]:
        """The policy climbs the reward, held near the model it starts from."""
        config, lm = self.config, self.model_after(self.before)
        gold = None if config.gold is None else self.reward_of(RewardSpec.parse(config.gold).spec)
        watched = Watched(
            self.objective(),
            gold,
            run=self.run,
            count_tokens=lambda text: len(lm.tokenizer.encode(text)),
            time_limit=config.rl.reward_time_limit,
        )
        how = method_config(config.method, config.rl, config.seed)
        history = improve(config.method, lm, watched, self.material.train, how, run=self.run, progress=self.progress)
        store_adapter(lm.model, self.adapter_path("rl"), base_model=config.model)
        skipped = sum(bool(row.get("skipped")) for row in history)
        return {"method": config.method, "steps": len(history), "skipped": skipped, "last": history[-1]}

    def answer(self, name: str) -> dict[str, Any]:
        """What a model says to the held-out prompts, in `artifacts/answers-NAME.jsonl`."""
        config = self.config
        sampling = SamplingParams(
            max_tokens=config.rl.max_tokens,
            temperature=config.temperature,
            stop=config.rl.stop,
            seed=derive_seed(config.seed, "measured"),
        )
        rows = generate_logged(
            sampler_of(self.model_after(name), batch_size=config.batch_size),
            self.material.heldout,
            sampling,
            self.run.artifacts / f"answers-{name}.jsonl",
            batch_size=config.batch_size,
            label=f"answers of {name}",
            progress=self.progress,
        )
        ended = sum(row["finish_reason"] == "stop" for row in rows)
        return {"answers": len(rows), "tokens": sum(row["tokens"] for row in rows), "ended": ended}

    def export(self) -> dict[str, Any]:
        """Write the model in the format that holds it and register its name."""
        path = self.run.path / "model"
        exported = export_model(self.model_after("rl"), path)
        self.progress.say(str(exported))
        registry.register(self.config.name, path, {"base": self.config.model, "run": str(self.run.path), "stage": "rl"})
        return {"path": str(path), "name": self.config.name, "format": exported.format}
