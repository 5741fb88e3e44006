"""Code tasks: HumanEval, MBPP and problems in several languages, answered `n` times each and scored with pass@k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignlab.core.config import require
from alignlab.core.errors import ConfigError, DataError
from alignlab.core.files import json_rows
from alignlab.lm.types import Completion, Prompt, Sampler, SamplingParams
from alignlab.stats.interval import Interval
from alignlab.stats.paired import mean_interval
from alignlab.tasks.code_programs import CodeScorer
from alignlab.tasks.evaluation import Evaluation
from alignlab.tasks.sandbox.languages import language_named
from alignlab.tasks.task import Sample, Task

CHAT_REQUEST = (
    "Complete this {language} code. Answer with the complete code in one fenced block.\n\n```{language}\n{prompt}\n```"
)


def read_humaneval(path: str | Path, *, answers: int = 1, chat: bool = False) -> list[Sample]:
    """Samples of a HumanEval file (JSON lines, may be gzipped): `answers` of each problem, clustered by problem.

    The prompt is the raw text to continue, or with `chat` a message that asks for the whole function. DataError with
    line and field for a row that is not a HumanEval problem.
    """
    samples: list[Sample] = []
    for where, row in _rows(path):
        prompt, entry_point = _text(row, "prompt", where), _text(row, "entry_point", where)
        problem = {
            "problem": _text(row, "task_id", where),
            "language": "python",
            "prompt": prompt,
            "entry_point": entry_point,
            "tests": f"{_text(row, 'test', where)}\n\ncheck({entry_point})\n",
        }
        target = _text(row, "canonical_solution", where) if "canonical_solution" in row else None
        samples += _repeated(problem, _asked(problem, chat), target, answers)
    return samples


def read_mbpp(path: str | Path, *, answers: int = 1, chat: bool = False) -> list[Sample]:
    """Samples of an MBPP file (JSON lines), in its full form ("text") or its sanitized one ("prompt").

    The raw prompt is a docstring with the task and its tests, in our wording. DataError with line and field for a row
    that is not an MBPP problem.
    """
    samples: list[Sample] = []
    for where, row in _rows(path):
        text = _text(row, "text" if "text" in row else "prompt", where)
        tests = _texts(row, "test_list", where)
        before = [row["test_setup_code"]] if row.get("test_setup_code") else []
        before += _texts(row, "test_imports", where) if row.get("test_imports") else []
        listed = "\n".join(tests)
        if not isinstance(row.get("task_id"), int | str):
            raise DataError(f"{where}: the field 'task_id' is {row.get('task_id')!r}, allowed: a number or text")
        problem = {
            "problem": f"MBPP/{row['task_id']}",
            "language": "python",
            "prompt": f'"""{text}\n\nThese tests must pass:\n{listed}\n"""\n',
            "tests": "\n".join([*before, listed]) + "\n",
        }
        target = _text(row, "code", where) if "code" in row else None
        samples += _repeated(problem, _asked(problem, chat), target, answers)
    return samples


def read_code_problems(path: str | Path, *, answers: int = 1, chat: bool = False) -> list[Sample]:
    """Samples of problems in any language of the sandbox: JSON lines with `id` (or `name`), `language`, `prompt` and
    `tests`, optionally `entry_point` and `solution`. The files of MultiPL-E have these fields.

    DataError with line and field for a row that lacks one; ConfigError for a language that the sandbox does not know.
    """
    samples: list[Sample] = []
    for where, row in _rows(path):
        try:
            language = language_named(_text(row, "language", where))
        except ConfigError as error:
            raise DataError(f"{where}: {error}") from error
        problem = {
            "problem": _text(row, "id" if "id" in row else "name", where),
            "language": language,
            "prompt": _text(row, "prompt", where, empty=True),
            "tests": _text(row, "tests", where),
        }
        if row.get("entry_point"):
            problem["entry_point"] = _text(row, "entry_point", where)
        target = _text(row, "solution", where) if "solution" in row else None
        samples += _repeated(problem, _asked(problem, chat), target, answers)
    return samples


def _rows(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    found = list(json_rows(path))
    if not found:
        raise DataError(f"{path} holds no problem")
    return found


def _text(row: dict[str, Any], name: str, where: str, *, empty: bool = False) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not (value or empty):
        raise DataError(f"{where}: the field {name!r} is {value!r}, allowed: text")
    return value


def _texts(row: dict[str, Any], name: str, where: str) -> list[str]:
    value = row.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise DataError(f"{where}: the field {name!r} is {value!r}, allowed: a non-empty list of texts")
    return value


def _asked(problem: dict[str, str], chat: bool) -> Prompt:
    if not chat:
        return problem["prompt"]
    return [{"role": "user", "content": CHAT_REQUEST.format(language=problem["language"], prompt=problem["prompt"])}]


def _repeated(problem: dict[str, str], prompt: Prompt, target: str | None, answers: int) -> list[Sample]:
    require(answers >= 1, "answers", answers, "a whole number of at least 1")
    name = problem["problem"]
    return [
        Sample(
            id=name if answers == 1 else f"{name}#{number}",
            prompt=prompt,
            target=target,
            metadata={**problem, "answer": number},
            cluster=name,
        )
        for number in range(answers)
    ]


@dataclass(frozen=True)
class GenerateAnswers:
    """Asks with `sampling`, the seed moved by the number of the answer, so that answers to one problem differ."""

    sampling: SamplingParams

    def __call__(self, sampler: Sampler, samples: Sequence[Sample]) -> list[Completion]:
        """One completion for each sample; which batch a sample falls into does not matter."""
        numbers = [int(sample.metadata.get("answer", 0)) for sample in samples]
        found: dict[int, Completion] = {}
        for number in sorted(set(numbers)):
            places = [place for place, other in enumerate(numbers) if other == number]
            sampling = replace(self.sampling, seed=self.sampling.seed + number)
            done = sampler.generate([samples[place].prompt for place in places], sampling)
            found.update(zip(places, done, strict=True))
        return [found[place] for place in range(len(samples))]


def code_task(name: str, samples: Sequence[Sample], sampling: SamplingParams, scorer: CodeScorer | None = None) -> Task:
    """The task of `samples` (from one of the readers), scored in the sandbox."""
    return Task(name, samples, GenerateAnswers(sampling), scorer or CodeScorer())


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of `k` answers drawn from `n`, of which `c` are right, is right.

    1 - C(n - c, k) / C(n, k) as a product, the unbiased estimator of Chen et al. 2021, equation 1. DataError unless
    0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= c <= n:
        raise DataError(f"c is {c}, which is not between 0 and n = {n}")
    if not 1 <= k <= n:
        raise DataError(f"k is {k}, but there are n = {n} answers; allowed: 1 to n")
    if n - c < k:
        return 1.0
    product = 1.0
    for number in range(n - c + 1, n + 1):
        product *= 1.0 - k / number
    return 1.0 - product


@dataclass(frozen=True)
class PassAtK:
    """pass@k over the problems of an evaluation."""

    k: int
    mean: Interval | None
    """Over problems all of whose answers were scored; None when there is none."""
    n_problems: int
    n_unscorable: int
    """Problems with an answer that could not be scored; they are in the bounds, not in the mean."""
    worst: float
    """Mean over all problems if every unscorable answer were wrong."""
    best: float
    """The same if every one were right."""


def evaluation_pass_at_k(evaluation: Evaluation, k: int, *, seed: int = 0) -> PassAtK:
    """pass@k of a code task, problems being the units of the interval. DataError: fewer than `k` answers a problem."""
    groups: dict[str, list[float | None]] = {}
    for result in evaluation.results:
        groups.setdefault(str((result.metadata or {}).get("problem", result.id)), []).append(result.score.value)
    known: list[float] = []
    worst: list[float] = []
    best: list[float] = []
    for problem, values in groups.items():
        if len(values) < k:
            raise DataError(f"pass@{k} needs {k} answers a problem, but {problem!r} has {len(values)}")
        right, unknown = sum(value == 1.0 for value in values), values.count(None)
        worst.append(pass_at_k(len(values), right, k))
        best.append(pass_at_k(len(values), right + unknown, k))
        if not unknown:
            known.append(worst[-1])
    mean = mean_interval(known, seed=seed) if known else None
    n = len(groups)
    return PassAtK(k, mean, n, n - len(known), sum(worst) / n, sum(best) / n)
