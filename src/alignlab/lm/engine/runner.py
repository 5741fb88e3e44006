"""From planned work to hidden states, logits and scores: the engine's only contact with the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from alignlab.lm.engine.graphs import DecodeGraphs
from alignlab.lm.engine.invariant import ROWS
from alignlab.lm.engine.paged import PagedBatch, PagedCache, Span, pass_order
from alignlab.lm.engine.prompt_graphs import PromptGraphs
from alignlab.lm.engine.recorder import Recorder
from alignlab.lm.engine.request import Job
from alignlab.lm.engine.scheduler import Work
from alignlab.lm.model import GPTModel

SCORED_ROWS = 128
"""Positions whose logits exist at the same time while a text is scored."""


class Read:
    """What a pass gave: for each piece of work the hidden states of its new tokens."""

    def __init__(self, work: Sequence[Work], hidden: Float[Tensor, "total d_model"]) -> None:
        self.work, self.hidden = work, hidden
        ends = np.cumsum([piece.n_new for piece in work]).tolist()
        self.columns = [slice(end - piece.n_new, end) for piece, end in zip(work, ends, strict=True)]

    def last_of(self, places: Sequence[int]) -> Float[Tensor, "piece d_model"]:
        """The hidden state after the last token of each piece of work in `places`."""
        if len(places) == len(self.hidden):
            return self.hidden
        index = [self.columns[place].stop - 1 for place in places]
        return self.hidden[torch.tensor(index, device=self.hidden.device)]


class Graphs:
    """Recorded passes of one model: decode steps, and prompts read from their beginning."""

    def __init__(self, model: GPTModel, cache: PagedCache, *, record: bool, compiled: bool = False) -> None:
        self.recorder = Recorder(model, active=record)
        self.decode = DecodeGraphs(self.recorder, cache, compiled=compiled)
        self.prompts = PromptGraphs(self.recorder, cache)

    def changed(self, *, moved: bool) -> None:
        """The model's weights have changed where they are, or have `moved` (or its layers are others)."""
        if moved:
            for each in (self.recorder, self.decode, self.prompts):
                each.forget()
        else:
            self.recorder.renew()


class Runner:
    """Runs passes of a model over a paged cache.

    With `invariant`, every product has a multiple of `ROWS` rows and attention adds up in a fixed order, so that a
    request's numbers are the same bit for bit under any load (`engine.invariant` says on which hardware).
    """

    def __init__(self, model: GPTModel, cache: PagedCache, *, invariant: bool, graphs: Graphs | None = None) -> None:
        self.model, self.cache, self.invariant, self.graphs = model, cache, invariant, graphs

    def read(self, work: Sequence[Work]) -> Read:
        """Read the new tokens of all work; rows that decode stand first, and where there are graphs they go apart."""
        spans = [Span(piece.job.blocks, piece.job.computed, piece.n_new) for piece in work]
        order = sorted(range(len(work)), key=lambda i: pass_order(spans[i]))
        work, spans = [work[i] for i in order], [spans[i] for i in order]
        tokens = [token for piece in work for token in new_tokens(piece)]
        n = sum(piece.n_new == 1 for piece in work)
        if self.graphs is None or n in (0, len(work)):
            return Read(work, self.hidden_states(tokens, spans))
        decoding = self.hidden_states(tokens[:n], spans[:n])
        return Read(work, torch.cat([decoding, self.hidden_states(tokens[n:], spans[n:])]))

    def hidden_states(self, tokens: Sequence[int], spans: Sequence[Span]) -> Float[Tensor, "total d_model"]:
        """The hidden states of all `tokens`, in one pass, a recorded one where there is one for `spans`."""
        if self.graphs is not None:
            if len(tokens) == len(spans):
                if self.graphs.decode.takes(spans):
                    return self.graphs.decode.run(tokens, spans)
            elif shape := self.graphs.prompts.shape(spans):
                return self.graphs.prompts.run(shape, tokens, spans)
        pad_to = ROWS if self.invariant else 1
        batch = PagedBatch.of(self.cache, spans, invariant=self.invariant, pad_to=pad_to)
        row = torch.tensor([[*tokens, *[0] * (-len(tokens) % pad_to)]], device=self.cache.device)
        return self.model.hidden_states(row, cache=batch)[0, : len(tokens)]

    def logits(self, hidden: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        """The next token's logits."""
        if self.invariant and len(hidden) % ROWS:
            return self.model.unembed(F.pad(hidden, (0, 0, 0, -len(hidden) % ROWS)))[: len(hidden)]
        return self.model.unembed(hidden)

    def scores(self, read: Read, places: Sequence[int]) -> list[list[float]]:
        """For each scoring piece of work in `places`, the log-probabilities of the scored tokens that follow its new
        ones. Only their positions are unembedded, `SCORED_ROWS` at a time."""
        hidden, targets, counts = [], list[int](), []
        for place in places:
            job, n_new, start = read.work[place].job, read.work[place].n_new, read.columns[place].start
            skipped = max(first_scored(job) - 1 - job.computed, 0)
            hidden.append(read.hidden[start + skipped : start + n_new])
            targets.extend(job.tokens[job.computed + skipped + 1 : job.computed + n_new + 1])
            counts.append(max(n_new - skipped, 0))
        rows, wanted = torch.cat(hidden), torch.tensor(targets, device=self.cache.device)
        found: list[float] = []
        for part, target in zip(rows.split(SCORED_ROWS), wanted.split(SCORED_ROWS), strict=True):
            if len(part):
                logits = self.logits(part).float()
                found.extend((logits.gather(1, target[:, None]).squeeze(1) - logits.logsumexp(-1)).tolist())
        ends = np.cumsum(counts).tolist()
        return [found[end - count : end] for end, count in zip(ends, counts, strict=True)]


def new_tokens(work: Work) -> list[int]:
    """The tokens that a piece of work reads."""
    return work.job.tokens[work.job.computed : work.job.computed + work.n_new]


def first_scored(job: Job) -> int:
    """Index of the first token whose log-probability is asked for."""
    assert job.request.score_from is not None
    return job.request.score_from
