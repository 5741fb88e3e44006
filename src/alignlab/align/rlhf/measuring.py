"""What a run gained: the same held-out prompts answered by every model, compared prompt by prompt."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alignlab.align.diagnostics.response_log import prompt_key
from alignlab.align.objectives.recording import record_objectives
from alignlab.align.reward.examples import dialogue_of
from alignlab.align.rl.rewards import Guarded, Reward
from alignlab.align.rlhf.config import RLHFConfig
from alignlab.align.rlhf.judging import (
    LEAST_LABELS,
    AnswerJudge,
    JudgeError,
    ModelJudge,
    RewardJudge,
    labels_of_file,
    labels_of_pairs,
    measure_judge,
    win_rate,
)
from alignlab.align.rlhf.rewards import RewardSpec, named_parts
from alignlab.core.errors import DataError
from alignlab.core.files import read_jsonl
from alignlab.lm.language_model import load
from alignlab.lm.remote import RemoteSampler
from alignlab.lm.samplers import sampler_of
from alignlab.lm.types import Prompt, Sampler
from alignlab.stats.multiplicity import holm_correct
from alignlab.stats.paired import Comparison, bootstrap_mean, compare
from alignlab.tasks.judges.asking import JudgeModel
from alignlab.tasks.judges.labelled import LabelledPair, own_pairs, read_labels
from alignlab.tasks.judges.pairwise import PairRubric, PairwiseJudge

if TYPE_CHECKING:
    from alignlab.align.rlhf.pipeline import RLHFPipeline

FloatArray = NDArray[np.float64]
ALPHA = 0.05
"""Level of the verdicts of a run, after Holm's correction over all of its comparisons."""


@dataclass
class Measured:
    """Answers of every model to the same prompts, with what was measured of them."""

    prompts: list[Prompt]
    texts: dict[str, list[str]]
    """By model."""
    lengths: dict[str, list[int]]
    """Tokens of each answer."""
    scores: dict[str, dict[str, FloatArray]] = field(default_factory=dict)
    """By quantity and model: rewards, and `gold`."""

    @property
    def clusters(self) -> list[Hashable] | None:
        """The dialogue of each prompt; None where all differ."""
        found: list[Hashable] = [dialogue_of(prompt) for prompt in self.prompts]
        return found if len(set(found)) < len(found) else None


def measure_run(pipeline: RLHFPipeline) -> dict[str, Any]:
    """The stage `measures`: rewards, gold, lengths, divergence and wins, with intervals and corrected verdicts."""
    config, seed = pipeline.config, pipeline.config.seed
    measured = collect(pipeline)
    score_all(pipeline, measured)
    pairs = [(earlier, "rl") for earlier in dict.fromkeys((pipeline.before, "base"))]
    raw: dict[tuple[str, str], Comparison] = {}
    for quantity, by_model in measured.scores.items():
        for earlier, later in pairs:
            found = compare(by_model[earlier], by_model[later], clusters=measured.clusters, seed=seed)
            raw[quantity, earlier] = found
    judged = judge_wins(pipeline, measured, [earlier for earlier, _ in pairs])
    for earlier, wins in judged.items():
        if "test" in wins:
            raw["wins", earlier] = wins.pop("test")
    corrected = holm_correct({json.dumps(key): value for key, value in raw.items()}, ALPHA)
    results = {tuple(json.loads(key)): value for key, value in corrected.items()}
    write_rows(pipeline, measured)
    if len(measured.scores) > 1:  # something to weigh against each other: `alignlab pareto RUNS` reads it
        reached = {quantity: by_model["rl"].tolist() for quantity, by_model in measured.scores.items()}
        items = [prompt_key(prompt) for prompt in measured.prompts]
        record_objectives(pipeline.run, {"seed": seed, "items": items, "objectives": reached})
    shown = {
        quantity: {
            model: bootstrap_mean(values, clusters=measured.clusters, seed=seed).as_dict()
            for model, values in by_model.items()
        }
        for quantity, by_model in measured.scores.items()
    }
    lengths = {name: np.asarray(values, dtype=np.float64) for name, values in measured.lengths.items()}
    return {
        "prompts": len(measured.prompts),
        "temperature": config.temperature,
        "quantities": shown,
        "differences": [
            {"quantity": quantity, "earlier": earlier, "later": "rl", **told(result)}
            for (quantity, earlier), result in results.items()
        ],
        "length": {
            name: bootstrap_mean(values, clusters=measured.clusters, seed=seed).as_dict()
            for name, values in lengths.items()
        },
        "kl": divergence(pipeline, measured),
        "wins": judged,
    }


def told(result: Comparison) -> dict[str, Any]:
    """A comparison in JSON."""
    return {
        "difference": result.difference.as_dict(),
        "p": result.p_value,
        "adjusted_p": result.adjusted_p,
        "verdict": result.verdict,
    }


def collect(pipeline: RLHFPipeline) -> Measured:
    """The answers that the stages before this one wrote."""
    prompts, asking = pipeline.material.heldout, pipeline.material.asking
    rows = {name: read_jsonl(pipeline.run.artifacts / f"answers-{name}.jsonl") for name in pipeline.models}
    ordered = {name: sorted(found, key=lambda row: int(row["index"])) for name, found in rows.items()}
    texts = {
        name: [asking.answer(prompt, row["text"]) for prompt, row in zip(prompts, found, strict=True)]
        for name, found in ordered.items()
    }
    return Measured(prompts, texts, {name: [row["tokens"] for row in found] for name, found in ordered.items()})


def score_all(pipeline: RLHFPipeline, measured: Measured) -> None:
    """Every reward, and the gold one, on the answers of every model."""
    config = pipeline.config
    named: dict[str, Reward] = {}
    parts = named_parts(config.rewards)
    for name, spec in parts.items():
        named["reward" if len(parts) == 1 else f"reward {name}"] = pipeline.reward_of(spec.spec)
    if config.gold is not None:
        named["gold"] = pipeline.reward_of(RewardSpec.parse(config.gold).spec)
    for label, reward in named.items():
        guarded = Guarded(reward, config.rl.reward_time_limit)
        measured.scores[label] = {
            model: guarded.score(measured.prompts, texts).double().numpy() for model, texts in measured.texts.items()
        }


def divergence(pipeline: RLHFPipeline, measured: Measured) -> dict[str, Any] | None:
    """KL of the policy to the model before it, nats an answer, from its own answers; None at another temperature.

    Over the text of an answer; its end token is not in it.
    """
    if pipeline.config.temperature != 1:
        return None
    said = [i for i, text in enumerate(measured.texts["rl"]) if text]
    if not said:
        return None
    totals = []
    for name in ("rl", pipeline.before):
        sampler = sampler_of(pipeline.model_after(name), batch_size=pipeline.config.batch_size)
        found = sampler.logprobs([measured.prompts[i] for i in said], [measured.texts["rl"][i] for i in said])
        totals.append(np.array([float(one.double().sum()) for one in found]))
    ratios = np.zeros(len(measured.prompts))
    ratios[said] = totals[0] - totals[1]
    return bootstrap_mean(ratios, clusters=measured.clusters, seed=pipeline.config.seed).as_dict()


def judge_wins(pipeline: RLHFPipeline, measured: Measured, earlier: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Wins of the policy over earlier models, as the judge sees them and behind its error; empty without a judge."""
    judge = open_judge(pipeline)
    if judge is None:
        return {}
    seed, n = pipeline.config.seed, len(measured.prompts)
    error = calibrated(pipeline, judge)
    found: dict[str, dict[str, Any]] = {}
    for name in earlier:
        # Who stands first alternates, so that a judge's taste for a place, if it has one, favours neither.
        first = [measured.texts["rl" if i % 2 == 0 else name][i] for i in range(n)]
        second = [measured.texts[name if i % 2 == 0 else "rl"][i] for i in range(n)]
        seen = judge.prefer(measured.prompts, first, second)
        verdicts = [v if v is None or i % 2 == 0 else 1 - v for i, v in enumerate(seen)]
        pipeline.run.write_artifact(f"verdicts-{name}.json", verdicts)
        try:
            wins = win_rate(verdicts, error, clusters=measured.clusters, seed=seed)
        except DataError as problem:
            found[name] = {"judge": judge.name, "failed": str(problem)}
            continue
        found[name] = {
            "judge": judge.name,
            "wins": wins.wins,
            "ties": wins.ties,
            "losses": wins.losses,
            "missing": wins.missing,
            "raw": wins.raw.as_dict(),
            "corrected": None if wins.corrected is None else wins.corrected.as_dict(),
            "test": wins.test,
            "labels": None
            if error is None
            else {"n": error.n, "missing": error.missing, "accuracy": error.accuracy.as_dict(), "useful": error.useful},
        }
    return found


def open_judge(pipeline: RLHFPipeline) -> AnswerJudge | None:
    """The judge that the configuration names."""
    config, settings = pipeline.config, pipeline.config.judge
    if settings.reward is not None:
        spec = RewardSpec.parse(settings.reward)
        name = "a reward model of other comparisons" if spec.spec == "comparisons" else spec.label
        return RewardJudge(pipeline.reward_of(spec.spec), name, config.rl.reward_time_limit)
    if settings.model is None:
        return None
    if settings.url is not None:
        remote: Sampler = RemoteSampler(settings.url, settings.model)
        return ModelJudge(PairwiseJudge(JudgeModel(remote, settings.model)))
    lm = load(settings.model, dtype=str(pipeline.run.stage("setup", dict)["dtype"]), device=config.device)
    sampler = sampler_of(lm, batch_size=config.batch_size)
    rubric = PairRubric(reading="expected")  # a small model's next word says more than its prose
    return ModelJudge(PairwiseJudge(JudgeModel(sampler, settings.model), rubric))


def calibrated(pipeline: RLHFPipeline, judge: AnswerJudge) -> JudgeError | None:
    """The judge's error on labels; None where there are none, or too few."""
    labels = judge_labels(pipeline.config, pipeline)
    if labels is None:
        return None
    found = measure_judge(judge, **labels, seed=pipeline.config.seed)
    if found is None:
        pipeline.progress.say(f"fewer than {LEAST_LABELS} labels with a verdict: the win rate is not corrected")
    return found


def judge_labels(config: RLHFConfig, pipeline: RLHFPipeline) -> Mapping[str, Any] | None:
    """The pairs with people's verdicts: named, or the comparisons that nothing learned from."""
    settings = config.judge
    if settings.labels == "none":
        return None
    if settings.labels is None:
        kept = pipeline.material.kept
        return labels_of_pairs(kept, settings.n_labels) if kept else None
    pairs = own_pairs() if settings.labels == "lab" else read_label_file(settings.labels)
    return labels_of_file(pairs, settings.n_labels)


def read_label_file(path: str) -> list[LabelledPair]:
    """Labelled pairs of a file. Raises DataError for labels of single answers."""
    found = [row for row in read_labels(path) if isinstance(row, LabelledPair)]
    if not found:
        raise DataError(f"{path} holds labels of single answers, the judge compares pairs (first, second, better)")
    return found


def write_rows(pipeline: RLHFPipeline, measured: Measured) -> None:
    """`artifacts/measured.jsonl`: each prompt with every model's answer and its scores."""
    lines = []
    for i, prompt in enumerate(measured.prompts):
        scores = {
            quantity: {model: float(values[i]) for model, values in by_model.items()}
            for quantity, by_model in measured.scores.items()
        }
        answers = {model: texts[i] for model, texts in measured.texts.items()}
        tokens = {model: lengths[i] for model, lengths in measured.lengths.items()}
        row = {"index": i, "prompt": prompt, "answers": answers, "tokens": tokens, "scores": scores}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    pipeline.run.write_artifact("measured.jsonl", "".join(lines))
