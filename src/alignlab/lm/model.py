"""`GPTModel`: one decoder-only transformer for every family the lab knows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from alignlab.core.errors import ModelError
from alignlab.lm.attention import Context, causal_mask
from alignlab.lm.block import TransformerBlock
from alignlab.lm.cache import KVCache
from alignlab.lm.config import GPTConfig
from alignlab.lm.linear import times
from alignlab.lm.norm import make_norm
from alignlab.lm.rotary import RotaryTable
from alignlab.lm.taps import Taps


class GPTModel(nn.Module):
    """Token ids in, next-token logits out. Hooks, generation and analysis are functions over it, not methods of it.

    A new model is initialised as GPT-2 is: normal with deviation 0.02, residual projections divided by √(2 n_layers);
    `seed` makes it reproducible.
    """

    def __init__(self, config: GPTConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config, self.taps = config, Taps()
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.pos_embed = nn.Embedding(config.n_ctx, config.d_model) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(TransformerBlock(config, i, self.taps) for i in range(config.n_layers))
        self.final_norm = make_norm(config, self.taps, "ln_final")
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.rotary = RotaryTable(config)
        self.rotary_local = RotaryTable(config, local=True) if config.rope_local_theta else self.rotary
        if self.embed.weight.device.type != "meta":
            self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw fresh weights (norms keep their ones and zeros)."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deviation = 0.02
                if name.endswith(("attn.o.weight", "mlp.down.weight")):
                    deviation /= (2 * self.config.n_layers) ** 0.5
                parameter.normal_(0.0, deviation, generator=generator)
            elif "norm" not in name:
                parameter.zero_()

    @property
    def head_weight(self) -> Float[Tensor, "vocab d_model"]:
        """The unembedding matrix: the head's own, or the embedding where they are tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        cache: KVCache | None = None,
        segments: Int[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch pos vocab"]:
        """Logits of the token after each position.

        `segments` numbers the documents packed into a row (1, 2, …; 0 is padding): a token attends only within its own,
        and positions restart in each. With a `cache` the tokens continue what it holds, and a 0 marks padding.
        """
        return self.unembed(self.hidden_states(tokens, cache=cache, segments=segments))

    def hidden_states(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        cache: KVCache | None = None,
        segments: Int[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after the final norm: what `unembed` turns into logits."""
        positions, length = self.positions_of(tokens, cache, segments)
        x = self.embed(tokens)
        if self.config.embed_scale != 1.0:
            x = x * torch.tensor(self.config.embed_scale, dtype=x.dtype, device=x.device)
        if self.taps:
            x = self.taps("hook_embed", x)
        if self.pos_embed is not None:
            learned = self.pos_embed(positions.clamp(min=0))
            x = x + (self.taps("hook_pos_embed", learned) if self.taps else learned)
        contexts = self.contexts(positions, length, cache, segments, x.dtype)
        for layer, block in enumerate(self.blocks):
            x = block(x, contexts[self.config.is_windowed(layer)])
        return self.final_norm(x)

    def unembed(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """Logits from hidden states, soft-capped where the configuration says so."""
        logits = times(hidden, self.head_weight)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def positions_of(self, tokens: Tensor, cache: KVCache | None, segments: Tensor | None) -> tuple[Tensor, int]:
        """Each token's position in its document (-1 on padding), and a bound that no position reaches."""
        batch, width = tokens.shape
        if cache is not None:
            positions, length = cache.begin(tokens, None if segments is None else segments > 0), cache.length
        elif segments is None:
            positions, length = torch.arange(width, device=tokens.device).expand(batch, -1), width
        else:
            column = torch.arange(width, device=tokens.device).expand(batch, -1)
            starts = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
            first = torch.where(starts, column, 0).cummax(1).values
            positions, length = torch.where(segments > 0, column - first, -1), width
        if length > self.config.n_ctx and (cache is None or int(cache.next_position.max()) > self.config.n_ctx):
            raise ModelError(f"the sequence has {length} tokens, the model reads at most {self.config.n_ctx}")
        return positions, length

    def contexts(
        self, positions: Tensor, length: int, cache: KVCache | None, segments: Tensor | None, dtype: torch.dtype
    ) -> dict[bool, Context]:
        """What the full (False) and the windowed (True) layers of this pass share."""
        safe = positions.clamp(min=0)
        found = {}
        for windowed in {self.config.is_windowed(layer) for layer in range(self.config.n_layers)}:
            window = self.config.window if windowed else None
            rotation = None
            if self.config.positions == "rotary":
                table = self.rotary_local if windowed else self.rotary
                rotation = table(safe, length, dtype)
            found[windowed] = Context(self.mask(positions, length, cache, segments, window), rotation, cache)
        return found

    def mask(
        self, positions: Tensor, length: int, cache: KVCache | None, segments: Tensor | None, window: int | None
    ) -> Tensor | None:
        """The attention mask, or None where plain causal attention says the same."""
        if window is not None and window >= length:
            window = None
        if cache is None:
            if segments is None and window is None:
                return None
            same = None if segments is None else segments[:, :, None] == segments[:, None, :]
            return causal_mask(positions, positions, window, same)
        width = positions.shape[1]
        if window is None and not cache.padded and (width == 1 or cache.length == width):
            return None
        return causal_mask(positions, cache.positions[:, : cache.length], window)
