"""The pipeline on a random model of a few thousand weights, as a library of the tests and as a program.

    python tiny_run.py build MODEL                    write the model, a Hugging Face directory
    python tiny_run.py run MODEL RUN [METHOD]         run or continue the pipeline there
    python tiny_run.py crash MODEL FOLDER KILLS SEED  run it in FOLDER/whole; then in FOLDER/killed with kill -9
                                                      at KILLS random moments, and to the end

`crash` imports once and forks the processes that are killed, so that a restart costs no second.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import time
from importlib.resources import files
from pathlib import Path

import tokenizers
import torch
from killed_children import forked, in_child, killed
from tokenizers import models, pre_tokenizers, trainers

from alignlab.align.config import AlignConfig, PreferenceSettings, ReinforcementSettings, SupervisedSettings
from alignlab.align.pipeline import AlignmentPipeline
from alignlab.core.progress import Progress
from alignlab.core.runs import Run
from alignlab.data.prompts import load_prompts
from alignlab.lm.config import GPTConfig
from alignlab.lm.cpu_step.step import loaded
from alignlab.lm.hf_export import export_hf
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.model import GPTModel
from alignlab.lm.tokenizer import SpecialTokens, Tokenizer, byte_level_core

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def build_tokenizer() -> Tokenizer:
    """Byte-level BPE of a few hundred merges, learned from the packaged texts so that prompts stay short."""
    core = byte_level_core(models.BPE())
    folder = files("alignlab.align").joinpath("constitutions")
    texts = [folder.joinpath(name).read_text() for name in ("default.yaml", "fewshot.yaml")]
    texts += [record.prompt for name in ("harmful", "benign", "helpful") for record in load_prompts(name)]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return Tokenizer(core, SpecialTokens(bos=0, eos=2, pad=0), CHATML)


def build_model(directory: Path, *, seed: int = 0) -> Path:
    """Write a random model with distributions that are not flat, so that texts differ."""
    tokenizer = build_tokenizer()
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, n_ctx=4096, d_model=32, n_layers=2, n_heads=2, d_mlp=48, tie_embeddings=False
    )
    model = GPTModel(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
        model.embed.weight.normal_(0, 1, generator=generator)
    return export_hf(LanguageModel(model, tokenizer, "tiny", "test"), directory)


def tiny_config(model: Path, method: str = "ppo", **changes: object) -> AlignConfig:
    """Every stage, with as little of everything as there can be."""
    settings: dict[str, object] = {
        "model": str(model),
        "name": f"tiny-{method}",
        "n_prompts": 4,
        "n_eval": 4,
        "max_tokens": 8,
        "revisions": 2,
        "batch_size": 3,
        "dtype": "float32",
        "device": "cpu",
        "supervised": SupervisedSettings(epochs=2.0, rank=2, batch_size=2, row_length=128),
        "preference": PreferenceSettings(epochs=2.0, rank=2, batch_size=2),
        "reinforcement": ReinforcementSettings(method=method, steps=3, batch_size=4, rank=2),  # type: ignore[arg-type]
    }
    return AlignConfig(**{**settings, **changes})  # type: ignore[arg-type]


def run_pipeline(config: AlignConfig, path: Path) -> Run:
    """Make or continue the run in `path`; returns it closed."""
    run = Run.open(path, config=config) if path.exists() else Run.create(config, name="align", path=path)
    with run:
        AlignmentPipeline(config, run, Progress.silent()).execute()
    return run


def run_once(config: AlignConfig, path: Path) -> float:
    """One process that is left alone; returns its seconds."""
    started = time.perf_counter()
    in_child(lambda: run_pipeline(config, path))
    return time.perf_counter() - started


def kill_during(config: AlignConfig, path: Path, before: list[str], delay: float) -> bool:
    """One process, killed `delay` seconds after the stages `before` are there; whether that was before its end."""
    child = forked(lambda: run_pipeline(config, path))
    while not all((path / "stages" / f"{name}.json").exists() for name in before):
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            break
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return killed(child)


def crash(config: AlignConfig, folder: Path, kills: int, seed: int) -> str:
    """Kill at random moments, uniform over the time line of an undisturbed run, and finish."""
    importlib.import_module("torch._dynamo")  # loading a model imports it; here once, not in every child
    loaded()  # compiles on first use: a stage of the undisturbed run that did would seem long, and kills would miss it
    run_once(config, folder / "whole")
    records = Run.read(folder / "whole").stages()
    # What every start costs comes first on the time line; the whole run is finished, so this goes through all of it.
    line = [("", run_once(config, folder / "whole")), *((name, record.seconds) for name, record in records.items())]
    clock = random.Random(seed)
    hit = []
    for moment in sorted(clock.uniform(0, sum(seconds for _, seconds in line)) for _ in range(kills)):
        place = 0
        while moment > line[place][1]:
            moment -= line[place][1]
            place += 1
        if kill_during(config, folder / "killed", [name for name, _ in line[:place] if name], moment):
            hit.append(line[place][0] or "start")
    run_once(config, folder / "killed")
    return f"killed {len(hit)}: {' '.join(hit)}"


def results(path: Path) -> dict[str, object]:
    """All that a run came to, without times, memory and places: equal for equal runs."""
    run = Run.read(path)
    found: dict[str, object] = {"metrics": run.metrics(), "state": run.state}
    for name, record in run.stages().items():
        found[f"stage {name}"] = {key: value for key, value in record.output.items() if key != "path"}
    for file in sorted(path.glob("artifacts/**/*")):
        if file.suffix in (".json", ".jsonl", ".safetensors"):
            found[str(file.relative_to(path))] = file.read_bytes()
    found["model"] = (path / "model" / "model.safetensors").read_bytes()
    return found


def main(arguments: list[str]) -> None:
    """See the head of this file."""
    torch.set_num_threads(1)
    what, model, *rest = arguments
    if what == "build":
        build_model(Path(model))
    elif what == "run":
        started = time.perf_counter()
        run_pipeline(tiny_config(Path(model), *rest[1:]), Path(rest[0]))
        print(f"finished in {time.perf_counter() - started:.3f}")
    else:
        print(crash(tiny_config(Path(model)), Path(rest[0]), int(rest[1]), int(rest[2])))


if __name__ == "__main__":
    main(sys.argv[1:])
