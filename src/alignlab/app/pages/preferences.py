"""Preferences: a person compares answers, blind and by keyboard; every judgement is stored before the next question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignlab.app.context import AppContext
from alignlab.app.page import Page

SCRIPT = Path(__file__).parents[1] / "judging.js"
ORDERS = {
    "given": "as they were added",
    "adaptive": "what tells most first",
    "models": "what tells most of the models first",
}


def shell(*, adding: bool = True) -> str:
    """The page without its data; without the forms that add questions where a training asks them."""
    return "".join((_SEAT, _JUDGING, _adding() if adding else "", _export()))


def _options(found: dict[str, str], empty: str | None = None) -> str:
    first = "" if empty is None else f'<option value="">{empty}</option>'
    return first + "".join(f'<option value="{value}">{words}</option>' for value, words in found.items())


_SEAT = f"""
<details data-seating open><summary data-seated>Who judges what</summary>
<form class="fields" data-seat>
<label><span>Project</span><select name="project" required></select></label>
<label><span>Your name</span><input name="name" required maxlength="200" autocomplete="nickname"></label>
<label><span>Order</span><select name="order">{_options(ORDERS)}</select></label>
<button class="main" data-begin>Begin</button>
</form></details>
<p class="soft" data-empty hidden>There is no project yet: make one below.</p>
<div class="box notice" role="alert" tabindex="-1" data-complaint hidden><p data-complaint-text></p>
<button type="button" data-again hidden>Try again</button></div>
"""

_JUDGING = """
<div data-judging hidden>
<div class="progress" data-progress></div>
<p class="status" role="status" data-status></p>
<div data-desk></div>
<label class="why" data-why><span>Why? (optional, key r; Esc leaves the field)</span>
<textarea rows="2" maxlength="20000" data-reason></textarea></label>
<label class="tick keys"><input type="checkbox" data-keys checked> Keyboard shortcuts</label>
<section data-agreement-box hidden><h2>Agreement</h2><div data-agreement></div></section>
</div>
"""


def _adding() -> str:
    from alignlab.app.judging_files import KINDS

    kinds = _options(KINDS)
    return f"""
<details class="box" data-adding><summary>New project, or more questions</summary>
<h3>From a file</h3>
<p class="soft">Pairs or answers as .jsonl, .jsonl.gz, .json or .parquet: HH-RLHF, UltraFeedback, TRL, OpenAI's
comparisons of summaries, SHP, or all judgements of another database.</p>
<form class="fields" data-upload>
<label><span>Name of the project</span><input name="project" required maxlength="200"></label>
<label><span>File</span><input name="file" type="file" required accept=".jsonl,.gz,.json,.parquet"></label>
<label><span>What people are asked</span><select name="kind">{_options(KINDS, "as the file has it")}</select></label>
<label class="tick"><input type="checkbox" name="keep"> Keep what the file prefers, as judgements of “imported”</label>
<label class="tick"><input type="checkbox" name="skip"> Leave broken rows out instead of refusing the file</label>
<button type="submit">Add the file</button>
</form><div class="told" role="status" data-upload-told></div>
<h3>By hand</h3>
<form class="fields" data-typed>
<label><span>Name of the project</span><input name="project" required maxlength="200"></label>
<label><span>What people are asked</span><select name="kind">{kinds}</select></label>
<label class="wide"><span>Prompt</span><textarea name="prompt" rows="2" required></textarea></label>
<label class="wide"><span>Answer 1</span><textarea rows="2" data-answer></textarea></label>
<label class="wide"><span>Answer 2</span><textarea rows="2" data-answer></textarea></label>
<button type="button" data-more>One more answer</button>
<button type="submit">Add the question</button>
</form><div class="told" role="status" data-typed-told></div>
</details>
"""


def _export() -> str:
    from alignlab.app.judging_files import EXPORTS

    formats = _options({key: words for key, (words, _, _) in EXPORTS.items()})
    return f"""
<details class="box"><summary>Export</summary>
<p class="soft">Training pairs of the project chosen above, each with the share of votes for the better answer; equal
votes are left out.</p>
<form class="fields" data-export>
<label><span>Format</span><select name="format">{formats}</select></label>
<button type="submit">Download</button>
</form><div class="told" role="status" data-export-told></div>
</details>
"""


def build(context: AppContext) -> None:
    """Fill the page."""
    import gradio as gr

    from alignlab.app.judging_data import Desk
    from alignlab.app.kept_store import KeptStore

    desk = Desk(KeptStore(context.store_url))

    def act(message: Any) -> Any:
        return desk.act(message)

    html: dict[str, Any] = {"apply_default_css": False, "elem_classes": "lab"}
    gr.HTML(
        '<h1>Preferences</h1><p class="lede">Which answer is better? Blind, shuffled, and stored at once.</p>',
        **html,
    )
    gr.HTML(shell(), js_on_load=SCRIPT.read_text(encoding="utf-8"), server_functions=[act], **html)


PAGE = Page("/preferences", "Preferences", build=build)
