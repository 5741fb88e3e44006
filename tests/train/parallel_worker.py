"""One of the processes that test_train_parallel*.py start: trains a tiny model and writes down what happened.

    python parallel_worker.py SCENARIO DIRECTORY

It is started with torchrun's variables. Its functions are imported by the tests, for the reference in one process.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alignlab.core.errors import AlignlabError
from alignlab.core.rng import derive_seed, torch_generator
from alignlab.lm.config import GPTConfig
from alignlab.lm.model import GPTModel
from alignlab.train.config import TrainConfig
from alignlab.train.ema import read_average
from alignlab.train.language import language_model_loss
from alignlab.train.optim import make_adamw, trainable_parameters
from alignlab.train.parallel import Parallel, parallel_from_env
from alignlab.train.trainer import Trainer
from alignlab.train.update import Updater

CONFIG = GPTConfig(vocab_size=37, n_ctx=16, d_model=24, n_layers=2, n_heads=2, d_mlp=41, norm="layernorm")
ROWS, LENGTH, ACCUMULATE, STEPS, SAVED_AT = 4, 12, 2, 6, 3
CLIP = 0.7


def batch_at(index: int) -> dict[str, Tensor]:
    """Micro-batch `index` over all ranks; its later rows have far fewer tokens to learn than its first ones."""
    generator = torch_generator(derive_seed(5, "batch", index))
    starts = torch.randint(0, CONFIG.vocab_size, (ROWS, 1), generator=generator)
    tokens = (starts + 3 * torch.arange(LENGTH)) % CONFIG.vocab_size
    keep = torch.tensor([0.9, 0.9, 0.3, 0.1])[:, None]
    mask = torch.rand(ROWS, LENGTH, generator=generator) < keep
    mask[:, 1] = True
    return {"tokens": tokens, "loss_mask": mask}


def train(
    parallel: Parallel,
    source: Path | None = None,
    *,
    steps: int = STEPS,
    save_to: Path | None = None,
    save_every: int = SAVED_AT,
    at_step: Callable[[int], None] = lambda step: None,
    watch: Callable[[nn.Module], None] = lambda compute: None,
) -> list[dict[str, float]]:
    """The trainer's update, spelled out; goes on from the newest checkpoint in `source`."""
    model = GPTModel(CONFIG, seed=parallel.rank)  # other weights on each rank: rank 0's must win
    compute = parallel.prepare(model, language_model_loss)
    watch(compute)
    parameters = trainable_parameters(model)
    optimizer = make_adamw(model, learning_rate=1e-2, weight_decay=0.1)
    device = next(model.parameters()).device
    averaged = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    found = None if source is None else parallel.load(source, model, optimizer, tensors=averaged)
    history: list[dict[str, float]] = [] if found is None else found["history"]
    for step in range(1 if found is None else found["step"] + 1, steps + 1):
        optimizer.zero_grad(set_to_none=True)
        total, loss_sum = 0.0, 0.0
        for i in range(ACCUMULATE):
            rows = parallel.rows(batch_at((step - 1) * ACCUMULATE + i))
            batch = {key: value.to(device) for key, value in rows.items()}
            with parallel.accumulate(compute, last=i == ACCUMULATE - 1):
                loss, metrics = compute(batch)
                (loss * metrics["tokens"]).backward()
            total += metrics["tokens"]
            loss_sum += metrics["tokens"] * float(loss.detach())
        local = {"loss": loss_sum / total, "tokens": total}
        parallel.log_local(step, local)
        means, divisor = parallel.mean(local, total)
        waiting = {"loss": torch.tensor(local["loss"], device=device), "tokens": total}
        late, late_divisor = parallel.mean(waiting, total)  # as an update gives them whose loss nobody has read yet
        assert isinstance(late["loss"], torch.Tensor)
        assert isinstance(late_divisor, torch.Tensor) == (parallel.world > 1)
        assert abs(float(late["loss"]) - means["loss"]) < 1e-6
        assert (float(late["tokens"]), float(late_divisor)) == (means["tokens"], divisor)
        torch._foreach_div_([p.grad for p in parameters.values()], divisor)
        norm = parallel.clip(parameters.values(), CLIP)
        optimizer.step()
        with torch.no_grad():
            for name, parameter in parameters.items():
                averaged[name].lerp_(parameter, 0.5)
        history.append({"step": step, **means, "grad_norm": float(norm)})
        if save_to is not None and step % save_every == 0:
            parallel.save(save_to, step, model, optimizer, {"history": history}, averaged)
        at_step(step)
    with parallel.gathered(compute), torch.no_grad():
        batch = {key: value.to(device) for key, value in batch_at(10_000).items()}
        history.append({"step": steps, "validation": float(language_model_loss(model, batch)[0])})
    wholes = (parallel.whole(averaged), parallel.whole(model.state_dict()))
    if parallel.is_main:
        alone = GPTModel(CONFIG)  # what is exported is the model that was validated
        alone.load_state_dict(wholes[1])
        with torch.no_grad():
            again = float(language_model_loss(alone, batch_at(10_000))[0])
        history[-1] |= {"averaged": sum(float(tensor.norm()) for tensor in wholes[0].values()), "exported": again}
    return parallel.broadcast(history)


def counted(name: str, calls: list[str]) -> Callable[[nn.Module], None]:
    """A `watch` that writes down every gradient synchronisation."""

    def watch(compute: nn.Module) -> None:
        if name == "ddp":
            hooks: Any = importlib.import_module("torch.distributed.algorithms.ddp_comm_hooks.default_hooks")

            def hook(state, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations that are strings
                calls.append("all-reduce")
                return hooks.allreduce_hook(None, bucket)

            compute.register_comm_hook(None, hook)  # type: ignore[operator]
        else:
            called = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
            original = getattr(dist, called)

            def reduce_scatter(*args: Any, **kwargs: Any) -> Any:
                calls.append("reduce-scatter")
                return original(*args, **kwargs)

            setattr(dist, called, reduce_scatter)

    return watch


def through_trainer(parallel: Parallel, optimizer: str, directory: Path | None = None, *, steps: int = 4) -> Any:
    """The trainer's own loop: history, checkpoints every 2 updates, averaged weights, validation."""
    config = TrainConfig(
        steps=4,
        learning_rate=1e-2,
        weight_decay=0.1,
        grad_clip=CLIP,
        accumulate=ACCUMULATE,
        optimizer=optimizer,  # type: ignore[arg-type]
        ema_decay=0.5,
        checkpoint_every=2,
        validate_every=2,
    )

    def rows_at(index: int) -> dict[str, Tensor]:
        if index >= steps * ACCUMULATE:
            raise InterruptedError
        return parallel.rows(batch_at(index))

    def validate(model: nn.Module) -> dict[str, float]:
        return {"validation": float(language_model_loss(model, batch_at(10_000))[0])}

    trainer = Trainer(
        GPTModel(CONFIG, seed=parallel.rank),
        language_model_loss,
        config,
        parallel=parallel,
        checkpoint_dir=directory,
        validate=validate,
    )
    with suppress(InterruptedError):
        trainer.fit(rows_at)
    return trainer.history


@contextmanager
def read_late() -> Iterator[None]:
    """Inside, updates run as on a GPU: nobody waits for their numbers, which stay tensors until the next one runs."""
    make, number = Updater.__init__, Updater._number

    def make_lazy(self: Updater, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        self.lazy = True

    try:
        Updater.__init__ = make_lazy  # type: ignore[method-assign]
        Updater._number = lambda self, value: number(self, torch.as_tensor(value))  # type: ignore[method-assign]
        yield
    finally:
        Updater.__init__, Updater._number = make, number  # type: ignore[method-assign]


def refusal(action: Callable[[], object]) -> str:
    try:
        action()
    except AlignlabError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def both(directory: Path) -> dict[str, Any]:
    """Two ranks: both kinds from the start, from each other's checkpoint, from one process's, and bad input."""
    result: dict[str, Any] = {}
    for kind in ("ddp", "fsdp"):
        parallel = parallel_from_env(kind)  # type: ignore[arg-type]
        calls: list[str] = []
        watch = counted(kind, calls)
        parallel.open_log(directory)
        result[kind] = train(parallel, save_to=directory / kind, steps=SAVED_AT, watch=watch)
        result[f"{kind} synchronisations"] = len(calls)
        result[f"{kind} ranks"] = parallel.collect((parallel.rank, parallel.world, parallel.is_main))
        result[f"{kind} resumed"] = train(parallel, directory / kind, watch=watch)
        result[f"{kind} from single"] = train(parallel, directory / "single", watch=watch)
        through_trainer(parallel, "adamw", directory / f"{kind} average")
        if parallel.is_main:  # alone: the other rank must not be waited for
            average = read_average(directory / f"{kind} average")
            result[f"{kind} average"] = sum(float(tensor.norm()) for tensor in average.values())
        parallel.barrier()
        if kind == "fsdp":
            result["fsdp from ddp"] = train(parallel, directory / "ddp", watch=watch)
    parallel = parallel_from_env("ddp")
    result["ddp from fsdp"] = train(parallel, directory / "fsdp", save_to=directory / "kept", save_every=1)
    result["kept"] = sorted(path.name for path in (directory / "kept").iterdir())
    result["told"] = parallel.broadcast(f"from {parallel.rank}")
    result["rows"] = refusal(lambda: parallel.rows({"tokens": torch.zeros(3, 2)}))
    parallel.barrier()
    if parallel.is_main:
        broken = next((directory / "kept" / "step_00000006").glob("shard-00002*"))
        data = bytearray(broken.read_bytes())
        data[-1] ^= 1
        broken.write_bytes(data)
    parallel.barrier()
    result["damaged"] = refusal(lambda: train(parallel, directory / "kept"))
    (directory / "file").touch()
    result["unwritable"] = refusal(lambda: train(parallel, save_to=directory / "file", steps=SAVED_AT))
    dist.destroy_process_group()  # the first of the objects above had joined
    return result


def trainer(directory: Path) -> dict[str, Any]:
    """Two ranks in the trainer's own loop, both kinds and both optimisers, and one that is interrupted."""
    result: dict[str, Any] = {}
    for kind in ("ddp", "fsdp"):
        parallel = parallel_from_env(kind)  # type: ignore[arg-type]
        for optimizer in ("adamw", "muon"):
            result[f"{kind} {optimizer}"] = through_trainer(parallel, optimizer)
            with read_late():
                result[f"{kind} {optimizer} read late"] = through_trainer(parallel, optimizer)
        through_trainer(parallel, "adamw", directory / kind, steps=3)  # interrupted after the checkpoint of step 2
        result[f"{kind} continued"] = through_trainer(parallel, "adamw", directory / kind)
    dist.destroy_process_group()
    return result


def lost_rank(directory: Path) -> dict[str, Any]:
    """Rank 1 is killed after step 5 the first time."""

    def at_step(step: int) -> None:
        if step == 5 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)

    parallel = parallel_from_env("fsdp" if directory.name == "fsdp" else "ddp", timeout_seconds=60)
    history = train(parallel, directory / "saved", steps=8, save_to=directory / "saved", save_every=2, at_step=at_step)
    parallel.close()
    return {"history": history, "restarts": int(os.environ["TORCHELASTIC_RESTART_COUNT"])}


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[2])
    outcome = {"both": both, "trainer": trainer, "lost_rank": lost_rank}[sys.argv[1]](where)
    (where / f"result-{os.environ['RANK']}.json").write_text(json.dumps(outcome))
