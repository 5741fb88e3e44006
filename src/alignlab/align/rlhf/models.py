"""What an `alignlab rlhf` run has so far: its base model and material, the models after each stage, its rewards.

Every process of a training on several GPUs has this much; the one that writes the run is `RLHFPipeline`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignlab.align.adapters import share_weights
from alignlab.align.diagnostics.watched import Watched
from alignlab.align.preference_model import PreferenceModel
from alignlab.align.rl.rewards import Reward
from alignlab.align.rlhf.config import TRAINED, RLHFConfig
from alignlab.align.rlhf.material import Material, gather
from alignlab.align.rlhf.methods import improve, method_config
from alignlab.align.rlhf.rewards import RewardSpec, joined, named_parts, open_reward, prompts_of
from alignlab.align.rlhf.sources import Asked
from alignlab.core.errors import RunError
from alignlab.core.progress import Progress
from alignlab.core.run_record import RunRecord
from alignlab.core.runs import Run
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.lora_files import load_adapter
from alignlab.lm.quant.adapted import settle_adapters
from alignlab.train.parallel import Parallel


@dataclass
class RLHFModels:
    """The reading side of a run, and the training of its policy."""

    config: RLHFConfig
    run: RunRecord
    progress: Progress
    parallel: Parallel = field(default_factory=Parallel)
    """The processes that train the policy together."""
    base: LanguageModel = field(init=False)
    material: Material = field(init=False)
    opened: dict[str, Reward] = field(init=False, default_factory=dict)
    """The rewards that are there without training, by specification."""
    settled: dict[str, LanguageModel] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        config, dtype = self.config, str(self.setup()["dtype"])
        device = config.device if self.parallel.world == 1 else str(self.parallel.device)
        self.base = load(config.model, dtype=dtype, device=device)
        brought: Asked | None = None
        for spec in self.specs():
            if spec.spec not in (TRAINED, "comparisons"):
                self.opened[spec.spec] = open_reward(
                    spec.spec, config.task, dtype=dtype, device=device, seed=config.seed
                )
        for spec in map(RewardSpec.parse, config.rewards):
            if spec.spec in self.opened and (brought is None or not brought.train):
                brought = prompts_of(self.opened[spec.spec])
        self.material = gather(config, self.base, brought)

    def setup(self) -> dict[str, Any]:
        """What the run was started with."""
        record = self.run.stage_record("setup")
        if record is None:
            raise RunError(f"the run {self.run.path} has not begun")
        return record.output

    def specs(self) -> list[RewardSpec]:
        """Every reward that is named: to maximise, to look at, to judge by."""
        named = [self.config.gold, self.config.judge.reward]
        return [RewardSpec.parse(text) for text in (*self.config.rewards, *filter(None, named))]

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

    def train_policy(self, run: Run | None) -> tuple[LanguageModel, list[dict[str, float]]]:
        """(the policy that has climbed the reward, held near the model it starts from, the metrics of every rollout
        batch). Every process calls it, the one that writes the run with the run."""
        config, lm = self.config, self.model_after(self.before)
        gold = None if config.gold is None else self.reward_of(RewardSpec.parse(config.gold).spec)
        watched = Watched(
            self.objective(),
            gold,
            run=run,
            count_tokens=lambda text: len(lm.tokenizer.encode(text)),
            time_limit=config.rl.reward_time_limit,
        )
        how = method_config(config.method, config.rl, config.seed)
        history = improve(
            config.method, lm, watched, self.material.train, how, run=run, progress=self.progress,
            parallel=self.parallel,
        )  # fmt: skip
        return lm, history


def assist(config: RLHFConfig, parallel: Parallel) -> None:
    """The part of a process that does not write the run: wait until the policy is trained, and train it too."""
    try:
        place = parallel.broadcast(None)
    except RuntimeError as error:  # of torch.distributed: nobody is at the other end
        raise RunError("the process that has the run ended before the training; its own output says why") from error
    if place is not None:
        RLHFModels(config, Run.read(Path(place)), Progress.silent(), parallel).train_policy(None)
