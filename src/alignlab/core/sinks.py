"""Copies of a run's metrics for other tools: TensorBoard, Weights & Biases (offline) and MLflow (a local store).

metrics.jsonl stays the record. A sink that fails while running is dropped with a reason; it never stops the run.
Nothing is sent anywhere: all three write below the run's directory, in `sinks/`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from alignlab.core.config import unknown_name
from alignlab.core.errors import AlignlabError, ConfigError, RunError
from alignlab.core.extras import import_extra


class Sink(Protocol):
    """Something that takes the numbers of each step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the numbers of one step."""

    def close(self, state: str) -> None:
        """Flush and end; `state` is the run's end state."""


class TensorBoardSink:
    """Event files that `tensorboard --logdir` shows."""

    def __init__(self, path: Path, name: str, config: Mapping[str, Any]):
        import_extra("tensorboard", "tracking")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(path / "tensorboard"))
        self._writer.add_text("config", f"```\n{config}\n```")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add one scalar a metric."""
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def close(self, state: str) -> None:
        """Flush the event file."""
        self._writer.close()


class WandbSink:
    """An offline W&B run, which `wandb sync` uploads if the user wants that."""

    def __init__(self, path: Path, name: str, config: Mapping[str, Any]):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        wandb = import_extra("wandb", "tracking")
        (path / "wandb").mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True)
        self._run = wandb.init(
            project="alignlab", name=name, dir=str(path), mode="offline", config=dict(config), settings=settings,
            reinit="create_new",
        )  # fmt: skip
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one row; the step is a column, since W&B refuses its own step going back, as it does on resume."""
        self._run.log({"step": step, **metrics})

    def close(self, state: str) -> None:
        """Finish the offline run."""
        self._run.finish(exit_code=0 if state == "finished" else 1)


class MLflowSink:
    """A run in a local MLflow store, which `mlflow ui --backend-store-uri sqlite:///.../mlflow.db` shows."""

    def __init__(self, path: Path, name: str, config: Mapping[str, Any]):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import_extra("mlflow", "tracking")
        import_extra("sqlalchemy", "tracking")  # mlflow-skinny alone cannot open its own store
        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        store = (path / "mlflow").resolve()
        store.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=f"sqlite:///{store}/mlflow.db")
        experiment = self._client.get_experiment_by_name("alignlab")
        identifier = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment("alignlab", artifact_location=(store / "artifacts").as_uri())
        )
        self._id = self._client.create_run(identifier, run_name=name).info.run_id
        for key, value in _flat(config).items():
            self._client.log_param(self._id, key, str(value)[:6000])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log each metric at `step`."""
        for key, value in metrics.items():
            self._client.log_metric(self._id, key, value, step=step)

    def close(self, state: str) -> None:
        """End the MLflow run."""
        self._client.set_terminated(self._id, {"finished": "FINISHED", "failed": "FAILED"}.get(state, "KILLED"))


SINKS: dict[str, tuple[str, Callable[[Path, str, Mapping[str, Any]], Sink]]] = {
    "tensorboard": ("tensorboard", TensorBoardSink),
    "wandb": ("wandb", WandbSink),
    "mlflow": ("mlflow", MLflowSink),
}


def check_sinks(names: Sequence[str]) -> None:
    """ConfigError for an unknown sink, MissingExtraError for one whose package is not installed."""
    for name in names:
        if name not in SINKS:
            raise ConfigError(unknown_name(f"sink {name!r}", name, SINKS))
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import_extra(SINKS[name][0], "tracking")


class Sinks:
    """The sinks of one run; a failing one is dropped and its reason returned."""

    def __init__(self, sinks: dict[str, Sink]):
        self._sinks = sinks

    @classmethod
    def open(cls, names: Sequence[str], path: Path, name: str, config: Mapping[str, Any]) -> Self:
        """Open the named sinks in `path`. RunError when one does not open: a user who asked for it should know."""
        check_sinks(names)
        sinks = cls({})
        for key in dict.fromkeys(names):
            try:
                sinks._sinks[key] = SINKS[key][1](path, name, config)
            except AlignlabError:
                sinks.close("failed")
                raise
            except Exception as error:  # third-party code may raise anything
                sinks.close("failed")
                raise RunError(f"the sink {key} cannot be opened: {type(error).__name__}: {error}") from error
        return sinks

    def log(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Pass the numbers on; returns why sinks failed, usually nothing."""
        return self._each(lambda sink: sink.log(step, metrics))

    def close(self, state: str) -> list[str]:
        """End all sinks; returns why some failed, usually nothing."""
        failures = self._each(lambda sink: sink.close(state))
        self._sinks.clear()
        return failures

    def _each(self, call: Callable[[Sink], None]) -> list[str]:
        failures = []
        for name, sink in list(self._sinks.items()):
            try:
                call(sink)
            except Exception as error:  # third-party code: whatever it raises must not end hours of training
                del self._sinks[name]
                failures.append(f"{name} is off from here on: {type(error).__name__}: {error}")
        return failures


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
