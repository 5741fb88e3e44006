"""Sinks: what TensorBoard, W&B and MLflow hold is read back with their own readers; a failing sink stops nothing."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from alignlab.core import sinks
from alignlab.core.errors import ConfigError, MissingExtraError, RunError
from alignlab.core.runs import Run

STEPS = {1: {"loss": 2.0, "kl": 0.5}, 2: {"loss": 1.0, "kl": 0.25}}
CONFIG = {"rate": 1e-4, "part": {"size": 3}}


def logged(tmp_path: Path, sink: str) -> Path:
    with Run.create(CONFIG, name="trial", path=tmp_path / "run", sinks=(sink,)) as run:
        for step, numbers in STEPS.items():
            run.log(step, numbers)
    assert "sink_failed" not in [event["kind"] for event in run.events()]
    return run.path / "sinks" / sink


def test_tensorboard_reads_back(tmp_path: Path) -> None:
    folder = logged(tmp_path, "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["kl", "loss"]
    for name in ("kl", "loss"):
        read = {event.step: event.value for event in events.Scalars(name)}
        assert read == {step: numbers[name] for step, numbers in STEPS.items()}


# MLflow 3 uses an SQLAlchemy option that SQLAlchemy 2.1 deprecates.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
def test_mlflow_reads_back(tmp_path: Path) -> None:
    folder = logged(tmp_path, "mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("alignlab")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "trial"
    assert run.data.params == {"rate": "0.0001", "part.size": "3"}
    for name in ("kl", "loss"):
        read = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        assert read == {step: numbers[name] for step, numbers in STEPS.items()}


def log_records(content: bytes) -> Iterator[bytes]:
    """The records of a W&B transaction log: seven bytes, then LevelDB's log format in blocks of 32 KiB."""
    assert content[:4] == b":W&B"
    position, whole = 7, b""
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:  # the tail of a block is too short for a header
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or the last piece of one
            yield whole
            whole = b""


def test_wandb_reads_back(tmp_path: Path) -> None:
    folder = logged(tmp_path, "wandb")
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("offline-run-*/*.wandb")
    rows, name = [], ""
    for data in log_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in row.items() if not key.startswith("_")})
        elif record.WhichOneof("record_type") == "run":
            name = record.run.display_name
    assert rows == [{"step": step, **numbers} for step, numbers in STEPS.items()]
    assert name == "trial"


def test_unknown_and_missing_sinks_leave_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="unknown sink 'tensorbord', did you mean 'tensorboard'"):
        Run.create({}, name="x", path=tmp_path / "run", sinks=("tensorbord",))
    monkeypatch.setitem(sinks.SINKS, "absent", ("absent_package", Recorder))
    with pytest.raises(MissingExtraError, match=r"absent_package is not installed.*alignlab\[tracking\]"):
        Run.create({}, name="x", path=tmp_path / "run", sinks=("absent",))
    assert os.listdir(tmp_path) == []


class Recorder:
    """A sink that fails at a chosen moment."""

    fail_at = ""
    seen: list[object]

    def __init__(self, path: Path, name: str, config: Mapping[str, object]):
        type(self).seen = [path, name, config]
        self._fail("open")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._fail("log")
        self.seen.append((step, dict(metrics)))

    def close(self, state: str) -> None:
        self.seen.append(state)
        self._fail("close")

    def _fail(self, moment: str) -> None:
        if self.fail_at == moment:
            raise OSError(f"{moment} failed")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setitem(sinks.SINKS, "recorder", ("json", Recorder))
    monkeypatch.setattr(Recorder, "fail_at", "")
    return Recorder


def test_sink_gets_everything(tmp_path: Path, recorder: type[Recorder]) -> None:
    with Run.create({"a": 1}, name="x", path=tmp_path / "run", sinks=("recorder", "recorder")) as run:
        run.log(1, {"loss": 2})
    assert recorder.seen == [tmp_path / "run" / "sinks", "x", {"a": 1}, (1, {"loss": 2.0}), "finished"]
    with pytest.raises(ValueError, match="y"), Run.open(tmp_path / "run", sinks=("recorder",)):
        raise ValueError("y")
    assert recorder.seen[-1] == "failed"


@pytest.mark.parametrize("moment", ["log", "close"])
def test_failing_sink_is_dropped_and_noted(
    tmp_path: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(recorder, "fail_at", moment)
    with Run.create({}, name="x", path=tmp_path / "run", sinks=("recorder",)) as run:
        run.log(1, {"loss": 2.0})
        run.log(2, {"loss": 1.0})
    assert len(run.metrics()) == 2
    assert run.state == "finished"
    reasons = [event["reason"] for event in run.events() if event["kind"] == "sink_failed"]
    assert reasons == [f"recorder is off from here on: OSError: {moment} failed"]


def test_sink_that_does_not_open_is_an_error(
    tmp_path: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    Run.create({}, name="x", path=tmp_path / "old").close()
    monkeypatch.setattr(recorder, "fail_at", "open")
    with pytest.raises(RunError, match="the sink recorder cannot be opened: OSError: open failed"):
        Run.create({}, name="x", path=tmp_path / "new", sinks=("recorder",))
    assert os.listdir(tmp_path) == ["old"]
    with pytest.raises(RunError, match="cannot be opened"):
        Run.open(tmp_path / "old", sinks=("recorder",))
    Run.open(tmp_path / "old").close()
