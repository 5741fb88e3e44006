"""Built-in solvers: ask the model once, or replay recorded completions for another scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alignlab.core.errors import DataError
from alignlab.lm.types import Completion, Prompt, Sampler, SamplingParams
from alignlab.tasks.evaluation import Evaluation
from alignlab.tasks.task import Sample, Solver


@dataclass(frozen=True)
class Generate:
    """One completion for each sample; see `generate`."""

    sampling: SamplingParams
    system: str | None = None

    def __call__(self, sampler: Sampler, samples: Sequence[Sample]) -> list[Completion]:
        """Completions in the order of `samples`."""
        return sampler.generate([self.prompt(sample) for sample in samples], self.sampling)

    def prompt(self, sample: Sample) -> Prompt:
        """The sample's prompt under the system message, where there is one."""
        if self.system is None:
            return sample.prompt
        if isinstance(sample.prompt, str):
            raise DataError(f"sample {sample.id!r} is raw text, which has no place for a system message; use messages")
        first = sample.prompt[0]
        if first["role"] == "system":
            # A chat template takes one system message: ours leads, the sample's own follows in it.
            merged = {"role": "system", "content": f"{self.system}\n\n{first['content']}"}
            return [merged, *sample.prompt[1:]]
        return [{"role": "system", "content": self.system}, *sample.prompt]


def generate(sampling: SamplingParams, system: str | None = None) -> Solver:
    """The solver that asks once with `sampling`; `system` is put before every conversation."""
    return Generate(sampling, system)


@dataclass(frozen=True)
class Replay:
    """Recorded completions instead of new ones; see `replay`."""

    log_dir: str
    completions: dict[str, Completion] = field(repr=False, compare=False)
    fingerprint: str

    def __call__(self, sampler: Sampler, samples: Sequence[Sample]) -> list[Completion]:
        """The recorded completion of each sample; the sampler is not used."""
        missing = [sample.id for sample in samples if sample.id not in self.completions]
        if missing:
            raise DataError(f"the log {self.log_dir} has no completion for sample {missing[0]!r}")
        return [self.completions[sample.id] for sample in samples]


def replay(log_dir: str | Path) -> Solver:
    """The solver that returns the completions of a finished evaluation.

    Scoring frozen transcripts with a second scorer separates the judge's variance from the model's.
    """
    evaluation = Evaluation.load(log_dir)
    completions = {r.id: r.completion for r in evaluation.results if r.completion is not None}
    identity = f"replay of {evaluation.task} by {evaluation.model}, {evaluation.dataset}"
    return Replay(str(log_dir), completions, identity)
