"""Files and forms of the page *Preferences*: questions in, preferences out."""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.app.judging_messages import Message, Reply, take
from alignlab.app.kept_store import KeptStore
from alignlab.core.errors import DataError, FeedbackError

if TYPE_CHECKING:
    from alignlab.align.preference_data.importing import ImportReport
    from alignlab.align.preference_data.judgement import Kind
    from alignlab.core.store import Store

LARGEST_FILE = 64 * 2**20
"""Bytes; the command line takes and writes larger ones."""
EXPORTS = {
    "trl": ("TRL, JSON lines", "trl", ".jsonl"),
    "trl-parquet": ("TRL, Parquet", "trl", ".parquet"),
    "trl-conversational": ("TRL as messages, JSON lines", "trl-conversational", ".jsonl"),
    "hh-rlhf": ("HH-RLHF, JSON lines", "hh-rlhf", ".jsonl"),
    "ultrafeedback": ("UltraFeedback binarized, Parquet", "ultrafeedback", ".parquet"),
    "judgements": ("All judgements, JSON lines", "judgements", ".jsonl"),
}
"""What can be downloaded: what it is called, the format, the suffix of the file."""
KINDS = {"pair": "which answer is better", "ranking": "all answers in order", "rating": "each answer from 1 to 5"}
_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
_BROKEN_SHOWN = 20


class FileDesk:
    """Adds questions and gives files out."""

    def __init__(self, kept: KeptStore) -> None:
        self._kept = kept

    def add(self, message: Message) -> Reply:
        """Put one question that was typed into a project, which is new if there is none of the name."""
        from alignlab.align.preference_data.collector import PreferenceCollector
        from alignlab.align.preference_data.questions import Question

        project, answers = _project(message), message.get("answers")
        if not isinstance(answers, list) or not all(isinstance(one, str) for one in answers):
            raise FeedbackError(f"answers is {answers!r:.60}, allowed: a list of texts")
        filled = tuple(one for one in answers if one.strip())
        question = Question(take(message, "prompt"), filled, _kind(message) or "pair")
        with self._kept.use(create=True) as store:
            new = PreferenceCollector(store, project=project, annotator="nobody").add([question])
        said = "1 question was added" if new else "That question was there already"
        return {"project": project, "said": f"{said}.", "left_out": []}

    def take_file(self, message: Message) -> Reply:
        """Take the rows of a file: as questions to ask afresh, or with what the file prefers (`keep`)."""
        project, name = _project(message), take(message, "file")
        suffix = next((one for one in sorted(_SUFFIXES, key=len, reverse=True) if name.lower().endswith(one)), None)
        if suffix is None:
            raise DataError(f"{name} has no suffix that is known, allowed: {', '.join(_SUFFIXES)}")
        content = _content(message)
        with tempfile.TemporaryDirectory(prefix="alignlab-") as folder:
            path = Path(folder) / f"uploaded{suffix}"
            path.write_bytes(content)
            try:
                with self._kept.use(create=True) as store:
                    report = self._taken(store, path, project, message)
            except DataError as error:
                raise DataError(str(error).replace(str(path), name).replace("with skip_broken", "as ticked")) from None
        new = f"{report.comparisons} new questions, {report.judgements} new judgements"
        there = f", {report.repeated} there already" if report.repeated else ""
        said = f"{report.rows} rows of {report.format}: {new}{there}, {len(report.left_out)} left out."
        left_out = [f"{row.where}: {row.reason}" for row in report.left_out[:_BROKEN_SHOWN]]
        return {"project": project, "said": said, "left_out": left_out}

    def _taken(self, store: Store, path: Path, project: str, message: Message) -> ImportReport:
        from alignlab.align.preference_data.importing import import_preferences

        skip = message.get("skip_broken") is True
        if message.get("keep") is True:
            return import_preferences(store, path, project=project, skip_broken=skip)
        return ask_afresh(store, path, project, kind=_kind(message), skip_broken=skip)

    def give_file(self, message: Message) -> Reply:
        """The preferences of a project as a file."""
        from alignlab.align.preference_data.collector import PreferenceCollector
        from alignlab.align.preference_data.exporting import export_preferences

        project, wanted = _project(message), message.get("format")
        if wanted not in EXPORTS:
            raise FeedbackError(f"format is {wanted!r:.40}, allowed: {', '.join(EXPORTS)}")
        _, form, suffix = EXPORTS[str(wanted)]
        name = (re.sub(r"[^\w.-]+", "-", project).strip("-.") or "preferences") + f"-{form}{suffix}"
        with self._kept.use() as store, tempfile.TemporaryDirectory(prefix="alignlab-") as folder:
            path = Path(folder) / f"export{suffix}"
            collector = PreferenceCollector(store, project=project, annotator="nobody")
            rows = export_preferences(collector, path, form)  # type: ignore[arg-type]  # one of EXPORTS
            content = path.read_bytes()
        if len(content) > LARGEST_FILE:
            raise DataError(f"{name} is too large for a browser, use: alignlab preferences export --project {project}")
        encoded = base64.b64encode(content).decode()
        return {"name": name, "content": encoded, "said": f"{rows} rows in {name}."}


def ask_afresh(store: Store, path: Path, project: str, *, kind: Kind | None, skip_broken: bool) -> ImportReport:
    """The questions of a file without what it prefers; of another `kind` than the file's where one is given.

    Raises DataError for broken rows unless `skip_broken`, as `import_preferences`.
    """
    from alignlab.align.preference_data.collector import PreferenceCollector
    from alignlab.align.preference_data.importing import ImportReport
    from alignlab.align.preference_data.questions import Question
    from alignlab.align.preference_data.reading import BrokenRow, read_preferences, refuse_broken

    reading = read_preferences(path)
    broken = list(reading.broken)
    questions: dict[str, Question] = {}
    for where, row in reading.rows:
        try:
            question = Question(row.prompt, row.responses, row.kind, row.models, row.about)
            if kind is not None:
                question = replace(question, kind=kind)
            questions.setdefault(question.id(project), question)
        except FeedbackError as error:
            broken.append(BrokenRow(where, str(error)))
    broken.sort(key=lambda row: int(row.where.split()[-1]))
    if not skip_broken:
        refuse_broken(reading, tuple(broken))
    new = PreferenceCollector(store, project=project, annotator="nobody").add(list(questions.values()))
    rows = len(reading.rows) + len(reading.broken)
    return ImportReport(reading.format, rows, new, 0, rows - len(broken) - new, tuple(broken))


def _project(message: Message) -> str:
    from alignlab.align.preference_data.judgement import check_name

    return check_name(take(message, "project"), "the project")


def _kind(message: Message) -> Kind | None:
    kind = message.get("kind") or None
    if kind is not None and kind not in KINDS:
        raise FeedbackError(f"kind is {kind!r:.40}, allowed: {', '.join(KINDS)}")
    return kind


def _content(message: Message) -> bytes:
    content = message.get("content")
    try:
        found = base64.b64decode(content if isinstance(content, str) else "", validate=True)
    except binascii.Error:
        found = b""
    if not found:
        raise DataError("the file is empty")
    if len(found) > LARGEST_FILE:
        raise DataError(f"the file is larger than {LARGEST_FILE // 2**20} MB, use: alignlab preferences import")
    return found
