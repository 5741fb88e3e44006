"""From a study to a run: the record, the findings and a report that opens in any browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.core.config import require, to_dict
from alignlab.core.errors import RunError
from alignlab.core.files import read_json
from alignlab.core.progress import SILENT, Progress
from alignlab.core.runs import Run
from alignlab.studies.findings import Claim, Findings, Verdict
from alignlab.studies.study import SCALES, Scale, Study

if TYPE_CHECKING:
    from alignlab.viz.page import Page

FINDINGS = "findings.json"
REPORT = "report.html"
_SMOKE = "At the smoke scale a study shows that it works, on data and models too small to decide what it asks."
_BADGES: dict[Verdict, str] = {"confirmed": "pass", "failed": "fail", "tied": "tied", "untested": "not tested"}


def run_study(
    study: Study,
    scale: Scale,
    *,
    seed: int = 0,
    path: str | Path | None = None,
    root: str | Path | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Run `study` and record it: stages, `artifacts/findings.json` and `report.html`. Returns the run's directory.

    An existing run in `path` is gone on with where it stopped: its study, scale, seed and options must be the same
    (ConfigError names what differs). Raises ConfigError for an unknown scale and whatever `study.check` refuses, before
    there is a directory.
    """
    require(scale in SCALES, "scale", scale, ", ".join(SCALES))
    study.check(scale)
    config = {"study": study.name, "scale": scale, "seed": seed, "options": to_dict(study)}
    if path is not None and Path(path).exists():
        run = Run.open(path, config=config)
        progress.say(f"going on with {path}")
    else:
        run = Run.create(config, name=f"study-{study.name}", seed=seed, path=path, root=root)
    with run:
        findings = study.run(scale, seed, progress, stage=run.stage)
        run.write_artifact(FINDINGS, findings.to_dict())
        write_report(run, study)
    return run.path


def read_findings(path: str | Path) -> Findings:
    """The findings of a finished study's run; RunError where the run is of something else or not finished."""
    run = Run.read(path)
    if "study" not in run.config_dict:
        raise RunError(f"the run {path} is not of a study; `alignlab runs show` shows any run")
    record = run.artifacts / FINDINGS
    if not record.is_file():
        raise RunError(f"the run {path} has no findings yet, its state is {run.state}")
    return Findings.from_dict(read_json(record))


def write_report(run: Run, study: Study | type[Study]) -> Path:
    """Make `report.html` from the findings that the run recorded."""
    page = report_page(study, run, Findings.from_dict(read_json(run.artifacts / FINDINGS)))
    return page.save(run.path / REPORT)


def report_page(study: Study | type[Study], run: Run, findings: Findings) -> Page:
    """The report: question, verdicts, figures, tables, texts, method, and what produced it."""
    from alignlab.viz.markup import Badge
    from alignlab.viz.page import Page

    scale = run.config_dict["scale"]
    page = Page(study.question, f"What the source says: {study.claim} ({study.source})")
    page.text(findings.summary)
    if scale == "smoke":
        page.text(_SMOKE)
    page.heading("Claims and verdicts")
    rows = [
        (
            claim.statement,
            f"{claim.expected} ({claim.source})",
            claim.observed,
            claim.unit,
            Badge(_BADGES[claim.verdict]),
            claim.note,
        )
        for claim in findings.claims
    ]
    page.table(("claim", "expected", "observed", "of", "verdict", "note"), rows, caption=_tally(findings.claims))
    if findings.figures:
        page.heading("Figures")
        for figure in findings.figures:
            page.heading(figure.title, level=3).figure(figure.figure, figure.caption or figure.title)
    if findings.tables:
        page.heading("Tables")
        for table in findings.tables:
            page.heading(table.title, level=3).table(table.columns, table.rows, caption=table.caption or None)
    if findings.examples:
        page.heading("Texts")
        page.side_by_side([{"title": title, "columns": columns} for title, columns in findings.examples])
    page.heading("Method")
    for paragraph in findings.method:
        page.text(paragraph)
    page.details("Settings and machine", _settings(run))
    return page.footer(f"alignlab study {study.name}, scale {scale}, seed {run.seed}")


def summary_lines(path: str | Path) -> list[str]:
    """What a study's run found, one line a claim, and where its report is, for a terminal."""
    findings, scale = read_findings(path), Run.read(path).config_dict["scale"]
    width = max((len(claim.verdict) for claim in findings.claims), default=0)
    lines = [findings.summary, ""]
    for claim in findings.claims:
        observed = "" if claim.observed is None else f"  {claim.observed} {claim.unit}"
        lines.append(f"{claim.verdict:<{width}}  {claim.statement}{observed}")
    if scale == "smoke":
        lines += ["", _SMOKE]
    return [*lines, "", f"run     {path}", f"report  {Path(path) / REPORT}"]


def _tally(claims: tuple[Claim, ...]) -> str:
    counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in _BADGES}
    words = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return f"{words}. A failed claim is a result." if claims else "No claims."


def _settings(run: Run) -> str:
    lines = [f"{key}: {value}" for key, value in _flat(run.config_dict)]
    environment = run.environment()
    lines += [f"{key}: {value}" for key, value in _flat(environment)]
    for record in run.stages().values():
        lines.append(f"stage {record.name}: {record.seconds:.2f} s")
    return "\n".join(lines)


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found
