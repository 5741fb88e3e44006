"""Optional packages: import one, or say which command installs it."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from alignlab.core.errors import MissingExtraError


def has_pip() -> bool:
    """Whether this Python has pip, without looking for its module.

    On Python 3.11 a search for the module `pip` makes every later import of setuptools fail in this process, and with
    it `torch.compile`.
    """
    try:
        version("pip")
    except PackageNotFoundError:
        return False
    return True


def import_extra(module: str, extra: str) -> ModuleType:
    """Import `module`, which the optional dependency group `extra` brings.

    Raises MissingExtraError naming the pip command when the module's own top-level package is not installed; an
    ImportError from inside an installed package is passed on, since installing the extra again would not help.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top_level = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top_level:
            raise
        raise MissingExtraError(
            f"{top_level} is not installed, install it with: pip install 'alignlab[{extra}]'"
        ) from error
