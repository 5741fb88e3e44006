"""`alignlab bench model`: what work asks of a machine counted independently, fair turns, figures, the command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from alignlab.core.errors import AlignlabError, ConfigError, SamplerError
from alignlab.core.runs import Run
from alignlab.lm import bench_limits, bench_model
from alignlab.lm.bench_cli import BenchConfig, bench
from alignlab.lm.bench_limits import Limits, Need, cache_bytes, measure_limits, prefill_need, step_need, weight_bytes
from alignlab.lm.bench_model import Setting, figures, peak_memory, random_prompts, table, time_contenders
from alignlab.lm.bench_peers import Contender, Room, engine, find_peers, llama_cpp_peer, ours
from alignlab.lm.cache import KVCache
from alignlab.lm.hf_export import export_hf
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.model import GPTModel

CPU = torch.device("cpu")
Make = Callable[..., LanguageModel]


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_limits, "CPU_BYTES", 2**16)
    monkeypatch.setattr(bench_limits, "CPU_SIDE", 32)


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma2"])
def test_operations_are_those_that_torch_counts(family: str, make_model: Callable[..., GPTModel]) -> None:
    """`FlopCounterMode` sees every product of a step and of a prefill. It counts whole score matrices, so the prefill's
    attention is compared as what it would be without the causal mask."""
    model = make_model(family, attention="explicit", window=None, window_layers=())
    batch, context = 3, 10
    cache = KVCache(model.config, batch, context, device=CPU, dtype=torch.float32)
    with torch.no_grad():
        model.hidden_states(torch.ones(batch, context - 1, dtype=torch.long), cache=cache)
        with FlopCounterMode(display=False) as step:
            model.unembed(model.hidden_states(torch.ones(batch, 1, dtype=torch.long), cache=cache)[:, -1])
        with FlopCounterMode(display=False) as prefill:
            model.unembed(model.hidden_states(torch.ones(batch, context, dtype=torch.long))[:, -1])
    config = model.config
    assert step_need(model, batch, context, 4).flops == step.get_total_flops()
    whole = 4 * batch * config.n_layers * config.n_heads * config.d_head * context * context
    causal = 4 * batch * config.n_layers * config.n_heads * config.d_head * context * (context + 1) / 2
    assert prefill_need(model, batch, context).flops - causal == prefill.get_total_flops() - whole


def test_bytes_are_those_that_lie_in_memory(make_model: Callable[..., GPTModel]) -> None:
    for family, dtype in (("gpt2", torch.float32), ("llama", torch.bfloat16)):
        model = make_model(family).to(dtype)
        looked_up = [model.pos_embed.weight] if model.pos_embed else []
        looked_up += [model.embed.weight] if model.head is not None else []
        size = 2 if dtype is torch.bfloat16 else 4
        assert weight_bytes(model) == size * (
            sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in looked_up)
        )
        cache = KVCache(model.config, 5, 12, device=CPU, dtype=dtype)
        assert 5 * cache_bytes(model, 12, size) == cache.keys.nbytes + cache.values.nbytes
        need = step_need(model, 5, 12, size)
        assert need.bytes == weight_bytes(model) + cache.keys.nbytes + cache.values.nbytes
    # Windowed layers (every second one here, 6 wide) hold no more than their window.
    assert cache_bytes(make_model("gemma2"), 20, 4) == 2 * 2 * 12 * 4 * (6 + 20)


def test_least_time_is_the_larger_of_both() -> None:
    limits = Limits(bytes_per_second=100.0, flops_per_second=1000.0, repeats=1)
    assert (Need(50, 100).seconds(limits), Need(50, 100).bound(limits)) == (0.5, "memory")
    assert (Need(50, 900).seconds(limits), Need(50, 900).bound(limits)) == (0.9, "compute")


def test_probes_turn_seconds_into_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted times: 0.5 s and 0.25 s for the two readers, 0.1 s for the product."""
    planted = iter([[0.4, 0.5, 0.6], [0.25] * 3, [0.1] * 3])
    monkeypatch.setattr(bench_limits, "timings", lambda work, device, repeats: (work(), next(planted))[1])
    limits = measure_limits(CPU, torch.float32, repeats=3)
    assert limits == Limits(2**16 / 0.25, 2 * 32**3 / 0.1, 3)
    monkeypatch.undo()
    real = measure_limits(CPU, torch.bfloat16, repeats=2, scale=1e-4)
    assert real.bytes_per_second > 0
    assert real.flops_per_second > 0


def test_figures_by_hand() -> None:
    setting = Setting(batch=4, prompt=10, new=11)
    seconds = {"first": [0.3, 0.2, 0.1], "all": [0.6, 0.8, 0.7]}
    limits = Limits(bytes_per_second=100.0, flops_per_second=1000.0, repeats=1)
    found = figures(setting, seconds, prefill=Need(10, 40), step=Need(2, 5), limits=limits)
    assert found["tokens_per_second"] == pytest.approx(44 / 0.7)
    assert found["spread"] == pytest.approx(0.2 / 0.7)
    assert found["first_token_seconds"] == 0.2
    assert found["prefill_tokens_per_second"] == pytest.approx(200)
    assert found["prefill_share"] == pytest.approx(0.1 / 0.2)  # at best 0.1 s, bound by memory
    assert found["decode_tokens_per_second"] == pytest.approx(4 * 10 / 0.5)
    assert found["decode_limit"] == pytest.approx(4 / 0.02)
    assert found["decode_share"] == pytest.approx(0.4)
    noisy = figures(setting, {"first": [0.7], "all": [0.7]}, Need(10, 40), Need(2, 5), limits)
    assert noisy["decode_tokens_per_second"] is None
    assert "–" in table([{"engine": "x", **noisy}])


def test_contenders_take_turns_on_fresh_prompts(make_lm: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, calls = make_lm(), list[tuple[str, int, str]]()

    def contender(name: str, **fields: Any) -> Contender:
        return Contender(name, lambda prompts, new: calls.append((name, new, str(prompts))), **fields)

    ticks = iter(range(100))
    monkeypatch.setattr(bench_model.time, "perf_counter", lambda: float(next(ticks)))
    setting = Setting(2, 5, 7)
    rounds = []
    found = time_contenders(
        lm, [contender("a"), contender("b"), contender("one", largest_batch=1)], setting,
        rounds=2, seed=0, advance=lambda: rounds.append(1),
    )  # fmt: skip
    assert [(name, new) for name, new, _ in calls] == [("a", 1), ("a", 7), ("b", 1), ("b", 7)] * 3
    assert found == {name: {"first": [1.0, 1.0], "all": [1.0, 1.0]} for name in "ab"}
    prompts = [text for name, _, text in calls if name == "a"]
    assert len(set(prompts)) == 6  # nothing kept from an earlier timing helps
    assert prompts == [text for name, _, text in calls if name == "b"]
    assert len(rounds) == 3
    again = random_prompts(lm, setting, 0, 0, "first")
    assert str(again) == prompts[0]
    assert [len(row) for row in again] == [5, 5]


def test_ours_generates_exactly_what_is_asked_whatever_the_model_says(
    make_reciter: Callable[..., LanguageModel],
) -> None:
    lm = make_reciter([104, 0, 105, 0, 0])  # 0 ends an answer
    for contender in (ours(lm, batch=2), engine(lm, Room(batch=2, tokens=6))):
        contender.generate([[7], [9]], 5)
        with pytest.raises(SamplerError, match=f"{contender.name} generated 5 tokens where 6 were asked for"):
            contender.generate([[7]], 6)  # its context ends there


def test_peers_that_are_here_run_and_the_others_say_why(
    make_lm: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = make_lm("llama")
    found, left_out = find_peers(lm, ("transformers", "llama-cpp"), tmp_path, gguf=None, room=Room(2, 20))
    assert [peer.name for peer in found] == ["transformers"]
    found[0].generate([[5, 6, 7], [8, 9, 10]], 4)
    assert "--gguf names none" in left_out["llama-cpp"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found, left_out = find_peers(
        lm, ("transformers", "llama-cpp"), tmp_path, gguf=tmp_path / "m.gguf", room=Room(2, 20)
    )
    assert found == []
    assert left_out == {
        "transformers": "transformers is not installed",
        "llama-cpp": "llama-cpp-python is not installed",
    }


def test_llama_cpp_reads_the_prompt_once_and_draws_each_token(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Llama:
        def __init__(self, **fields: Any) -> None:
            if fields["model_path"] == "broken.gguf":
                raise ValueError("not a model")
            calls.append(fields)

        def reset(self) -> None:
            calls.append("reset")

        def eval(self, tokens: list[int]) -> None:
            calls.append(tokens)

        def sample(self, temp: float) -> int:
            assert temp == 0.0
            return 42

    module = ModuleType("llama_cpp")
    module.Llama = Llama  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    peer = llama_cpp_peer(Path("m.gguf"), 50, gpu=False)
    assert peer.largest_batch == 1
    assert (calls[0]["n_ctx"], calls[0]["n_threads"], calls[0]["n_gpu_layers"]) == (50, torch.get_num_threads(), 0)
    peer.generate([[1, 2, 3]], 3)
    assert calls[1:] == ["reset", [1, 2, 3], [42], [42]]
    with pytest.raises(SamplerError, match=r"llama.cpp does not load broken.gguf: not a model"):
        llama_cpp_peer(Path("broken.gguf"), 50, gpu=False)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux starts a peak anew")
def test_memory_includes_what_generation_holds(make_lm: Make) -> None:
    lm = make_lm()
    held: list[torch.Tensor] = []
    idle = Contender("idle", lambda prompts, new: None)
    hungry = Contender("hungry", lambda prompts, new: held.append(torch.ones(50 * 2**20)))
    before = peak_memory(lm, idle, Setting(1, 4, 2), 0)
    assert peak_memory(lm, hungry, Setting(1, 4, 2), 0) - before > 150 * 2**20
    held.clear()
    assert peak_memory(lm, idle, Setting(1, 4, 2), 0) - before < 50 * 2**20


def test_the_command_measures_prints_and_goes_on(
    make_lm: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = export_hf(make_lm("llama"), tmp_path / "model")
    line = ["model", str(directory), "--batches", "1", "2", "--prompts", "4", "--new", "3", "--rounds", "2"]
    line += ["--peers", "engine", "transformers", "--run", str(tmp_path / "run")]
    assert bench(line) == 0
    printed = capsys.readouterr().out
    assert "float32" in printed
    assert "GB/s of memory" in printed
    assert f"run  {tmp_path / 'run'}" in printed
    results = json.loads((tmp_path / "run" / "artifacts" / "bench.json").read_text())
    assert [(row["engine"], row["batch"]) for row in results["rows"]] == [
        (name, batch) for batch in (1, 2) for name in ("alignlab", "engine", "transformers")
    ]
    for row in results["rows"]:
        assert row["tokens_per_second"] > 0
        assert len(row["seconds"]["all"]) == row["rounds"] == 2
        assert ("peak_memory_bytes" in row) == (row["engine"] == "alignlab")
    # The same run again measures nothing: every stage is recorded.
    monkeypatch.setattr(bench_limits, "measure_limits", lambda *a: pytest.fail("measured again"))
    monkeypatch.setattr(bench_model, "time_contenders", lambda *a, **k: pytest.fail("measured again"))
    assert bench([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == results["rows"]
    assert Run.read(tmp_path / "run").state == "finished"
    with pytest.raises(ConfigError, match="new"):
        bench([*line[:7], "--new", "4", *line[9:]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["modle"], "unknown kind 'modle', allowed: model"),
        (["model", "--batches", "0"], "batches is .0,., allowed: one or more positive whole numbers"),
        (["model", "--rounds", "0"], "rounds is 0"),
        (["model", "--peers", "ollama"], "peers"),
        (["model", "nowhere.gguf"], "unknown model 'nowhere.gguf'"),
    ],
)
def test_mistakes_are_one_sentence(
    line: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AlignlabError, match=message):
        bench(line)


def test_what_does_not_fit_the_context_is_told_before_measuring(make_lm: Make, tmp_path: Path) -> None:
    directory = export_hf(make_lm("llama"), tmp_path / "model")
    with pytest.raises(ConfigError, match="prompts of 60 tokens and 5 new ones do not fit into the context"):
        bench(["model", str(directory), "--prompts", "8", "60", "--new", "5", "--run", str(tmp_path / "run")])


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys, contextlib\n"
        "from alignlab.lm.bench_cli import bench\n"
        "bench(['--help'])\n"
        "with contextlib.suppress(SystemExit):\n"
        "    bench(['model', '--help'])\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "alignlab bench model MODEL" in done.stdout
    assert "--batches" in done.stdout


def test_repeated_settings_are_measured_once() -> None:
    assert BenchConfig(batches=(1, 8, 1)).batches == (1, 8)
