"""What the page *Clips* asks the server for: what *Preferences* does, for projects of clips alone, and it waits."""

from __future__ import annotations

from alignlab.align.preference_data.collector import PreferenceCollector
from alignlab.app.judging_data import Desk
from alignlab.app.judging_messages import Message, Reply
from alignlab.app.markup import text

EVERY_SECONDS = 2
"""How often a page with nothing to show asks again."""


class ClipDesk(Desk):
    """Answers the messages of all who judge clips."""

    def open(self, message: Message) -> Reply:
        """The projects that hold clips."""
        from alignlab.align.preference_data.tables import COMPARISONS
        from alignlab.core.store.orm import func, select

        if not self.kept.exists():
            return {"projects": []}
        # A training puts nothing but clips into its project, so the first question tells.
        first = select(func.min(COMPARISONS.c.number)).group_by(COMPARISONS.c.project)
        wanted = select(COMPARISONS.c.project, COMPARISONS.c.about).where(COMPARISONS.c.number.in_(first))
        with self.kept.use() as store, store.snapshot() as session:
            rows = list(session.execute(wanted.order_by(COMPARISONS.c.project)))
        return {"projects": [row.project for row in rows if "clips" in (row.about or {})]}

    def _next(self, collector: PreferenceCollector, current: object = None) -> Reply:
        reply = super()._next(collector, current)
        if reply["task"] is not None:
            return reply
        waiting = (
            '<div class="box next"><h2 class="question" tabindex="-1">Nothing to judge right now</h2><p>The training '
            f"of {text(collector.project)} goes on with what was said. New clips appear here by themselves.</p></div>"
        )
        return {**reply, "html": waiting, "wait": EVERY_SECONDS}
