"""The reader of the public format, the scorer inside an evaluation, the accuracies, and the page of the docs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignlab.core.errors import ConfigError, DataError, MissingExtraError
from alignlab.lm.types import Completion, Prompt, SamplingParams
from alignlab.tasks import Sample, evaluate, exact_match
from alignlab.tasks.ifeval import INSTRUCTIONS, IFEval, accuracies, follows, ifeval_task, judge, read_ifeval, scorer
from alignlab.tasks.task import Task

GREEDY = SamplingParams(temperature=0.0, max_tokens=64)
ROWS: list[dict[str, Any]] = [
    {"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 2,
        "prompt": "A title, and two words at least.",
        "instruction_id_list": ["detectable_format:title", "length_constraints:number_words"],
        "kwargs": [{"num_words": None}, {"num_words": 2, "relation": "at least"}],
    },
    {"key": 3, "prompt": "JSON.", "instruction_id_list": ["detectable_format:json_format"], "kwargs": [{}]},
]
ANSWERS = {"No commas.": "none", "A title, and two words at least.": "two words", "JSON.": "Here:\n[1]"}


class Scripted:
    """A sampler that answers by the prompt."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
        return [Completion(self.answers[p[0]["content"]], (1,), (0.0,), "stop") for p in prompts]  # type: ignore[index]

    def logprobs(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Any]:
        raise NotImplementedError


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_reader(tmp_path: Path) -> None:
    path = write(tmp_path / "input.jsonl", ROWS)
    path.write_text(path.read_text() + "\n")
    samples = read_ifeval(path)
    assert [sample.id for sample in samples] == ["1", "2", "3"]
    assert samples[0].prompt == [{"role": "user", "content": "No commas."}]
    assert samples[1].metadata["instructions"] == [
        {"id": "detectable_format:title", "arguments": {}},
        {"id": "length_constraints:number_words", "arguments": {"num_words": 2, "relation": "at least"}},
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": None}, "line 2: key is None"),
        ({"key": 1}, "line 2: key 1 is also that of line 1"),
        ({"prompt": " "}, "line 2: prompt is ' '"),
        ({"prompt": 3}, "line 2: prompt is 3"),
        ({"instruction_id_list": []}, "line 2: instruction_id_list is"),
        ({"instruction_id_list": "punctuation:no_comma"}, "line 2: instruction_id_list is"),
        ({"kwargs": [None, {}]}, "line 2: kwargs is"),
        ({"kwargs": [{}]}, "line 2: kwargs has 1 entries for 2 instructions"),
        (
            {"instruction_id_list": ["a:b", "c:d"]},
            r"line 2, instruction_id_list\[0\]: the instruction 'a:b' is unknown",
        ),
        ({"instruction_id_list": [{}, {}]}, r"line 2, instruction_id_list\[0\]: the instruction {} is unknown"),
        (
            {"kwargs": [{}, {"num_words": 2}]},
            r"line 2, kwargs\[1\]: length_constraints:number_words lacks .*'relation'",
        ),
        ({"kwargs": [{"x": 1}, {}]}, r"line 2, kwargs\[0\]: detectable_format:title has the unknown argument 'x'"),
    ],
)
def test_malformed_rows(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_ifeval(write(tmp_path / "input.jsonl", [ROWS[0], {**ROWS[1], **change}]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n", "line 1 lacks the field 'key'"),
        ('{"key": 1, "prompt": "a", "kwargs": []}\n', "line 1 lacks the field 'instruction_id_list'"),
        ("\n[1]\n", "line 2 is list, allowed: a JSON object"),
        ('{"key": 1,\n', "line 1 is not valid JSON"),
        ("\n \n", "holds no rows"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "input.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_ifeval(path)
    with pytest.raises(DataError, match="cannot read"):
        read_ifeval(tmp_path / "absent.jsonl")


def test_evaluation_and_accuracies(tmp_path: Path) -> None:
    samples = read_ifeval(write(tmp_path / "input.jsonl", ROWS))
    done = evaluate(ifeval_task(samples, GREEDY), Scripted(ANSWERS), log_dir=tmp_path / "log", model="scripted")
    assert done.values == {"1": 1.0, "2": 0.0, "3": 0.0}
    found = accuracies(done)
    assert found.prompt_strict is not None
    assert found.prompt_loose is not None
    assert found.instruction_strict is not None
    assert found.instruction_loose is not None
    assert found.prompt_strict.estimate == pytest.approx(1 / 3)
    assert found.prompt_loose.estimate == pytest.approx(2 / 3)  # the JSON follows a line that loose cuts off
    assert found.instruction_strict.estimate == pytest.approx(2 / 4)
    assert found.instruction_loose.estimate == pytest.approx(3 / 4)
    assert found.instruction_loose.n == 4
    assert found.n_unscorable == 0
    assert found.by_group["detectable_format"] == (2, 0, 1)
    assert found.by_instruction["length_constraints:number_words"] == (1, 1, 1)
    assert sum(n for n, _, _ in found.by_instruction.values()) == 4
    loose = evaluate(ifeval_task(samples, GREEDY, mode="loose"), Scripted(ANSWERS), log_dir=tmp_path / "b", model="s")
    assert loose.values == {"1": 1.0, "2": 0.0, "3": 1.0}
    assert accuracies(loose) == found


def test_unscorable_is_counted(tmp_path: Path) -> None:
    samples = [
        *read_ifeval(write(tmp_path / "input.jsonl", ROWS[:1])),
        Sample("x", [{"role": "user", "content": "JSON."}]),
    ]
    done = evaluate(ifeval_task(samples, GREEDY), Scripted(ANSWERS), log_dir=tmp_path / "log", model="scripted")
    assert done.aggregate.reasons == {"the sample has no instructions": 1}
    assert accuracies(done).n_unscorable == 1


def test_empty_answers_are_wrong(tmp_path: Path) -> None:
    samples = read_ifeval(write(tmp_path / "input.jsonl", ROWS[:1]))
    done = evaluate(ifeval_task(samples, GREEDY), Scripted({"No commas.": ""}), log_dir=tmp_path / "log", model="m")
    assert done.values == {"1": 0.0}


def test_accuracies_of_another_scorer(tmp_path: Path) -> None:
    task = Task("other", [Sample("a", [{"role": "user", "content": "JSON."}], "x")], ifeval_solver(), exact_match())
    done = evaluate(task, Scripted(ANSWERS), log_dir=tmp_path, model="m")
    with pytest.raises(DataError, match="sample 'a' was not scored by IFEval"):
        accuracies(done)


def ifeval_solver() -> Any:
    return scorer.Generate(GREEDY)


def test_modes() -> None:
    with pytest.raises(ConfigError, match="mode is 'lenient'"):
        IFEval("lenient")  # type: ignore[arg-type]
    assert IFEval(sentences="built-in") == IFEval("strict", "built-in")
    assert IFEval().sentences in ("built-in", "punkt_tab")  # the log says which model judged


def test_missing_langdetect_is_told_before_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingExtraError("langdetect is not installed, install it with: pip install 'alignlab[ifeval]'")

    monkeypatch.setattr(scorer, "require_langdetect", missing)
    plain = Sample("a", "x", metadata={"instructions": [{"id": "punctuation:no_comma", "arguments": {}}]})
    german = {"id": "language:response_language", "arguments": {"language": "de"}}
    ifeval_task([plain], GREEDY)
    with pytest.raises(MissingExtraError, match=r"alignlab\[ifeval\]"):
        ifeval_task([plain, Sample("b", "x", metadata={"instructions": [german]})], GREEDY)


def test_public_data() -> None:
    """All 541 rows are read, with all of the 25 instructions; a plain answer gets a verdict on each."""
    folder = os.environ.get("ALIGNLAB_SHARED_DATA")
    if not folder:
        pytest.skip("ALIGNLAB_SHARED_DATA names no folder with capability/ifeval_input_data.jsonl")
    samples = read_ifeval(Path(folder) / "capability" / "ifeval_input_data.jsonl")
    assert len(samples) == 541
    pairs = [[(one["id"], one["arguments"]) for one in sample.metadata["instructions"]] for sample in samples]
    assert {identifier for row in pairs for identifier, _ in row} == set(INSTRUCTIONS)
    assert sum(len(row) for row in pairs) == 834
    for row in pairs:
        assert len(judge("Well.", [one for one in row if not INSTRUCTIONS[one[0]].needs_langdetect]).strict) <= len(row)
    prompts = [(s.prompt[0]["content"], one) for s, row in zip(samples, pairs, strict=True) for one in row]  # type: ignore[index]
    repeated = [
        follows(name, given, given["prompt_to_repeat"])
        for _, (name, given) in prompts
        if name.endswith("repeat_prompt")
    ]
    assert len(repeated) == 41
    assert all(repeated)


def test_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "ifeval.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "input_data.jsonl", ROWS)
    names: dict[str, object] = {"__name__": "ifeval_page"}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"docs/ifeval.md, block {number}", "exec"), names)
    for identifier in INSTRUCTIONS:
        assert f"`{identifier}`" in text, identifier
