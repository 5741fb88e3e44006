"""`Tokenizer`: text to token ids and back, with the special tokens and the chat template of a model.

Text is never trusted with control tokens: `encode` reads `<|im_end|>` as ten characters, and in a conversation only the
template's own markers become control tokens, never the same characters inside a message.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers

from alignlab.core.errors import ModelError
from alignlab.core.files import atomic_write
from alignlab.lm.chat_template import check_messages, render_template, unused_mark
from alignlab.lm.hf_config import read_json_object
from alignlab.lm.types import Message, Prompt

MAX_FILE_BYTES = 256 * 2**20

END_TOKENS = frozenset(
    {
        "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "</s>",
        "<|end|>", "<|return|>",
    }
)  # fmt: skip
"""Control tokens that end a turn or a text in the families we load; one of them in a vocabulary stops generation."""


@dataclass(frozen=True)
class SpecialTokens:
    """Ids with a role, and how raw prompts start."""

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    unk: int | None = None
    add_bos: bool = False
    """Raw text prompts start with `bos`, because the model was trained so."""
    ends: frozenset[int] = field(default_factory=frozenset)
    """Ids besides `eos` that end a completion."""


class Tokenizer:
    """Wraps a `tokenizers.Tokenizer`. Build one with `from_hf`, `gguf_tokenizer.from_gguf` or `llama2c`."""

    def __init__(self, core: tokenizers.Tokenizer, special: SpecialTokens, chat_template: str | None = None) -> None:
        self.core, self.special, self.chat_template = core, special, chat_template
        vocabulary = core.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocabulary.values(), default=-1)
        """One more than the largest id."""
        added = core.get_added_tokens_decoder()
        self.control: dict[str, int] = {token.content: i for i, token in added.items() if token.special}
        for role in ("bos", "eos", "pad", "unk"):
            token = getattr(special, role)
            if token is not None and not 0 <= token < self.vocab_size:
                raise ModelError(f"{role} token {token} is outside the vocabulary of {self.vocab_size}")
        known = {i for text, i in self.control.items() if text in END_TOKENS}
        self.eos_ids = frozenset({*special.ends, *known, *([] if special.eos is None else [special.eos])})
        """Ids that end a completion: end of text and end of turn."""
        self._lock = threading.Lock()

    @property
    def bos_id(self) -> int | None:
        return self.special.bos

    @property
    def eos_id(self) -> int | None:
        return self.special.eos

    @property
    def pad_id(self) -> int | None:
        """The padding token, or the end token where there is none."""
        return self.special.eos if self.special.pad is None else self.special.pad

    def encode(self, text: str, *, bos: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids of `text`, taken literally: control tokens spelled out in it stay text.

        `bos` puts the beginning-of-text token first (else ModelError); `parse_special` reads control tokens.
        """
        if bos and self.bos_id is None:
            raise ModelError("this tokenizer has no beginning-of-text token")
        start = [self.bos_id] if bos and self.bos_id is not None else []
        with self._lock:
            self.core.encode_special_tokens = not parse_special
            return start + self._ids(_clean(text))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.core.encode(text, add_special_tokens=False).ids
        return ids

    def offsets(self, text: str, *, literal: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and the (start, end) of each in `text`; control tokens are read unless `literal`."""
        with self._lock:
            self.core.encode_special_tokens = literal
            found = self.core.encode(_clean(text), add_special_tokens=False)
        return found.ids, found.offsets

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; control tokens are left out unless `skip_special` is false."""
        text: str = self.core.decode([int(i) for i in ids], skip_special_tokens=skip_special)
        return text

    def token(self, token_id: int) -> str | None:
        """How the vocabulary spells one id."""
        text: str | None = self.core.id_to_token(token_id)
        return text

    def render_chat(
        self, messages: Sequence[Message], *, generation_prompt: bool = True, variables: dict[str, str] | None = None
    ) -> str:
        """The conversation in the model's format; `generation_prompt` opens the assistant's answer.

        Raises `ModelError` if there is no template, or the template fails or exceeds its limits.
        """
        if self.chat_template is None:
            raise ModelError("this model has no chat template; give the prompt as plain text")
        names = {role: getattr(self.special, role) for role in ("bos", "eos", "pad", "unk")}
        special = {f"{role}_token": self.token(i) or "" for role, i in names.items() if i is not None} | (
            variables or {}
        )
        return render_template(self.chat_template, messages, generation_prompt=generation_prompt, special=special)

    def encode_prompt(self, prompt: Prompt, *, generation_prompt: bool = True) -> list[int]:
        """Ids that a completion continues: raw text (with its beginning token), or a rendered conversation."""
        if isinstance(prompt, str):
            return self.encode(prompt, bos=self.special.add_bos)
        masked, hidden, mark = self.hide_control(prompt)
        rendered = self.render_chat(masked, generation_prompt=generation_prompt)
        if not hidden:
            return self.encode(rendered, parse_special=True)
        marks = re.compile(f"{mark}(\\d+){mark}")
        ids: list[int] = []
        for i, piece in enumerate(re.split(f"({self.control_pattern().pattern})", rendered)):
            if i % 2:
                ids.append(self.control[piece])
            elif piece:
                literal = marks.sub(lambda match: hidden[int(match.group(1))], piece)
                ids.extend(self.encode_inner(literal, first=i == 0))
        return ids

    def hide_control(self, messages: Sequence[Message]) -> tuple[list[Message], list[str], str]:
        """The messages with control tokens spelled out in them replaced by numbered marks, those tokens, and the mark:
        the template does not see them, and they are put back as literal text after its own have been found."""
        check_messages(messages)
        found = self.control_pattern()
        hidden: list[str] = []
        mark = unused_mark(text for message in messages for text in message.values())

        def hide(match: re.Match[str]) -> str:
            hidden.append(match.group())
            return f"{mark}{len(hidden) - 1}{mark}"

        masked = [{k: found.sub(hide, v) if isinstance(v, str) else v for k, v in m.items()} for m in messages]
        return masked, hidden, mark

    def control_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.control, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def encode_inner(self, text: str, *, first: bool) -> list[int]:
        """Literal ids of a piece; only the `first` gets the leading space that some `Metaspace`s add."""
        space = self.core.pre_tokenizer
        if first or not isinstance(space, pre_tokenizers.Metaspace) or space.prepend_scheme != "first":
            return self.encode(text)
        with self._lock:
            try:
                space.prepend_scheme = "never"
                self.core.encode_special_tokens = True
                return self._ids(text)
            finally:
                space.prepend_scheme = "first"

    def save(self, directory: str | Path) -> None:
        """Write the files of a Hugging Face tokenizer, which `transformers.AutoTokenizer` loads with equal ids."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        names: dict[str, Any] = {}
        for role in ("bos", "eos", "pad", "unk"):
            token = self.special.eos if role == "pad" and self.special.pad is None else getattr(self.special, role)
            if token is not None:
                names[f"{role}_token"] = self.token(token)
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "add_bos_token": self.special.add_bos,
            **names,
        }
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        atomic_write(directory / "tokenizer.json", self.core.to_str(pretty=True))
        atomic_write(directory / "special_tokens_map.json", json.dumps(names, indent=2) + "\n")
        atomic_write(directory / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_hf(cls, directory: str | Path) -> Tokenizer:
        """The tokenizer of a Hugging Face directory.

        Reads `tokenizer.json` (or GPT-2's `vocab.json` and `merges.txt`), and from `tokenizer_config.json`,
        `special_tokens_map.json`, `generation_config.json` and `chat_template.jinja` what is there.
        Raises `ModelError` when there is no vocabulary or a file is damaged.
        """
        directory = Path(directory)
        core = _read_core(directory)
        config = _optional(directory / "special_tokens_map.json") | _optional(directory / "tokenizer_config.json")
        ids = {role: _token_id(core, config.get(f"{role}_token")) for role in ("bos", "eos", "pad", "unk")}
        starts_with_bos = ids["bos"] is not None and (
            core.encode("", add_special_tokens=True).ids[:1] == [ids["bos"]] or config.get("add_bos_token") is True
        )
        raw_ends = _optional(directory / "generation_config.json").get("eos_token_id")
        raw_ends = raw_ends if isinstance(raw_ends, list) else [raw_ends]
        ends = frozenset(i for i in raw_ends if type(i) is int and core.id_to_token(i) is not None)
        special = SpecialTokens(add_bos=starts_with_bos, ends=ends, **ids)
        return cls(core, special, _read_template(directory, config))


def _clean(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair: "?"


def _optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _read_core(directory: Path) -> tokenizers.Tokenizer:
    path = directory / "tokenizer.json"
    vocab, merges = directory / "vocab.json", directory / "merges.txt"
    try:
        if path.is_file():
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ModelError(f"{path}: {path.stat().st_size} bytes are too many for a tokenizer")
            core = tokenizers.Tokenizer.from_file(str(path))
        elif vocab.is_file() and merges.is_file():
            core = byte_level_core(tokenizers.models.BPE.from_file(str(vocab), str(merges)))
        else:
            sentencepiece = (
                " (tokenizer.model alone is not enough)" if (directory / "tokenizer.model").is_file() else ""
            )
            raise ModelError(f"{directory}: no tokenizer.json, and no vocab.json with merges.txt{sentencepiece}")
    except (ModelError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library panics, outside of Exception, on some damaged files
        raise ModelError(f"{directory}: damaged tokenizer file: {str(error)[:300]}") from None
    core.no_padding()
    core.no_truncation()
    _add_declared_tokens(core, directory)
    return core


def _add_declared_tokens(core: tokenizers.Tokenizer, directory: Path) -> None:
    """Tokens that only `tokenizer_config.json` declares, as far as they get the id it gives them."""
    declared = _optional(directory / "tokenizer_config.json").get("added_tokens_decoder")
    declared = declared if isinstance(declared, dict) else {}
    for key, entry in sorted(declared.items(), key=lambda item: (len(item[0]), item[0])):
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str):
            raise ModelError(f"{directory / 'tokenizer_config.json'}: added token {key!r} has no text")
        known = core.token_to_id(content)
        if str(known if known is not None else core.get_vocab_size()) == key:
            flags = {name: bool(entry.get(name)) for name in ("lstrip", "rstrip", "single_word", "normalized")}
            token = tokenizers.AddedToken(content, special=bool(entry.get("special")), **flags)
            (core.add_special_tokens if entry.get("special") else core.add_tokens)([token])
    # GPT-2's own files declare their one control token nowhere.
    if core.token_to_id("<|endoftext|>") is not None:
        core.add_special_tokens([tokenizers.AddedToken("<|endoftext|>", special=True, normalized=False)])


def byte_level_core(model: tokenizers.models.BPE) -> tokenizers.Tokenizer:
    """A byte-level BPE with GPT-2's splitting."""
    core = tokenizers.Tokenizer(model)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = tokenizers.decoders.ByteLevel()
    return core


def _token_id(core: tokenizers.Tokenizer, token: Any) -> int | None:
    content = token.get("content") if isinstance(token, dict) else token
    found: int | None = core.token_to_id(content) if isinstance(content, str) else None
    return found


def _read_template(directory: Path, config: dict[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: cannot be read: {error}") from None
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
