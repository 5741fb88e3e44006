"""`alignlab align`: Constitutional AI from a model and a constitution to a report and an aligned model.

The stages, in order: baseline → responses → critiques → revisions → supervised fine-tuning → SL-CAI measured → sampled
pairs → AI preferences → preference model → RL → RL-CAI measured → export. Each records its output in the run; started
again after a crash, the run goes on at the first unfinished stage and ends with the same numbers.

What differs from Bai et al. 2022: one critique and revision per response instead of up to four, several revisions of
which the feedback keeps the best, preferences also between the supervised model and the first one, and helpfulness
labels that are reference answers instead of human comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from alignlab.align.adapters import share_weights
from alignlab.align.config import AlignConfig
from alignlab.align.constitution import Constitution
from alignlab.align.critique import (
    CRITIQUE,
    REVISION,
    Critique,
    as_conversations,
    critique_prompts,
    revision_prompts,
)
from alignlab.align.endpoint import TOTALS, open_endpoint
from alignlab.align.feedback import ContrastFeedback, Feedback, make_feedback
from alignlab.align.fitting import fit_to_model
from alignlab.align.learning import train_preferences, train_reinforcement, train_supervised
from alignlab.align.measures import bits_per_byte, held_out_tasks
from alignlab.align.preferences import judge_pairs, sample_pairs
from alignlab.align.resumable import LoggedSampler, generate_logged
from alignlab.align.texts import best_candidates
from alignlab.core.device import pick_device
from alignlab.core.errors import ConfigError, DataError
from alignlab.core.files import append_jsonl, read_jsonl, sha256_file
from alignlab.core.progress import Progress
from alignlab.core.rng import derive_seed
from alignlab.core.runs import Run
from alignlab.data.prompts import PromptRecord, load_prompts, read_prompt_file
from alignlab.lm import registry
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.local import LocalSampler
from alignlab.lm.lora_files import load_adapter
from alignlab.lm.native import export_model
from alignlab.lm.quant.adapted import settle_adapters
from alignlab.lm.remote import RemoteSampler
from alignlab.lm.samplers import sampler_of
from alignlab.lm.types import Prompt, Sampler, SamplingParams
from alignlab.tasks.evaluator import evaluate

RESPOND = 0.3
"""Temperature of the first responses: warm enough to vary, cool enough for a small model to make sense."""


REVISE = 0.5
"""Temperature of the revisions, so that there is something to choose from."""


@dataclass
class AlignmentPipeline:
    """One run of the pipeline; `execute` does what is not done yet."""

    config: AlignConfig
    run: Run
    progress: Progress
    base: LanguageModel = field(init=False)
    constitution: Constitution = field(init=False)
    prompts: dict[str, list[PromptRecord]] = field(init=False)
    endpoint: RemoteSampler | None = field(init=False)

    def __post_init__(self) -> None:
        self.constitution = Constitution.load(self.config.constitution)
        self.endpoint = open_endpoint(self.config, self.run.artifacts / TOTALS)
        self.prompts = {name: self.training_prompts(name) for name in ("harmful", "benign", "helpful")}
        setup = self.run.stage("setup", lambda: {"dtype": resolve_dtype(self.config), "files": self.digests()})
        changed = [name for name, digest in self.digests().items() if setup["files"].get(name) != digest]
        if changed:
            raise ConfigError(f"{changed[0]} has changed since this run was started, start a new one with --fresh")
        # The precision that the run was started with, also when it goes on elsewhere.
        self.base = load(self.config.model, dtype=setup["dtype"], device=self.config.device, packed=self.config.packed)
        self.constitution = fit_to_model(self.constitution, self.base, self.config, self.prompts, self.progress)

    def digests(self) -> dict[str, str]:
        """SHA-256 of the user's own files, which a run must find again as they were."""
        named = (self.config.constitution, self.config.prompts)
        return {str(path): sha256_file(path) for path in named if path is not None}

    def training_prompts(self, name: str) -> list[PromptRecord]:
        """The training prompts of a set, or the user's own red-team prompts."""
        if name == "harmful" and self.config.prompts is not None:
            records = read_prompt_file(self.config.prompts)
        else:
            records = load_prompts(name, "train")  # type: ignore[arg-type]
        return records[: self.config.n_prompts or None]

    def execute(self) -> None:
        """Every stage that has no recorded output yet, in order."""
        stages = [
            ("baseline", lambda: self.measure("base")),
            ("responses", self.respond),
            ("critiques", self.criticise),
            ("revisions", self.revise),
            ("supervised", lambda: train_supervised(self)),
            ("sl-cai", lambda: self.measure("sl-cai")),
            ("pairs", lambda: sample_pairs(self)),
            ("preferences", lambda: judge_pairs(self)),
            ("preference-model", lambda: train_preferences(self)),
        ]
        if self.config.reinforcement.method != "none":
            stages += [
                ("reinforcement", lambda: train_reinforcement(self)),
                ("rl-cai", lambda: self.measure("rl-cai")),
            ]
        stages.append(("export", self.export))
        for number, (name, work) in enumerate(stages, 1):
            done = self.run.stage_record(name) is not None
            self.progress.say(f"[{number}/{len(stages)}] {name}{' (already done)' if done else ''}")
            self.run.stage(name, work)

    # Models and samplers

    def model_after(self, stage: str) -> LanguageModel:
        """A frozen model over the base weights with the adapters trained up to `stage` in it, or beside its codes."""
        adapters = {"base": [], "sl-cai": ["sl-cai"], "rl-cai": ["sl-cai", "rl-cai"]}[stage]
        model = share_weights(self.base.model)
        for adapter in adapters:
            load_adapter(model, self.adapter_path(adapter))
            settle_adapters(model)
        return LanguageModel(model, self.base.tokenizer, stage, self.base.source)

    def adapter_path(self, stage: str) -> Path:
        """Where the adapter of a stage lies, in PEFT's format where that has a place for it."""
        return self.run.artifacts / f"adapter-{stage}"

    def sampler(self, lm: LanguageModel) -> Sampler:
        """What generates with `lm` here, the run's batch size at a time."""
        return sampler_of(lm, batch_size=self.config.batch_size)

    def critic(self) -> Sampler:
        """What writes critiques and revisions: the endpoint where one is named, else the model itself."""
        return self.sampler(self.base) if self.endpoint is None else self.endpoint

    def feedback(self) -> Feedback:
        """What makes the AI preferences."""
        sampler: Sampler = self.sampler(self.base)
        if self.config.feedback == "judge":
            artifacts, size = self.run.artifacts, self.config.batch_size
            sampler = LoggedSampler(self.critic(), artifacts, "judgements", size, self.progress)
        return make_feedback(self.config.feedback, sampler, self.constitution, seed=self.config.seed)

    # Stages

    def generate(
        self, sampler: Sampler, prompts: Sequence[Prompt], sampling: SamplingParams, name: str
    ) -> list[dict[str, Any]]:
        """Completions of a stage, kept batch by batch in `artifacts/NAME.jsonl`."""
        return generate_logged(
            sampler,
            prompts,
            sampling,
            self.run.artifacts / f"{name}.jsonl",
            batch_size=self.config.batch_size,
            label=name,
            progress=self.progress,
        )

    def measure(self, stage: str) -> dict[str, Any]:
        """The three held-out tasks and bits per byte, for the model after `stage`."""
        lm = self.model_after(stage)
        sampler = self.sampler(lm)
        results: dict[str, Any] = {}
        for task in held_out_tasks(max_tokens=self.config.max_tokens, limit=self.config.n_eval):
            done = evaluate(
                task,
                sampler,
                log_dir=self.run.artifacts / "evaluations" / stage / task.name,
                batch_size=self.config.batch_size,
                progress=self.progress,
                model=stage,
                seed=self.config.seed,
            )
            results[task.name] = done.aggregate.as_dict()
        return {**results, "bits_per_byte": bits_per_byte(LocalSampler(lm, batch_size=self.config.batch_size))}

    def respond(self) -> dict[str, Any]:
        """The model's own answers to the red-team prompts."""
        sampling = SamplingParams(
            max_tokens=self.config.max_tokens, temperature=RESPOND, seed=derive_seed(self.config.seed, "respond")
        )
        asked = as_conversations([record.prompt for record in self.prompts["harmful"]])
        rows = self.generate(self.sampler(self.base), asked, sampling, "responses")
        return {"responses": len(rows), "tokens": sum(row["tokens"] for row in rows)}

    def criticise(self) -> dict[str, Any]:
        """A critique of each answer, by a principle drawn for it."""
        prompts, responses = self.texts("responses")
        rules = [
            self.constitution.draw(derive_seed(self.config.seed, "principle", prompt), category="harmlessness")
            for prompt in prompts
        ]
        asked = critique_prompts(self.constitution, prompts, responses, rules)
        rows = self.generate(self.critic(), asked, CRITIQUE, "critiques")
        counts: dict[str, int] = {}
        for rule in rules:
            counts[rule.id] = counts.get(rule.id, 0) + 1
        self.run.write_artifact("principles.json", [rule.id for rule in rules])
        return {"critiques": len(rows), "tokens": sum(row["tokens"] for row in rows), "principles": counts}

    def revise(self) -> dict[str, Any]:
        """Several revisions of each answer, of which the feedback keeps the best."""
        prompts, responses = self.texts("responses")
        critiques = self.critiques()
        critic, tokens, candidates = self.critic(), 0, []
        for number in range(self.config.revisions):
            asked = revision_prompts(
                self.constitution,
                prompts,
                responses,
                critiques,
                show_response=self.config.critic_url is not None,
            )
            sampling = SamplingParams(
                max_tokens=REVISION.max_tokens,
                temperature=REVISE,
                stop=REVISION.stop,
                seed=derive_seed(self.config.seed, "revise", number),
            )
            rows = self.generate(critic, asked, sampling, f"revisions-{number}")
            candidates.append([row["text"] for row in rows])
            tokens += sum(row["tokens"] for row in rows)
        scorer = ContrastFeedback(self.sampler(self.base), self.constitution)
        kept = best_candidates(prompts, candidates, scorer)
        if all(text is None for text, _ in kept):
            raise DataError(f"all revisions of {len(prompts)} responses are empty or loop, there is nothing to learn")
        path = self.run.artifacts / "revisions.jsonl"
        path.unlink(missing_ok=True)
        append_jsonl(path, [{"index": i, "text": text, "score": score} for i, (text, score) in enumerate(kept)])
        return {"revisions": len(kept), "kept": sum(text is not None for text, _ in kept), "tokens": tokens}

    def export(self) -> dict[str, Any]:
        """Write the last model in the format that holds it and register its name."""
        last = "sl-cai" if self.config.reinforcement.method == "none" else "rl-cai"
        path = self.run.path / "model"
        exported = export_model(self.model_after(last), path)
        self.progress.say(str(exported))
        info = {"base": self.config.model, "run": str(self.run.path), "stage": last}
        registry.register(self.config.name, path, info)
        return {"path": str(path), "name": self.config.name, "stage": last, "format": exported.format}

    # What stages left behind

    def texts(self, name: str) -> tuple[list[str], list[str]]:
        """The red-team prompts and the texts that a generating stage wrote for them."""
        rows = {row["index"]: row["text"] for row in read_jsonl(self.run.artifacts / f"{name}.jsonl")}
        prompts = [record.prompt for record in self.prompts["harmful"]]
        return prompts, [rows[i] for i in range(len(prompts))]

    def critiques(self) -> list[Critique]:
        """The critiques with the principles they were asked by."""
        prompts, written = self.texts("critiques")
        return [
            Critique(
                self.constitution.draw(derive_seed(self.config.seed, "principle", prompt), category="harmlessness").id,
                text,
            )
            for prompt, text in zip(prompts, written, strict=True)
        ]


def resolve_dtype(config: AlignConfig) -> str:
    """The named precision; auto is bfloat16 on accelerators and on processors with bf16 matrix units."""
    if config.dtype != "auto":
        return config.dtype
    if pick_device(config.device).type != "cpu":
        return "bfloat16"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"
