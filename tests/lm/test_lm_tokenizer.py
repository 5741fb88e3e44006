"""Tokenizers and chat templates: ids equal Hugging Face's, text stays text, and no template can run away."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.core.errors import ModelError
from alignlab.lm import chat_template
from alignlab.lm.chat_template import render_template
from alignlab.lm.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = ["Hello world", " a  b\n\n", "Zoë 🎉 日本語", "don't 123", "", "<|im_end|>x"]


def make_directory(directory: Path, template: str | None = CHATML, **config: Any) -> Path:
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    core.train_from_iterator(["hello world system user assistant don't"] * 3, trainer)
    directory.mkdir(exist_ok=True)
    core.save(str(directory / "tokenizer.json"))
    raw = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "bos_token": "<|im_start|>",
        **config,
    }
    if template is not None:
        raw["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(raw))
    return directory


def test_ids_equal_transformers_and_survive_saving(tmp_path: Path) -> None:
    ours = Tokenizer.from_hf(make_directory(tmp_path / "in"))
    theirs = hf.AutoTokenizer.from_pretrained(tmp_path / "in")
    ours.save(tmp_path / "out")
    back, again = hf.AutoTokenizer.from_pretrained(tmp_path / "out"), Tokenizer.from_hf(tmp_path / "out")
    for text in TEXTS:
        expected = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, parse_special=True) == expected
        assert back.encode(text, add_special_tokens=False) == expected
        assert again.encode(text) == ours.encode(text)
    chat = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    expected = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ours.encode_prompt(chat) == expected
    assert again.encode_prompt(chat) == expected
    assert back.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) == expected
    assert (ours.eos_ids, ours.eos_id, ours.bos_id) == (frozenset({0, 2}), 2, 1)
    assert (back.eos_token, back.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert ours.vocab_size == len(theirs)


@given(text=st.text(max_size=40) | st.sampled_from([f"a{s}b{t}" for s in SPECIAL for t in SPECIAL]))
@settings(max_examples=150, deadline=None)
def test_text_never_becomes_control_tokens(text: str) -> None:
    tokenizer = SHARED()
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.control.values())
    assert tokenizer.decode(ids, skip_special=False) == text
    chat = tokenizer.encode_prompt([{"role": "user", "content": text}])
    plain = tokenizer.encode_prompt([{"role": "user", "content": "x"}])
    control = set(tokenizer.control.values())
    assert [i for i in chat if i in control] == [i for i in plain if i in control]
    assert tokenizer.decode(chat, skip_special=False) == tokenizer.render_chat([{"role": "user", "content": text}])


_shared: list[Tokenizer] = []


def SHARED() -> Tokenizer:
    if not _shared:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            _shared.append(Tokenizer.from_hf(make_directory(Path(folder))))
    return _shared[0]


def test_control_text_in_a_role_or_next_to_a_marker_is_literal_too() -> None:
    tokenizer = SHARED()
    ids = tokenizer.encode_prompt([{"role": "user<|im_end|>", "content": "\ue000<|im_<|im_end|>end|>\ue0010\ue001"}])
    assert ids.count(2) == 1
    assert "\ue000<|im_<|im_end|>end|>\ue0010\ue001" in tokenizer.decode(ids, skip_special=False)


def test_prefix_space_is_added_only_at_the_start(tmp_path: Path) -> None:
    pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "▁b", "<", "/", "s", ">"]
    model = tokenizers.models.BPE(
        vocab={p: i for i, p in enumerate(pieces)}, merges=[("▁", "a"), ("▁", "b")], unk_token="<unk>"
    )
    core = tokenizers.Tokenizer(model)
    core.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.add_special_tokens(["<s>", "</s>"])
    core.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ bos_token + messages[0]['content'] }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_hf(tmp_path)
    for content, expected in {"ab": [1, 4, 5], "a</s>b": [1, 4, 8, 9, 10, 11, 5]}.items():
        assert tokenizer.encode_prompt([{"role": "user", "content": content}]) == expected
    assert tokenizer.encode("ab") == [6, 5]


def test_beginning_token_and_ends_come_from_all_files(tmp_path: Path) -> None:
    make_directory(tmp_path, add_bos_token=True, pad_token={"content": "<|endoftext|>"})
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2, 10**9]}))
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token }}!")
    tokenizer = Tokenizer.from_hf(tmp_path)
    assert tokenizer.encode_prompt("hello") == [1, *tokenizer.encode("hello")]
    assert tokenizer.encode("hello", bos=True)[0] == 1
    assert tokenizer.eos_ids == {0, 2, 5}
    assert tokenizer.pad_id == 0
    assert tokenizer.render_chat([{"role": "user", "content": "x"}]) == "<|im_end|>!"


def test_vocab_and_merges_files_alone_make_gpt2s_tokenizer(tmp_path: Path) -> None:
    model = json.loads((make_directory(tmp_path / "a") / "tokenizer.json").read_text())["model"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(m) if isinstance(m, list) else m for m in model["merges"])
    (tmp_path / "b" / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    a, b = Tokenizer.from_hf(tmp_path / "a"), Tokenizer.from_hf(tmp_path / "b")
    for text in TEXTS:
        assert a.encode(text) == b.encode(text)
    assert b.eos_ids == {0}


def test_missing_and_damaged_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        Tokenizer.from_hf(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="damaged tokenizer file"):
        Tokenizer.from_hf(tmp_path)
    tokenizer = Tokenizer.from_hf(make_directory(tmp_path, template=None, bos_token=None))
    with pytest.raises(ModelError, match="no chat template"):
        tokenizer.encode_prompt([{"role": "user", "content": "x"}])
    with pytest.raises(ModelError, match="no beginning-of-text token"):
        tokenizer.encode("x", bos=True)
    for bad in ([], [{"role": "user"}], [{"role": "user", "content": 3}], ["x"]):
        with pytest.raises(ModelError, match="message"):
            tokenizer.encode_prompt(bad)  # type: ignore[arg-type]


def test_threads_do_not_mix_literal_and_parsed_text() -> None:
    tokenizer, wrong = SHARED(), []

    def work(parse: bool) -> None:
        for _ in range(300):
            if (2 in tokenizer.encode("<|im_end|>", parse_special=parse)) != parse:
                wrong.append(parse)

    threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


USER = [{"role": "user", "content": "hi"}]
GOOD = {
    "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}": "hi",
    "{{ messages | tojson }}": '[{"role": "user", "content": "hi"}]',
    "{% if tools %}x{% endif %}{{ bos_token }}{{ strftime_now('%Y')|length }}": "<s>4",
    "{% generation %}{{ messages[0]['content'] }}{% endgeneration %}!": "hi!",
    "{% for m in messages %}\n  {% if m.role == 'user' %}\nU\n  {% endif %}\n{% endfor %}\n": "U\n",
    "{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}": "3",
}


@pytest.mark.parametrize("source", GOOD)
def test_templates_get_what_model_files_expect(source: str) -> None:
    assert render_template(source, USER, special={"bos_token": "<s>"}) == GOOD[source]


DOUBLING = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(50) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
BAD = {
    "{% for i in range(10**9) %}{% endfor %}": "Range too big",
    "{{ 'a' * 10**10 }}": "memory",
    DOUBLING: "memory",
    "{{ 'a'|center(10**10) }}": "memory",
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}": "longer than",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}": "nests or recurses",
    "{{ ''.__class__.__mro__ }}": "unsafe",
    "{{ messages.append(1) }}": "not callable|unsafe|immutable|append",
    "{{ raise_exception('roles must alternate') }}": "roles must alternate",
    "{% if %}": "Expected an expression",
    "{% include 'x' %}": "no loader",
    "{{ messages[5].content }}": "undefined|no element",
    "x" * 300_000: "300000 characters",
}


@pytest.mark.parametrize("source", BAD, ids=range(len(BAD)))
def test_templates_that_explode_or_fail_end_in_one_sentence(source: str) -> None:
    started = time.monotonic()
    with pytest.raises(ModelError, match=BAD[source]) as caught:
        render_template(source, USER)
    assert time.monotonic() - started < 20  # the limit is five; this machine may be busy
    assert "\n" not in str(caught.value)


def test_an_endless_template_is_stopped_and_the_next_one_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "TIME_LIMIT", 0.5)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"did not finish within 0\.5 seconds"):
        render_template(endless, USER)
    assert time.monotonic() - started < 10
    monkeypatch.undo()
    assert render_template("{{ messages[0].content }}", USER) == "hi"


def test_a_trusted_template_needs_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    monkeypatch.setattr(chat_template, "TRUSTED", frozenset({hashlib.sha256(CHATML.encode()).hexdigest()}))
    monkeypatch.setattr(chat_template._worker, "render", None)
    assert render_template(CHATML, USER) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert render_template(CHATML, USER, generation_prompt=False) == "<|im_start|>user\nhi<|im_end|>\n"
    with pytest.raises(ModelError, match="at least one message"):
        render_template(CHATML, [])
