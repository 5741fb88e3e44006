"""Rewards that can be checked: what is asked is worked out, what is said is found, in the form that was asked for."""

from __future__ import annotations

from fractions import Fraction

import pytest

from alignlab.align.rl.rewards import Guarded, RewardError
from alignlab.align.rl.verifiable import VerifiableReward, asked_value, expression_value, reward
from alignlab.core.errors import ConfigError
from alignlab.lm.types import Completion, Prompt
from alignlab.tasks.generation.arithmetic import KINDS, arithmetic_items
from alignlab.tasks.generation.entries import NUMBER_ASKED, NUMBER_CHAT
from alignlab.tasks.generation.extraction import bare_number
from alignlab.tasks.generation.scorers import FinalNumber
from alignlab.tasks.task import Sample

ASKED: list[tuple[Prompt, object]] = [
    ("7 + 5 =", 12),
    ("12 + 7 = 19\n90 - 27 = 63\n45 + 38 =", 83),
    ("What is (3 + 4) * 2 - 20?", -6),
    ("What is 12 times 9?", 108),
    ("Calculate 7 divided by 2.", Fraction(7, 2)),
    ("What is the remainder when 17 is divided by 5?", 2),
    ("What is 2.5 + 0.5?", 3),
    ("Question: What is 1 + 1?\nAnswer: 2\n\nQuestion: What is 30 - 4?\nAnswer:", 26),
    ([{"role": "user", "content": "What is 6 × 7? Answer with the number only."}], 42),
    ([{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"}], 2),
    # What came before is not what is asked, and what cannot be worked out has no value.
    ("Question: What is 1 + 1?\nAnswer: 2\n\nQuestion: Ada has 3 boxes of 4 pens. How many?\nAnswer:", None),
    ("7 + 5 = 12", None),
    ("What is 3 / 0?", None),
    ("What is love?", None),
    ("What is 9 ** 9?", None),
    ([{"role": "system", "content": "What is 1 + 1?"}], None),
    ("", None),
]


@pytest.mark.parametrize(("prompt", "value"), ASKED)
def test_what_a_prompt_asks(prompt: Prompt, value: object) -> None:
    assert asked_value(prompt) == value


def test_every_bare_question_of_the_generator_is_worked_out() -> None:
    bare = [kind for kind in KINDS if kind not in ("sharing", "paying")]
    items = arithmetic_items(120, kinds=[*bare, "sum", "difference", "product"])
    for item in items:
        asked = [f"{item.question} ="] if item.category in ("sum", "difference", "product") else []
        asked = asked or [NUMBER_ASKED.prompt(item, []), NUMBER_CHAT.prompt(item, [])]
        assert [asked_value(prompt) for prompt in asked] == [int(item.answer)] * len(asked), item.question
        assert reward(asked[:1], [f"I think that is {item.answer}."]) == [1.0]
        assert reward(asked[:1], [str(int(item.answer) + 1)]) == [0.0]


def test_the_stateless_reward_names_the_prompt_it_cannot_work_out() -> None:
    assert reward(["2 + 2 =", "2 + 2 ="], ["#### 4", "four"]) == [1.0, 0.0]
    with pytest.raises(RewardError, match=r"prompt 1 asks for no sum that can be worked out: 'How many\?'") as found:
        reward(["2 + 2 =", "How many?"], ["4", "4"])
    assert found.value.row == 1


@pytest.mark.parametrize("text", ["1 + " * 60 + "1", "__import__('os')", "7 +", "(" * 150, "1 if 2 else 3", "True"])
def test_an_expression_is_arithmetic_or_nothing(text: str) -> None:
    assert expression_value(text) is None


BARE = [
    (" 42", "42"),
    ("-7.", "-7"),
    ("1,800", "1,800"),
    ("42 apples", None),
    ("= 42", None),
    ("4 2", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "found"), BARE)
def test_a_bare_number_is_the_whole_text(text: str, found: str | None) -> None:
    assert bare_number(text) == found
    assert bare_number(text, cut=True) is None
    sample, finished = Sample("a", "?", target="42"), Completion(text, (), (), "stop")
    if text:
        assert FinalNumber("bare")(sample, finished).value == float(found == "42")


SAMPLES = [Sample("a", "six times seven", target="42"), Sample("b", "a grand", target="1,000")]
STRICT = [
    # (answer to the first, outcome with `marked`, outcome with `bare`)
    ("So #### 42", "right", "elsewhere"),
    ("42", "elsewhere", "right"),
    ("The answer is 42.", "elsewhere", "elsewhere"),
    ("#### 41", "formed", "neither"),
    ("41", "neither", "formed"),
    ("#### 42 #### 41", "formed", "neither"),  # the last mark counts
    ("42 or 43", "neither", "neither"),
    ("", "neither", "neither"),
]
WORTH = {"right": 2.0, "elsewhere": 0.5, "formed": 0.25, "neither": 0.0}


@pytest.mark.parametrize(("text", "marked", "bare"), STRICT)
def test_what_an_answer_is_worth(text: str, marked: str, bare: str) -> None:
    for form, outcome in (("marked", marked), ("bare", bare)):
        paid = VerifiableReward(SAMPLES, form, right=2.0, elsewhere=0.5, formed=0.25)  # type: ignore[arg-type]
        assert paid.score(["six times seven"], [text]).tolist() == [WORTH[outcome]]
        assert paid.parts == {outcome: 1}


def test_shares_are_counted_over_all_calls_of_a_step() -> None:
    paid = VerifiableReward(SAMPLES, "marked")
    Guarded(paid).score(["six times seven", "a grand"], ["#### 42", "1000"])
    Guarded(paid).score(["a grand", "a grand"], ["#### $1,000.00", "no"])
    assert paid.after_step() == {"verifiable/right": 0.5, "verifiable/right_any_form": 0.75}
    assert paid.after_step() == {"verifiable/right": 0.0, "verifiable/right_any_form": 0.0}


def test_what_is_refused() -> None:
    with pytest.raises(RewardError, match=r"prompt 1 is none of the 2 of reward 'verifiable'"):
        VerifiableReward(SAMPLES).score(["a grand", "another"], ["1", "2"])
    with pytest.raises(ConfigError, match=r"formed is 1\.0, allowed: a number from 0 to below right \(1\)"):
        VerifiableReward(SAMPLES, formed=1.0)
    with pytest.raises(ConfigError, match=r"2 samples and 1 different prompts"):
        VerifiableReward([SAMPLES[0], SAMPLES[0]])
    with pytest.raises(ConfigError, match=r"sample 'c' has the target 'many', allowed: a number"):
        VerifiableReward([Sample("c", "?", target="many")])
