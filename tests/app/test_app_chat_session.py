"""A conversation with two models: streams, turns, stops, errors, and from which answer it goes on."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from chat_world import ScriptedModel, echo, last_words, loader, offer, wait_until

from alignlab.app.chat_session import LONGEST_PROMPT, ChatSettings, Conversation
from alignlab.app.chat_view import panel
from alignlab.app.model_shelf import ModelShelf
from alignlab.core.errors import ConfigError, FeedbackError, ModelError

BOTH = [offer("base"), offer("tuned")]
SETTINGS = ChatSettings(seed=5, max_tokens=9, temperature=0.5, system="be kind")


def talk(models: dict[str, Any], **more: Any) -> Conversation:
    return Conversation(ModelShelf(loader(models)), **more)


def say(conversation: Conversation, words: str, **more: Any) -> list[str]:
    exchange = conversation.say(words, BOTH, SETTINGS, **more)
    wait_until(lambda: exchange.settled)
    return [reply.text.strip() for reply in exchange.replies]


def contents(model: ScriptedModel) -> list[list[str]]:
    return [[m["content"].strip() for m in asked] for asked, _ in model.asked if not isinstance(asked, str)]


def test_both_answer_at_once_and_each_goes_on_from_its_own_words() -> None:
    base, tuned = echo("base"), echo("tuned")
    conversation = talk({"base": base, "tuned": tuned})
    assert say(conversation, " one ") == ["base heard one", "tuned heard one"]
    assert say(conversation, "two") == ["base heard two", "tuned heard two"]
    assert contents(base) == [["be kind", "one"], ["be kind", "one", "base heard one", "two"]]
    assert contents(tuned)[1] == ["be kind", "one", "tuned heard one", "two"]
    assert [(s.seed, s.max_tokens, s.temperature) for _, s in base.asked] == [(5, 9, 0.5), (6, 9, 0.5)]
    with pytest.raises(FeedbackError, match="follow different conversations"):
        conversation.last.shared_prompt()  # type: ignore[union-attr]


@pytest.mark.parametrize(("vote", "kept"), [("left", "base"), ("right", "tuned"), ("tie", "base")])
def test_after_a_vote_both_go_on_from_the_better_answer(vote: Any, kept: str) -> None:
    base, tuned = echo("base"), echo("tuned")
    conversation = talk({"base": base, "tuned": tuned})
    say(conversation, "one")
    conversation.prefer(vote, joint=True)
    say(conversation, "two")
    assert contents(base)[1] == contents(tuned)[1] == ["be kind", "one", f"{kept} heard one", "two"]
    assert conversation.last.shared_prompt() == base.asked[1][0]  # type: ignore[union-attr]
    conversation.exchanges.clear()
    say(conversation, "one")
    conversation.prefer(vote, joint=False)
    say(conversation, "two")
    assert contents(tuned)[3][2] == "tuned heard one"


def test_words_are_seen_as_they_come_and_a_stop_keeps_them() -> None:
    base, tuned = echo("base"), echo("tuned")
    base.gate, tuned.gate = threading.Semaphore(2), threading.Semaphore(0)
    conversation = talk({"base": base, "tuned": tuned})
    exchange = conversation.say("one", BOTH, SETTINGS)
    left, right = exchange.replies
    wait_until(lambda: left.text == "base heard " and right.state == "answering")
    assert conversation.busy
    shown = panel(conversation, 0, BOTH[0])
    assert 'aria-busy="true"' in shown
    assert "base heard" in shown
    assert "<progress" in panel(conversation, 1, BOTH[1])
    with pytest.raises(ConfigError, match="still answering"):
        conversation.say("two", BOTH, SETTINGS)
    conversation.stop()
    assert (left.text, left.state, right.text, right.state) == ("base heard ", "stopped", "", "stopped")
    base.gate.release(50)
    tuned.gate.release(50)
    wait_until(lambda: base.at_once == tuned.at_once == 0)
    assert left.text == "base heard "
    assert say(conversation, "two") == ["base heard two", "tuned heard two"]
    assert contents(base)[1][1:] == ["one", "base heard", "two"]
    assert contents(tuned)[1][1:] == ["two"]  # what was stopped before a word leaves no trace


def test_a_side_that_fails_says_why_and_the_other_goes_on() -> None:
    def fail(prompt: Any) -> str:
        if "fail" in last_words(prompt):
            raise ValueError("boom\nmore")
        return "fine"

    conversation = talk({"base": ScriptedModel(fail), "tuned": echo("tuned")})
    assert say(conversation, "fail") == ["", "tuned heard fail"]
    left = conversation.last.replies[0]  # type: ignore[union-attr]
    assert (left.state, left.error) == ("failed", "the model could not answer: ValueError, boom")
    with pytest.raises(FeedbackError, match="gave no answer"):
        conversation.last.shared_prompt()  # type: ignore[union-attr]
    assert "ValueError, boom" in panel(conversation, 0, BOTH[0])
    assert say(conversation, "go on")[0] == "fine"


def test_a_model_that_cannot_load_and_a_long_conversation_are_told() -> None:
    def load(name: str) -> Any:
        if name == "base":
            raise ModelError("there is no such model")
        return ScriptedModel(lambda prompt: "short", n_ctx=40)

    conversation = Conversation(ModelShelf(load))
    say(conversation, "x" * 33)
    left, right = conversation.last.replies  # type: ignore[union-attr]
    assert left.error == "there is no such model"
    assert right.error.startswith("the conversation has 40 tokens, this model reads at most 39: say it shorter")
    assert say(conversation, "x" * 32)[1] == "short"


def test_what_cannot_be_sent_is_refused() -> None:
    conversation = talk({})
    with pytest.raises(ConfigError, match="write something first"):
        conversation.say(" \n", BOTH, SETTINGS)
    with pytest.raises(ConfigError, match="characters long"):
        conversation.say("x" * (LONGEST_PROMPT + 1), BOTH, SETTINGS)
    for field in ({"temperature": -1}, {"temperature": 9}, {"max_tokens": 0}, {"max_tokens": 10**6}):
        with pytest.raises(ConfigError, match=f"{next(iter(field))} is"):
            ChatSettings(**field)  # type: ignore[arg-type]
    assert conversation.exchanges == []


def test_a_model_without_a_template_continues_the_last_words() -> None:
    base, tuned = ScriptedModel(lambda prompt: "and so on", chat=False), echo("tuned")
    conversation = talk({"base": base, "tuned": tuned})
    say(conversation, "once")
    assert base.asked[0][0] == "once"
    assert "No chat template" in panel(conversation, 0, BOTH[0])
    with pytest.raises(FeedbackError, match="different conversations"):
        conversation.last.shared_prompt()  # type: ignore[union-attr]  # the other read the system prompt too
    plain = talk({"base": base, "tuned": ScriptedModel(lambda prompt: "then", chat=False)})
    say(plain, "once")
    say(plain, "upon")
    assert plain.last.shared_prompt() == "upon"  # type: ignore[union-attr]
    mixed = talk({"base": base, "tuned": tuned})
    exchange = mixed.say("once", BOTH, ChatSettings())
    wait_until(lambda: exchange.settled)
    assert exchange.shared_prompt() == [{"role": "user", "content": "once"}]


def test_blind_sides_change_places_until_the_conversations_part() -> None:
    tosses = iter([True, False, True])
    conversation = talk({"base": echo("base"), "tuned": echo("tuned")}, toss=lambda: next(tosses))
    assert say(conversation, "one", blind=True) == ["tuned heard one", "base heard one"]
    shown = panel(conversation, 0, BOTH[0], blind=True)
    assert "Model A" in shown
    assert '<p class="said">tuned' not in shown
    conversation.prefer("left", joint=True)
    shown = panel(conversation, 0, BOTH[0], blind=True)
    assert '<p class="said">tuned <span class="badge good">better</span>' in shown
    assert say(conversation, "two", blind=True)[0] == "base heard two"
    assert say(conversation, "three", blind=True)[0] == "base heard three"  # its own words stand on the left now
    assert next(tosses)


def test_what_models_and_people_say_is_text() -> None:
    hostile = "<script>window.bitten = 1</script> ${1 + 1} {{2}} `"
    conversation = talk({"base": ScriptedModel(lambda prompt: hostile), "tuned": echo("tuned")})
    say(conversation, f"<img src=x onerror=alert(1)> {hostile}")
    for side in (0, 1):
        shown = panel(conversation, side, offer("<b>name</b>"))
        assert "<script" not in shown
        assert "<img" not in shown
        assert "<b>" not in shown
        assert "${" not in shown
        assert "{{" not in shown


def test_twenty_people_queue_and_none_is_turned_away() -> None:
    models = {"base": echo("base"), "tuned": echo("tuned")}
    shelf = ModelShelf(loader(models))
    exchanges = [Conversation(shelf).say(f"i am {number}", BOTH, SETTINGS) for number in range(20)]
    wait_until(lambda: all(exchange.settled for exchange in exchanges))
    for number, exchange in enumerate(exchanges):
        assert [reply.text for reply in exchange.replies] == [f"{m} heard i am {number} " for m in models]
    assert [model.most_at_once for model in models.values()] == [1, 1]
