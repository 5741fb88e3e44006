"""Multi-head attention (Vaswani et al. 2017) with grouped queries, rotary positions or ALiBi, windows and soft caps.

Three paths give the same numbers: `attend_explicitly` is the one to read, and the one that taps on scores or pattern
use; `torch.nn.functional.scaled_dot_product_attention` does the same work fused where it can express it (not soft
caps); FlexAttention (`alignlab.lm.flex`) does on CUDA where it is asked for, or where only it can.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from alignlab.lm.attention_gradient import attend_for_training, trains_faster
from alignlab.lm.cache import KVCache, RaggedCache, RaggedLayer
from alignlab.lm.config import GPTConfig
from alignlab.lm.flex import FlexPlan, flex_attend
from alignlab.lm.linear import project, project_together
from alignlab.lm.norm import make_norm
from alignlab.lm.rotary import Rotation, rotate
from alignlab.lm.taps import Taps


@dataclass
class Extra:
    """What a pass has beyond plain attention."""

    bias: Float[Tensor, "batch head query key"] | None = None
    """ALiBi's penalties, -inf where a query may not look: nothing else is masked then."""
    flex: FlexPlan | None = None
    """FlexAttention does it all: there is neither mask nor bias then."""
    dropout: float = 0.0
    """Probability of dropping a number of what attention and MLP add."""
    attn_dropout: float = 0.0
    """Probability of dropping a number of the pattern."""

    @property
    def is_plain(self) -> bool:
        """Whether the pattern is that of plain attention."""
        return self.bias is None and self.flex is None and not self.attn_dropout


@dataclass
class Context:
    """What every layer of one forward pass shares."""

    mask: Bool[Tensor, "batch 1 query key"] | None
    """True where a query may look; None means plain causal attention over the same tokens, or (one query) over all."""
    rotation: Rotation | None
    cache: KVCache | RaggedCache | RaggedLayer | None
    """A `RaggedCache` shows each layer its own part."""
    extra: Extra | None = None
    """None where attention is plain and nothing is dropped."""


def causal_mask(
    query_positions: Int[Tensor, "batch query"],
    key_positions: Int[Tensor, "batch key"],
    window: int | None,
    same_document: Bool[Tensor, "batch query key"] | None = None,
) -> Bool[Tensor, "batch 1 query key"]:
    """True where a key is a real token (position ≥ 0) of the same document, not after the query, inside the window.

    Padding queries (position -1) look at everything, so that no softmax is over an empty set; nobody reads them.
    """
    q, k = query_positions[:, :, None], key_positions[:, None, :]
    mask = (k >= 0) & (k <= q)
    if window is not None:
        mask &= k > q - window
    if same_document is not None:
        mask &= same_document
    return (mask | (q < 0)).unsqueeze(1)


def attend_with_total(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch head key d_head"],
    v: Float[Tensor, "batch head key d_head"],
    mask: Bool[Tensor, "batch 1 query key"] | None,
    scale: float,
) -> tuple[Float[Tensor, "batch head query d_head"], Float[Tensor, "batch head query"]]:
    """Attention of every query to every unmasked key, and the log of its softmax's denominator.

    Two such results over different keys make the one over all of them: each counts by its share of the denominators.
    """
    bias = None if mask is None else torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, float("-inf"))
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # type: ignore[no-any-return]
            q, k, v, 0.0, False, attn_mask=bias, scale=scale
        )
    scores = (q @ k.transpose(-1, -2)).float() * scale
    scores = scores if bias is None else scores + bias
    return scores.softmax(-1).to(v.dtype) @ v, scores.logsumexp(-1)


class MultiHeadAttention(nn.Module):
    """`softmax(scale · q kᵀ + mask) v` for `n_heads` query heads that share `n_kv_heads` key and value heads."""

    def __init__(self, config: GPTConfig, layer: int, taps: Taps | None = None) -> None:
        super().__init__()
        self.config, self.layer, self.prefix = config, layer, f"blocks.{layer}.attn."
        self.taps = Taps() if taps is None else taps
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o = nn.Linear(d_q, config.d_model, bias=config.out_bias)
        self.q_norm = make_norm(config, self.taps, None, config.d_head) if config.qk_norm else None
        self.k_norm = make_norm(config, self.taps, None, config.d_head) if config.qk_norm else None
        self.scale = config.score_scale

    def forward(self, x: Float[Tensor, "batch pos d_model"], context: Context) -> Float[Tensor, "batch pos d_model"]:
        batch, pos, _ = x.shape
        d_head, taps, prefix = self.config.d_head, self.taps, self.prefix
        q, k, v = (t.view(batch, pos, -1, d_head) for t in project_together((self.q, self.k, self.v), x))
        if taps:
            q, k, v = (taps(f"{prefix}hook_{name}", t) for name, t in (("q", q), ("k", k), ("v", v)))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        rotates = isinstance(context.cache, RaggedLayer) and context.cache.rotates
        if context.rotation is not None and not rotates:
            q, k = rotate(q, context.rotation), rotate(k, context.rotation)
            if taps:
                q, k = taps(f"{prefix}hook_rot_q", q), taps(f"{prefix}hook_rot_k", k)
        if isinstance(context.cache, RaggedLayer):
            z = context.cache.attend(self, q, k, v, context.rotation if rotates else None)  # (batch, pos, head, d_head)
        else:
            shared = None
            if isinstance(context.cache, KVCache):
                k, v = context.cache.append(self.layer, k, v)
                shared = context.cache.prefix(self.layer)
            else:
                k, v = k.transpose(1, 2), v.transpose(1, 2)
            z = self.attend(q.transpose(1, 2), k, v, context.mask, shared, context.extra)
        if taps:
            z = taps(f"{prefix}hook_z", z)
        return project(self.o, z.reshape(batch, pos, -1))

    def attend(
        self,
        q: Float[Tensor, "batch head query d_head"],
        k: Float[Tensor, "batch kv_head key d_head"],
        v: Float[Tensor, "batch kv_head key d_head"],
        mask: Bool[Tensor, "batch 1 query all_keys"] | None,
        shared: tuple[Tensor, Tensor] | None = None,
        extra: Extra | None = None,
    ) -> Float[Tensor, "batch query head d_head"]:
        """Attention by the fastest path that can express it.

        `shared` are keys and values (n_kv_heads, key, d_head) that stand before those of every row.
        """
        if extra is not None and extra.is_plain:
            extra = None
        if extra is not None and extra.flex is not None:
            return flex_attend(q, k, v, extra.flex, self.scale).transpose(1, 2)
        watched = self.taps and (
            f"{self.prefix}hook_attn_scores" in self.taps or f"{self.prefix}hook_pattern" in self.taps
        )
        explicit = watched or self.config.attn_softcap is not None or self.config.attention == "explicit"
        if shared is not None:
            if not explicit and extra is None and not self.config.is_windowed(self.layer):
                return self.attend_with_prefix(q, k, v, mask, shared)
            k, v = (torch.cat([a.expand(len(b), -1, -1, -1), b], 2) for a, b in zip(shared, (k, v), strict=True))
        if explicit:
            return self.attend_explicitly(q, k, v, mask, extra).transpose(1, 2)
        batch, n_heads, n_query, d_head = q.shape
        groups = n_heads // k.shape[1]
        dropout = 0.0
        if extra is not None:
            mask, dropout = (mask if extra.bias is None else extra.bias), extra.attn_dropout
        if n_query == 1:
            # One query sees every unmasked key, so the heads of a group can stand in for the query dimension:
            # keys and values are then read once per group instead of being repeated for each head.
            # (The fused kernel wants each head's numbers side by side, which a split projection does not promise.)
            q = q.reshape(batch, -1, groups, d_head).contiguous()
            if mask is not None and mask.shape[1] > 1:
                mask = mask.reshape(len(mask), -1, groups, mask.shape[-1])
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=self.scale)
            return z.reshape(batch, 1, n_heads, d_head)
        if extra is None and q.requires_grad and n_query == k.shape[2] and trains_faster(q):
            return attend_for_training(q, k, v, mask, self.scale).transpose(1, 2)
        sharing = groups > 1 and mask is None and q.device.type == "cuda"  # its causal kernels repeat no heads
        if groups > 1 and not sharing:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        z = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=self.scale, enable_gqa=sharing
        )
        return z.transpose(1, 2)

    def attend_with_prefix(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, shared: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "batch pos head d_head"]:
        """Attention where the first keys are the same in every row, and every query sees all of them.

        The queries of all rows then meet the shared keys in one product per head, which reads those keys once instead
        of once for each row (the idea of cascade and Hydragen attention, Juravsky et al. 2024).
        """
        far_k, far_v = shared
        batch, n_heads, n_query, d_head = q.shape
        n_kv, n_far = far_k.shape[:2]
        groups = n_heads // n_kv
        together = q.reshape(batch, n_kv, -1, d_head).transpose(0, 1).reshape(1, n_kv, -1, d_head)
        far, far_total = attend_with_total(together, far_k[None], far_v[None], None, self.scale)
        far = far.view(n_kv, batch, -1, d_head).transpose(0, 1).reshape(q.shape)
        far_total = far_total.view(n_kv, batch, -1).transpose(0, 1).reshape(q.shape[:3])
        if n_query == 1:  # as in `attend`
            q = q.reshape(batch, n_kv, groups, d_head).contiguous()
        else:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        near, near_total = attend_with_total(q, k, v, None if mask is None else mask[..., n_far:], self.scale)
        share = torch.sigmoid(far_total - near_total.reshape(far_total.shape)).unsqueeze(-1)
        near = near.reshape(far.shape)
        return (near + share * (far - near)).to(far.dtype).transpose(1, 2)

    def attend_explicitly(
        self,
        q: Float[Tensor, "batch head query d_head"],
        k: Float[Tensor, "batch kv_head key d_head"],
        v: Float[Tensor, "batch kv_head key d_head"],
        mask: Bool[Tensor, "batch 1 query key"] | None,
        extra: Extra | None = None,
    ) -> Float[Tensor, "batch head query d_head"]:
        """The definition, written out."""
        extra = extra or Extra()
        groups, n_query, n_key = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = (q @ k.transpose(-1, -2)) * self.scale
        if self.config.attn_softcap is not None:
            scores = self.config.attn_softcap * torch.tanh(scores / self.config.attn_softcap)
        if extra.bias is not None:
            scores, mask = scores + extra.bias, None
        elif mask is None and n_query > 1:
            mask = torch.ones(n_query, n_key, dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        if self.taps:
            scores = self.taps(f"{self.prefix}hook_attn_scores", scores)
        pattern = scores.float().softmax(-1).to(v.dtype)
        if self.taps:
            pattern = self.taps(f"{self.prefix}hook_pattern", pattern)
        if extra.attn_dropout:
            pattern = F.dropout(pattern, extra.attn_dropout)
        return pattern @ v
