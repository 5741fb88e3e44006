"""The built-in tasks by name: items of our own, what each task shows and scores, and settings that fit no task."""

from __future__ import annotations

import collections
import dataclasses
import importlib
import json
import os
from pathlib import Path

import pytest

from alignlab.core.errors import ConfigError, DataError
from alignlab.tasks.builtin import BUILT_IN, TaskSettings, make_task
from alignlab.tasks.builtin_choice import OWN, read_items
from alignlab.tasks.choice import Likeliest
from alignlab.tasks.code_tasks import GenerateAnswers
from alignlab.tasks.eval_config import EvalConfig
from alignlab.tasks.fingerprint import dataset_digest
from alignlab.tasks.settings import AskSettings

SHARED = os.environ.get("ALIGNLAB_SHARED_DATA")


def rows(path: Path, *items: dict[str, object]) -> Path:
    path.write_text("".join(f"{json.dumps(item)}\n" for item in items))
    return path


def quiz(path: Path, n: int) -> Path:
    return rows(path, *({"question": f"Number {i}?", "choices": ["a", "b"], "answer": i % 2} for i in range(n)))


def test_every_entry_exists_and_reads_settings_that_exist() -> None:
    known = {field.name for field in dataclasses.fields(TaskSettings)}
    for name, entry in BUILT_IN.items():
        module, _, function = entry.where.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), name
        assert set(entry.needs) <= set(entry.accepts) <= known, name


def test_a_run_gives_its_tasks_every_setting_that_is_not_a_file_or_a_model() -> None:
    shared = {field.name for field in dataclasses.fields(AskSettings)}
    assert shared | {"data", "examples", "judge"} == {field.name for field in dataclasses.fields(TaskSettings)}
    names = [field.name for field in dataclasses.fields(EvalConfig)]
    assert names[:4] == ["model", "tasks", "data", "examples"]  # what `alignlab eval --help` begins with
    changed = {"shots": 2, "limit": 3, "seed": 4, "style": "letter", "normalise": "none", "chat": True, "max_tokens": 5,
               "temperature": 0.5, "answers": 6, "unsafe": True}  # fmt: skip
    assert changed.keys() == shared
    config = EvalConfig("m", ("lab-facts", "gsm8k=g.jsonl", "humaneval=h.jsonl"), **changed)  # type: ignore[arg-type]
    for name, settings in config.settings().items():
        accepts = {*BUILT_IN[name].accepts, "seed"}
        got = {key: getattr(settings, key) for key in shared}
        assert got == {key: changed[key] if key in accepts else getattr(TaskSettings(), key) for key in shared}
    for wrong in ({"shots": -1}, {"answers": 0}, {"temperature": -0.1}, {"max_tokens": 0}):
        for made in (lambda given: TaskSettings(**given), lambda given: EvalConfig("m", ("lab-facts",), **given)):
            with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} is {next(iter(wrong.values()))}, allowed"):
                made(wrong)


def test_our_own_facts_are_many_balanced_and_distinct() -> None:
    items = read_items(OWN / "lab_facts.jsonl")
    assert len(items) >= 120
    assert all(len(item.choices) == 4 and len({c.casefold() for c in item.choices}) == 4 for item in items)
    assert len({item.question.casefold() for item in items}) == len({item.id for item in items}) == len(items)
    letters = collections.Counter(item.answer for item in items)
    assert max(letters.values()) - min(letters.values()) <= 1
    assert min(collections.Counter(item.category for item in items).values()) >= 10
    # No rule of thumb answers them: the longest choice, for one.
    longest = [item.choices[item.answer] == max(item.choices, key=len) for item in items]
    assert sum(longest) / len(items) < 0.45


def test_examples_come_first_from_the_data_and_are_not_asked(tmp_path: Path) -> None:
    data = quiz(tmp_path / "q.jsonl", 6)
    task = make_task("lab-facts", TaskSettings(data=data, shots=2, limit=3))
    assert [sample.id for sample in task.dataset] == ["q-3", "q-4", "q-5"]
    assert task.dataset[0].prompt == (
        "Question: Number 0?\nAnswer: a\n\nQuestion: Number 1?\nAnswer: b\n\nQuestion: Number 2?\nAnswer:"
    )
    assert task.dataset[0].metadata["shots"] == 2


def test_everything_that_changes_a_score_changes_what_the_log_belongs_to(tmp_path: Path) -> None:
    data = quiz(tmp_path / "q.jsonl", 6)
    more = [{}, {"shots": 1}, {"style": "letter"}, {"chat": True}, {"style": "letter", "chat": True}]
    tasks = [make_task("lab-facts", TaskSettings(data=data, **one)) for one in more]
    assert len({dataset_digest(task) for task in tasks}) == len(tasks)
    plain, divided = (make_task("lab-facts", TaskSettings(data=data, normalise=n)) for n in ("none", "tokens"))
    assert plain.scorer == Likeliest("none") != divided.scorer


def test_letters_are_listed_and_a_conversation_is_answered(tmp_path: Path) -> None:
    data = quiz(tmp_path / "q.jsonl", 2)
    task = make_task("lab-facts", TaskSettings(data=data, style="letter", chat=True))
    assert task.dataset[1].prompt == [{"role": "user", "content": "Question: Number 1?\nA. a\nB. b\nAnswer:"}]
    assert task.dataset[1].metadata["choices"] == ["A", "B"]
    assert task.dataset[1].target == "1"


def test_subjects_have_examples_of_their_own(tmp_path: Path) -> None:
    for split, n in (("test", 3), ("dev", 2)):
        (tmp_path / split).mkdir()
        for subject in ("abstract_algebra", "virology"):
            lines = [f'"{split} {subject} {i}?",w,x,y,z,{"ABCD"[i]}\n' for i in range(n)]
            (tmp_path / split / f"{subject}_{split}.csv").write_text("".join(lines))
    settings = TaskSettings(data=tmp_path / "test", examples=tmp_path / "dev", shots=2, limit=4)
    task = make_task("mmlu", settings)
    assert [s.metadata["category"] for s in task.dataset] == ["abstract_algebra", "virology"] * 2
    assert task.dataset[1].prompt == (
        "The following are multiple choice questions (with answers) about virology.\n\n"
        "dev virology 0?\nA. w\nB. x\nC. y\nD. z\nAnswer: A\n\n"
        "dev virology 1?\nA. w\nB. x\nC. y\nD. z\nAnswer: B\n\n"
        "test virology 0?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )
    (tmp_path / "dev" / "virology_dev.csv").unlink()
    with pytest.raises(DataError, match="has no file with examples for virology"):
        make_task("mmlu", settings)
    with pytest.raises(ConfigError, match="allowed with a folder of subjects: a folder as well"):
        make_task("mmlu", dataclasses.replace(settings, examples=tmp_path / "dev" / "abstract_algebra_dev.csv"))


def test_piqa_finds_its_labels(tmp_path: Path) -> None:
    data = rows(tmp_path / "valid.jsonl", {"goal": "open it", "sol1": "pull", "sol2": "sing"})
    with pytest.raises(DataError, match=r"has no labels beside it: .*valid-labels\.lst is missing"):
        make_task("piqa", TaskSettings(data=data))
    (tmp_path / "valid-labels.lst").write_text("0\n")
    assert make_task("piqa", TaskSettings(data=data)).dataset[0].target == "0"


def test_several_answers_to_code_differ_by_seed_and_share_a_cluster(tmp_path: Path) -> None:
    problem = {"task_id": "t/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f): assert f() == 1"}
    data = rows(tmp_path / "h.jsonl", problem, {**problem, "task_id": "t/1"})
    task = make_task("humaneval", TaskSettings(data=data, answers=3, limit=1, seed=7))
    assert [(s.id, s.cluster) for s in task.dataset] == [("t/0#0", "t/0"), ("t/0#1", "t/0"), ("t/0#2", "t/0")]
    assert isinstance(task.solver, GenerateAnswers)
    assert (task.solver.sampling.temperature, task.solver.sampling.seed) == (0.8, 7)
    one = make_task("humaneval", TaskSettings(data=data))
    assert isinstance(one.solver, GenerateAnswers)
    assert one.solver.sampling.temperature == 0.0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"choices": ["a", "b"], "answer": 0}, "line 1: field 'question' is None, allowed: text"),
        ({"question": "q", "choices": "ab", "answer": 0}, "line 1: field 'choices' is 'ab'"),
        ({"question": "q", "choices": ["a", 2], "answer": 0}, "line 1: field 'choices' is"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "line 1: field 'answer' is 2, allowed: 0 to 1"),
        ({"question": "q", "choices": ["a", "b"], "answer": "A"}, "line 1: field 'answer' is 'A'"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "line 1: item 'x-1' has 1 choices"),
    ],
)
def test_rows_of_our_format_that_cannot_be_read(tmp_path: Path, row: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        make_task("lab-facts", TaskSettings(data=rows(tmp_path / "x.jsonl", row)))


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    data = quiz(tmp_path / "q.jsonl", 3)
    with pytest.raises(ConfigError, match="there is no task 'lab-fact', did you mean 'lab-facts'"):
        make_task("lab-fact", TaskSettings())
    with pytest.raises(ConfigError, match="has no use for max_tokens"):
        make_task("lab-facts", TaskSettings(max_tokens=3))
    with pytest.raises(ConfigError, match="task 'arc' needs data: a file in its public format"):
        make_task("arc", TaskSettings())
    with pytest.raises(DataError, match="has 3 items, and 3 of them are shown as examples: none is left"):
        make_task("lab-facts", TaskSettings(data=data, shots=3))
    with pytest.raises(DataError, match="has 3 examples for task 'lab-facts', 4 are to be shown"):
        make_task("lab-facts", TaskSettings(shots=4, examples=data))
    with pytest.raises(DataError, match="item 'q-1' is also the few-shot example 'q-1'"):
        make_task("lab-facts", TaskSettings(data=data, shots=1, examples=data))
    with pytest.raises(ConfigError, match="has examples but shots is 0"):
        make_task("lab-facts", TaskSettings(data=data, examples=data))


@pytest.mark.skipif(SHARED is None, reason="ALIGNLAB_SHARED_DATA names no folder with the public data sets")
def test_the_public_files_are_read_whole() -> None:
    folder = Path(str(SHARED)) / "capability"
    files = {
        "arc-easy": ("arc_easy.jsonl", 2376),
        "hellaswag": ("hellaswag_val_sample1000.jsonl", 1000),
        "truthfulqa": ("TruthfulQA.csv", 817),
        "humaneval": ("HumanEval.jsonl.gz", 164),
        "mmlu": ("mmlu/dev", 285),
    }
    for name, (file, n) in files.items():
        assert len(make_task(name, TaskSettings(data=folder / file)).dataset) == n
    # A question that MMLU's own development set holds twice.
    with pytest.raises(DataError, match="item 'college_physics_dev-4' is also the few-shot example"):
        make_task("mmlu", TaskSettings(data=folder / "mmlu" / "dev", shots=1))
