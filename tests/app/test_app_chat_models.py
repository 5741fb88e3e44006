"""Chat's models: which are offered, how a run or an adapter is loaded, and the shelf that many users share."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from chat_world import echo, loader, plant_model, wait_until

from alignlab.app.chat_models import Offer, first_choice, load_sampler, offers
from alignlab.app.context import AppContext
from alignlab.app.model_shelf import ModelShelf, Stopped, Ticket
from alignlab.core.errors import ConfigError, ModelError
from alignlab.core.runs import Run
from alignlab.lm.lora import LoraConfig, add_lora
from alignlab.lm.registry import register
from alignlab.lm.types import SamplingParams

GREEDY = SamplingParams(max_tokens=12, temperature=0)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: one that made a model and an adapter of another base, and one that made nothing."""
    from alignlab.lm.language_model import load
    from alignlab.lm.lora_files import save_adapter

    root = tmp_path_factory.mktemp("chat")
    base = plant_model(root / "base", seed=1)
    runs = root / "runs"
    with Run.create({"model": str(base)}, name="align", path=runs / "tuned-run") as run:
        plant_model(run.path / "model", seed=2)
        lm = load(str(base))
        add_lora(lm.model, LoraConfig(2, 4.0))
        for name, weight in lm.model.named_parameters():
            if "lora_B" in name:
                weight.data.fill_(0.5)
        save_adapter(lm.model, run.artifacts / "adapter-rl", base_model=str(base))
    Run.create({}, name="sft", path=runs / "empty-run").close()
    return root


def test_what_runs_made_is_offered_beside_what_is_registered(planted: Path, monkeypatch: pytest.MonkeyPatch,
                                                             tmp_path: Path) -> None:  # fmt: skip
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path))
    register("our-base", planted / "base")
    register("our-tuned", planted / "runs" / "tuned-run" / "model", {"base": "our-base"})
    found = offers(AppContext(planted / "runs"))
    by_label = {offer.label: offer for offer in found}
    assert list(by_label)[:2] == ["our-tuned", "our-base"]
    assert by_label["tuned-run · adapter-rl"].base == str(planted / "base")
    assert "tuned-run · model" not in by_label  # it is registered: not offered twice
    assert not any("empty-run" in label for label in by_label)
    assert first_choice(found) == ("our-base", "our-tuned")


def test_models_that_are_named_are_the_only_ones(planted: Path) -> None:
    named = (str(planted / "base"), str(planted / "runs" / "tuned-run"), "some-name")
    found = offers(AppContext(planted / "runs", models=named))
    assert [offer.spec for offer in found] == list(named)
    assert [offer.label for offer in found] == ["base", "tuned-run", "some-name"]
    assert first_choice(found) == named[:2]
    assert first_choice([]) == (None, None)
    assert first_choice([Offer("one", "one")]) == ("one", "one")
    two = [str(planted / "base"), str(planted / "other" / "base")]
    (planted / "other" / "base").mkdir(parents=True)
    twice = offers(AppContext(planted, models=(*two, two[0])))
    assert [offer.label for offer in twice] == [f"{planted.name}/base", "other/base"]


def test_a_run_from_elsewhere_and_an_adapter_load_as_what_they_are(planted: Path) -> None:
    run = planted / "runs" / "tuned-run"
    answers = {
        name: tuple(load_sampler(str(path)).logprobs(["hello"], ["abcd"])[0].tolist())
        for name, path in {"base": planted / "base", "run": run, "model": run / "model",
                           "adapter": run / "artifacts" / "adapter-rl"}.items()
    }  # fmt: skip
    assert answers["run"] == answers["model"]
    assert len({answers["base"], answers["model"], answers["adapter"]}) == 3


def test_a_model_that_is_not_there_is_one_sentence(planted: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown model 'nowhere'"):
        load_sampler("nowhere")
    with pytest.raises(ModelError, match="registered no model"):
        load_sampler(str(planted / "runs" / "empty-run"))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ModelError, match="does not say which model it belongs to"):
        load_sampler(str(tmp_path))


def test_the_one_unused_longest_makes_room() -> None:
    loaded: list[str] = []

    def load(name: str) -> Any:
        loaded.append(name)
        return echo(name)

    shelf = ModelShelf(load, most=2)
    for name in ("a", "b", "a", "c", "a", "b"):
        with shelf.use(name, Ticket()) as model:
            assert next(model.stream("x", GREEDY)) == f"{name} "
        assert len(shelf.names()) <= 2
    assert loaded == ["a", "b", "c", "b"]
    assert shelf.told("a") == "ready"
    assert shelf.told("c") == ""
    with pytest.raises(ConfigError, match="most is 0"):
        ModelShelf(load, most=0)


def test_a_model_in_use_stays_and_who_waits_for_room_can_stop() -> None:
    shelf = ModelShelf(loader({name: echo(name) for name in "abc"}), most=1)
    ticket, out = Ticket(), []

    def other() -> None:
        try:
            with shelf.use("b", ticket):
                out.append("b")
        except Stopped:
            out.append("stopped")

    with shelf.use("a", Ticket()):
        thread = threading.Thread(target=other)
        thread.start()
        wait_until(lambda: ticket.told == "waiting: 1 other models are in use")
        assert shelf.names() == ("a",)
        ticket.stopped.set()
        thread.join()
    assert out == ["stopped"]
    with shelf.use("b", Ticket()):
        assert shelf.names() == ("b",)


def test_twenty_users_load_once_and_take_turns_in_order() -> None:
    gate, loads, order = threading.Event(), [], []

    def load(name: str) -> Any:
        loads.append(name)
        gate.wait(20)
        return echo(name)

    shelf = ModelShelf(load)
    tickets = [Ticket() for _ in range(20)]
    inside = []

    def user(number: int) -> None:
        with shelf.use("m", tickets[number]):
            inside.append(number)
            assert inside == [number]
            order.append(number)
            inside.remove(number)

    with shelf_held(shelf, gate):
        threads = []
        for number in range(20):
            threads.append(threading.Thread(target=user, args=(number,)))
            threads[-1].start()
            wait_until(lambda: tickets[number].told == f"waiting: {number + 1} before you")  # noqa: B023
    for thread in threads:
        thread.join()
    assert order == list(range(20))
    assert loads == ["m"]


def shelf_held(shelf: ModelShelf, gate: threading.Event) -> Any:
    gate.set()
    return shelf.use("m", Ticket())


def test_a_model_that_cannot_load_is_told_to_all_and_tried_again() -> None:
    broken = True

    def load(name: str) -> Any:
        if broken:
            raise MemoryError("no room\nand more")
        return echo(name)

    shelf = ModelShelf(load)
    for _ in range(2):
        with pytest.raises(ModelError, match="'m' cannot be loaded: MemoryError, no room"), shelf.use("m", Ticket()):
            pass
    assert shelf.told("m") == "the model 'm' cannot be loaded: MemoryError, no room"
    broken = False
    shelf.prepare("m")
    wait_until(lambda: shelf.told("m") == "ready")
    assert not shelf.loading("m")
