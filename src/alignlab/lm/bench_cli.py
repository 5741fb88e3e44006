"""`alignlab bench model`: how fast a model generates on this machine, beside its peers and the machine's limits."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignlab.core.config import parse_cli, require
from alignlab.core.errors import ConfigError

if TYPE_CHECKING:
    from alignlab.core.progress import Progress
    from alignlab.core.runs import Run
    from alignlab.lm.bench_limits import Limits
    from alignlab.lm.bench_model import Setting
    from alignlab.lm.bench_peers import Contender
    from alignlab.lm.language_model import LanguageModel

USAGE = """usage: alignlab bench model MODEL [FLAGS]

Measure on this machine: what is fast, and how far it is from what the machine could do.

  model  tokens/s by batch and prompt length, time to the first token, memory, limits and peers

`alignlab bench model --help` explains the flags."""


@dataclass(frozen=True)
class BenchConfig:
    """Tokens/s by batch and prompt length, time to the first token, memory, and the distance from what memory bandwidth
    and matrix products of this machine allow, beside the peers that are installed, on the same weights."""

    model: str = "smollm2-135m-instruct"
    """A catalogue or registered name, a directory, a .gguf file or a hub id."""
    batches: tuple[int, ...] = (1, 8)
    """Prompts at once."""
    prompts: tuple[int, ...] = (64, 256)
    """Tokens of a prompt."""
    new: int = 32
    """Tokens generated after each prompt."""
    rounds: int = 3
    """Timings of each figure, of which the median is shown; one more warms up."""
    peers: tuple[Literal["engine", "transformers", "llama-cpp"], ...] = ("engine", "transformers", "llama-cpp")
    """Who is measured beside the sampler, where installed; nothing after the flag means nobody."""
    gguf: Path | None = None
    """The GGUF file that llama.cpp reads; by default the model itself if it is one."""
    threads: int = 0
    """Threads on the CPU; 0 leaves torch's number."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    packed: bool = False
    """Keep the Q4_0, Q4_1 and Q8_0 matrices of a GGUF file in their bits."""
    seed: int = 0
    """The random prompts derive from it."""

    def __post_init__(self) -> None:
        for name in ("batches", "prompts"):
            values = getattr(self, name)
            require(bool(values) and min(values) >= 1, name, values, "one or more positive whole numbers")
            object.__setattr__(self, name, tuple(dict.fromkeys(values)))
        for name in ("new", "rounds"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of at least 1")
        require(self.threads >= 0, "threads", self.threads, "0 or a positive whole number")


@dataclass(frozen=True)
class BenchCommand(BenchConfig):
    """Tokens/s by batch and prompt length, time to the first token, memory, and the distance from what memory bandwidth
    and matrix products of this machine allow, beside the peers that are installed, on the same weights."""

    run: Path | None = None
    """Directory of the run; one that exists is gone on with."""
    json: bool = False
    """Print the results as JSON instead of a table."""


def bench(argv: list[str]) -> int:
    """The `alignlab bench` command; returns its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if argv[0] != "model":
        raise ConfigError(f"alignlab bench: unknown kind {argv[0]!r}, allowed: model")
    return _bench_model(argv[1:])


def _bench_model(argv: list[str]) -> int:
    command = parse_cli(BenchCommand, argv, prog="alignlab bench model", first="model")
    config = BenchConfig(**{f.name: getattr(command, f.name) for f in fields(BenchConfig)})
    from alignlab.core.progress import Progress
    from alignlab.core.run_choice import run_at
    from alignlab.lm.bench_model import table

    with run_at(command.run, config, name="bench-model") as run:
        results = measure(config, run, Progress())
        text = f"{heading(results)}\n\n{table(results['rows'])}\n"
        run.write_artifact("bench.json", results)
        run.write_artifact("bench.txt", text)
    if command.json:
        print(json.dumps(results))
    else:
        print(f"{text}\nrun  {run.path}")
    return 0


def measure(config: BenchConfig, run: Run, progress: Progress) -> dict[str, Any]:
    """Everything that the command reports; what a run has measured before is not measured again."""
    import torch

    from alignlab.lm.bench_limits import measure_limits, middle, weight_bytes
    from alignlab.lm.bench_model import Setting
    from alignlab.lm.bench_peers import Room, find_peers
    from alignlab.lm.language_model import load

    if config.threads:
        torch.set_num_threads(config.threads)
    lm = load(config.model, dtype=config.dtype, device=config.device, packed=config.packed)
    settings = [Setting(batch, prompt, config.new) for prompt in config.prompts for batch in config.batches]
    _check_room(lm, config)
    weight = lm.model.embed.weight

    def probe() -> dict[str, Any]:
        return asdict(measure_limits(weight.device, weight.dtype))

    before = run.stage("limits-before", probe)
    # Memory first: the peers' weights would count as ours.
    memory = run.stage("memory", lambda: _memory(lm, settings, config.seed))
    with tempfile.TemporaryDirectory() as folder:
        gguf = config.gguf or (Path(lm.source) if lm.source.endswith(".gguf") else None)
        room = Room(max(config.batches), max(config.prompts) + config.new)
        peers, left_out = find_peers(lm, config.peers, Path(folder), gguf=gguf, room=room)
        seconds = _time_all(lm, settings, peers, config, run, progress)
    after = run.stage("limits-after", probe)
    from alignlab.lm.bench_limits import Limits

    limits = middle([Limits(**before), Limits(**after)])
    return {
        "model": lm.name,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": str(weight.device),
        "hardware": run.environment()["hardware"],
        "threads": torch.get_num_threads(),
        "weight_bytes": weight_bytes(lm.model),
        "limits": asdict(limits),
        "left_out": left_out,
        "rows": [row for s in settings for row in _rows(lm, s, seconds[s.name], limits, memory[s.name])],
    }


def heading(results: dict[str, Any]) -> str:
    """What stands above the table."""
    limits = results["limits"]
    hardware = results["hardware"]
    where = ", ".join(hardware["accelerators"]) if results["device"].startswith("cuda") else hardware["processor"]
    lines = [
        f"{results['model']}, {results['dtype']}, {results['weight_bytes'] / 2**20:,.0f} MiB of weights read a step",
        f"{where}: {results['device']}, {results['threads']} threads",
        f"limits measured here: {limits['bytes_per_second'] / 1e9:,.1f} GB/s of memory, "
        f"{limits['flops_per_second'] / 1e12:,.3f} Tflop/s of matrix products (medians of {limits['repeats']})",
    ]
    lines += [f"left out: {name}: {reason}" for name, reason in results["left_out"].items()]
    return "\n".join(lines)


def _check_room(lm: LanguageModel, config: BenchConfig) -> None:
    n_ctx, longest = lm.model.config.n_ctx, max(config.prompts)
    if longest + config.new > n_ctx:
        raise ConfigError(
            f"prompts of {longest} tokens and {config.new} new ones do not fit into the context of {lm.name}, "
            f"which is {n_ctx} tokens; lower --prompts or --new"
        )


def _memory(lm: LanguageModel, settings: list[Setting], seed: int) -> dict[str, Any]:
    from alignlab.lm.bench_model import peak_memory
    from alignlab.lm.bench_peers import ours

    return {s.name: peak_memory(lm, ours(lm, s.batch), s, seed) for s in settings}


def _time_all(
    lm: LanguageModel,
    settings: list[Setting],
    peers: list[Contender],
    config: BenchConfig,
    run: Run,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    from alignlab.lm.bench_model import time_contenders
    from alignlab.lm.bench_peers import ours

    found = {}
    with progress.task("bench", len(settings) * (config.rounds + 1), "rounds") as task:
        for setting in settings:
            contenders = [ours(lm, setting.batch), *peers]

            def work(setting: Setting = setting, contenders: list[Contender] = contenders) -> dict[str, Any]:
                return time_contenders(
                    lm, contenders, setting, rounds=config.rounds, seed=config.seed, advance=task.advance
                )

            found[setting.name] = run.stage(setting.name, work)
    return found


def _rows(
    lm: LanguageModel, setting: Setting, seconds: dict[str, Any], limits: Limits, memory: int
) -> list[dict[str, Any]]:
    from alignlab.lm.bench_model import figures, needs

    prefill, step = needs(lm, setting)
    rows = []
    for name, each in seconds.items():
        row = {"engine": name, **asdict(setting), **figures(setting, each, prefill, step, limits)}
        if name == "alignlab":
            row["peak_memory_bytes"] = memory
        else:
            # Their weights may be stored in another type; the distance from our limits would be nobody's.
            row |= {"prefill_share": None, "decode_share": None} if name == "llama.cpp" else {}
        rows.append(row)
    return rows
