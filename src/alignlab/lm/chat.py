"""`alignlab chat` and `alignlab compare`: talk to a model, or to two side by side, in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from alignlab.core.errors import AlignlabError, ConfigError
from alignlab.lm.types import Message, SamplingParams

if TYPE_CHECKING:
    from alignlab.lm.local import LocalSampler

PACKED_HELP = "keep the Q4_0, Q4_1 and Q8_0 matrices of a GGUF file in their bits"
HELP = "/reset forgets the conversation, /system TEXT sets the instructions, /exit or Ctrl-D ends"


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is a `ConfigError`."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message} (see {self.prog} --help)")


def _parser(prog: str, description: str) -> Parser:
    parser = Parser(prog=prog, description=description, epilog=f"In the conversation: {HELP}.")
    parser.add_argument("--system", default="", help="instructions that precede the conversation")
    parser.add_argument("--max-tokens", type=int, default=256, help="most tokens of an answer (default: 256)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the most likely token (default: 0.7)")
    parser.add_argument("--top-p", type=float, default=0.95, help="nucleus of the distribution (default: 0.95)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same answers (default: 0)")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--packed", action="store_true", help=PACKED_HELP)
    return parser


def _sampling(options: argparse.Namespace, turn: int) -> SamplingParams:
    """Each turn has a seed of its own, so that asking again after /reset starts the same conversation."""
    return SamplingParams(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed + turn,
    )


def chat(argv: list[str]) -> int:
    """The `alignlab chat` command. With a prompt on a pipe it prints one answer and ends."""
    parser = _parser("alignlab chat", "Talk to a model: a catalogue name, a registered name, a path or a hub id.")
    parser.add_argument("model", nargs="?", default="", help="default: the model registered last, else the catalogue's")
    options = parser.parse_args(argv)
    _sampling(options, 0)  # wrong values are told before a model is loaded
    sampler = _sampler(options.model or default_model(), options)
    if sys.stdin.isatty():
        print(f"{sampler.lm.name}: {HELP}")

    def answer(history: list[Message], turn: int) -> str:
        pieces = []
        for piece in sampler.stream(_prompt(sampler, history), _sampling(options, turn)):
            print(piece, end="", flush=True)
            pieces.append(piece)
        print()
        return "".join(pieces)

    _converse(options.system, [answer])
    return 0


def compare(argv: list[str]) -> int:
    """The `alignlab compare` command: the same words to two models, each with its own conversation."""
    parser = _parser("alignlab compare", "Put the same prompt to two models and show their answers side by side.")
    parser.add_argument(
        "models", nargs=2, metavar="MODEL", help="a catalogue name, a registered name, a path or a hub id"
    )
    options = parser.parse_args(argv)
    _sampling(options, 0)
    samplers = [_sampler(name, options) for name in options.models]

    def answerer(sampler: LocalSampler) -> Callable[[list[Message], int], str]:
        return lambda history, turn: sampler.generate([_prompt(sampler, history)], _sampling(options, turn))[0].text

    _converse(options.system, [answerer(s) for s in samplers], lambda answers: _show(options.models, answers))
    return 0


def _converse(
    system: str,
    answerers: Sequence[Callable[[list[Message], int], str]],
    show: Callable[[list[str]], None] = lambda answers: None,
) -> None:
    """Put every turn of the user to every model, each of which has a history of its own."""
    interactive = sys.stdin.isatty()
    histories: list[list[Message]] = [[] for _ in answerers]
    for turn, asked in enumerate(_turns(system, interactive)):
        if asked.fresh:
            opening = [{"role": "system", "content": asked.system}] if asked.system else []
            histories = [list(opening) for _ in answerers]
        tried = [[*history, {"role": "user", "content": asked.text}] for history in histories]
        try:
            answers = [answer(history, turn) for answer, history in zip(answerers, tried, strict=True)]
        except AlignlabError as error:
            if not interactive:
                raise
            print(f"alignlab: {error} (/reset starts over)", file=sys.stderr)
            continue
        show(answers)
        for history, said in zip(tried, answers, strict=True):
            history.append({"role": "assistant", "content": said})
        histories = tried


def default_model() -> str:
    """The model registered last, else the catalogue's default."""
    from alignlab.lm import catalogue, registry

    return catalogue.DEFAULT_MODEL if registry.latest() is None else "latest"


def _sampler(name: str, options: argparse.Namespace) -> LocalSampler:
    from alignlab.lm.language_model import load
    from alignlab.lm.local import LocalSampler

    return LocalSampler(load(name, dtype=options.dtype, device=options.device, packed=options.packed))


def _prompt(sampler: LocalSampler, messages: list[Message]) -> list[Message] | str:
    """A model without a chat template continues the last message as plain text."""
    return messages if sampler.lm.tokenizer.chat_template is not None else messages[-1]["content"]


@dataclass(frozen=True)
class _Turn:
    """What the user said; `fresh` where the conversation starts with it."""

    text: str
    system: str
    fresh: bool


def _turns(system: str, interactive: bool) -> Iterator[_Turn]:
    """The user's turns: the whole of a pipe, or line by line from the terminal until /exit or Ctrl-D."""
    if not interactive:
        text = _read_pipe()
        if not text:
            raise ConfigError("standard input is empty; pipe a prompt in, or start in a terminal")
        yield _Turn(text, system, fresh=True)
        return
    fresh = True
    while True:
        try:
            line = input("\n› ").strip()
        except EOFError:
            print()
            return
        command, _, rest = line.partition(" ")
        if command in ("/exit", "/quit"):
            return
        if command in ("/reset", "/system"):
            fresh = True
            system = rest.strip() if command == "/system" else system
        elif command.startswith("/") and command[1:].isalpha():
            print(HELP)
        elif line:
            yield _Turn(line, system, fresh)
            fresh = False


def _read_pipe() -> str:
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError:
        raise ConfigError("the prompt on standard input is not valid UTF-8") from None


def _show(names: list[str], answers: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True)
    for name in names:
        table.add_column(Text(name), ratio=1, overflow="fold")
    table.add_row(*(Text(answer) for answer in answers))
    Console().print(table)
