"""Code tasks: pass@k by enumeration, programs made from answers, readers, and verdicts that become scores."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
from fractions import Fraction
from pathlib import Path

import pytest

from alignlab.core.errors import DataError
from alignlab.lm.types import Completion, SamplingParams
from alignlab.tasks import evaluate
from alignlab.tasks.code_programs import CodeScorer, build_program, defines, extract_code, score_of
from alignlab.tasks.code_tasks import (
    code_task,
    evaluation_pass_at_k,
    pass_at_k,
    read_code_problems,
    read_humaneval,
    read_mbpp,
)
from alignlab.tasks.sandbox import Limits, RunResult, isolation, run_program
from alignlab.tasks.sandbox.languages import missing

ISOLATION = isolation()
isolated = pytest.mark.skipif(not ISOLATION.available, reason=f"no sandbox here: {ISOLATION.how}")
DOUBLE = {
    "task_id": "Own/0",
    "prompt": 'import math\n\n\ndef double(x):\n    """Twice x."""\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(0) == 0\n",
}


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pass_at_k_equals_the_share_of_all_draws() -> None:
    for n in range(1, 9):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
            share = Fraction(sum(any(draw) for draw in draws), len(draws))
            assert pass_at_k(n, c, k) == pytest.approx(float(share), abs=1e-12), (n, c, k)


def test_pass_at_k_is_unbiased() -> None:
    # Over all outcomes of n answers, each right with chance p, the mean is 1 - (1 - p)^k exactly.
    n, p = 7, 0.3
    for k in range(1, n + 1):
        total = 0.0
        for outcome in itertools.product([0, 1], repeat=n):
            c = sum(outcome)
            total += p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k)
        assert total == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_pass_at_k_for_many_answers_stays_finite() -> None:
    assert 0.0 < pass_at_k(100_000, 1, 1) < 1.1e-5
    assert pass_at_k(100_000, 99_999, 2) == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4), (0, 0, 1)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(DataError, match=r"between 0 and n|answers; allowed"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("answer", "entry_point", "code"),
    [
        ("    return 1\n", None, "    return 1\n"),
        ("    return 1\n\ndef other():\n    pass\n", None, "    return 1\n"),
        ("    return 1\nprint(double(3))\n", None, "    return 1"),
        ("    return 1\n```\nThis works because ...", None, "    return 1"),
        ("Sure!\n```python\ndef f():\n    return 1\n```\nDone.", None, "def f():\n    return 1\n"),
        ("```\nx = 1\n```\nor\n```py\ndef f():\n    pass\n```", "f", "def f():\n    pass\n"),
        ("```python\ndef f():\n    return 1", "f", "def f():\n    return 1"),
        ("def f():\n    return 1\n\nprint(f())\n", "f", "def f():\n    return 1\n\nprint(f())\n"),
        ("", None, ""),
    ],
)
def test_code_is_found_in_an_answer(answer: str, entry_point: str | None, code: str) -> None:
    assert extract_code(answer, entry_point).rstrip("\n") == code.rstrip("\n")


@pytest.mark.parametrize(
    ("code", "is_defined"),
    [
        ("def f(x):", True),
        ("async def f(x):", True),
        ("function f (x) {", True),
        ("const f = x => x", True),
        ("int *f(int x) {", True),
        ("f() {", True),
        ("    def f(x):", False),
        ("def ff(x):", False),
        ("# f", False),
        ("", False),
    ],
)
def test_a_definition_is_recognised(code: str, is_defined: bool) -> None:
    assert defines(code, "f") is is_defined


def test_a_whole_function_keeps_what_stands_above_the_prompt(tmp_path: Path) -> None:
    problem = read_humaneval(written(tmp_path / "p.jsonl", DOUBLE))[0].metadata
    whole = build_program(problem, "```python\ndef double(x):\n    return math.prod([2, x])\n```").code
    assert whole.count("def double") == 1
    assert "import math" in whole
    assert build_program(problem, "    return 2 * x\n").code.startswith(DOUBLE["prompt"] + "    return 2 * x")


@isolated
@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("    return 2 * x\n", "passed"),
        ("    return 3 * x\n", "failed"),
        ("    import os\n    os._exit(0)\n", "failed"),  # it leaves before the tests are through
        ("    raise SystemExit\n", "failed"),
        ("    return (\n", "failed"),
        ("    while True: pass\n", "timeout"),
        ("```python\ndef double(x):\n    return x + x\n```", "passed"),
        ("", "failed"),
    ],
)
def test_answers_get_their_verdicts(answer: str, verdict: str, tmp_path: Path) -> None:
    problem = read_humaneval(written(tmp_path / "p.jsonl", DOUBLE))[0].metadata
    result = run_program(build_program(problem, answer), Limits(seconds=2))
    assert result.verdict == verdict, result


LANGUAGE_CASES = {
    "python": ("def twice(x):\n", "    return 2 * x\n", "    return x\n", "assert twice(4) == 8\n"),
    "javascript": (
        "function twice(x) {\n",
        "  return 2 * x;\n}\n",
        "  process.exit(0);\n}\n",
        "require('assert').strictEqual(twice(4), 8);\n",
    ),
    "c": (
        "#include <assert.h>\n#include <stdlib.h>\nint twice(int x) {\n",
        "  return 2 * x;\n}\n",
        "  exit(0);\n}\n",
        "int main(void) { assert(twice(4) == 8); return 0; }\n",
    ),
    "bash": ("twice() {\n", "  echo $((2 * $1))\n}\n", "  exit 0\n}\n", '[ "$(twice 4)" = 8 ]\n'),
}


@isolated
@pytest.mark.parametrize("language", LANGUAGE_CASES)
def test_every_language_runs_its_tests(language: str, tmp_path: Path) -> None:
    if lacking := missing(language):
        pytest.skip(lacking)
    prompt, right, wrong, tests = LANGUAGE_CASES[language]
    row = {"id": "t", "language": language, "prompt": prompt, "tests": tests, "entry_point": "twice"}
    (sample,) = read_code_problems(written(tmp_path / "p.jsonl", row))
    scorer = CodeScorer(Limits(seconds=20))
    answers = [right, wrong, "not a program ((", f"```\n{prompt}{right}```"]
    done = [Completion(text, (1,), (0.0,), "stop") for text in answers]
    scores = scorer.score_batch([sample] * 4, done)
    assert [score.value for score in scores] == [1.0, 0.0, 0.0, 1.0], [score.explanation for score in scores]


@pytest.mark.parametrize("verdict", ["refused", "unavailable", "broken"])
def test_what_says_nothing_about_the_program_is_unscorable(verdict: str) -> None:
    score = score_of(RunResult(verdict, "why"))  # type: ignore[arg-type]
    assert score.value is None
    assert score.reason == f"sandbox: {verdict}"


def test_mbpp_in_both_forms(tmp_path: Path) -> None:
    full = {"task_id": 7, "text": "Add one.", "code": "def f(x): return x + 1", "test_list": ["assert f(1) == 2"]}
    full |= {"test_setup_code": "limit = 3"}
    short = {"task_id": 8, "prompt": "Add two.", "test_list": ["assert g(1) == 3"], "test_imports": ["import math"]}
    first, second = read_mbpp(written(tmp_path / "m.jsonl", full, short), chat=True)
    assert (first.id, first.target, second.target) == ("MBPP/7", full["code"], None)
    assert first.metadata["tests"] == "limit = 3\nassert f(1) == 2\n"
    assert second.metadata["tests"] == "import math\nassert g(1) == 3\n"
    assert "assert g(1) == 3" in second.prompt[0]["content"]
    if ISOLATION.available:
        assert run_program(build_program(first.metadata, full["code"])).verdict == "passed"
        assert run_program(build_program(first.metadata, "f = lambda x: x")).verdict == "failed"


def without(name: str) -> dict:
    return {key: value for key, value in DOUBLE.items() if key != name}


@pytest.mark.parametrize(
    ("reader", "row", "message"),
    [
        (read_humaneval, without("test"), "line 2: the field 'test' is None, allowed: text"),
        (read_humaneval, {**DOUBLE, "prompt": 3}, "line 2: the field 'prompt' is 3, allowed: text"),
        (read_humaneval, [1], "line 2 is list, allowed: a JSON object"),
        (read_mbpp, {"task_id": 1, "text": "t", "test_list": []}, "line 2: the field 'test_list' is"),
        (read_mbpp, {"text": "t", "test_list": ["assert 1"]}, "line 2: the field 'task_id' is None"),
        (
            read_code_problems,
            {"id": "a", "language": "cobol", "prompt": "", "tests": "t"},
            "line 2: language is 'cobol'",
        ),
    ],
)
def test_malformed_rows_are_named(reader, row: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message.replace("[", r"\[")):
        reader(path)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*absent.jsonl: no such file"):
        read_humaneval(tmp_path / "absent.jsonl")
    (tmp_path / "torn.jsonl").write_text('{"task_id": ')
    with pytest.raises(DataError, match="line 1 is not valid JSON"):
        read_humaneval(tmp_path / "torn.jsonl")
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 999)[:20])
    with pytest.raises(DataError, match=r"cannot read .*torn.jsonl.gz: "):
        read_humaneval(tmp_path / "torn.jsonl.gz")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no problem"):
        read_humaneval(tmp_path / "empty.jsonl")


class BySeed:
    """Right when the seed is in a set; remembers what it was asked."""

    def __init__(self, right: set[int]) -> None:
        self.right = right
        self.seeds: list[int] = []

    def generate(self, prompts, sampling):
        self.seeds += [sampling.seed] * len(prompts)
        text = "    return 2 * x\n" if sampling.seed in self.right else "    return x\n"
        return [Completion(text, (1,), (0.0,), "stop") for _ in prompts]

    def logprobs(self, prompts, completions):
        raise NotImplementedError


@isolated
def test_answers_differ_by_seed_and_pass_at_k_counts_problems(tmp_path: Path) -> None:
    rows = written(tmp_path / "p.jsonl", DOUBLE, {**DOUBLE, "task_id": "Own/1"})
    task = code_task("own", read_humaneval(rows, answers=3), SamplingParams(seed=5, temperature=0.8))
    sampler = BySeed({6})
    evaluation = evaluate(task, sampler, log_dir=tmp_path / "log", model="m", batch_size=2)
    assert sorted(sampler.seeds) == [5, 5, 6, 6, 7, 7]
    first, all_three = evaluation_pass_at_k(evaluation, 1), evaluation_pass_at_k(evaluation, 3)
    assert first.mean is not None
    assert first.mean.estimate == pytest.approx(1 / 3)
    assert (first.mean.n, first.n_unscorable) == (2, 0)
    assert all_three.mean is not None
    assert all_three.mean.estimate == 1.0
    with pytest.raises(DataError, match="pass@4 needs 4 answers"):
        evaluation_pass_at_k(evaluation, 4)


def test_unscorable_answers_widen_the_bounds_and_leave_the_mean(tmp_path: Path) -> None:
    rows = written(tmp_path / "p.jsonl", DOUBLE, {**DOUBLE, "task_id": "Own/1"})

    class Unlucky(CodeScorer):
        def score_batch(self, samples, completions):
            verdicts = ["refused" if sample.id == "Own/1#1" else "failed" for sample in samples]
            return [score_of(RunResult(verdict, "planted")) for verdict in verdicts]  # type: ignore[arg-type]

    task = code_task("own", read_humaneval(rows, answers=2), SamplingParams(), Unlucky())
    evaluation = evaluate(task, BySeed(set()), log_dir=tmp_path / "log", model="m")
    found = evaluation_pass_at_k(evaluation, 1)
    assert found.mean is not None
    assert (found.mean.estimate, found.mean.n, found.n_unscorable) == (0.0, 1, 1)
    assert (found.worst, found.best) == (0.0, 0.25)


@isolated
@pytest.mark.slow
def test_all_canonical_solutions_of_humaneval_pass() -> None:
    folder = os.environ.get("ALIGNLAB_SHARED_DATA")
    if not folder:
        pytest.skip("ALIGNLAB_SHARED_DATA is not set")
    samples = read_humaneval(Path(folder) / "capability" / "HumanEval.jsonl.gz")
    assert len(samples) == 164
    right = [Completion(sample.target or "", (1,), (0.0,), "stop") for sample in samples]
    scores = CodeScorer(Limits(seconds=30, cpu_seconds=30)).score_batch(samples, right)
    wrong = {s.id: score.explanation for s, score in zip(samples, scores, strict=True) if score.value != 1.0}
    assert not wrong
    empty = [Completion("    pass\n", (1,), (0.0,), "stop") for _ in samples[:20]]
    assert sum(score.value or 0.0 for score in CodeScorer().score_batch(samples[:20], empty)) == 0.0


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "sandbox_page"}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"docs/sandbox.md, block {number}", "exec"), names)
    assert (tmp_path / "logs" / "doubling" / "summary.json").exists()
