"""Figures, generation quality and example texts of `autoregressive_families`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from alignlab.core.errors import DataError
from alignlab.core.rng import derive_seed
from alignlab.stats.interval import Interval
from alignlab.studies.family_plan import Bytes, Corpus, Plan
from alignlab.studies.findings import Table
from alignlab.tasks.mauve import mauve, ngram_features
from alignlab.tasks.text_quality import distinct_n, repetition_rate, self_bleu
from alignlab.viz.theme import COLOURWAY, INK, label, styled, whiskers

NAMES = {"ngram": "n-gram", "lstm": "LSTM", "transformer": "transformer"}
COLOURS = {"n-gram": COLOURWAY[1], "LSTM": COLOURWAY[2], "transformer": COLOURWAY[3]}
_SHOWN = 3
"""Prompts whose continuations the report prints."""
_CONTROL = {code: "�" for code in (*range(32), 127) if chr(code) not in "\n\t"}


def curve(
    series: Mapping[str, Sequence[tuple[float, Interval]]], x_label: str, *, level: tuple[str, float] | None = None
) -> go.Figure:
    """Bits per byte with intervals over a logarithmic axis, one line a family; `level` draws a dotted one across."""
    figure = go.Figure()
    if level is not None:
        figure.add_hline(y=level[1], line={"color": INK, "dash": "dot", "width": 1.5}, annotation_text=label(level[0]))
    for name, points in series.items():
        figure.add_scatter(
            name=label(name),
            x=[x for x, _ in points],
            y=[cell.estimate for _, cell in points],
            error_y=whiskers([cell for _, cell in points], colour=None),
            mode="lines+markers",
            line={"width": 2, "color": COLOURS.get(name, INK)},
            hovertemplate=f"{label(name)}<br>%{{x:.3g}}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    # The measured amounts are the ticks: on a logarithmic axis Plotly would print bare digits between powers of ten.
    ticks = sorted({x for points in series.values() for x, _ in points})
    texts = [f"{x:,.0f}" if x < 1e6 else f"{x:.1e}".replace("e+", "e") for x in ticks]
    figure.update_xaxes(title={"text": label(x_label)}, type="log", showgrid=False, tickvals=ticks, ticktext=texts)
    figure.update_yaxes(title={"text": "bits per byte"})
    return styled(figure)


def quality_table(corpus: Corpus, plan: Plan, chosen: Mapping[str, Sequence[Mapping[str, Any]]], seed: int) -> Table:
    """Diversity, repetition and MAUVE of each family's continuations (mean over seeds), beside the text's own."""
    human = [text_of(row) for row in corpus.continuations(plan)]
    sets: dict[str, list[list[str]]] = {
        "the text itself": [human],
        "other parts of the text": [[text_of(row) for row in corpus.elsewhere(plan)]],
        **{NAMES[family]: [list(record["samples"]) for record in records] for family, records in chosen.items()},
    }
    reference = ngram_features(human)
    rows: list[tuple[str | float | None, ...]] = []
    for name, by_seed in sets.items():
        scores = [_quality(texts, reference, derive_seed(seed, "mauve"), own=texts is human) for texts in by_seed]
        means = [_mean([score[i] for score in scores]) for i in range(len(scores[0]))]
        rows.append((name, *means))
    caption = (
        f"{plan.samples} continuations of {plan.sample_bytes} bytes each, drawn at temperature 1, nothing filtered, "
        "from the models with the most text at equal data; words are what spaces part. MAUVE is on hashed "
        "character n-grams and so is not comparable with published scores; the second row is what human text scores."
    )
    columns = ("text", "distinct-1", "distinct-2", "distinct-3", "self-BLEU", "repeated 2-grams", "MAUVE")
    return Table("Quality of generated text", columns, tuple(rows), caption)


def side_by_side(
    corpus: Corpus, plan: Plan, chosen: Mapping[str, Mapping[str, Any]]
) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """A few prompts with the text's own continuation and each family's."""
    prompts, human = corpus.prompts(plan), corpus.continuations(plan)
    found = []
    for i in np.linspace(0, len(prompts) - 1, min(_SHOWN, len(prompts))).astype(int):
        columns = [("the text itself", text_of(human[i]))]
        columns += [(NAMES[family], str(record["samples"][i])) for family, record in chosen.items()]
        title = " ".join(text_of(prompts[i]).split())
        found.append((f"… {title} …", tuple((name, text.translate(_CONTROL)) for name, text in columns)))
    return tuple(found)


def text_of(row: Bytes) -> str:
    """Bytes as text; a character cut at an end becomes a replacement character."""
    return bytes(row.astype(np.uint8)).decode("utf-8", "replace")


def _quality(texts: Sequence[str], reference: Any, seed: int, *, own: bool) -> tuple[float | None, ...]:
    words = [text.split() for text in texts]
    scores: list[float | None] = []
    for measure in (
        lambda: distinct_n(words, 1),
        lambda: distinct_n(words, 2),
        lambda: distinct_n(words, 3),
        lambda: self_bleu(words),
        lambda: repetition_rate(words, 2),
    ):
        try:
            scores.append(measure())
        except DataError:  # texts without a single run of so many words
            scores.append(None)
    scores.append(None if own else mauve(reference, ngram_features(texts), seed=seed).score)
    return tuple(scores)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
