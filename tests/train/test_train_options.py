"""Options around the loop: gradient checkpointing, compile, out of memory, data, validation, observers, z-loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alignlab.core.errors import ConfigError, TrainingError
from alignlab.lm.config import GPTConfig
from alignlab.lm.model import GPTModel
from alignlab.train.config import TrainConfig
from alignlab.train.context import checkpointed_blocks, compiled
from alignlab.train.language import language_model_loss
from alignlab.train.observer import Metrics, Observer, UpdateView
from alignlab.train.trainer import Batch, Trainer

SMALL = GPTConfig(vocab_size=17, n_ctx=12, d_model=16, n_layers=3, n_heads=2, d_mlp=24)
CONFIG = TrainConfig(steps=4, learning_rate=0.01, seed=2, accumulate=2)


def batch_at(i: int) -> Batch:
    rows = torch.randint(17, (2 + i % 2, 9), generator=torch.Generator().manual_seed(i))
    return {"tokens": rows[:, :-1], "targets": rows[:, 1:]}


class WithDropout(GPTModel):
    """A model whose blocks draw random numbers."""

    def __init__(self) -> None:
        super().__init__(SMALL, seed=1)
        for block in self.blocks:
            block.mlp.register_forward_hook(  # type: ignore[union-attr]
                lambda module, args, out: nn.functional.dropout(out, 0.2, module.training)
            )


def trained(config: TrainConfig, model: GPTModel | None = None, **options: Any) -> tuple[GPTModel, list[Metrics]]:
    model = model or GPTModel(SMALL, seed=1)
    return model, Trainer(model, language_model_loss, config, **options).fit(batch_at).history


def assert_same(a: nn.Module, b: nn.Module) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


# --- gradient checkpointing ---


def test_checkpointed_training_is_bit_for_bit_the_plain_one_dropout_included() -> None:
    plain, history = trained(CONFIG, WithDropout())
    saving, again = trained(replace(CONFIG, gradient_checkpointing=True), WithDropout())
    assert history == again
    assert_same(plain, saving)


def test_blocks_are_computed_twice_inside_and_once_after() -> None:
    model, calls = GPTModel(SMALL, seed=1), []
    model.blocks[1].attn.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
    with checkpointed_blocks(model):
        language_model_loss(model, batch_at(0))[0].backward()
    assert len(calls) == 2
    language_model_loss(model, batch_at(0))[0].backward()
    assert len(calls) == 3
    assert all("forward" not in vars(block) for block in model.blocks)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="gradient_checkpointing is on, but Linear has no `blocks`"):
        Trainer(nn.Linear(2, 2), lambda m, b: (m(b["x"]).sum(), {}), replace(CONFIG, gradient_checkpointing=True)).fit(
            lambda i: {"x": torch.ones(1, 2)}
        )


# --- compile ---


def test_compile_wraps_hidden_states_and_puts_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def fake(function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            seen.append(function.__name__)
            return function(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(torch, "compile", fake)
    plain, history = trained(CONFIG)
    compiled, again = trained(replace(CONFIG, compile=True))
    assert seen == ["hidden_states"] * 8
    assert history == again
    assert_same(plain, compiled)
    assert "hidden_states" not in vars(compiled)


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_deep_model_is_compiled_a_block_at_a_time(recomputed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def fake(function: Any) -> Any:
        return lambda *args, **kwargs: (seen.append(function.__qualname__), function(*args, **kwargs))[1]

    monkeypatch.setattr(torch, "compile", fake)
    monkeypatch.setattr("alignlab.train.context.WHOLE_BLOCKS", 1)
    plain, history = trained(CONFIG)
    compiled, again = trained(replace(CONFIG, compile=True, gradient_checkpointing=recomputed))
    assert seen == ["TransformerBlock.forward"] * len(plain.blocks) * 8 * (2 if recomputed else 1)
    assert history == again
    assert_same(plain, compiled)
    assert all("forward" not in vars(block) for block in compiled.blocks)


@pytest.mark.parametrize(("hosts", "whole"), [(1, True), (2, False)])
def test_replicas_on_one_host_keep_the_compiled_program_whole(
    hosts: int, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._dynamo.config as compiler

    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(4 // hosts))
    before = compiler.optimize_ddp
    with compiled(torch.nn.Linear(2, 2)):
        assert compiler.optimize_ddp is not whole
    assert compiler.optimize_ddp is before


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def fake(function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            raise BackendCompilerFailed(lambda: None, RuntimeError("no C++ compiler found"), None)

        return wrapped

    monkeypatch.setattr(torch, "compile", fake)
    with pytest.raises(TrainingError, match=r"could not compile GPTModel.hidden_states: .*or set compile=False"):
        trained(replace(CONFIG, compile=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecates
@pytest.mark.usefixtures("compiler")
def test_really_compiled_training_gives_the_same_losses() -> None:
    _, history = trained(CONFIG)
    _, compiled = trained(replace(CONFIG, compile=True))
    assert [row["loss"] for row in compiled] == pytest.approx([row["loss"] for row in history], rel=1e-5)


# --- out of memory ---


def test_out_of_memory_says_what_to_lower(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        if len(batch["tokens"]) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return language_model_loss(model, batch)  # type: ignore[return-value]

    message = (
        r"sft ran out of GPU memory at step 1: lower the batch size and raise accumulate \(now 2\) by the same factor, "
        r"lower the length, or set gradient_checkpointing=True; checkpoints are intact. .*2.00 GiB.$"
    )
    with pytest.raises(TrainingError, match=message):
        Trainer(GPTModel(SMALL), loss, CONFIG, name="sft").fit(batch_at)


# --- other data, other options on resume ---


def test_another_dataset_is_refused_by_what_differs(tmp_path: Path) -> None:
    data = {"tokens": "abc", "length": 8, "seed": 0, "shards": [1, 2]}
    trained(CONFIG, checkpoint_dir=tmp_path, data_fingerprint=data)
    trained(CONFIG, checkpoint_dir=tmp_path, data_fingerprint={**data, "shards": (1, 2)})
    trained(CONFIG, checkpoint_dir=tmp_path)
    model, before = GPTModel(SMALL, seed=5), GPTModel(SMALL, seed=5)
    with pytest.raises(TrainingError, match=r"step_00000004 was trained on other data: length is 8 there and 16 here"):
        trained(CONFIG, model, checkpoint_dir=tmp_path, data_fingerprint={**data, "length": 16})
    assert_same(model, before)


def test_options_that_do_not_touch_the_weights_may_change(tmp_path: Path) -> None:
    trained(CONFIG, checkpoint_dir=tmp_path)
    changed = replace(CONFIG, gradient_checkpointing=True, validate_every=3, log_every=2, max_rewinds=9)
    trained(changed, checkpoint_dir=tmp_path)
    for change in ({"optimizer": "muon"}, {"ema_decay": 0.9}, {"z_loss": 1e-4}, {"precision": "bf16"}):
        name = next(iter(change))
        with pytest.raises(TrainingError, match=f"another training configuration: {name} is"):
            trained(replace(CONFIG, **change), checkpoint_dir=tmp_path)  # type: ignore[arg-type]


# --- validation ---


def test_validation_is_logged_beside_its_update_and_changes_nothing() -> None:
    def validate(model: nn.Module) -> Metrics:
        with torch.random.fork_rng():
            torch.rand(3)
        return {"validation_loss": float(language_model_loss(model, batch_at(99))[0])}

    plain, history = trained(CONFIG, WithDropout())
    model, logged = trained(replace(CONFIG, validate_every=2), WithDropout(), validate=validate)
    assert_same(plain, model)
    assert [row["step"] for row in logged if "validation_loss" in row] == [2, 4]
    assert [row["loss"] for row in logged] == [row["loss"] for row in history]
    with pytest.raises(TrainingError, match="two sources report a metric 'loss'"):
        trained(CONFIG, validate=lambda model: {"loss": 1.0})
    with pytest.raises(TrainingError, match="train/val is nan at step 4"):
        trained(CONFIG, validate=lambda model: {"val": float("nan")})


# --- observers ---


class Watcher:
    """Recomputes from outside what the view claims."""

    def __init__(self, every: int) -> None:
        self.micro_gradients_every = every
        self.views: list[UpdateView] = []
        self.before: dict[str, Tensor] = {}

    def before_update(self, view: UpdateView) -> Metrics:
        self.views.append(view)
        self.before = {name: p.detach().clone() for name, p in view.parameters.items()}
        square = sum(float(p.grad.square().sum()) for p in view.parameters.values() if p.grad is not None)
        return {"seen_norm": square**0.5}

    def after_update(self, view: UpdateView) -> Metrics:
        moved = sum(float((p.detach() - self.before[name]).square().sum()) for name, p in view.parameters.items())
        return {"moved": moved**0.5}


def test_observers_see_every_update_and_change_nothing() -> None:
    watcher = Watcher(every=2)
    assert isinstance(watcher, Observer)
    plain, history = trained(CONFIG, WithDropout())
    model, observed = trained(CONFIG, WithDropout(), observers=[watcher])
    assert_same(plain, model)
    assert [row["seen_norm"] for row in observed] == pytest.approx([row["grad_norm"] for row in history], rel=1e-5)
    assert all(row["moved"] > 0 for row in observed)
    assert [view.step for view in watcher.views] == [1, 2, 3, 4]
    assert [view.learning_rate for view in watcher.views] == [row["learning_rate"] for row in history]
    assert [len(view.micro_gradients_sq_norms) for view in watcher.views] == [0, 2, 0, 2]
    assert watcher.views[1].micro_tokens == [16.0, 24.0]


def test_micro_gradient_norms_are_those_of_each_micro_batch_alone() -> None:
    watcher = Watcher(every=1)
    trained(replace(CONFIG, steps=1), observers=[watcher])
    for i, got in enumerate(watcher.views[0].micro_gradients_sq_norms):
        model = GPTModel(SMALL, seed=1)
        language_model_loss(model, batch_at(i))[0].backward()
        assert got == pytest.approx(sum(float(p.grad.square().sum()) for p in model.parameters()), rel=1e-4)  # type: ignore[union-attr]


def test_two_observers_with_one_name_are_refused() -> None:
    with pytest.raises(TrainingError, match="two sources report a metric 'seen_norm'"):
        trained(CONFIG, observers=[Watcher(0), Watcher(0)])


# --- scales, z-loss ---


def test_a_scale_of_zero_freezes_its_parameter() -> None:
    model, _ = trained(CONFIG, scales={"embed.weight": 0.0})
    fresh = GPTModel(SMALL, seed=1)
    same = {name for name, p in model.named_parameters() if torch.equal(p, dict(fresh.named_parameters())[name])}
    assert same == {"embed.weight"}


def test_z_loss_needs_a_loss_that_takes_it() -> None:
    _, history = trained(replace(CONFIG, z_loss=1e-3))
    assert all(0 < row["loss"] - row["nll"] < 1 for row in history)
    with pytest.raises(ConfigError, match=r"z_loss is 0.1, but the loss <lambda> has no argument z_loss"):
        Trainer(nn.Linear(1, 1), lambda model, batch: (model(batch["x"]).sum(), {}), replace(CONFIG, z_loss=0.1))
