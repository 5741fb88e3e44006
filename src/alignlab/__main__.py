"""The `alignlab` command: one table from names to functions, each imported only when it is called."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import sys

from alignlab.core.actions import call, listed
from alignlab.core.errors import AlignlabError

COMMANDS: dict[str, tuple[str, str]] = {
    "align": ("alignlab.align.cli:align", "align a model with a constitution, end to end, with a report"),
    "chat": ("alignlab.lm.chat:chat", "talk to a model in the terminal"),
    "compare": ("alignlab.lm.chat:compare", "put the same prompt to two models, side by side"),
    "data": ("alignlab.align.sft_filter_cli:data", "fetch texts, make token shards, filter what is fine-tuned on"),
    "tokenize": ("alignlab.lm.data_cli:tokenize", "turn texts into token shards for training"),
    "pretrain": ("alignlab.lm.pretrain_cli:pretrain", "train a language model from scratch"),
    "sft": ("alignlab.align.sft_cli:sft", "fine-tune a model on conversations or completions"),
    "prefer": ("alignlab.align.direct.cli:prefer", "learn from preferences: DPO, IPO, KTO, ORPO, SimPO"),
    "rlhf": ("alignlab.align.rlhf.cli:rlhf", "SFT, reward model, PPO, GRPO, RLOO or REINFORCE, with a report"),
    "eval": ("alignlab.tasks.eval_cli:evaluate_command", "evaluate models, compare them, gate on the result"),
    "eval-lm": ("alignlab.tasks.eval_lm_cli:eval_lm", "score a model on text: perplexity, bits per byte"),
    "dynamics": ("alignlab.lm.dynamics_cli:dynamics", "a report of what happened inside a training"),
    "study": ("alignlab.studies.cli:study", "experiments that test what papers claim"),
    "bench": ("alignlab.lm.bench_cli:bench", "measure how fast a model generates on this machine"),
    "quantise": ("alignlab.lm.quant_cli:quantise", "weights in 8 or 4 bits: error, size, GGUF files"),
    "models": ("alignlab.lm.models_cli:models", "list, pull, show and export models"),
    "app": ("alignlab.app.cli:app", "the web app: runs, evaluations, preferences in the browser"),
    "preferences": (
        "alignlab.align.preference_data.cli:preferences",
        "collect, import and export preferences, see who agrees",
    ),
    "reward": ("alignlab.align.reward.cli:reward", "train, validate and score with reward models"),
    "diagnose": ("alignlab.align.diagnostics.cli:diagnose", "what looks wrong in a training against a reward"),
    "sweep": ("alignlab.research.sweep.cli:sweep", "a command or a function over settings and seeds, in a table"),
    "pareto": ("alignlab.align.objectives.cli:pareto", "several objectives: the front of a sweep, with intervals"),
    "runs": ("alignlab.core.runs_cli:runs", "list runs, show one, open its report"),
    "report": ("alignlab.align.cli:report", "write the report of an alignment run again"),
}


def usage() -> str:
    """The text of `alignlab --help`."""
    return (
        "usage: alignlab COMMAND [ARGUMENTS]\n\n"
        "An alignment laboratory: bring a model, align it, measure what changed, talk to it.\n\n"
        f"{listed(COMMANDS)}\n\n"
        "`alignlab COMMAND --help` explains one command; `alignlab --version` prints the version."
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for a mistake of the user's, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        return _dispatch(arguments)
    except AlignlabError as error:
        return _say(f"alignlab: {' '.join(str(error).split())}", 2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        advice = "lower the batch size or the length, take a smaller model, or --device cpu"
        return _say(f"alignlab: the GPU is out of memory: {advice}. It said: {str(error).splitlines()[0]}", 2)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # The reader of our output is gone (`alignlab runs list | head`); Python would complain once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f" for {error.filename}" if error.filename else ""
        return _say(f"alignlab: the disk is full, there is no room{place}; what was saved before is intact", 2)
    except KeyboardInterrupt:
        return _say("alignlab: stopped; a run goes on from here when the same command is given again", 130)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, *rest = arguments
    if name in ("-V", "--version"):
        from alignlab import __version__

        print(f"alignlab {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(COMMANDS)}"
        return _say(f"alignlab: unknown command {name!r}, {hint}", 2)
    return call(COMMANDS[name][0], rest)


def _say(sentence: str, code: int) -> int:
    if sys.stderr is not None:  # print would go to stdout then
        with contextlib.suppress(OSError, ValueError):  # if stderr is closed, the exit code still tells
            print(sentence, file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
