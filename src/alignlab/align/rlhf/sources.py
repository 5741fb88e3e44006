"""The files of an RLHF run, in one form: comparisons, demonstrations, and what the policy is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignlab.align.conversations import Conversation
from alignlab.align.preference_data.formats import recognise
from alignlab.align.preference_data.reading import read_pairs as read_judged
from alignlab.align.reward.examples import RewardPair, dialogue_of
from alignlab.align.reward.readers import as_text
from alignlab.align.reward.readers import read_pairs as read_plain
from alignlab.align.sft import SFTExample
from alignlab.align.sft_data import examples_of
from alignlab.core.errors import DataError
from alignlab.data.prompts import read_prompt_file
from alignlab.lm.types import Prompt
from alignlab.tasks.pair_rows import every_row, messages_in, sides_of, sound_rows

DOCUMENT = ("document", "article", "post", "content", "text")
"""Fields that hold a text to summarise, the first that is there."""
SUMMARY = ("summary", "highlights", "label")
Demonstration = SFTExample | Conversation
"""What is learned first: an answer to a prompt, or the turns of a conversation."""


@dataclass(frozen=True)
class Asking:
    """How what is in a file becomes what a model is asked."""

    template: str = "{text}\n\nTL;DR:"
    """Around a document."""
    chat: bool = True
    """Whether plain text is put into a user's turn; else the model goes on with it."""
    dialogues: bool = True
    """Whether the model reads messages at all (it has a chat template); else they become text."""

    def prompt(self, prompt: Prompt) -> Prompt:
        """The prompt as this model is asked it."""
        if isinstance(prompt, str):
            return [{"role": "user", "content": prompt.strip()}] if self.chat and self.dialogues else prompt
        return list(prompt) if self.dialogues else as_text(prompt)

    def answer(self, prompt: Prompt, answer: str) -> str:
        """The answer as it follows that prompt: after text that does not end in a blank it begins with one."""
        follows = isinstance(prompt, str) and prompt[-1:].strip() and answer[:1].strip()
        return " " + answer if follows else answer

    def document(self, row: Mapping[str, Any]) -> str | None:
        """The prompt that asks for a summary of the document in a row; None where there is none.

        A post of TL;DR has its subreddit and title before it, as Stiennon et al. 2020 have them.
        """
        text = next((row[name] for name in DOCUMENT if isinstance(row.get(name), str) and row[name].strip()), None)
        if text is None:
            return None
        if isinstance(row.get("subreddit"), str):
            title = row.get("title") or ""
            text = f"SUBREDDIT: r/{row['subreddit']}\n\nTITLE: {title}\n\nPOST: {text}"
        return self.template.replace("{text}", text.strip())


@dataclass(frozen=True)
class Asked:
    """What a file of prompts holds."""

    train: list[Prompt] = field(default_factory=list)
    heldout: list[Prompt] = field(default_factory=list)
    """Those that the file itself calls held out."""


def read_comparisons(path: Path, asking: Asking) -> list[RewardPair]:
    """The comparisons of a file in any format that is known, ties left out.

    Raises DataError for a file that is missing, damaged or of another kind, with the line.
    """
    if not path.is_file():
        raise DataError(f"{path} is no file; comparisons are rows such as HH-RLHF's, TRL's or Stiennon's")
    first = next((row for _, row in every_row(path) if isinstance(row, dict)), {})
    if recognise(first) in (None, "trl", "hh-rlhf"):
        pairs = [pair for pair in read_plain(path) if not pair.tie and pair.probability != 0.5]
    else:
        judged = read_judged(path)
        pairs = [RewardPair(pair.prompt, pair.chosen, pair.rejected, pair.probability) for pair in judged]
    found = []
    for pair in pairs:
        prompt = asking.prompt(pair.prompt)
        sides = asking.answer(prompt, pair.chosen), asking.answer(prompt, pair.rejected)
        if sides[0] != sides[1]:
            found.append(replace(pair, prompt=prompt, chosen=sides[0], rejected=sides[1]))
    if not found:
        raise DataError(f"{path} has no comparison in which one answer is preferred to another")
    return found


def read_demonstrations(path: Path, asking: Asking) -> list[Demonstration]:
    """The examples of a file: what `alignlab sft` reads, a prompt with a label, or a document with its summary."""
    if not path.is_file():
        raise DataError(f"{path} is no file; demonstrations are rows of prompts with answers, or posts with summaries")
    found: list[Demonstration] = []
    for where, row in sound_rows(path):
        try:
            found += [_asked(example, asking) for example in demonstrations_of(row, asking)]
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    if not found:
        raise DataError(f"{path} has no demonstration")
    return found


def demonstrations_of(row: Mapping[str, Any], asking: Asking) -> list[Demonstration]:
    """The examples that one row stands for; a conversation is one, for a model that reads messages."""
    known = "messages" in row or ({"instruction", "output"} <= row.keys())
    known = known or ("prompt" in row and ("response" in row or "completion" in row))
    summary = next((row[name] for name in SUMMARY if isinstance(row.get(name), str) and row[name].strip()), None)
    prompt = row["prompt"] if isinstance(row.get("prompt"), str) and row["prompt"] else asking.document(row)
    if not known and summary is not None and prompt is not None:
        return [SFTExample(prompt, summary.strip())]
    found = examples_of(row)  # or what is allowed
    if asking.dialogues:
        return list(found)
    return [SFTExample(turn, answer) for example in found for turn, answer in turns_of(example)]


def turns_of(example: Demonstration) -> list[tuple[Prompt, str]]:
    """(what comes before it, the answer) of every turn that is learned."""
    if isinstance(example, SFTExample):
        return [(example.prompt, example.response)]
    return [(example.messages[:i], example.messages[i]["content"]) for i in example.learned]


def _asked(example: Demonstration, asking: Asking) -> Demonstration:
    if isinstance(example, Conversation):
        return example
    prompt = asking.prompt(example.prompt)
    return SFTExample(prompt, asking.answer(prompt, example.response))


def read_asked(path: Path, asking: Asking) -> Asked:
    """The prompts of a file: one a line (.txt), or rows with `prompt` (text or messages), a conversation (`messages`,
    whose last answer is dropped), a pair of dialogues, or a document.

    Raises DataError for a file that is missing, damaged or holds none, with the line.
    """
    if not path.is_file():
        raise DataError(f"{path} is no file; prompts are a .txt file, one a line, or rows with a prompt")
    if path.suffix == ".txt":
        return Asked([asking.prompt(record.prompt) for record in read_prompt_file(path)])
    found = Asked()
    for where, row in sound_rows(path):
        try:
            prompt = asking.prompt(prompt_of(row, asking))
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        (found.heldout if row.get("split") in ("heldout", "test", "validation") else found.train).append(prompt)
    if not found.train and not found.heldout:
        raise DataError(f"{path} holds no prompts")
    return found


def prompt_of(row: Mapping[str, Any], asking: Asking) -> Prompt:
    """What one row asks."""
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        return prompt
    if prompt is not None:
        return messages_in(prompt, "prompt")
    if "messages" in row:
        turns = messages_in(row["messages"], "messages")
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
        if not turns:
            raise DataError("the conversation has no turn before the assistant's")
        return turns
    if {"chosen", "rejected"} <= row.keys():
        return sides_of(row).prompt
    document = asking.document(row)
    if document is None:
        fields = ", ".join(map(str, row)) or "nothing"
        raise DataError(
            f"the row has {fields}, allowed: prompt, messages, chosen and rejected, or {', '.join(DOCUMENT)}"
        )
    return document


def distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts without those that repeat an earlier one word for word."""
    return list({repr(prompt): prompt for prompt in prompts}.values())


def apart(train: Sequence[Prompt], heldout: Sequence[Prompt]) -> list[Prompt]:
    """The training prompts whose dialogue (first request, without case and punctuation) is not among those held out."""
    taken = {dialogue_of(prompt) for prompt in heldout}
    return [prompt for prompt in train if dialogue_of(prompt) not in taken]
