"""`alignlab rlhf`: from demonstrations and comparisons to an aligned model and an account of what was gained.

The stages, in order: setup → supervised fine-tuning → reward model → held-out judge → reinforcement → answers of every
model to held-out prompts → measures → export. Those that have nothing to do are left out. Each records its output in
the run; started again after a crash, the run goes on at the first unfinished stage and ends with the same numbers.

After Stiennon et al. 2020 and Ouyang et al. 2022. What differs: reward model, policy and reference are adapters over
one set of weights; the value function is a head on the policy; there is no mix of the pretraining loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.align.config import AlignConfig
from alignlab.align.learning import adapter, training
from alignlab.align.pipeline import resolve_dtype
from alignlab.align.preference_model import PreferenceModel
from alignlab.align.resumable import generate_logged
from alignlab.align.reward.examples import RewardPair
from alignlab.align.reward.measures import measure_reward
from alignlab.align.reward.saved import save_reward
from alignlab.align.reward.training import RewardConfig, RewardLoss, train_reward_model
from alignlab.align.rlhf.measuring import measure_run
from alignlab.align.rlhf.methods import method_config
from alignlab.align.rlhf.models import RLHFModels
from alignlab.align.sft import SFTConfig, sft
from alignlab.core.errors import ConfigError
from alignlab.core.files import sha256_file
from alignlab.core.rng import derive_seed
from alignlab.core.runs import Run
from alignlab.lm import registry
from alignlab.lm.lora_files import store_adapter
from alignlab.lm.native import export_model
from alignlab.lm.samplers import sampler_of
from alignlab.lm.types import SamplingParams

CENTRE = 0.01
"""Weight that keeps the mean of a reward model's rewards near 0."""


@dataclass
class RLHFPipeline(RLHFModels):
    """One run; `execute` does what is not done yet."""

    run: Run

    def __post_init__(self) -> None:
        self.config.check_sources()
        method_config(self.config.method, self.config.rl, self.config.seed)  # refused before anything is loaded
        super().__post_init__()

    def setup(self) -> dict[str, Any]:
        """What the run was started with, recorded; ConfigError where a file has changed since."""
        found = self.run.stage("setup", lambda: {"dtype": self.dtype(), "files": self.digests()})
        changed = [name for name, digest in self.digests().items() if found["files"].get(name) != digest]
        if changed:
            raise ConfigError(f"{changed[0]} has changed since this run was started, start a new one with --fresh")
        return found

    def dtype(self) -> str:
        """The precision that the run is started with, also when it goes on elsewhere."""
        return resolve_dtype(AlignConfig(dtype=self.config.dtype, device=self.config.device))

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
            if done and name == "reinforcement":
                self.parallel.broadcast(None)  # nobody is needed any more

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
        """The policy climbs the reward, held near the model it starts from, with the other processes if there are."""
        self.parallel.broadcast(str(self.run.path))
        lm, history = self.train_policy(self.run)
        store_adapter(lm.model, self.adapter_path("rl"), base_model=self.config.model)
        skipped = sum(bool(row.get("skipped")) for row in history)
        return {"method": self.config.method, "steps": len(history), "skipped": skipped, "last": history[-1]}

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
