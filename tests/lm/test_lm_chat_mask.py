"""The assistant's tokens as templates mark them, against transformers, on every training template that trl ships."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
import tiny_run
import transformers

from alignlab.core.errors import ModelError
from alignlab.lm.chat_mask import assistant_tokens, marks_assistant
from alignlab.lm.tokenizer import Tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [
    {"role": "user", "content": "What is 3 + 4?"},
    {"role": "assistant", "content": "\n3 + 4 is 7, naïvely: ⅞ \U0001f600 yes\n"},
    {"role": "user", "content": "And twice that?"},
    {"role": "assistant", "content": "14."},
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """Our tokenizer and the same one in transformers."""
    tokenizer = tiny_run.build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return tokenizer, transformers.AutoTokenizer.from_pretrained(folder)


def theirs(peer: Any, messages: list[dict[str, str]], template: str) -> tuple[list[int], list[bool]]:
    found = peer.apply_chat_template(
        messages, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return found["input_ids"], [bool(value) for value in found["assistant_masks"]]


def test_tokens_and_mask_are_those_of_transformers(pair: tuple[Tokenizer, Any]) -> None:
    tokenizer, peer = pair
    for talk in (TALK, [{"role": "system", "content": "Be brief."}, *TALK], TALK[:2]):
        ours = assistant_tokens(tokenizer, talk)
        assert ours == theirs(peer, talk, TEMPLATE)
        assert ours[0] == tokenizer.encode_prompt(talk, generation_prompt=False)
    learned = [i for i, counts in zip(*ours, strict=True) if counts]
    assert tokenizer.decode(learned) == TALK[1]["content"]
    assert learned[-1] == tokenizer.control["<|im_end|>"]


TRAINING = [p for p in files("trl").joinpath("chat_templates").iterdir() if p.name.endswith("_training.jinja")]
USUAL = ("qwen3_training.jinja", "llama3_training.jinja", "gemma_training.jinja", "qwen2_5_training.jinja")


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.name, marks=[] if p.name in USUAL else pytest.mark.slow) for p in TRAINING]
)
def test_every_training_template_gives_the_same_mask(pair: tuple[Tokenizer, Any], path: Any) -> None:
    tokenizer, peer = pair
    template = path.read_text()
    ours = Tokenizer(tokenizer.core, tokenizer.special, template)
    try:
        expected = theirs(peer, TALK, template)
    except Exception as error:
        with pytest.raises(ModelError):
            assistant_tokens(ours, TALK)
        pytest.skip(f"transformers cannot render it with this tokenizer: {error}")
    assert assistant_tokens(ours, TALK) == expected
    assert any(expected[1])


def test_control_tokens_in_a_message_stay_text(pair: tuple[Tokenizer, Any]) -> None:
    tokenizer, _ = pair
    talk = [
        {"role": "user", "content": "Say <|im_end|> twice"},
        {"role": "assistant", "content": "<|im_end|><|im_end|>!"},
    ]
    found = assistant_tokens(tokenizer, talk)
    assert found is not None
    assert found[0] == tokenizer.encode_prompt(talk, generation_prompt=False)
    learned = [i for i, counts in zip(*found, strict=True) if counts]
    assert learned == [*tokenizer.encode("<|im_end|><|im_end|>!"), tokenizer.control["<|im_end|>"]]


def test_a_template_without_blocks_says_nothing(pair: tuple[Tokenizer, Any]) -> None:
    tokenizer = Tokenizer(pair[0].core, pair[0].special, tiny_run.CHATML)
    assert not marks_assistant(tiny_run.CHATML)
    assert not marks_assistant(None)
    assert assistant_tokens(tokenizer, TALK) is None


def test_rendering_prints_no_marks(pair: tuple[Tokenizer, Any]) -> None:
    tokenizer, peer = pair
    assert tokenizer.render_chat(TALK) == peer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
