"""The pages without a browser: the registry, and what each shows of planted runs."""

from __future__ import annotations

import html
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from app_world import HOSTILE, plant_evaluation, plant_training

from alignlab.app import pages as registry
from alignlab.app.context import AppContext
from alignlab.app.evaluation_data import evaluation_runs, recorded_results, samples, sorted_samples, task_logs
from alignlab.app.pages import evaluate as evaluate_page
from alignlab.app.pages import home, pages, runs
from alignlab.app.run_data import chosen_runs
from alignlab.core.errors import ConfigError, DataError
from alignlab.core.runs import Run


def words(page: str) -> str:
    """The text of HTML."""
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", page)).split())


def test_the_registry_is_light_and_in_order() -> None:
    code = (
        "import sys; from alignlab.app.pages import pages; import alignlab.app.cli, alignlab.app.server, "
        "alignlab.app.access; print([p.title for p in pages()], 'gradio' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    titles = [module.rpartition(".")[2].title().replace("Tradeoffs", "Trade-offs") for module in registry.MODULES]
    assert titles[0] == "Home"
    assert done.stdout.strip() == f"{titles} False False"


def test_two_pages_of_one_path_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'Runs' and 'Runs' share the path '/runs'"):
        pages(("alignlab.app.pages.runs",) * 2)
    monkeypatch.setattr(registry, "RESERVED", ("/runs",))
    with pytest.raises(ConfigError, match="which the server needs"):
        pages()


def test_home_of_an_empty_folder_says_how_to_begin(tmp_path: Path) -> None:
    shown = words(home.render(AppContext(tmp_path / "none")))
    assert "Runs 0" in shown
    assert "alignlab align" in shown


def test_home_tells_what_runs_and_what_failed(tmp_path: Path) -> None:
    plant_training(tmp_path, "old", 0, steps=1)
    with pytest.raises(ValueError, match="boom"), Run.create({}, name="sft", path=tmp_path / "bad"):
        raise ValueError(f"boom {HOSTILE}")
    shown = home.render(AppContext(tmp_path, models=("my-model",)))
    assert "bad went wrong" in words(shown)
    assert "<script>window" not in shown
    assert "my-model" in shown
    with Run.create({}, name="align", path=tmp_path / "live"):
        shown = words(home.render(AppContext(tmp_path)))
        assert "Running now 1" in shown
        assert "live is at work" in shown
    (tmp_path / "live" / "status.json").write_text("{torn")
    assert "unreadable" in home.render(AppContext(tmp_path))


@pytest.mark.parametrize(
    ("names", "models", "step"),
    [(["align"], ("m",), "alignlab eval m"), (["align", "eval"], ("m",), "evaluations"),
     (["eval", "align"], ("m",), "alignlab eval m"), (["sft"], (), "curves of your runs")],
)  # fmt: skip
def test_the_next_step_follows_what_is_there(
    tmp_path: Path, names: list[str], models: tuple[str, ...], step: str
) -> None:
    for i, name in enumerate(names):
        Run.create({}, name=name, path=tmp_path / f"{i}-{name}").close()
    assert step in words(home.render(AppContext(tmp_path, models=models)))


def test_runs_side_by_side(planted_runs: Path) -> None:
    both = chosen_runs(planted_runs, ["train-seed-1", "train-faster"])
    assert words(runs.summary(both, "loss")).count("finished") == 2
    shown = words(runs.settings(both))
    assert "3 of 5 settings differ" in shown
    assert "rate 0.1 0.3" in shown
    assert "model small" not in shown
    assert "All 5 settings of train-seed-1" in words(runs.settings(both[:1]))
    assert 'href="/files/train-faster/artifacts/report.html"' in runs.made(both)
    drawn = runs.figure(chosen_runs(planted_runs, [f"train-seed-{i}" for i in range(3)]), "loss", together=True,
                        log_y=False)  # fmt: skip
    assert [trace.name for trace in drawn.data if trace.name] == ["train, 3 seeds"]
    assert runs.figure(both, "absent", together=True, log_y=False) is None
    assert runs.figure([], None, together=True, log_y=False) is None


def test_an_unreadable_run_does_not_take_the_page_down(tmp_path: Path) -> None:
    plant_training(tmp_path, "good", 0, steps=2)
    (plant_training(tmp_path, "bad", 1, steps=2) / "status.json").write_text("{torn")
    both = chosen_runs(tmp_path, ["good", "bad"])
    assert "unreadable" in runs.summary(both, "loss")
    assert "good" in words(runs.settings(both))
    assert runs.figure(both, "loss", together=True, log_y=False) is not None


def test_scores_are_those_that_the_evaluation_recorded(planted_runs: Path) -> None:
    both = chosen_runs(planted_runs, ["eval-base", "eval-tuned"])
    shown = words(evaluate_page.scores(both))
    for run in both:
        record = (recorded_results(run.path) or {})["facts"]
        assert f"{record['mean']['estimate']:.3f} [{record['mean']['low']:.3f}, {record['mean']['high']:.3f}]" in shown
        assert f"{record['worst']['low']:.3f} {record['best']['high']:.3f}" in shown
    assert "no answer found 5" in shown
    bars = evaluate_page.figure(both)
    assert [bar.name for bar in bars.data] == ["base-model", "tuned-model"]
    assert [bar.y[0] for bar in bars.data] == [0.5, 0.8]


def test_samples_in_order_with_the_unscorable_first(planted_runs: Path) -> None:
    found = samples(task_logs(planted_runs / "eval-base")["facts"])
    assert [one.id for one in found[:2]] == ["item-0", "item-1"]
    worst = [one.score.value for one in sorted_samples(found, "worst first", higher_is_better=True)]
    assert worst == [None] * 5 + [0.0] * 10 + [1.0] * 10
    best = [one.score.value for one in sorted_samples(found, "best first", higher_is_better=True)]
    assert best == [None] * 5 + [1.0] * 10 + [0.0] * 10
    lower = [one.score.value for one in sorted_samples(found, "worst first", higher_is_better=False)]
    assert lower == best
    hits = sorted_samples(found, "as in the data", higher_is_better=True, search=" QUESTION item-1? ")
    assert [one.id for one in hits] == ["item-1"]


def test_a_sample_in_full_is_text(planted_runs: Path) -> None:
    one = samples(task_logs(planted_runs / "eval-base")["facts"])[3]
    shown = evaluate_page.sample(one)
    assert "<script>" not in shown
    assert "<img" not in shown
    for part in (one.prompt, one.completion.text, "42", "no answer found"):  # type: ignore[union-attr]
        assert " ".join(str(part).split()) in words(shown)


def handlers(root: Path) -> Any:
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed: pip install 'alignlab[app]'")
    from alignlab.app.gradio_pages import import_gradio

    import_gradio()
    return evaluate_page.Handlers(AppContext(root))


def test_drilling_page_by_page(planted_runs: Path) -> None:
    does = handlers(planted_runs)
    told, bars, tasks, mark = does.show_scores(["eval-base"])
    assert "base-model" in told
    assert bars is not None
    chosen = tasks["value"]
    assert json.loads(chosen) == ["eval-base", "facts"]
    said, listed, detail = does.show_samples(chosen, "worst first", "", 2)
    assert "25 samples, page 2 of 2" in said
    assert len(listed["choices"]) == 5
    assert detail == ""
    assert "page 2 of 2" in does.show_samples(chosen, "worst first", "", 99)[0]
    assert "No sample fits" in does.show_samples(chosen, "worst first", "nowhere", None)[0]
    assert "Sample item-3" in words(does.show_sample(chosen, "item-3"))
    assert does.show_sample(chosen, "item-999") == ""
    assert does.show_sample(json.dumps(["../x", "facts"]), "item-3") == ""
    assert all("skip" in str(one).lower() or one.get("__type__") == "update" for one in does.tick(["eval-base"], mark))


def test_an_evaluation_at_work_shows_how_far_it_is(tmp_path: Path) -> None:
    path = plant_evaluation(tmp_path, "eval", "m", [1.0, 0.0, 1.0])
    (path / "artifacts" / "results.json").unlink()
    log = path / "logs" / "facts" / "samples.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]) + '{"id": "it')
    (run,) = evaluation_runs(tmp_path)
    shown = words(evaluate_page.scores([run]))
    assert "facts finished 2 3" in shown
    assert evaluate_page.figure([run]) is None


def test_damaged_results_are_one_sentence(tmp_path: Path) -> None:
    path = plant_evaluation(tmp_path, "eval", "m", [1.0])
    (path / "artifacts" / "results.json").write_text('{"facts": 3}')
    with pytest.raises(DataError, match="does not hold the results of an evaluation"):
        recorded_results(path)
    assert "does not hold the results" in words(handlers(tmp_path).show_scores(["eval"])[0])
    assert "no evaluation yet" in words(handlers(tmp_path / "none").show_scores([])[0])
