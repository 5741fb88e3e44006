"""The pages of the app, in the order of the navigation. A new page is a module with a `PAGE` and a line here."""

from __future__ import annotations

import importlib

from alignlab.app.page import Page
from alignlab.core.errors import ConfigError

MODULES: tuple[str, ...] = (
    "alignlab.app.pages.home",
    "alignlab.app.pages.runs",
    "alignlab.app.pages.training",
    "alignlab.app.pages.tradeoffs",
    "alignlab.app.pages.preferences",
    "alignlab.app.pages.clips",
    "alignlab.app.pages.chat",
    "alignlab.app.pages.evaluate",
)
"""Modules that hold a `PAGE`; each imports its heavy parts only when it is built."""


def pages(modules: tuple[str, ...] = MODULES) -> tuple[Page, ...]:
    """The pages, in order; ConfigError where two share a path or one takes a path of the server's own."""
    found = tuple(importlib.import_module(module).PAGE for module in modules)
    taken: dict[str, str] = {}
    for page in found:
        if page.path in taken:
            raise ConfigError(f"the pages {taken[page.path]!r} and {page.title!r} share the path {page.path!r}")
        if page.path in RESERVED:
            raise ConfigError(f"the page {page.title!r} takes {page.path!r}, which the server needs for itself")
        taken[page.path] = page.title
    return found


RESERVED = (
    "/files", "/enter", "/health", "/style", "/assets", "/static", "/config", "/gradio", "/login", "/logout",
)  # fmt: skip
"""Paths that are no page's: the server's own and Gradio's."""
