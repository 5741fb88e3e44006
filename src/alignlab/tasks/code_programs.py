"""From a model's answer to a program that tests it, and the scorer that runs such programs in the sandbox."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignlab.core.errors import DataError
from alignlab.lm.types import Completion
from alignlab.tasks.sandbox.languages import language_named
from alignlab.tasks.sandbox.run import run_programs
from alignlab.tasks.sandbox.types import JUDGED, Limits, Program, RunResult
from alignlab.tasks.task import Sample, Score

CONTINUATION_ENDS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\n```")
"""Where the continuation of a Python function ends (after Chen et al. 2021, section 3.1)."""

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+#-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)


def defines(code: str, name: str) -> bool:
    """Whether an unindented line of `code` defines `name`, in any of the sandbox's languages."""
    pattern = rf"^(?:[A-Za-z_][\w \t*]*[ \t*])?{re.escape(name)}\s*(?:=|\()"
    return re.search(pattern, code, re.MULTILINE) is not None


def extract_code(answer: str, entry_point: str | None = None, language: str = "python") -> str:
    """The code in an answer: the first fenced block that defines `entry_point`, else the first block, else all of it.

    An answer whose first line is indented continues the prompt's function and is cut where a Python function ends. A
    block that was cut off by the token limit counts as far as it goes.
    """
    first = next((line for line in answer.splitlines() if line.strip()), "")
    if first[:1] in (" ", "\t") and not first.lstrip().startswith("```"):
        stops = CONTINUATION_ENDS if language == "python" else ("\n```",)
        ends = [place for stop in stops if (place := answer.find(stop)) >= 0]
        return answer[: min(ends)] if ends else answer
    blocks = [match.group(2) for match in _FENCE.finditer(answer)]
    if not blocks:
        return answer
    return next((block for block in blocks if entry_point and defines(block, entry_point)), blocks[0])


def build_program(problem: Mapping[str, Any], answer: str) -> Program:
    """Answer and tests as one program; `problem` is the metadata of a sample made by the readers of `code_tasks`.

    An answer that defines the entry point replaces the prompt from its definition on; any other continues the prompt.
    The last thing the program does is to print its token.
    """
    language = language_named(problem["language"])
    prompt, entry_point = problem["prompt"], problem.get("entry_point")
    code = extract_code(answer, entry_point, language)
    if entry_point and defines(code, entry_point):
        code = f"{_before(prompt, entry_point)}\n{code}"
    else:
        code = prompt + code
    tests = problem["tests"]
    token = hashlib.sha256(f"{code}\0{tests}".encode(errors="surrogatepass")).hexdigest()[:32]
    return Program(_with_token(language, code, tests, token), language, token=token)


def _before(prompt: str, entry_point: str) -> str:
    """The part of a prompt above the definition asked for: imports and functions that the answer may use."""
    lines = prompt.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if defines(line, entry_point):
            return "".join(lines[:number])
    return ""


def _with_token(language: str, code: str, tests: str, token: str) -> str:
    if language == "python":
        return f'{code}\n\n{tests}\n__import__("os").write(1, b"\\n{token}\\n")\n'
    if language == "javascript":
        return f'{code}\n\n{tests}\nrequire("fs").writeSync(1, "\\n{token}\\n");\n'
    if language == "bash":
        return f'{code}\n\n{tests}\nended=$?\n[ $ended -eq 0 ] && printf "\\n{token}\\n"\nexit $ended\n'
    # C: main belongs to the tests; ours calls it, so that an exit() in the answer is told from their end.
    return (
        f"#include <stdio.h>\n{code}\n#define main tests_main\n{tests}\n#undef main\n"
        "int main(int count, char **words) {\n"
        "  int ended = ((int (*)(int, char **))tests_main)(count, words);\n"
        f'  if (ended == 0) printf("\\n{token}\\n");\n  return ended;\n}}\n'
    )


@dataclass(frozen=True)
class CodeScorer:
    """1 when the answer passes its problem's tests in the sandbox, 0 when it does not, unscorable when none ran."""

    limits: Limits = field(default_factory=Limits)
    workers: int = 0
    """Programs at one time; 0: one for each processor."""
    allow_unsafe: bool = False
    """Run without isolation where there is none, instead of leaving all unscorable."""

    def __call__(self, sample: Sample, completion: Completion) -> Score:
        """The score of one answer; verdict and last line of the error output as explanation."""
        return self.score_batch([sample], [completion])[0]

    def score_batch(self, samples: Sequence[Sample], completions: Sequence[Completion]) -> list[Score]:
        """Scores of many answers; DataError for a sample that no reader of `code_tasks` made."""
        programs = []
        for sample, completion in zip(samples, completions, strict=True):
            absent = [name for name in ("language", "prompt", "tests") if name not in sample.metadata]
            if absent:
                raise DataError(f"sample {sample.id!r} has no {absent[0]!r} in its metadata; it is not a code problem")
            programs.append(build_program(sample.metadata, completion.text))
        results = run_programs(programs, self.limits, workers=self.workers, allow_unsafe=self.allow_unsafe)
        return [score_of(result) for result in results]


def score_of(result: RunResult) -> Score:
    """A verdict about the program is a score; one about the machine is none."""
    last = (result.stderr.strip().splitlines() or [""])[-1][:300]
    explanation = f"{result.verdict}: {result.detail}" + (f"; {last}" if last else "")
    if result.verdict not in JUDGED:
        return Score.unscorable(f"sandbox: {result.verdict}", explanation)
    return Score(float(result.verdict == "passed"), explanation=explanation)
