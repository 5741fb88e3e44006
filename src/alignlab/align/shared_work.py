"""One rollout batch for all processes: each does a part of the work on it, and all know the result.

Every rank draws the answers to its share of the prompts, then all have the whole batch. Scores, advantages, whitening,
the KL controller, order of minibatches and decisions to stop are computed from that, alike on every rank, as one
process would; only the costly parts are divided: sampling, scoring, forward and backward passes. The gradient of a
minibatch is the one that a single process has, up to rounding.

Under `FullyShardedParallel` the model that was given stays whole on every rank: it speaks and is read without
gradients, and after every update it takes the weights that were trained from the shards of a copy. With an adapter only
the adapter travels.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from alignlab.align.rl.rewards import Guarded
from alignlab.align.rollout import by_length
from alignlab.core.config import to_dict
from alignlab.core.errors import AlignlabError, ConfigError, RunError, TrainingError
from alignlab.core.rng import derive_seed
from alignlab.lm.types import Completion, Prompt, Sampler, SamplingParams
from alignlab.train.parallel import Kind, Parallel, leaving, parallel_from_env
from alignlab.train.resume import fingerprint, refuse_another

T = TypeVar("T")
Part = tuple[Tensor, int, float, bool]
"""Rows of a microbatch, their width, 1 (or 0: only there because other ranks have one), and whether it is the last."""


class SharedWork:
    """The part of this process in a training, and what it knows of the others; alone, all of it.

    `whole` is the module that was given, `trained` the one whose parameters are trained (a sharded copy, or the same),
    `compute(f)` stands for `f(trained)` and is what to differentiate.
    """

    def __init__(self, module: nn.Module, parallel: Parallel | None = None) -> None:
        self.parallel = parallel = parallel or Parallel()
        self.rank, self.world = parallel.rank, parallel.world
        self.whole = module
        sharded = _shards(parallel)
        if parallel.world > 1 or sharded:
            module.to(parallel.device)
        self.fingerprint = parallel.broadcast(fingerprint(module))  # rank 0's weights are about to be everybody's
        self.trained = _copy_on_cpu(module) if sharded else module
        self.compute = parallel.prepare(self.trained, _call)
        if sharded:
            self._copy_over(dict(self.trained.named_parameters()))

    def refresh(self) -> None:
        """Bring the whole model up to date with what was trained; every rank has to call it."""
        if self.trained is not self.whole:
            self._copy_over({name: p for name, p in self.trained.named_parameters() if p.requires_grad})

    @torch.no_grad()
    def _copy_over(self, parameters: Mapping[str, Tensor]) -> None:
        targets = dict(self.whole.named_parameters())
        for name, parameter in parameters.items():
            targets[name].copy_(
                parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            )  # a DTensor

    # One batch

    def mine(self, count: int) -> slice:
        """This rank's share of `count` things: neighbours, as many as the others' or one more or less."""
        return slice(self.rank * count // self.world, (self.rank + 1) * count // self.world)

    def each(self, action: Callable[[], T]) -> list[T]:
        """What `action` gives on every rank, by rank. An error of one is raised on all, so that nobody waits for it."""
        if self.world == 1:
            return [action()]
        value: T | None = None
        problem: Exception | None = None
        try:
            value = action()
        except Exception as error:
            problem = error
        said = None if problem is None else f"{_sentence(problem)} (rank {self.rank} of {self.world})"
        found = self.parallel.collect((value, said))
        for rank, (_, text) in enumerate(found):
            if text is not None:
                raise TrainingError(text) from (problem if rank == self.rank else None)
        return [one for one, _ in found]  # type: ignore[misc]

    def joined(self, action: Callable[[], list[T]]) -> list[T]:
        """The lists that `action` gives on every rank, one after the other."""
        return [item for part in self.each(action) for item in part]

    def main(self, action: Callable[[], T]) -> T:
        """What `action` gives on rank 0, which alone calls it; to all."""
        return self.each(lambda: action() if self.rank == 0 else None)[0]  # type: ignore[return-value]

    def speak(self, sampler: Sampler, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
        """`sampling.n` answers to each prompt, each rank drawing those to its share.

        They are those of one process as long as occurrences of a prompt fall to one rank; where they do not, the later
        rank draws from streams of its own.
        """
        own, seed = self.mine(len(prompts)), sampling.seed
        if self.world > 1:
            before = {repr(prompt) for prompt in prompts[: own.start]}
            if any(repr(prompt) in before for prompt in prompts[own]):
                sampling = replace(sampling, seed=derive_seed(seed, "rank", self.rank))
        return self.joined(lambda: sampler.generate(prompts[own], sampling) if prompts[own] else [])

    def score(self, reward: Guarded, prompts: Sequence[Prompt], texts: Sequence[str]) -> Float[Tensor, " batch"]:
        """The reward's scores, each rank asking for its share; one that keeps account is asked on rank 0, for all."""
        if self.world == 1:
            return reward.score(prompts, texts)
        if keeps_account(reward):
            return torch.tensor(self.main(lambda: reward.score(prompts, texts).tolist()))
        own = self.mine(len(texts))
        return torch.tensor(self.joined(lambda: reward.score(prompts[own], texts[own]).tolist() if texts[own] else []))

    def own_rows(
        self, rows: Int[Tensor, " n"], lengths: Int[Tensor, " batch"], size: int
    ) -> Iterator[tuple[Tensor, int]]:
        """This rank's rows in parts of at most `size` of similar length, with their width: long ones for everybody."""
        own = rows if self.world == 1 else rows[lengths[rows].argsort(stable=True)][self.rank :: self.world]
        if len(own):
            yield from by_length(own, lengths, size)

    def parts(self, rows: Int[Tensor, " n"], lengths: Int[Tensor, " batch"], size: int) -> Iterator[Part]:
        """The same for passes in which ranks meet: as many parts on each, whoever has fewer fills up with weight 0."""
        own = [(part, width, 1.0) for part, width in self.own_rows(rows, lengths, size)]
        needed = math.ceil(math.ceil(len(rows) / self.world) / size)
        own += [(rows[:1], int(lengths[rows[0]]), 0.0)] * (needed - len(own))
        for number, (part, width, weight) in enumerate(own):
            yield part, width, weight, number == needed - 1

    @contextmanager
    def passing(self, last: bool) -> Iterator[None]:
        """Around the forward and the backward of one part; gradients meet in the last."""
        with self.parallel.accumulate(self.compute, last):
            yield

    def added(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Sums over the ranks of tensors alike in shape: each rank filled its rows and left the others 0."""
        if self.world == 1:
            return tensors
        both = torch.stack(tensors)
        dist.all_reduce(both)
        return tuple(both.unbind())

    def added_numbers(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Sums over the ranks of metrics of which each has its part."""
        if self.world == 1:
            return dict(numbers)
        means, _ = self.parallel.mean(numbers, 1.0)
        return {name: float(value) * self.world for name, value in means.items()}

    def clip(self, parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
        """Scale gradients to a norm of at most `largest`; the norm that they had, over all shards."""
        return self.parallel.clip(parameters, largest)

    # Checkpoints

    def save(
        self, directory: Path, step: int, optimizer: torch.optim.Optimizer, config: Any, state: Mapping[str, Any]
    ) -> None:
        """Write what the rest of the training depends on; whole or not at all, each rank its part."""
        extra = {"config": to_dict(config), "model": self.fingerprint, **state}
        self.parallel.save(directory, step, self.trained, optimizer, extra)

    def load(
        self,
        directory: Path,
        optimizer: torch.optim.Optimizer,
        config: Any,
        check: Callable[[Mapping[str, Any], str], None],
    ) -> dict[str, Any] | None:
        """The state saved with the newest checkpoint, whose tensors are put in place; None where there is none.

        Any number of processes goes on from what any number wrote. Raises TrainingError when it is damaged, `check`
        refuses it, or it is of another model or configuration; then nothing has changed.
        """

        def own(state: dict[str, Any], where: str) -> None:
            check(state, where)
            refuse_another(state, where, model=self.fingerprint, config=config)

        found = self.parallel.load(directory, self.trained, optimizer, check=own)
        if found is not None:
            self.refresh()
        return found

    def place(self, directory: Path | None) -> Path | None:
        """Rank 0's directory, on every rank: it alone has the run."""
        said = self.parallel.broadcast(None if directory is None else str(directory))
        return None if said is None else Path(said)

    @contextmanager
    def company(self, step: Callable[[], int]) -> Iterator[None]:
        """Inside, a process that is gone ends this one too, with one sentence (`RunError`)."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not _lost(error):
                raise
            raise RunError(
                f"rank {self.rank} of {self.world} has lost another process after {step()} rollout batches: it died or "
                "hangs, and its own output says why. Start all of them again to go on from the last checkpoint "
                f"({_first_line(error)})"
            ) from error


def keeps_account(reward: Guarded) -> bool:
    """Whether a reward changes by being asked (running means, multipliers): then one process asks it."""
    inner = reward.reward
    return hasattr(inner, "after_step") or (hasattr(inner, "state_dict") and not isinstance(inner, nn.Module))


@contextmanager
def processes(kind: Kind = "auto", *, timeout_seconds: float = 1800.0) -> Iterator[Parallel]:
    """The processes that torchrun started this one among; what a user can cause ends the script with one sentence."""
    try:
        with leaving(parallel_from_env(kind, timeout_seconds=timeout_seconds)) as parallel:
            yield parallel
    except AlignlabError as error:
        print(f"alignlab: {_sentence(error)}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def _call(module: nn.Module, work: Any) -> Any:
    """The "loss" that a `Parallel` prepares: its "batch" is what to do with the module."""
    return work(module)


def _shards(parallel: Parallel) -> bool:
    if type(parallel) is Parallel:
        return False
    from alignlab.train.fsdp import FullyShardedParallel

    if not isinstance(parallel, FullyShardedParallel):
        return False
    if parallel.precision != "fp32":
        raise ConfigError(
            f"the shards' precision is {parallel.precision!r}, allowed here: 'fp32'; precision='bf16' of the method's "
            "own configuration computes in bfloat16"
        )
    return True


def _copy_on_cpu(module: nn.Module) -> nn.Module:
    """A copy in the host's memory, from where the shards go to the devices."""
    memo: dict[int, object] = {
        id(p): nn.Parameter(p.detach().to("cpu", copy=True), requires_grad=p.requires_grad) for p in module.parameters()
    }
    memo |= {id(buffer): buffer.detach().to("cpu", copy=True) for buffer in module.buffers()}
    return copy.deepcopy(module, memo)


def _lost(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "nccl", "connection", "peer"))


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, AlignlabError) else f"{type(error).__name__}: {text}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
