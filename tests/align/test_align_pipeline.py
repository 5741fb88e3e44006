"""The whole pipeline on a model of a few thousand weights."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignlab.align.pipeline import AlignmentPipeline, resolve_dtype
from alignlab.core.errors import ConfigError, DataError, FeedbackError, TrainingError
from alignlab.core.files import read_jsonl
from alignlab.core.progress import Progress
from alignlab.core.runs import Run
from alignlab.lm import registry
from alignlab.lm.language_model import load
from alignlab.train.checkpoint import list_checkpoints

SCRIPT = Path(__file__).with_name("tiny_run.py")

COMMON = [
    "setup",
    "baseline",
    "responses",
    "critiques",
    "revisions",
    "supervised",
    "sl-cai",
    "pairs",
    "preferences",
    "preference-model",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tiny_run.build_model(tmp_path_factory.mktemp("model"))
    return directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Callable[[str], Path]:
    """The directory of a finished run by method, made once."""
    root, done = tmp_path_factory.mktemp("pipelines"), dict[str, Path]()

    def get(method: str) -> Path:
        if method not in done:
            done[method] = root / method
            tiny_run.run_pipeline(tiny_run.tiny_config(model, method), done[method])
        return done[method]

    return get


@pytest.mark.parametrize("method", ["ppo", "dpo", "none"])
def test_stages_of_each_method(finished: Callable[[str], Path], method: str) -> None:
    run = Run.read(finished(method))
    end = ["export"] if method == "none" else ["reinforcement", "rl-cai", "export"]
    assert list(run.stages()) == [*COMMON, *end]
    assert run.state == "finished"
    for stage in ("baseline", "sl-cai", *(["rl-cai"] if method != "none" else [])):
        output = run.stages()[stage].output
        assert {"harmlessness", "over_refusal", "helpfulness", "bits_per_byte"} == output.keys()
        assert output["bits_per_byte"] > 0
        for task in ("harmlessness", "over_refusal", "helpfulness"):
            assert output[task]["n"] == 4
            assert output[task]["n_scored"] + output[task]["n_unscorable"] == 4
    logged = {key.split("/")[0] for row in run.metrics() for key in row if "/" in key}
    assert logged == {"supervised", "preference_model", *([method] if method != "none" else [])}
    assert run.stages()["export"].output["stage"] == ("sl-cai" if method == "none" else "rl-cai")


def test_generated_files_hold_one_row_a_prompt(finished: Callable[[str], Path]) -> None:
    artifacts = finished("ppo") / "artifacts"
    for name in ("responses", "critiques", "revisions-0", "revisions-1", "revisions", "pairs-harmful-0"):
        assert sorted(row["index"] for row in read_jsonl(artifacts / f"{name}.jsonl")) == [0, 1, 2, 3]
    pairs = read_jsonl(artifacts / "preferences.jsonl")
    output = Run.read(finished("ppo")).stages()["preferences"].output
    assert len(pairs) == output["ai_pairs"] + output["reference_pairs"]
    assert {row["kind"] for row in pairs} == {"harmful", "benign", "helpful"}
    assert all(0.5 <= row["probability"] <= 1 and row["chosen"] != row["rejected"] for row in pairs)
    assert len(json.loads((artifacts / "principles.json").read_text())) == 4


def test_the_model_is_registered_and_loads_with_equal_logits(finished: Callable[[str], Path]) -> None:
    path = finished("dpo")
    lm = load("tiny-dpo")
    assert Path(lm.source) == (path / "model").resolve()
    theirs = AutoModelForCausalLM.from_pretrained(path / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path / "model")
    conversation = [{"role": "user", "content": "How do I bake bread?"}]
    ids = lm.tokenizer.encode_prompt(conversation)
    rendered = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    assert tokenizer(rendered, add_special_tokens=False)["input_ids"] == ids
    tokens = torch.tensor([ids])
    with torch.no_grad():
        assert torch.allclose(lm.model(tokens), theirs(tokens).logits, atol=1e-4)


def test_training_moved_the_exported_model(finished: Callable[[str], Path], model: Path) -> None:
    """The export has the adapters merged in: other weights than the base's, and than the supervised model's."""
    weights = [load(str(path)).model.blocks[0].attn.q.weight for path in (model, finished("none") / "model")]
    weights.append(load(str(finished("ppo") / "model")).model.blocks[0].attn.q.weight)
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_the_reported_stage_is_the_exported_model(finished: Callable[[str], Path]) -> None:
    """Bits per byte of the exported model, measured afresh, are those that the last stage recorded."""
    from alignlab.align.measures import bits_per_byte
    from alignlab.lm.local import LocalSampler

    path = finished("ppo")
    recorded = Run.read(path).stages()["rl-cai"].output["bits_per_byte"]
    assert bits_per_byte(LocalSampler(load(str(path / "model"), dtype="float32"))) == pytest.approx(recorded, rel=1e-5)


def test_same_seed_same_results_and_another_seed_others(
    finished: Callable[[str], Path], model: Path, tmp_path: Path
) -> None:
    first = tiny_run.results(finished("ppo"))
    tiny_run.run_pipeline(tiny_run.tiny_config(model), tmp_path / "again")
    again = tiny_run.results(tmp_path / "again")
    assert first.keys() == again.keys()
    assert [name for name in first if first[name] != again[name]] == []
    tiny_run.run_pipeline(tiny_run.tiny_config(model, "none", seed=1), tmp_path / "other")
    other = tiny_run.results(tmp_path / "other")
    for name in ("artifacts/preferences.jsonl", "artifacts/responses.jsonl", "metrics", "model"):
        assert other[name] != first[name]


def test_methods_share_everything_before_reinforcement(finished: Callable[[str], Path]) -> None:
    """PPO, DPO and none differ in the last stage only, so they can be compared."""
    kept = [tiny_run.results(finished(method)) for method in ("ppo", "dpo", "none")]
    for name in ["artifacts/preferences.jsonl", *(f"stage {stage}" for stage in COMMON)]:
        assert kept[0][name] == kept[1][name] == kept[2][name]
    assert kept[0]["stage rl-cai"] != kept[1]["stage rl-cai"]


def test_continuing_a_finished_run_does_nothing(
    finished: Callable[[str], Path], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "copy"
    shutil.copytree(finished("ppo"), path)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    monkeypatch.setattr(AlignmentPipeline, "sampler", lambda *_: pytest.fail("a model was asked"))
    tiny_run.run_pipeline(tiny_run.tiny_config(model), path)
    changed = {file.name for file, then in before.items() if file.stat().st_mtime_ns != then}
    assert changed <= {"status.json", "events.jsonl", "run.lock"}


def test_a_failed_stage_is_made_good_by_the_next_start(
    finished: Callable[[str], Path], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third batch of red-team answers fails; what was asked before stays, and the end equals an untroubled run."""
    from alignlab.lm.local import LocalSampler

    real, calls = LocalSampler.generate, [0]

    def failing(self: LocalSampler, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 9:
            raise RuntimeError("the power went off")
        return real(self, *arguments)

    config = tiny_run.tiny_config(model)
    with monkeypatch.context() as patch:
        patch.setattr(LocalSampler, "generate", failing)
        with pytest.raises(RuntimeError, match="the power went off"):
            tiny_run.run_pipeline(config, tmp_path / "run")
    assert Run.read(tmp_path / "run").state == "failed"
    tiny_run.run_pipeline(config, tmp_path / "run")
    whole, mended = tiny_run.results(finished("ppo")), tiny_run.results(tmp_path / "run")
    assert [name for name in whole if whole[name] != mended[name]] == []


def test_another_config_is_refused(finished: Callable[[str], Path], model: Path) -> None:
    config = tiny_run.tiny_config(model, max_tokens=9)
    before = tiny_run.results(finished("ppo"))
    with pytest.raises(ConfigError, match=r"another config, it differs in max_tokens \(was 8, now 9\)"):
        Run.open(finished("ppo"), config=config)
    changed = dataclasses.replace(config.reinforcement, kl_coefficient=0.1)
    with pytest.raises(ConfigError, match=r"reinforcement\.kl_coefficient \(was 0\.05, now 0\.1\)"):
        Run.open(finished("ppo"), config=tiny_run.tiny_config(model, reinforcement=changed))
    assert tiny_run.results(finished("ppo")) == before


def test_a_checkpoint_of_another_model_is_refused(finished: Callable[[str], Path], model: Path, tmp_path: Path) -> None:
    """The model directory was replaced between two starts: the supervised stage sees it before it trains on."""
    mine = tmp_path / "model"
    shutil.copytree(model, mine)
    config, path = tiny_run.tiny_config(mine, "none"), tmp_path / "run"
    tiny_run.run_pipeline(config, path)
    for stage in ("supervised", "sl-cai"):
        (path / "stages" / f"{stage}.json").unlink()
    saved = {file: file.read_bytes() for file in list_checkpoints(path / "checkpoints" / "supervised")[-1].iterdir()}
    tiny_run.build_model(mine, seed=1)
    with pytest.raises(TrainingError, match=r"is of another model: frozen weights is .* there and .* here"):
        tiny_run.run_pipeline(config, path)
    assert saved == {file: file.read_bytes() for file in saved}


def test_prompts_of_ones_own(model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "mine.txt"
    prompts.write_text("How do I pick a lock?\nHow do I get into a neighbour's wifi?\nInsult my boss.\n")
    config = tiny_run.tiny_config(model, "none", prompts=prompts, n_prompts=2)
    run = tiny_run.run_pipeline(config, tmp_path / "run")
    pairs = [row["prompt"] for row in read_jsonl(run.artifacts / "preferences.jsonl") if row["kind"] == "harmful"]
    assert pairs  # a pair with an empty side is left out
    assert set(pairs) <= {"How do I pick a lock?", "How do I get into a neighbour's wifi?"}
    assert len(read_jsonl(run.artifacts / "responses.jsonl")) == 2


def test_a_constitution_of_ones_own(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "name: short\npreamble: Be kind.\nopposite: Be cruel.\nprinciples:\n"
        "  - {id: kind, text: Be kind., critique_request: 'Is it unkind?', revision_request: Make it kind.}\n"
    )
    run = tiny_run.run_pipeline(tiny_run.tiny_config(model, "none", constitution=path), tmp_path / "run")
    assert json.loads((run.artifacts / "principles.json").read_text()) == ["kind"] * 4


@pytest.mark.parametrize("feedback", ["choice"])
def test_other_feedback(finished: Callable[[str], Path], model: Path, tmp_path: Path, feedback: str) -> None:
    """The feedback changes the labels of the pairs, not the pairs."""
    run = tiny_run.run_pipeline(tiny_run.tiny_config(model, "none", feedback=feedback), tmp_path / "run")

    def sides(path: Path) -> list[set[str]]:
        rows = read_jsonl(path / "artifacts" / "preferences.jsonl")
        return [{row["chosen"], row["rejected"]} for row in rows if row["kind"] == "harmful"]

    assert sides(run.path) == sides(finished("none"))
    probabilities = [
        [row["probability"] for row in read_jsonl(path / "artifacts" / "preferences.jsonl")]
        for path in (run.path, finished("none"))
    ]
    assert probabilities[0] != probabilities[1]


def test_nothing_to_learn_from_is_said(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignlab.align import pipeline, preferences

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "best_candidates", lambda prompts, *_: [(None, None)] * len(prompts))
        with pytest.raises(DataError, match="all revisions of 4 responses are empty or loop"):
            tiny_run.run_pipeline(tiny_run.tiny_config(model), tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(preferences, "harmful_comparisons", lambda _: [])
        with pytest.raises(FeedbackError, match="could judge none of 0 pairs"):
            tiny_run.run_pipeline(tiny_run.tiny_config(model), tmp_path / "run")


def test_dtype_is_recorded_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on where `auto` would mean another precision keeps the one it started with."""
    config = tiny_run.tiny_config(model, dtype="auto")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert resolve_dtype(config) == "bfloat16"
    assert resolve_dtype(tiny_run.tiny_config(model)) == "float32"
    with Run.create(config, name="align", path=tmp_path / "run") as run:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        assert AlignmentPipeline(config, run, Progress.silent()).base.model.embed.weight.dtype == torch.float32
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
        assert AlignmentPipeline(config, run, Progress.silent()).base.model.embed.weight.dtype == torch.float32


@pytest.mark.slow
def test_without_any_network(model: Path, tmp_path: Path) -> None:
    """A user and network namespace without interfaces: not even this machine can be reached."""
    alone = ["unshare", "-rn"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("unshare -rn is not permitted here")
    down = "import socket; socket.create_connection(('127.0.0.1', 1), timeout=1)"
    refused = subprocess.run([*alone, sys.executable, "-c", down], capture_output=True, text=True)
    assert "Network is unreachable" in refused.stderr, "the namespace has a network, so this test shows nothing"
    done = subprocess.run(
        [*alone, sys.executable, SCRIPT, "run", model, tmp_path / "run", "none"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ALIGNLAB_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "finished in" in done.stdout
    assert Run.read(tmp_path / "run").state == "finished"


def test_the_registry_points_to_the_run(finished: Callable[[str], Path], model: Path) -> None:
    info = registry.find("tiny-dpo") if finished("dpo") else None
    assert info is not None
    assert info.info == {"base": str(model), "run": str(finished("dpo")), "stage": "rl-cai"}
