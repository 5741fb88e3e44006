"""`LSTMModel`: a recurrent language model whose cell is written out here, with PyTorch's fused kernel as the fast path.

It has what the trainer's language-modelling loss asks of a model (`hidden_states`, `head_weight`, `config`), so an LSTM
and a transformer are trained by the same loop on the same batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from alignlab.core.config import require
from alignlab.core.errors import ModelError
from alignlab.core.rng import torch_generator
from alignlab.lm.sampling import argmax, draw

State = tuple[Tensor, Tensor]
"""Output h and memory c of every layer, each (layers, batch, d_model)."""


@dataclass(frozen=True)
class LSTMConfig:
    """Shape of an LSTM language model."""

    vocab_size: int = 256
    """Rows of the embedding matrix."""
    d_model: int = 128
    """Width of the embedding and of every layer's state."""
    n_layers: int = 2
    """Layers on top of each other."""
    dropout: float = 0.0
    """Dropped between layers, and before the first and after the last, never in time (Zaremba et al. 2014)."""
    tie_embeddings: bool = True
    """The unembedding is the embedding matrix (Press & Wolf 2017)."""
    logit_softcap: float | None = None
    """Logits become `c * tanh(logits / c)`."""
    kernel: Literal["fused", "explicit"] = "fused"
    """`fused` is PyTorch's kernel; `explicit` walks over time with `lstm_cell`. They give the same numbers."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive whole number")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a number from 0 to below 1")
        cap = self.logit_softcap
        require(cap is None or cap > 0, "logit_softcap", cap, "a positive number or none")
        require(self.kernel in ("fused", "explicit"), "kernel", self.kernel, "fused, explicit")


def lstm_cell(
    gates_in: Float[Tensor, "batch four_d"],
    h: Float[Tensor, "batch d"],
    c: Float[Tensor, "batch d"],
    weight_hh: Float[Tensor, "four_d d"],
) -> tuple[Float[Tensor, "batch d"], Float[Tensor, "batch d"]]:
    """One step of an LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    `gates_in` is `W x + b`, which does not depend on the past and so is computed for all times at once. In the order
    of the rows of the weights:

        i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of (W x + b + U h)
        c' = f * c + i * g          h' = o * tanh(c')
    """
    i, f, g, o = (gates_in + h @ weight_hh.T).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


class LSTMModel(nn.Module):
    """Token ids in, next-token logits out; reads sequences of any length.

    `seed` makes the initial weights reproducible: uniform within 1/√d_model in the layers, normal with that deviation
    in the embedding, forget gates open with a bias of 1 (Jozefowicz et al. 2015).
    """

    def __init__(self, config: LSTMConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        self.embed = nn.Embedding(config.vocab_size, d)
        # Holds the weights of all layers and the fused kernel; `_explicit` reads the same weights.
        self.lstm = nn.LSTM(d, d, config.n_layers, dropout=self._dropout_between, batch_first=True)
        self.head = None if config.tie_embeddings else nn.Linear(d, config.vocab_size, bias=False)
        self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw fresh weights."""
        generator = torch_generator(seed)
        bound = self.config.d_model**-0.5
        for name, parameter in self.named_parameters():
            if name.startswith(("embed", "head")):
                parameter.normal_(0.0, bound, generator=generator)
            elif parameter.dim() == 2:
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.zero_()
                if "bias_ih" in name:
                    parameter[self.config.d_model : 2 * self.config.d_model] = 1.0

    @property
    def head_weight(self) -> Float[Tensor, "vocab d_model"]:
        """The unembedding matrix: the head's own, or the embedding where they are tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def forward(
        self, tokens: Int[Tensor, "batch pos"], *, segments: Int[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos vocab"]:
        """Logits of the token after each position; `segments` as in `hidden_states`."""
        return self.unembed(self.hidden_states(tokens, segments=segments))

    def hidden_states(
        self, tokens: Int[Tensor, "batch pos"], segments: Int[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """The last layer's outputs: what `unembed` turns into logits.

        `segments` numbers the documents packed into a row (1, 2, …; 0 is padding): each begins with an empty state.
        """
        if segments is None:
            return self.run(tokens)[0]
        if segments.shape != tokens.shape:
            raise ModelError(
                f"segments has shape {tuple(segments.shape)}, tokens {tuple(tokens.shape)}; they must agree"
            )
        rows, at = _places(segments)
        # One sequence a document, padded on the right: what comes after a document's end cannot change its states.
        apart = tokens.new_zeros(int(rows.max()) + 1, int(at.max()) + 1)
        apart[rows, at] = tokens
        return self.run(apart)[0][rows, at]

    def run(
        self, tokens: Int[Tensor, "batch pos"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch pos d_model"], State]:
        """Outputs of the last layer, and the state after the last token, from which another call goes on."""
        x = self.embed(tokens)
        if self.config.tie_embeddings:
            x = x * self.config.d_model**0.5  # tied rows are short, as an unembedding should be; an input is not
        x = F.dropout(x, self.config.dropout, self.training)
        if state is None:
            empty = x.new_zeros(self.config.n_layers, len(tokens), self.config.d_model)
            state = (empty, empty)
        if self.config.kernel == "fused":
            x, state = self.lstm(x, state)
        else:
            x, state = self._explicit(x, state)
        return F.dropout(x, self.config.dropout, self.training), state

    def unembed(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """Logits from hidden states, soft-capped where the configuration says so."""
        logits = F.linear(hidden, self.head_weight)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _explicit(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """What the fused kernel computes, one time step after the other."""
        last_h, last_c = [], []
        for layer in range(self.config.n_layers):
            weight_ih, weight_hh, bias_ih, bias_hh = self.lstm.all_weights[layer]
            gates = F.linear(x, weight_ih, bias_ih + bias_hh)  # (batch, pos, 4 d)
            h, c = state[0][layer], state[1][layer]
            outputs = []
            for t in range(x.shape[1]):
                h, c = lstm_cell(gates[:, t], h, c, weight_hh)
                outputs.append(h)
            x = torch.stack(outputs, dim=1)
            if layer + 1 < self.config.n_layers:
                x = F.dropout(x, self._dropout_between, self.training)
            last_h.append(h)
            last_c.append(c)
        return x, (torch.stack(last_h), torch.stack(last_c))

    @property
    def _dropout_between(self) -> float:
        return self.config.dropout if self.config.n_layers > 1 else 0.0


@torch.no_grad()
def sample(
    model: LSTMModel, prompts: Int[Tensor, "batch pos"], length: int, *, seed: int, temperature: float = 1.0
) -> Int[Tensor, "batch new"]:
    """Continue each row of `prompts` by `length` tokens; temperature 0 takes the most likely ones.

    Raises ModelError for empty prompts: an LSTM without a start symbol predicts nothing before its first token.
    """
    require(temperature >= 0, "temperature", temperature, "0 or a positive number")
    if prompts.ndim != 2 or prompts.shape[1] < 1:
        raise ModelError(
            f"prompts has shape {tuple(prompts.shape)}, allowed: (batch, pos) with at least one token a row"
        )
    uniforms = torch.rand(length, len(prompts), generator=torch_generator(seed)).to(prompts.device)
    hidden, state = model.run(prompts)
    out = []
    for uniform in uniforms:
        logits = model.unembed(hidden[:, -1]).float()
        out.append(argmax(logits) if temperature == 0 else draw(logits / temperature, uniform))
        hidden, state = model.run(out[-1][:, None], state)
    return torch.stack(out, dim=1) if out else prompts[:, :0]


def _places(segments: Int[Tensor, "batch pos"]) -> tuple[Tensor, Tensor]:
    """For every position, the number of its document over the whole batch, and its place in that document."""
    width = segments.shape[1]
    starts = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    column = torch.arange(width, device=segments.device).expand_as(segments)
    first = torch.where(starts, column, 0).cummax(1).values
    number = starts.flatten().cumsum(0).view_as(segments) - 1
    return number, column - first
