"""Chat: one prompt to two models side by side, answers as they come, and what people say of them into the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignlab.app.context import AppContext
from alignlab.app.page import Page

_KEYS = """() => {
  const typing = (at) => at.isContentEditable || ["TEXTAREA", "SELECT"].includes(at.tagName)
    || (at.tagName === "INPUT" && !["radio", "checkbox", "range"].includes(at.type));
  const buttons = {"1": "chat-left", "0": "chat-tie", "2": "chat-right", "Escape": "chat-stop"};
  document.addEventListener("keydown", (event) => {
    const name = buttons[event.key];
    if (!name || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key !== "Escape" && typing(event.target)) return;
    const button = document.getElementById(name);
    if (button && button.offsetParent) button.click();
  });
}"""


class Parts:
    """The components of the page, made in the order in which they stand on it."""

    def __init__(self) -> None:
        import gradio as gr

        from alignlab.app.chat_handlers import VOTES
        from alignlab.app.chat_judgements import HIGHEST, LOWEST

        self.left, self.right = self._pickers()
        self.standing: list[Any] = []
        self.talks: list[Any] = []
        self.ratings: list[Any] = []
        self.notes: list[Any] = []
        with gr.Row():
            for side in ("left", "right"):
                with gr.Column(min_width=300, elem_classes="side"):
                    self.standing.append(_html(classes=["lab", "standing"]))
                    self.talks.append(_html(classes=["lab", "talks"]))
                    self.ratings.append(gr.Radio(
                        label=f"Rate the {side} answer, {LOWEST} (worst) to {HIGHEST}", elem_classes="inline",
                        choices=[(str(value), value) for value in range(LOWEST, HIGHEST + 1)],
                    ))  # fmt: skip
                    self.notes.append(gr.Textbox(
                        label=f"What is wrong with the {side} answer?", placeholder="Enter keeps the note", max_lines=4,
                    ))  # fmt: skip
        with gr.Row(elem_classes="votes"):
            self.votes = [
                gr.Button(f"{label} ({key})", elem_id=f"chat-{name}", size="sm", min_width=120)
                for name, label, key in VOTES
            ]
        self.told = _html()
        self.words = gr.Textbox(
            label="Say something to both", placeholder="Enter sends, Shift+Enter begins a line", max_lines=8,
            elem_id="chat-words",
        )  # fmt: skip
        with gr.Row():
            self.send = gr.Button("Send", variant="primary", min_width=120)
            self.stop = gr.Button("Stop (Esc)", interactive=False, elem_id="chat-stop", min_width=120)
            self.fresh = gr.Button("New conversation", min_width=120)
        self._settings()
        self.conversation = gr.State(None)

    @staticmethod
    def _pickers() -> tuple[Any, Any]:
        import gradio as gr

        with gr.Row():
            return gr.Dropdown(label="Base", choices=[]), gr.Dropdown(label="Tuned", choices=[])

    def _settings(self) -> None:
        import gradio as gr

        from alignlab.app.chat_judgements import PROJECT
        from alignlab.app.chat_session import MOST_TOKENS

        with gr.Row():
            self.name = gr.Textbox(label="Your name, kept with judgements", max_lines=1)
            self.project = gr.Textbox(label="Project of the judgements", value=PROJECT, max_lines=1)
            self.blind = gr.Checkbox(label="Hide which model is which until the vote")
            self.joint = gr.Checkbox(label="After a vote both go on from the better answer", value=True)
        with gr.Accordion("Settings", open=False), gr.Row():
            self.temperature = gr.Slider(0, 2, value=0.7, step=0.05, label="Temperature", info="0: the likeliest word")
            self.max_tokens = gr.Number(256, label="Most tokens", minimum=1, maximum=MOST_TOKENS, precision=0)
            self.seed = gr.Number(0, label="Seed", precision=0)
            self.system = gr.Textbox(label="System prompt", max_lines=6)

    @property
    def fields(self) -> list[Any]:
        """What `Said` is made of, in its order."""
        return [
            self.left, self.right, self.blind, self.joint, self.temperature, self.max_tokens, self.seed, self.system,
            self.name, self.project, self.ratings[0], self.notes[0], self.ratings[1], self.notes[1],
        ]  # fmt: skip


def _html(content: str = "", *, classes: Sequence[str] = ("lab",)) -> Any:
    import gradio as gr

    return gr.HTML(content, apply_default_css=False, elem_classes=list(classes))


def build(context: AppContext) -> None:
    """Fill the page."""
    import gradio as gr
    from gradio.context import Context

    import alignlab.lm.local  # noqa: F401  # now, in the background, and not when the first model is asked for
    from alignlab.app.chat_handlers import VOTES, Events, Handlers
    from alignlab.app.gradio_pages import on_load

    _html('<h1>Chat</h1><p class="lede">One prompt to two models; say which answer is better, and what is wrong.</p>')
    does, parts = Handlers(context), Parts()
    events = Events(does)
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    many = {**quiet, "concurrency_limit": None}
    asked: list[Any] = [parts.conversation, parts.words, *parts.fields]
    known: list[Any] = [parts.conversation, *parts.fields]
    cleared = [parts.words, *parts.ratings, *parts.notes]
    on_load(
        events.opened,
        [parts.conversation, parts.left, parts.right, *parts.standing, *parts.talks, parts.told],
        query="model",
    )
    blocks: Any = Context.root_block
    blocks.load(None, js=_KEYS)
    gr.on([parts.words.submit, parts.send.click], events.send, asked,
          [*parts.talks, parts.told, parts.send, parts.stop, parts.fresh, *cleared], **many)  # fmt: skip
    gr.on(
        [parts.left.input, parts.right.input, parts.words.focus], events.prepare, parts.fields, parts.standing, **many
    )
    parts.stop.click(events.stop, parts.conversation, None, **many)
    parts.fresh.click(events.fresh, known, [parts.conversation, *parts.talks, parts.told, *cleared], **quiet)
    for button, (vote, _, _) in zip(parts.votes, VOTES, strict=True):
        button.click(events.voter(vote), known, [*parts.talks, parts.told], **quiet)
    kept = [*(rating.input for rating in parts.ratings), *(note.submit for note in parts.notes)]
    gr.on(kept, events.keep, known, parts.told, **quiet)


PAGE = Page("/chat", "Chat", build=build)
