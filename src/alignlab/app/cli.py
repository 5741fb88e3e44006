"""`alignlab app`: start the web app on this machine, or for others who have the token."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import socket
from pathlib import Path
from typing import NoReturn

from alignlab.core.errors import ConfigError, MissingExtraError
from alignlab.core.files import runs_dir

TOKEN_VARIABLE = "ALIGNLAB_APP_TOKEN"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message} (see {self.prog} --help)")


def app(argv: list[str]) -> int:
    """The `alignlab app` command; returns its exit code."""
    # argparse and not a config class: the first page is to be there in a blink, and nothing of this is a run's.
    parser = _Parser(prog="alignlab app", description="Start the web app; Ctrl-C ends it.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: for others too, by token")
    parser.add_argument("--port", type=_port, default=7860, help="0 takes any free one (default: 7860)")
    parser.add_argument("--token", help=f"what others must show (default: ${TOKEN_VARIABLE}, else a fresh one)")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="folder of runs (default: $ALIGNLAB_RUNS or ./runs)")
    parser.add_argument(
        "--store",
        metavar="URL",
        help="database of judgements (default: $ALIGNLAB_STORE, else alignlab.db among the runs)",
    )
    parser.add_argument("--model", action="append", default=[], help="offer this model; may be given several times")
    options = parser.parse_args(argv)
    for module in ("uvicorn", "gradio"):  # looked for, not imported: that comes in the background
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"{module} is not installed, install it with: pip install 'alignlab[app]'")
    from alignlab.app.access import choose_token
    from alignlab.app.context import AppContext
    from alignlab.app.server import create_app, listen, serve

    runs = options.runs if options.runs is not None else runs_dir()
    if runs.exists() and not runs.is_dir():
        raise ConfigError(f"--runs is {str(runs)!r}, allowed: a folder")
    given = options.token if options.token is not None else os.environ.get(TOKEN_VARIABLE)
    token = choose_token(options.host, given)
    context = AppContext(runs.absolute(), options.store, tuple(options.model) or None)
    listening = listen(options.host, options.port)
    with contextlib.closing(listening), contextlib.suppress(KeyboardInterrupt):
        print(f"alignlab app: {address(options.host, listening.getsockname()[1], token)}", flush=True)
        serve(create_app(context, token=token), listening)
    return 0


def address(host: str, port: int, token: str | None) -> str:
    """What to open in a browser; for a server that listens everywhere, under this machine's name."""
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        port = -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r}, allowed: a whole number from 0 to 65535")
    return port
