"""`GPTModel`: one decoder-only transformer for every family the lab knows."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from alignlab.core.errors import ModelError
from alignlab.lm.attention import Context, Extra, causal_mask
from alignlab.lm.block import TransformerBlock
from alignlab.lm.cache import KVCache, RaggedCache
from alignlab.lm.config import GPTConfig
from alignlab.lm.flex import flex_plan, uses_flex
from alignlab.lm.init import initialise
from alignlab.lm.linear import times
from alignlab.lm.norm import make_norm
from alignlab.lm.positions import AlibiBias, SinusoidTable
from alignlab.lm.rotary import RotaryTable
from alignlab.lm.taps import Taps


class GPTModel(nn.Module):
    """Token ids in, next-token logits out. Hooks, generation and analysis are functions over it, not methods of it.

    A new model is initialised as `alignlab.lm.init` describes; `seed` makes it reproducible. Dropout happens while the
    model is in training mode, except in passes with a cache: generation never drops.
    """

    def __init__(self, config: GPTConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config, self.taps = config, Taps()
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.pos_embed = nn.Embedding(config.n_ctx, config.d_model) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(TransformerBlock(config, i, self.taps) for i in range(config.n_layers))
        # Post-norm blocks end in a norm.
        post = config.norm_position == "post"
        self.final_norm = nn.Identity() if post else make_norm(config, self.taps, "ln_final")
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.rotary = RotaryTable(config)
        self.rotary_local = RotaryTable(config, local=True) if config.rope_local_theta else self.rotary
        self.alibi = AlibiBias(config.n_heads) if config.positions == "alibi" else None
        self.sinusoids = SinusoidTable(config.d_model) if config.positions == "sinusoidal" else None
        if self.embed.weight.device.type != "meta":
            initialise(self, seed)

    @property
    def head_weight(self) -> Float[Tensor, "vocab d_model"]:
        """The unembedding matrix: the head's own, or the embedding where they are tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        cache: KVCache | RaggedCache | None = None,
        segments: Int[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch pos vocab"]:
        """Logits of the token after each position.

        `segments` numbers the documents packed into a row (1, 2, …; 0 is padding): a token attends only within its own,
        and positions restart in each. With a `cache` the tokens continue what it holds, and a 0 marks padding; with a
        `RaggedCache` the rows stand end to end.
        """
        return self.unembed(self.hidden_states(tokens, cache=cache, segments=segments))

    def hidden_states(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        cache: KVCache | RaggedCache | None = None,
        segments: Int[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after the final norm: what `unembed` turns into logits."""
        positions, length = self.positions_of(tokens, cache, segments)
        drops = self.training and cache is None
        x = self.embed(tokens)
        if self.config.embed_scale != 1.0:
            x = x * torch.tensor(self.config.embed_scale, dtype=x.dtype, device=x.device)
        if self.taps:
            x = self.taps("hook_embed", x)
        added = None
        if self.pos_embed is not None:
            added = self.pos_embed(positions.clamp(min=0))
        elif self.sinusoids is not None:
            added = self.sinusoids(positions.clamp(min=0), length, x.dtype)
        if added is not None:
            x = x + (self.taps("hook_pos_embed", added) if self.taps else added)
        if x.dtype is torch.float32 and torch.is_autocast_enabled(x.device.type):
            # The residual stream itself in autocast's type: norms and additions then move half the bytes.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if drops and self.config.dropout:
            x = F.dropout(x, self.config.dropout)
        contexts = self.contexts(positions, length, cache, segments, x.dtype, drops)
        for layer, block in enumerate(self.blocks):
            windowed = self.config.is_windowed(layer)
            context = contexts[windowed]
            if isinstance(cache, RaggedCache):
                context = replace(context, cache=cache.layer(layer, windowed))
            x = block(x, context)
        x = self.final_norm(x)
        multiplier = self.config.output_multiplier
        return x if multiplier == 1.0 else x * multiplier

    def unembed(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """Logits from hidden states, soft-capped where the configuration says so."""
        logits = times(hidden, self.head_weight)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def positions_of(
        self, tokens: Tensor, cache: KVCache | RaggedCache | None, segments: Tensor | None
    ) -> tuple[Tensor, int]:
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
        # A cache may have more columns than tokens.
        if length > self.config.n_ctx and (
            not isinstance(cache, KVCache) or int(cache.next_position.max()) > self.config.n_ctx
        ):
            raise ModelError(f"the sequence has {length} tokens, the model reads at most {self.config.n_ctx}")
        return positions, length

    def contexts(
        self,
        positions: Int[Tensor, "batch pos"],
        length: int,
        cache: KVCache | RaggedCache | None,
        segments: Int[Tensor, "batch pos"] | None,
        dtype: torch.dtype,
        drops: bool = False,
    ) -> dict[bool, Context]:
        """What the full (False) and the windowed (True) layers of this pass share."""
        safe = positions.clamp(min=0)
        watched = bool(self.taps) and any(name.endswith(("attn_scores", "pattern")) for name in self.taps)
        plain = Extra(dropout=self.config.dropout, attn_dropout=self.config.attn_dropout) if drops else Extra()
        flexible = cache is None and not plain.attn_dropout and not watched and uses_flex(self.config, positions.device)
        found = {}
        for windowed in {self.config.is_windowed(layer) for layer in range(self.config.n_layers)}:
            window = self.config.window if windowed else None
            if window is not None and window >= length:
                window = None
            rotation = None
            if self.config.positions == "rotary":
                table = self.rotary_local if windowed else self.rotary
                rotation = table(safe, length, dtype)
            mask, extra = None, plain if plain.dropout or plain.attn_dropout else None
            if flexible:
                slopes = None if self.alibi is None else self.alibi.slopes(positions.device)
                width, device = positions.shape[1], positions.device
                extra = replace(plain, flex=flex_plan(self.config, width, window, segments, slopes, device))
            elif isinstance(cache, RaggedCache):
                cache.prepare(windowed, window, self.alibi, dtype)
            elif self.alibi is not None:
                extra = replace(plain, bias=self.bias(positions, cache, segments, window, dtype))
            else:
                mask = self.mask(positions, cache, segments, window)
            found[windowed] = Context(mask, rotation, cache, extra)
        return found

    def mask(
        self, positions: Tensor, cache: KVCache | None, segments: Tensor | None, window: int | None
    ) -> Bool[Tensor, "batch 1 query key"] | None:
        """The attention mask, or None where plain causal attention says the same."""
        if cache is None:
            if segments is None and window is None:
                return None
            same = None if segments is None else segments[:, :, None] == segments[:, None, :]
            return causal_mask(positions, positions, window, same)
        width = positions.shape[1]
        if window is None and not cache.padded and (width == 1 or cache.length == width):
            return None
        return causal_mask(positions, cache.positions[:, : cache.length], window)

    def bias(
        self,
        positions: Tensor,
        cache: KVCache | None,
        segments: Tensor | None,
        window: int | None,
        dtype: torch.dtype,
    ) -> Float[Tensor, "batch head query key"]:
        """ALiBi's penalties with the attention mask in them; one row where all rows are alike."""
        assert self.alibi is not None
        keys = positions if cache is None else cache.positions[:, : cache.length]
        if segments is None and (cache is None or not cache.padded):
            positions, keys = positions[:1], keys[:1]
        same = None
        if segments is not None and cache is None:
            same = segments[:, :, None] == segments[:, None, :]
        return self.alibi(positions, keys, causal_mask(positions, keys, window, same), dtype)
