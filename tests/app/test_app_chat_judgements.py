"""What is said of answers in Chat reaches the store, comes out as training pairs, and is never lost."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_world import ScriptedModel, echo, last_words, loader, plant_model, wait_until

from alignlab.align.preference_data.cli import preferences
from alignlab.align.preference_data.collector import PreferenceCollector
from alignlab.app import kept_store
from alignlab.app.chat_handlers import Events, Handlers, Said
from alignlab.app.chat_session import Conversation
from alignlab.app.context import AppContext
from alignlab.app.model_shelf import ModelShelf
from alignlab.core.errors import AlignlabError, ConfigError, FeedbackError, StoreError
from alignlab.core.store import open_store

SAID = Said("base", "tuned", False, True, 0.7, 16, 0, "", "ada", "", (None, None), ("", ""))


class World:
    """A page's handlers over two scripted models and a store of their own."""

    def __init__(self, folder: Path, models: dict[str, Any] | None = None) -> None:
        self.path = folder / "lab.db"
        models = models or {"base": echo("base"), "tuned": echo("tuned")}
        context = AppContext(folder / "runs", str(self.path), tuple(models))
        self.does = Handlers(context, ModelShelf(loader(models)))
        self.conversation = Conversation(self.does.shelf)

    def say(self, words: str, said: Said = SAID) -> None:
        self.does.begin(self.conversation, words, said)
        wait_until(lambda: not self.conversation.busy)

    def collector(self, project: str = "chat") -> PreferenceCollector:
        return PreferenceCollector(open_store(self.path), project=project, annotator="reader")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_vote_is_stored_with_models_and_settings(world: World) -> None:
    world.say("one")
    assert world.does.prefer(world.conversation, "right", SAID) == "Right is better: stored in the project chat."
    lab = world.collector()
    (judgement,) = lab.judgements()
    assert (judgement.annotator, judgement.verdict.outcome) == ("ada", "choice")
    assert judgement.seconds is not None
    assert 0 <= judgement.seconds < 60
    (pair,) = lab.create_preference_dataset()
    assert (pair.prompt, pair.chosen, pair.rejected) == (
        [{"role": "user", "content": "one"}], "tuned heard one ", "base heard one ",
    )  # fmt: skip
    assert lab.model_outcomes() == [("base", "tuned", 0.0)]  # the left one was shown first
    world.does.prefer(world.conversation, "left", SAID)
    world.does.prefer(world.conversation, "left", SAID)
    assert [pair.chosen for pair in lab.create_preference_dataset()] == ["base heard one "]
    assert len(lab.judgements(withdrawn=True)) == 2
    world.does.prefer(world.conversation, "tie", replace(SAID, name="bob"))
    assert lab.agreement().pairs == 1


def test_ratings_and_notes_are_stored_each_with_its_answer(world: World) -> None:
    world.say("one", replace(SAID, project="notes"))
    rated = replace(SAID, project="notes", ratings=(2, None), notes=("", "made up a source"))
    assert world.does.keep_notes(world.conversation, rated) == ["left 2 of 5", "right"]
    assert world.does.keep_notes(world.conversation, rated) == []
    noted = replace(rated, notes=("too short", "made up a source"))
    assert world.does.keep_notes(world.conversation, noted) == ["left 2 of 5"]
    lab = world.collector("notes")
    stand = [(j.verdict.outcome, j.verdict.ratings, j.reason) for j in lab.judgements()]
    assert [(outcome, sorted((ratings or {}).values()), reason) for outcome, ratings, reason in stand] == [
        ("skip", [], "made up a source"), ("rating", [2.0], "too short"),
    ]  # fmt: skip
    world.does.begin(world.conversation, "two", replace(noted, ratings=(2, 5)))  # kept on the way to the next words
    assert sorted(v for j in lab.judgements() for v in (j.verdict.ratings or {}).values()) == [2.0, 5.0]
    wait_until(lambda: not world.conversation.busy)
    with pytest.raises(FeedbackError, match="a rating is 9, allowed: 1 to 5"):
        world.does.keep_notes(world.conversation, replace(rated, ratings=(9, None)))


def test_what_cannot_be_judged_is_said_and_nothing_stored(tmp_path: Path) -> None:
    same = {name: ScriptedModel(lambda prompt: "the same") for name in ("base", "tuned")}
    world = World(tmp_path, same)
    with pytest.raises(ConfigError, match="no answers to compare yet"):
        world.does.prefer(world.conversation, "left", SAID)
    world.say("one")
    for said, words in ((SAID, "are the same text"), (replace(SAID, name=" "), "say who you are first")):
        with pytest.raises(AlignlabError, match=words):
            world.does.prefer(world.conversation, "left", said)
    with pytest.raises(ConfigError, match="choose a model on each side"):
        world.say("two", replace(SAID, left="/etc/passwd"))
    with pytest.raises(ConfigError, match="one of them is empty"):
        world.say("two", replace(SAID, seed=None))  # type: ignore[arg-type]
    assert len(world.conversation.exchanges) == 1
    assert world.collector().judgements() == []


def test_a_locked_store_loses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_store, "PATIENCE", 0.05)
    world.say("one")
    world.does.prefer(world.conversation, "tie", SAID)  # the store is there now
    said = replace(SAID, ratings=(1, None))
    other = sqlite3.connect(world.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        world.does.prefer(world.conversation, "left", SAID)
    with pytest.raises(StoreError, match="locked"):
        world.does.begin(world.conversation, "two", said)
    assert len(world.conversation.exchanges) == 1  # the rating is still in its field, nothing has begun
    assert world.conversation.last is not None
    assert world.conversation.last.vote == "tie"
    other.execute("ROLLBACK")
    other.close()
    world.does.prefer(world.conversation, "left", SAID)
    world.say("two", said)
    outcomes = sorted(judgement.verdict.outcome for judgement in world.collector().judgements())
    assert outcomes == ["choice", "rating"]


def test_a_vote_whose_acknowledgement_was_lost_is_stored_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.say("one")
    real = PreferenceCollector.record
    tokens = []

    def lost(self: Any, comparison: Any, *args: Any, **more: Any) -> Any:
        tokens.append(comparison.token)
        found = real(self, comparison, *args, **more)
        if len(tokens) == 1:
            raise StoreError("the connection went away")
        return found

    monkeypatch.setattr(PreferenceCollector, "record", lost)
    with pytest.raises(StoreError):
        world.does.prefer(world.conversation, "left", SAID)
    world.does.prefer(world.conversation, "left", SAID)
    assert tokens[0] == tokens[1]
    assert len(world.collector().judgements(withdrawn=True)) == 1


def test_votes_train_a_reward_model(tmp_path: Path) -> None:
    import torch

    from alignlab.align.preference_model import PreferenceModel
    from alignlab.align.reward.training import RewardConfig, train_reward_model
    from alignlab.lm.language_model import load
    from alignlab.train.config import TrainConfig

    answers = {"base": ScriptedModel(lambda prompt: f"no {last_words(prompt)}"),
               "tuned": ScriptedModel(lambda prompt: f"yes {last_words(prompt)}")}  # fmt: skip
    world = World(tmp_path, answers)
    for word in ("one", "two", "three", "four"):
        world.say(word)
        world.does.prefer(world.conversation, "right", SAID)
    pairs = world.collector().create_preference_dataset()
    assert [len(pair.prompt) for pair in pairs] == [1, 3, 5, 7]  # each turn goes on from the better answer
    out = tmp_path / "pairs.jsonl"
    assert preferences(["export", str(out), "--project", "chat", "--store", str(world.path)]) == 0
    chosen = [json.loads(line)["chosen"][0]["content"] for line in out.read_text().splitlines()]
    assert chosen == [f"yes {word} " for word in ("one", "two", "three", "four")]
    torch.manual_seed(0)
    model = PreferenceModel(load(str(plant_model(tmp_path / "trunk"))), lora=None)
    train_reward_model(model, pairs, RewardConfig(batch_size=4, train=TrainConfig(steps=60, learning_rate=0.05)))
    prompts = [pair.prompt for pair in pairs]
    better = model.score(prompts, [pair.chosen for pair in pairs])
    worse = model.score(prompts, [pair.rejected for pair in pairs])
    assert (torch.as_tensor(better) > torch.as_tensor(worse)).all()


@pytest.fixture
def events(world: World) -> Events:
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed: pip install 'alignlab[app]'")
    from alignlab.app.gradio_pages import import_gradio

    import_gradio()
    return Events(world.does)


VALUES = ["base", "tuned", False, True, 0.7, 16, 0, "", "ada", "chat", None, "", None, ""]


def test_the_page_shows_words_as_they_come_and_tells_what_is_wrong(world: World, events: Events) -> None:
    conversation, left, right, *_ = events.opened(["tuned"])
    assert (left["value"], right["value"]) == ("tuned", "tuned")
    conversation, left, right, *panels, told = events.opened([])
    assert (left["value"], right["value"], told) == ("base", "tuned", "")
    assert "base: loaded when you begin to write" in panels[0]
    assert "Nothing has been said yet" in panels[2]

    async def steps(words: str, values: list[Any], talk: Conversation | None = conversation) -> list[list[Any]]:
        return [step async for step in events.send(talk, words, *values)]

    (early,) = asyncio.run(steps("hello", VALUES, None))
    assert "still being opened" in early[2]
    assert "no answers to compare" in events.voter("left")(None, *VALUES)[2]
    (refused,) = asyncio.run(steps(" ", VALUES))
    assert "write something first" in refused[2]
    shown = asyncio.run(steps("hello", VALUES))
    assert shown[0][6] == ""  # the words leave their field once they are on their way
    assert "base heard hello" in shown[-1][0]
    assert "tuned heard hello" in shown[-1][1]
    voted = events.voter("left")(conversation, *VALUES)
    assert "better</span>" in voted[0]
    assert "stored in the project chat" in voted[2]
    rated = [*VALUES[:10], 4, "dull", None, ""]
    assert "left 4 of 5" in events.keep(conversation, *rated)
    fresh = events.fresh(conversation, *rated)
    assert fresh[0] is not conversation
    assert "Nothing has been said yet" in fresh[1]
    assert "say who you are" in events.voter("left")(conversation, *[*VALUES[:8], "", *VALUES[9:]])[2]


def test_models_load_while_somebody_begins_to_write(world: World, events: Events) -> None:
    async def steps() -> list[list[Any]]:
        return [step async for step in events.prepare(*VALUES)]

    asyncio.run(steps())
    wait_until(lambda: world.does.shelf.names() != () and not world.does.shelf.loading("base"))
    assert "base: ready" in asyncio.run(steps())[-1][0]


def test_closing_the_page_stops_the_models(tmp_path: Path) -> None:
    import threading

    slow = {name: echo(name) for name in ("base", "tuned")}
    for model in slow.values():
        model.gate = threading.Semaphore(1)
    world = World(tmp_path, slow)
    events = Events(world.does)

    async def leave() -> None:
        stream = events.send(world.conversation, "hello", *VALUES)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave())
    assert not world.conversation.busy
    for model in slow.values():
        model.gate.release(9)
    wait_until(lambda: all(model.at_once == 0 for model in slow.values()))
