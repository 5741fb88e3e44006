"""Conversations as rows: each turn learned once, after just what generation would see; long ones part between turns."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_run
import torch

from alignlab.align.conversations import Conversation, divide, encode_turns, lay_conversation, shorten
from alignlab.align.sft import SFTConfig, SFTExample, encode_examples, sft
from alignlab.align.sft_data import Reading, examples_of, read_examples
from alignlab.core.errors import DataError, ModelError
from alignlab.core.runs import Run
from alignlab.data.packing import Example, pack
from alignlab.lm.lora import LoraConfig
from alignlab.lm.tokenizer import Tokenizer
from alignlab.lm.types import Message
from alignlab.train.config import TrainConfig
from alignlab.train.language import language_model_loss

MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = (  # shows earlier answers without what they thought
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last %}{{ m.content }}{% else %}"
    "{{ m.content.split('</think>')[-1] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def talk(turns: int, *, system: str = "", words: str = "is this number") -> list[Message]:
    messages = [{"role": "system", "content": system}] if system else []
    for i in range(turns):
        messages.append({"role": "user", "content": f"{words} {i}?"})
        messages.append({"role": "assistant", "content": f"Yes, {i}."})
    return messages


def every_turn(messages: list[Message]) -> Conversation:
    return Conversation(messages, tuple(i for i, m in enumerate(messages) if m["role"] == "assistant"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found: Tokenizer = tiny_run.build_tokenizer()
    return found


def with_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
    return Tokenizer(tokenizer.core, tokenizer.special, template)


def learned_texts(tokenizer: Tokenizer, rows: list[Example]) -> list[str]:
    """What each row's learned tokens say, all turns together."""
    return [
        tokenizer.decode([t for t, counts in zip(row.tokens, row.loss_mask, strict=True) if counts], skip_special=False)
        for row in rows
    ]


def test_a_conversation_is_one_row_in_which_every_turn_and_its_end_are_learned(tokenizer: Tokenizer) -> None:
    (row,) = encode_turns(tokenizer, every_turn(talk(3, system="Be brief.")))
    assert learned_texts(tokenizer, [row]) == ["Yes, 0.<|im_end|>Yes, 1.<|im_end|>Yes, 2.<|im_end|>"]
    whole = tokenizer.encode_prompt(talk(3, system="Be brief."), generation_prompt=False)
    assert row.tokens == whole[: len(row.tokens)]
    assert tokenizer.decode(whole[len(row.tokens) :]) == "\n"


def test_one_row_has_the_loss_of_a_row_for_each_turn(make_lm) -> None:
    """Exact: the likelihood of all turns together is the sum of each one's after its own prompt."""
    lm = make_lm(chat=True)
    messages = [{"role": r, "content": c} for r, c in zip(["user", "assistant"] * 2, ["ab", "cd e", "f", "gh"])]
    # This tokenizer opens an answer with letters of its own, which its history does not show: every turn is apart.
    assert len(encode_turns(lm.tokenizer, every_turn(messages))) == 2
    lm.tokenizer.render_chat = lambda messages, generation_prompt=True: "".join(m["content"] + "|" for m in messages)
    (row,) = encode_turns(lm.tokenizer, every_turn(messages))
    apart = encode_examples(lm, [SFTExample(messages[:i], messages[i]["content"]) for i in (1, 3)], 64).sequences

    def loss(rows: list[Example]) -> tuple[float, float]:
        packed = pack(rows, 64)
        batch = {key: torch.stack([row[key] for row in packed]) for key in packed[0]}
        value, metrics = language_model_loss(lm.model, batch)
        return float(value.detach()), float(metrics["tokens"])

    together, each = loss([row]), loss(apart)
    assert together[1] == each[1] == sum(row.loss_mask)
    assert together[0] == pytest.approx(each[0], abs=1e-6)


def test_only_the_last_turn_where_asked(tokenizer: Tokenizer) -> None:
    (example,) = examples_of({"messages": talk(3)}, Reading(learn="last"))
    assert isinstance(example, Conversation)
    assert learned_texts(tokenizer, encode_turns(tokenizer, example)) == ["Yes, 2.<|im_end|>"]
    assert (len(example.prompt), example.response) == (5, "Yes, 2.")


@pytest.mark.parametrize("template", [MARKED, tiny_run.CHATML], ids=["marked", "unmarked"])
def test_turns_of_weight_0_are_read_and_not_learned(tokenizer: Tokenizer, template: str) -> None:
    messages = talk(3)
    record = {"messages": [{**m, "weight": 0} if m["content"] == "Yes, 1." else m for m in messages]}
    rows = encode_turns(with_template(tokenizer, template), examples_of(record)[0])
    assert learned_texts(tokenizer, rows) == ["Yes, 0.<|im_end|>Yes, 2.<|im_end|>"]
    (last,) = examples_of({"messages": [*messages[:-1], {**messages[-1], "weight": 0}]}, Reading(learn="last"))
    assert last.response == "Yes, 1."


def test_marked_and_unmarked_templates_of_one_format_give_one_row(tokenizer: Tokenizer) -> None:
    conversation = every_turn(talk(2, system="Be brief."))
    assert encode_turns(with_template(tokenizer, MARKED), conversation) == encode_turns(tokenizer, conversation)


def test_a_template_that_rewrites_history_gets_a_row_for_each_turn_it_rewrites(tokenizer: Tokenizer) -> None:
    forgetful = with_template(tokenizer, FORGETFUL)
    messages = talk(3)
    messages[1]["content"] = "hm</think>Yes, 0."
    rows = encode_turns(forgetful, every_turn(messages))
    assert learned_texts(tokenizer, rows) == ["hm</think>Yes, 0.<|im_end|>", "Yes, 1.<|im_end|>Yes, 2.<|im_end|>"]
    assert "hm" not in tokenizer.decode(rows[1].tokens)
    for row, turn in zip(rows, (1, 5), strict=True):
        prompt = forgetful.encode_prompt(messages[:turn])
        assert row.tokens[: len(prompt)] == prompt


def test_a_long_conversation_parts_between_turns_and_learns_each_once(tokenizer: Tokenizer) -> None:
    messages = talk(12, system="Be brief.")
    laid = lay_conversation(tokenizer, every_turn(messages), 90)
    assert laid.windows == len(laid.rows) > 2
    assert laid.cut == 0
    learned = "".join(learned_texts(tokenizer, laid.rows))
    assert learned == "".join(f"Yes, {i}.<|im_end|>" for i in range(12))
    for row in laid.rows:
        said = tokenizer.decode(row.tokens, skip_special=False)
        assert len(row.tokens) <= 90
        assert said.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nis this number")
    for row in laid.rows[1:]:  # half a row of what was before is read again
        assert 20 <= row.loss_mask.index(True) <= 90
        assert tokenizer.decode(row.tokens[: row.loss_mask.index(True)]).count("Yes") >= 1


def test_the_last_turn_alone_takes_all_the_room_for_what_came_before(tokenizer: Tokenizer) -> None:
    messages = talk(12)
    laid = lay_conversation(tokenizer, Conversation(messages, (23,)), 90)
    (row,) = laid.rows
    assert len(row.tokens) > 60
    assert learned_texts(tokenizer, [row]) == ["Yes, 11.<|im_end|>"]


def test_parts_against_their_definition() -> None:
    """Lengths in letters; random conversations, every promise checked."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        n = int(torch.randint(1, 9, (1,), generator=generator))
        sizes = torch.randint(1, 12, (2 * n,), generator=generator).tolist()
        messages = [{"role": ("user", "assistant")[i % 2], "content": "x" * size} for i, size in enumerate(sizes)]
        if n % 2:
            messages = [{"role": "system", "content": "s"}, *messages]
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        keep = torch.rand(len(turns), generator=generator) < 0.7
        learned = tuple(i for i, k in zip(turns, keep.tolist(), strict=True) if k) or (turns[-1],)

        def size(part: list[Message]) -> int:
            return sum(len(m["content"]) for m in part)

        numbered = [{**m, "place": str(i)} for i, m in enumerate(messages)]
        parts = divide(Conversation(numbered, learned), 30, size)
        assert [int(part.messages[i]["place"]) for part in parts for i in part.learned] == list(learned)
        for part in parts:
            inside = [int(m["place"]) for m in part.messages]
            body = inside[n % 2 :]
            assert n % 2 == 0 or inside[0] == 0
            assert body == list(range(body[0], body[-1] + 1))
            assert messages[body[0]]["role"] == "user"
            assert size(part.messages[: part.learned[-1] + 1]) <= 30 or len(body) == 2


def test_one_exchange_longer_than_a_row_is_cut_and_counted(tokenizer: Tokenizer) -> None:
    long = [{"role": "user", "content": "please " * 60}, {"role": "assistant", "content": "Yes, 0."}]
    laid = lay_conversation(tokenizer, every_turn([*talk(1), *long]), 40)
    assert (laid.windows, laid.cut, [len(row.tokens) for row in laid.rows[1:]]) == (2, 1, [40])
    assert learned_texts(tokenizer, laid.rows)[1] == "Yes, 0.<|im_end|>"
    answer = Example(list(range(10)), [False] * 3 + [True] * 7)
    assert shorten(answer, 5) == Example([2, 3, 4, 5, 6], [False, True, True, True, True])
    assert shorten(answer, 9) == Example(list(range(1, 10)), [False] * 2 + [True] * 7)


def test_packed_conversations_do_not_see_each_other(make_lm) -> None:
    """Two in one row: the gradient of either's loss in the other's embeddings is exactly zero."""
    lm = make_lm(chat=True)
    lm.tokenizer.render_chat = lambda messages, generation_prompt=True: "".join(m["content"] + "|" for m in messages)
    pair = [every_turn([{"role": "user", "content": c}, {"role": "assistant", "content": c}]) for c in ("abc", "xyz")]
    rows = pack(encode_examples(lm, pair, 32).sequences, 32)
    assert len(rows) == 1
    batch = {key: value[None] for key, value in rows[0].items()}
    batch["loss_mask"] &= batch["segments"] == 2
    language_model_loss(lm.model, batch)[0].backward()
    moved = lm.model.embed.weight.grad.abs().sum(dim=1)
    first = set(rows[0]["tokens"][rows[0]["segments"] == 1].tolist()) - set(
        rows[0]["tokens"][rows[0]["segments"] == 2].tolist()
    )
    assert moved[list(first)].max() == 0
    assert moved.max() > 0


def test_a_run_says_what_did_not_fit(make_lm, tmp_path: Path) -> None:
    lm = make_lm(chat=True)
    lm.tokenizer.render_chat = lambda messages, generation_prompt=True: "".join(m["content"] + "|" for m in messages)
    messages = [{"role": ("user", "assistant")[i % 2], "content": "abcd"} for i in range(8)]
    config = SFTConfig(epochs=None, row_length=24, train=TrainConfig(steps=2), lora=LoraConfig(rank=2))
    with Run.create({}, name="t", seed=0, path=tmp_path / "run") as run:
        sft(lm, [every_turn(messages), SFTExample("a" * 40, "b")], config, run=run)
    (event,) = [e for e in run.events() if e["kind"] == "examples"]
    assert (event["examples"], event["divided"], event["cut"]) == (2, 1, 1)
    assert event["learned_tokens"] == 4 * 5 + 2


SHARED = {
    "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
}


def test_forms_of_conversations() -> None:
    (shared,) = examples_of(SHARED)
    assert [m["role"] for m in shared.prompt] == ["system", "user"]
    (given,) = examples_of({"messages": talk(1)}, Reading(system="Be kind."))
    assert given.prompt[0] == {"role": "system", "content": "Be kind."}
    (own,) = examples_of({"messages": talk(1, system="Be brief.")}, Reading(system="Be kind."))
    assert own.prompt[0]["content"] == "Be brief."
    (answered,) = examples_of({"prompt": talk(1)[:1], "completion": talk(1)[1:]})
    assert answered.response == "Yes, 0."


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}]}, "it has bot, user"),
        ({"messages": [{**m, "weight": 0} for m in talk(2)]}, "every turn of the assistant has weight 0"),
        ({"messages": [{**m, "weight": 0.5} for m in talk(1)]}, "weight of a message is 0.5, allowed: 0 or 1"),
        ({"conversations": [{"from": "human", "value": 3}]}, "content must be a text"),
        ({"conversations": [{"text": "a"}]}, '"role", "content"'),
    ],
)
def test_a_wrong_conversation_is_one_sentence(record: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        examples_of(record)


def test_a_template_that_refuses_names_the_example(make_lm, tokenizer: Tokenizer) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}a"
    lm = make_lm()
    lm.tokenizer = with_template(tokenizer, template)
    good, bad = every_turn(talk(1)), every_turn(talk(1, system="s"))
    with pytest.raises(ModelError, match=r"example 2 of 2: the chat template failed: System role not supported"):
        encode_examples(lm, [good, bad], 64)


def test_a_gzipped_file_is_read(tmp_path: Path) -> None:
    import gzip
    import json

    path = tmp_path / "talk.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"messages": talk(2)}).encode()))
    assert len(read_examples(path)) == 1


@pytest.mark.parametrize("learned", [(), (0,), (3, 1), (9,)])
def test_places_that_cannot_be_learned(learned: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"learned is|not of the assistant"):
        Conversation([{"role": "assistant", "content": "a"}, *talk(2)], learned)
