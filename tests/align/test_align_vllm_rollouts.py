"""Rollouts from a server that holds a small model of its own and speaks vLLM's protocol: weights, answers, drift."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_run
import torch
from wire_server import Wire, running

from alignlab.align.policy import token_logprobs
from alignlab.align.ppo import PPOTrainer
from alignlab.align.ppo_config import PPOConfig
from alignlab.align.rl.answers import Actor
from alignlab.align.rl.config import GRPOConfig
from alignlab.align.rl.grpo import train_grpo
from alignlab.align.vllm_rollouts import VLLMRollouts
from alignlab.core.errors import SamplerError, TrainingError
from alignlab.lm.generate import decode
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.lora import LoraConfig, add_lora
from alignlab.lm.lora_files import load_adapter
from alignlab.lm.native import load_directory
from alignlab.lm.remote import RemoteLimits
from alignlab.lm.types import SamplingParams
from alignlab.train.checkpoint import list_checkpoints

PATIENT = RemoteLimits(concurrency=4, timeout=60.0, retries=1, first_wait=0.001)
LORA = LoraConfig(rank=4, targets=("all-linear",))
CONFIG = PPOConfig(
    steps=3, batch_size=6, minibatch_size=6, microbatch_size=6, max_tokens=5, learning_rate=0.02, lora=LORA,
    max_policy_kl=None, epochs=2,
)  # fmt: skip
PROMPTS = ["one two", "red", "a cup of tea", "snow"]


class FakeVLLM:
    """The endpoints that are used, over a model of its own; `mood` says what goes wrong."""

    def __init__(self, lm: LanguageModel) -> None:
        self.base = copy.deepcopy(lm.model)
        self.tokenizer, self.models = lm.tokenizer, {"base": self.base}
        self.mood, self.lock = "", threading.Lock()
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, wire: Wire, body: dict[str, Any], number: int) -> None:
        path = wire.path
        with self.lock:
            self.asked.append((path, body))
            if self.mood == "no control" and path != "/v1/completions":
                wire.whole({"detail": "Not Found"}, 404)
            elif path == "/v1/load_lora_adapter":
                if body["lora_name"] in self.models:
                    wire.whole({"message": "has already been loaded"}, 400)
                    return
                stale = self.mood == "stale" and len(self.models) > 1
                previous = next(reversed(self.models.values()))
                fresh = copy.deepcopy(self.base)
                self.models[body["lora_name"]] = previous if stale else load_adapter(fresh, body["lora_path"])
                wire.whole(b"Success: LoRA adapter added successfully.")
            elif path == "/v1/unload_lora_adapter":
                del self.models[body["lora_name"]]
                wire.whole(b"Success: LoRA adapter removed successfully.")
            elif path == "/collective_rpc":
                assert body["method"] == "reload_weights"
                if self.mood != "stale":
                    self.models["base"] = load_directory(body["kwargs"]["weights_path"])
                wire.whole({"results": [None]})
            elif path == "/reset_prefix_cache":
                wire.whole(b"")
            else:
                wire.whole(self.complete(body))

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        model, prompt = self.models[body["model"]], body["prompt"]
        if body.get("echo"):
            tokens = torch.tensor([prompt])
            mask = torch.arange(len(prompt))[None] >= 1
            with torch.no_grad():
                values = token_logprobs(model, tokens, mask)[0].tolist()
            return {"choices": [{"index": 0, "text": "", "logprobs": {"token_logprobs": [None, *values, -1.0]}}]}
        ends = frozenset(body["stop_token_ids"])
        sampling = SamplingParams(max_tokens=body["max_tokens"], temperature=body["temperature"])
        choices = []
        for index in range(body.get("n", 1)):
            rows: dict[int, Any] = {}
            for moved in decode(model, [prompt], sampling, ends, seeds=[body["seed"] + index], guide=None):
                rows.update({row.index: row for row in moved})
            row = rows[0]
            choice = {"index": index, "text": self.tokenizer.decode(row.tokens), "token_ids": list(row.tokens)}
            choice |= {"finish_reason": "stop" if row.tokens[-1] in ends else "length"}
            choice["logprobs"] = {"token_logprobs": list(row.logprobs)}
            if self.mood == "no ids":
                del choice["token_ids"]
            choices.append(choice)
        return {"choices": choices, "usage": {"prompt_tokens": len(prompt), "completion_tokens": 5}}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.build_model(tmp_path_factory.mktemp("model") / "tiny")  # type: ignore[no-any-return]


@pytest.fixture
def world(directory: Path, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A model, a server with a copy of it, and a sampler between them."""
    lm = load(str(directory))
    with torch.no_grad():  # far from flat, so that an update shows
        lm.model.embed.weight.mul_(4)
    with running() as server:
        fake = FakeVLLM(lm)
        server.will(fake)
        sampler = VLLMRollouts(server.url, "base", lm=lm, folder=tmp_path / "weights", limits=PATIENT)
        yield SimpleNamespace(lm=lm, server=server, fake=fake, sampler=sampler, folder=tmp_path / "weights")


def letters(prompts: list[Any], responses: list[str]) -> list[float]:
    return [float(sum(c in "aeiou" for c in text)) + 0.01 * len(text) for text in responses]


def test_ppo_learns_from_answers_of_its_present_weights(world: SimpleNamespace) -> None:
    """Log-probabilities agree in every batch though the policy moves, so each batch came from new weights."""
    trainer = PPOTrainer(world.lm, letters, None, CONFIG, sampler=world.sampler)
    history = trainer.train(PROMPTS).history
    assert all(row["mismatch_max"] < 1e-3 for row in history)
    assert history[-1]["kl"] > 0.01
    assert list(world.fake.models) == ["base", "policy-3"]
    assert [place.name for place in world.folder.iterdir()] == ["version-3"]
    asked = [body for path, body in world.fake.asked if path == "/v1/completions" and not body.get("echo")]
    assert [body["model"] for body in asked] == [f"policy-{step}" for step in (1, 2, 3) for _ in range(6)]
    assert len({body["seed"] for body in asked}) == len(asked)  # prompts and repeats have streams of their own
    assert isinstance(asked[0]["prompt"][0], int)


def test_grpo_asks_for_groups_and_whole_weights_are_reloaded(world: SimpleNamespace) -> None:
    config = GRPOConfig(
        steps=2, prompts_per_step=2, group_size=3, max_tokens=5, learning_rate=0.003, lora=None, kl_coefficient=0.0,
        equal_groups="keep", minibatch_size=6,
    )  # fmt: skip
    actor = Actor(world.lm.model, world.lm.tokenizer, world.sampler)
    history = train_grpo(actor, letters, PROMPTS, config).history
    assert all(row["mismatch_max"] < 1e-3 for row in history)
    paths = [path for path, _ in world.fake.asked]
    assert paths.count("/collective_rpc") == paths.count("/reset_prefix_cache") == 2
    assert {body.get("n") for path, body in world.fake.asked if path == "/v1/completions"} == {3, None}


@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "whole"])
def test_a_server_that_keeps_its_old_weights_is_refused_with_numbers(world: SimpleNamespace, whole: bool) -> None:
    world.fake.mood = "stale"
    config = replace(CONFIG, lora=None, learning_rate=0.003) if whole else CONFIG
    reference = LanguageModel(copy.deepcopy(world.lm.model), world.lm.tokenizer, "r", "r") if whole else None
    trainer = PPOTrainer(world.lm, letters, reference, config, sampler=world.sampler)
    said = r"has not taken version 2 of the weights: the policy's .* of 4 answers moved by [\d.]+ nats a token, and "
    said += r"the server's are [\d.]+ from them \(before the update: "
    with pytest.raises(SamplerError, match=said):
        trainer.train(PROMPTS)
    assert trainer.step == 1


def test_a_base_that_differs_is_refused_at_the_first_batch(world: SimpleNamespace) -> None:
    with torch.no_grad():
        world.fake.base.embed.weight.mul_(0.2)
    with pytest.raises(TrainingError, match="the sampler's and the trainer's log-probabilities differ by"):
        PPOTrainer(world.lm, letters, None, CONFIG, sampler=world.sampler).train(PROMPTS)


@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "whole"])
def test_a_server_without_the_endpoint_is_told_how_to_start(world: SimpleNamespace, whole: bool) -> None:
    world.fake.mood = "no control"
    if not whole:
        add_lora(world.lm.model, LORA)
    how = "VLLM_SERVER_DEV_MODE=1" if whole else "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora"
    with pytest.raises(
        SamplerError, match=rf"did not take version 1 .*HTTP 404 .*Not Found.* started with {how} and see"
    ):
        world.sampler.send_weights(world.lm.model)


def test_a_server_that_is_gone_and_answers_without_ids(world: SimpleNamespace) -> None:
    world.fake.mood = "no ids"
    with pytest.raises(SamplerError, match=r"gave 0 token ids and \d log-probabilities .* vLLM 0.10.2 and later"):
        world.sampler.generate(PROMPTS, SamplingParams(max_tokens=3))
    gone = VLLMRollouts("http://127.0.0.1:9/v1", "base", lm=world.lm, folder=world.folder, limits=PATIENT)
    with pytest.raises(SamplerError, match="did not take version 1 of the weights"):
        gone.send_weights(world.lm.model)


def test_a_policy_that_hardly_moved_is_not_mistaken_for_a_stale_server(world: SimpleNamespace) -> None:
    add_lora(world.lm.model, LORA)
    for _ in range(3):  # sent again without an update in between
        world.sampler.use_weights(world.sampler.send_weights(world.lm.model), world.lm.model)
        world.sampler.generate(PROMPTS, SamplingParams(max_tokens=3))
    assert world.sampler.version == 3


def test_a_resumed_training_sends_its_weights_first(world: SimpleNamespace, tmp_path: Path) -> None:
    config = replace(CONFIG, checkpoint_every=1)

    def stop(step: int, *rest: Any) -> None:
        if step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        PPOTrainer(world.lm, letters, None, config, sampler=world.sampler, checkpoint_dir=tmp_path / "c").train(
            PROMPTS, on_step=stop
        )
    assert len(list_checkpoints(tmp_path / "c")) == 1
    again = load(str(Path(world.lm.source)))
    with torch.no_grad():
        again.model.embed.weight.mul_(4)
    world.fake.models = {"base": world.fake.base}  # the server was started anew as well
    sampler = VLLMRollouts(world.server.url, "base", lm=again, folder=world.folder, limits=PATIENT)
    trainer = PPOTrainer(again, letters, None, config, sampler=sampler, checkpoint_dir=tmp_path / "c")
    assert len(trainer.train(PROMPTS).history) == 3
    assert trainer.history[-1]["mismatch_max"] < 1e-3
