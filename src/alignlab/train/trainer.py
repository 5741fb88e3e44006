"""The one optimisation loop: every model in the lab is trained by `Trainer.fit`.

An update is: `accumulate` micro-batches, gradients clipped, one step of the optimiser at the scheduled learning rate.
Then, when due, it is logged, validated and checkpointed. A loss that is not finite stops the loop, or sends it back to
the last checkpoint. Nothing else happens anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from alignlab.core.config import to_dict
from alignlab.core.errors import ConfigError, TrainingError
from alignlab.core.progress import SILENT, Progress, ProgressTask
from alignlab.train.checkpoint import list_checkpoints
from alignlab.train.config import TrainConfig
from alignlab.train.context import (
    checkpointed_blocks,
    compiled,
    evaluation_mode,
    memory_errors_explained,
    training_mode,
)
from alignlab.train.ema import PREFIX, WeightAverage, ema_weights
from alignlab.train.losses import with_z_loss
from alignlab.train.observer import Metrics, Observer, load_observer_states, observer_states
from alignlab.train.parallel import Parallel
from alignlab.train.readout import Readout
from alignlab.train.resume import fingerprint, refuse_another
from alignlab.train.schedule import scheduled_rate
from alignlab.train.spikes import DataOrder, LossSpike, SpikeDetector, judge, steps_to_skip
from alignlab.train.update import Updater

if TYPE_CHECKING:
    from alignlab.core.runs import Run

Batch = dict[str, Tensor]
LossFn = Callable[[nn.Module, Batch], tuple[Tensor, Mapping[str, float | Tensor]]]
"""Scalar loss of one micro-batch, and what to log about it: numbers, or tensors of one number, which cost no wait.

If the metrics have `tokens`, the loss is taken as a mean over that many tokens: accumulated micro-batches then count in
proportion, so that the update is the gradient of the mean over all their tokens. Without it each counts the same.
"""


@dataclass(frozen=True)
class TrainResult:
    """What a training came to."""

    steps: int
    """Updates done, those before an interruption included."""
    final_loss: float
    """Loss of the last update's batch, before that update."""
    history: list[Metrics] = field(repr=False)
    """The logged metrics, each with its `step`, in order."""


class Trainer:
    """Trains the parameters of `model` that require gradients, and stops with an error rather than learn nothing.

    With a `run` its metrics are logged as `<name>/loss` and so on, and checkpoints go to `run.checkpoints/<name>`
    unless `checkpoint_dir` says otherwise. Where that has a checkpoint, `fit` goes on from it and ends in the same bits
    as a training that was never interrupted: batches are a function of their number, and dropout is seeded by it.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        config: TrainConfig,
        *,
        run: Run | None = None,
        name: str = "train",
        checkpoint_dir: str | Path | None = None,
        progress: Progress | None = None,
        parallel: Parallel | None = None,
        observers: Sequence[Observer] = (),
        scales: Mapping[str, float] | None = None,
        data_fingerprint: dict[str, Any] | None = None,
        validate: Callable[[nn.Module], Metrics] | None = None,
    ) -> None:
        """See the class.

        Args:
            parallel: the processes that train together; alone by default.
            observers: see every update (`alignlab.train.observer`).
            scales: learning-rate multipliers by parameter name.
            data_fingerprint: what identifies the data; a checkpoint of other data is refused.
            validate: metrics of the model in evaluation mode, called every `validate_every` updates and after the last;
                with `ema_decay`, also of the averaged weights, logged with `ema_` before their names.

        Raises:
            ConfigError: `z_loss` for a loss that does not take it, or `spike_factor` without a place for checkpoints.
        """
        self.model, self.config, self.run, self.name = model, config, run, name
        self.loss_fn: LossFn = with_z_loss(loss_fn, config.z_loss) if config.z_loss else loss_fn
        if checkpoint_dir is None and run is not None:
            checkpoint_dir = Path(run.checkpoints) / name
        self.checkpoint_dir = None if checkpoint_dir is None else Path(checkpoint_dir)
        self.progress = SILENT if progress is None else progress
        self.parallel = Parallel() if parallel is None else parallel
        self.observers, self.scales, self.data, self.validate = tuple(observers), scales, data_fingerprint, validate
        self.history: list[Metrics] = []

    @property
    def average(self) -> WeightAverage | None:
        """The moving average of the weights, for `ema_weights`; None before `fit` and without `ema_decay`."""
        updater: Updater | None = getattr(self, "updater", None)
        return None if updater is None else updater.average

    def fit(self, batch_at: Callable[[int], Batch]) -> TrainResult:
        """Train to `config.steps` updates; `batch_at(i)` is micro-batch number i, the same whenever it is asked.

        Raises:
            TrainingError: a loss, metric or gradient that is not finite, a batch whose `loss_mask` is empty, a loss
                that no trainable parameter influences, a loss that goes on spiking after `max_rewinds` rewinds, a GPU
                out of memory, a compiler that is missing, or a checkpoint that cannot be written, read or continued.
        """
        config = self.config
        where = self.parallel.broadcast(None if self.checkpoint_dir is None else str(self.checkpoint_dir))
        self.checkpoint_dir = None if where is None else Path(where)
        if config.spike_factor and self.checkpoint_dir is None:
            raise ConfigError("spike_factor is set, but there is no checkpoint to rewind to; give a checkpoint_dir")
        self.identity = self.parallel.broadcast(fingerprint(self.model))  # before sharding changes the parameters
        together = {"parallel": self.parallel, "observers": self.observers, "scales": self.scales}
        self.updater = Updater(self.model, self.loss_fn, config, self.name, **together)  # type: ignore[arg-type]
        self.order, self.spikes, self.rewinds = DataOrder(), SpikeDetector(config.spike_factor), 0
        self.pending: Readout | None = None
        start = self._resume()
        label = f"{self.name} from step {start}" if start else self.name
        with ExitStack() as stack:
            stack.enter_context(training_mode(self.model))
            if config.compile:
                stack.enter_context(compiled(self.model))
            if config.gradient_checkpointing:
                stack.enter_context(checkpointed_blocks(self.model))
            task = stack.enter_context(self.progress.task(label, config.steps - start, unit="steps"))
            self._train(start, batch_at, task)
        return TrainResult(config.steps, self.history[-1]["loss"], self.history)

    def _train(self, step: int, batch_at: Callable[[int], Batch], task: ProgressTask) -> None:
        config = self.config
        if config.spike_factor and step == 0:
            self._save(0)  # somewhere to rewind to
        while step < config.steps:
            step += 1
            last = step == config.steps
            validates = self.validate is not None and (last or _due(step, config.validate_every))
            saves = last or _due(step, config.checkpoint_every)
            try:
                with memory_errors_explained(self.name, step, config):
                    self._update(step, batch_at, task)
                    if not self.updater.lazy or validates or saves:
                        self._judge()
                        if validates:
                            self._validate()
                        self._log(task)
                    if saves:
                        self._save(step)
            except LossSpike as spike:
                back = self._rewind(spike)
                task.advance(back - (config.steps - (task.total or 0)) - task.done)
                step = back

    def _update(self, step: int, batch_at: Callable[[int], Batch], task: ProgressTask) -> None:
        """One optimiser step; `step` counts from 1."""
        config, updater = self.config, self.updater
        readout = updater.gradients(step, self.order.slot(step), scheduled_rate(config, step), batch_at)
        if updater.lazy:  # the numbers of the update before this one have arrived by now
            self._judge()
            self._log(task)
            self.pending = readout
        else:
            self.pending = readout
            self._judge()
        updater.step(readout)

    def _judge(self) -> None:
        """Refuse the pending update if its numbers are not finite or its loss spikes."""
        if self.pending is None:
            return
        if self.pending.local is not None:  # also those of an update that is refused: they tell which rank it was
            self.parallel.log_local(self.pending.step, self.pending.local.read())
            self.pending.local = None
        try:
            judge(self.name, self.pending.step, self.pending.read(), self.spikes)
        except LossSpike as spike:
            if self.config.spike_factor:
                raise
            advice = "a lower learning rate or precision='fp32' may help"
            raise TrainingError(f"{spike.reason}; {self._last_checkpoint()}, {advice}") from None

    def _log(self, task: ProgressTask) -> None:
        """Record the pending update, which has been judged."""
        if self.pending is None:
            return
        step, metrics = self.pending.step, self.pending.read()
        self.pending = None
        self.spikes.accept(metrics["loss"])
        if step == self.config.steps or step % self.config.log_every == 0:
            self.history.append({"step": step, **metrics})
            if self.run is not None and self.parallel.is_main:
                self.run.log(step, {f"{self.name}/{key}": value for key, value in metrics.items()})
        task.advance(1, tokens=int(metrics.get("tokens", 0)))

    def _validate(self) -> None:
        assert self.validate is not None
        assert self.pending is not None
        gathered, compute = self.parallel.gathered, self.updater.compute
        with evaluation_mode(self.model):
            with gathered(compute):
                self.pending.add(self.validate(self.model))
            if self.average is not None:
                with ema_weights(self.model, self.average), gathered(compute):  # shards are filled, then gathered
                    averaged = {f"ema_{key}": value for key, value in self.validate(self.model).items()}
                self.pending.add(averaged)
        self._judge()

    def _last_checkpoint(self) -> str:
        saved = list_checkpoints(self.checkpoint_dir) if self.checkpoint_dir is not None else []
        return f"the last checkpoint is {saved[-1]}" if saved else "nothing was updated in this step"

    def _state_tensors(self) -> dict[str, Tensor]:
        average = self.average
        return {} if average is None else {f"{PREFIX}{name}": tensor for name, tensor in average.tensors.items()}

    def _save(self, step: int) -> None:
        self.rewinds = 0
        if self.checkpoint_dir is None:
            return
        scale = self.updater.scale
        extra = {
            "config": to_dict(self.config),
            "model": self.identity,
            "data": self.data,
            "history": self.history,
            "skipped": self.order.skipped,
            "recent losses": self.spikes.losses,
            "loss scale": None if scale is None else scale.state(),
            "observers": observer_states(self.observers),
        }
        self.parallel.save(self.checkpoint_dir, step, self.model, self.updater.optimizer, extra, self._state_tensors())

    def _resume(self) -> int:
        """Continue from the newest checkpoint; the number of updates already done."""
        self.history = []
        if self.checkpoint_dir is None:
            return 0
        extra = self.parallel.load(
            self.checkpoint_dir,
            self.model,
            self.updater.optimizer,
            tensors=self._state_tensors(),
            check=partial(refuse_another, model=self.identity, config=self.config, data=self.data),
        )
        if extra is None:
            return 0
        self.history = list(extra["history"])
        self.order.skipped = sorted({*self.order.skipped, *extra.get("skipped", [])})
        self.spikes.losses = list(extra.get("recent losses", []))
        if self.updater.scale is not None:
            self.updater.scale.load(extra["loss scale"])
        load_observer_states(self.observers, extra.get("observers", {}), str(self.checkpoint_dir))
        return int(extra["step"])

    def _rewind(self, spike: LossSpike) -> int:
        """Go back to the last checkpoint and leave out the data that led to the spike; the step to go on from."""
        self.pending = None
        self.rewinds += 1
        if self.rewinds > self.config.max_rewinds:
            raise TrainingError(
                f"{spike.reason}, again after {self.config.max_rewinds} rewinds: {self.name} diverges; "
                f"{self._last_checkpoint()}, a lower learning rate or a longer warm-up may help"
            ) from spike
        back = self._resume()
        steps = steps_to_skip(spike.step, back, self.rewinds)
        slots = self.order.skip(steps[0], steps[-1])
        if self.run is not None and self.parallel.is_main:
            self.run.event(
                "loss_spike", training=self.name, step=spike.step, reason=spike.reason, rewound_to=back, skipped=slots
            )
        return back


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
