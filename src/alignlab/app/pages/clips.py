"""Clips: a person says which of two clips of a control task is better, and the training that waits goes on with it."""

from __future__ import annotations

from typing import Any

from alignlab.app.context import AppContext
from alignlab.app.page import Page

_LEDE = (
    "Which clip is closer to what the task is for? Pairs come from "
    "<code>alignlab reward trajectories --teacher human</code>, which waits for what is said here."
)


def build(context: AppContext) -> None:
    """Fill the page."""
    import gradio as gr

    from alignlab.app.clip_desk import ClipDesk
    from alignlab.app.kept_store import KeptStore
    from alignlab.app.pages.preferences import SCRIPT, shell

    desk = ClipDesk(KeptStore(context.store_url))

    def act(message: Any) -> Any:
        return desk.act(message)

    html: dict[str, Any] = {"apply_default_css": False, "elem_classes": "lab"}
    gr.HTML(f'<h1>Clips</h1><p class="lede">{_LEDE}</p>', **html)
    gr.HTML(shell(adding=False), js_on_load=SCRIPT.read_text(encoding="utf-8"), server_functions=[act], **html)


PAGE = Page("/clips", "Clips", build=build)
