"""Loss spikes: seeing them, rewinding, skipping the batches, giving up, and all of it across interruptions."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alignlab.core.errors import ConfigError, TrainingError
from alignlab.core.runs import Run
from alignlab.train.checkpoint import list_checkpoints
from alignlab.train.config import TrainConfig
from alignlab.train.spikes import DataOrder, SpikeDetector, steps_to_skip
from alignlab.train.trainer import Batch, Metrics, Trainer

CONFIG = TrainConfig(
    steps=40, learning_rate=0.01, schedule="constant", checkpoint_every=5, spike_factor=8.0, accumulate=2
)


def test_threshold_is_median_plus_robust_deviations() -> None:
    losses = np.random.default_rng(0).normal(3.0, 0.2, 200).tolist()
    detector = SpikeDetector(5.0)
    for loss in losses:
        detector.accept(loss)
    last = np.array(losses[-128:])
    middle = np.median(last)
    expected = middle + 5 * 1.4826 * np.median(np.abs(last - middle))
    assert detector.threshold() == pytest.approx(float(expected))
    assert len(detector.losses) == 128


def test_few_losses_no_factor_and_a_still_loss_flag_nothing() -> None:
    detector = SpikeDetector(3.0, [1.0] * 15)
    assert detector.threshold() == math.inf
    detector.accept(1.0)
    assert detector.threshold() == pytest.approx(1.003)  # the deviation is at least a thousandth of the median
    assert SpikeDetector(0.0, [1.0] * 100).threshold() == math.inf


def test_order_leaves_out_skipped_slots() -> None:
    order = DataOrder([1, 4])
    assert [order.slot(step) for step in range(1, 6)] == [0, 2, 3, 5, 6]
    assert order.skip(3, 4) == [3, 5]
    assert order.skipped == [1, 3, 4, 5]
    assert [order.slot(step) for step in range(1, 5)] == [0, 2, 6, 7]


def test_each_rewind_to_one_checkpoint_skips_twice_as_much() -> None:
    assert list(steps_to_skip(19, 10, 1)) == [19]
    assert list(steps_to_skip(19, 10, 2)) == [18, 19]
    assert list(steps_to_skip(19, 10, 3)) == [16, 17, 18, 19]
    assert list(steps_to_skip(12, 10, 3)) == [11, 12]


BAD = {46, 47, 60}  # micro-batches: both of slot 23, one of slot 30


def batch_at(i: int, bad: set[int] = BAD) -> Batch:
    g = torch.Generator().manual_seed(i)
    x = torch.randn(6, 4, generator=g)
    return {"x": x, "y": x.sum(1) + 0.1 * torch.randn(6, generator=g) + (1e4 if i in bad else 0.0)}


def model() -> nn.Module:
    g = torch.Generator().manual_seed(0)
    layer = nn.Sequential(nn.Linear(4, 1), nn.Dropout(0.05), nn.Flatten(0))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=g)
    return layer


def loss_fn(net: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
    return (net(batch["x"]) - batch["y"]).abs().mean(), {}


def test_bad_batches_are_skipped_as_if_they_had_never_been_there(tmp_path: Path) -> None:
    trained = model()
    with Run.create(CONFIG, name="spiky", root=tmp_path) as run:
        result = Trainer(trained, loss_fn, CONFIG, run=run).fit(batch_at)
        events = [event for event in run.events() if event["kind"] == "loss_spike"]
    assert [(event["step"], event["rewound_to"], event["skipped"]) for event in events] == [
        (24, 20, [23]),
        (30, 25, [30]),
    ]
    assert "loss is" in events[0]["reason"]
    assert max(row["loss"] for row in result.history) < 100
    kept = [i for i in range(200) if i // 2 not in (23, 30)]
    clean = model()

    def seeded_as_before(net: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        return loss_fn(net.eval(), batch)

    # Dropout is seeded by the batch's number, which differs here: compare without it.
    a = Trainer(clean, seeded_as_before, replace(CONFIG, spike_factor=0.0)).fit(lambda i: batch_at(kept[i]))
    again = model()
    b = Trainer(again, seeded_as_before, CONFIG, checkpoint_dir=tmp_path / "b").fit(batch_at)
    assert [row["loss"] for row in a.history] == [row["loss"] for row in b.history]
    assert all(torch.equal(x, y) for x, y in zip(clean.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("stops", [(3,), (47, 47), (49,), (52, 61), (20, 46, 60, 61, 75)])
def test_interrupted_anywhere_ends_in_the_same_bits(tmp_path: Path, stops: tuple[int, ...]) -> None:
    straight, resumed = model(), model()
    expected = Trainer(straight, loss_fn, CONFIG, checkpoint_dir=tmp_path / "a").fit(batch_at)
    for stop in stops:

        def stopping(i: int, stop: int = stop) -> Batch:
            if i == stop:
                raise KeyboardInterrupt
            return batch_at(i)

        with pytest.raises(KeyboardInterrupt):
            Trainer(model(), loss_fn, CONFIG, checkpoint_dir=tmp_path / "b").fit(stopping)
    got = Trainer(resumed, loss_fn, CONFIG, checkpoint_dir=tmp_path / "b").fit(batch_at)
    assert got == expected
    assert all(torch.equal(x, y) for x, y in zip(straight.parameters(), resumed.parameters(), strict=True))
    for name in ("weights.safetensors", "optimizer.safetensors", "state.json"):
        paths = [list_checkpoints(tmp_path / d)[-1] / name for d in "ab"]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    state = json.loads((list_checkpoints(tmp_path / "b")[-1] / "state.json").read_text())
    assert state["skipped"] == [23, 30]


class Kicked(nn.Module):
    """A parameter that no batch moves but one, and that costs dearly once moved."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.gain = model(), nn.Parameter(torch.zeros(()))

    def forward(self, batch: Batch) -> Tensor:
        return loss_fn(self.net, batch)[0] + batch["kick"] * self.gain + (1000 * self.gain) ** 4


def test_weights_on_their_way_to_a_spike_take_more_than_one_rewind(tmp_path: Path) -> None:
    # The batch of slot 45 moves the weights in update 46; the loss shows it in update 47, whose batch is not to blame.
    def batch(i: int) -> Batch:
        return {**batch_at(i, set()), "kick": torch.tensor(float(i // 2 == 45))}

    config = replace(CONFIG, steps=60, checkpoint_every=20)
    with Run.create(config, name="kicked", root=tmp_path) as run:
        Trainer(Kicked(), lambda net, batch: (net(batch), {}), config, run=run).fit(batch)
        events = [event for event in run.events() if event["kind"] == "loss_spike"]
    assert [(event["step"], event["rewound_to"], event["skipped"]) for event in events] == [
        (47, 40, [46]),
        (47, 40, [45, 47]),
    ]


def test_a_diverging_run_ends_clearly_with_its_checkpoint_intact(tmp_path: Path) -> None:
    def batch(i: int) -> Batch:
        return batch_at(i, set(range(50, 1000)))

    config = replace(CONFIG, max_rewinds=2)
    for _ in range(2):  # and says the same when tried again
        with pytest.raises(
            TrainingError,
            match=r"train/loss is .* at step 2\d, above .*, where spikes begin, again after 2 rewinds: train diverges; "
            r"the last checkpoint is .*step_00000025",
        ):
            Trainer(model(), loss_fn, config, checkpoint_dir=tmp_path).fit(batch)
    assert list_checkpoints(tmp_path)[-1].name == "step_00000025"


def test_a_loss_that_is_not_finite_rewinds_too(tmp_path: Path) -> None:
    def loss(net: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        value, metrics = loss_fn(net, batch)
        return (value * math.nan if float(batch["y"].max()) > 1e3 else value), metrics

    result = Trainer(model(), loss, CONFIG, checkpoint_dir=tmp_path).fit(batch_at)
    assert result.steps == 40
    assert all(math.isfinite(row["loss"]) for row in result.history)


def test_a_spike_before_the_first_checkpoint_goes_back_to_the_start(tmp_path: Path) -> None:
    config = replace(CONFIG, checkpoint_every=0)
    result = Trainer(model(), loss_fn, config, checkpoint_dir=tmp_path).fit(batch_at)
    assert [row["step"] for row in result.history] == list(range(1, 41))


def test_without_a_place_for_checkpoints_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="spike_factor is set, but there is no checkpoint to rewind to"):
        Trainer(model(), loss_fn, CONFIG).fit(batch_at)
