"""The transformer block: attention and MLP around a residual stream."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from alignlab.lm.attention import Context, MultiHeadAttention
from alignlab.lm.config import Activation, GPTConfig
from alignlab.lm.linear import project, project_together
from alignlab.lm.norm import NormLayer, make_norm
from alignlab.lm.taps import Taps


def activate(x: Float[Tensor, "*batch d_mlp"], kind: Activation) -> Float[Tensor, "*batch d_mlp"]:
    """The named non-linearity. SoLU's LayerNorm has parameters and therefore stands in `MLP`."""
    if kind == "silu":
        return F.silu(x)
    if kind == "relu":
        return F.relu(x)
    if kind == "relu2":
        return F.relu(x).square()
    if kind == "solu":
        return x * F.softmax(x, -1)
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


class MLP(nn.Module):
    """`down(act(up(x)))`, or gated: `down(act(gate(x)) · up(x))`; with SoLU `down(norm(act(up(x))))`."""

    def __init__(self, config: GPTConfig, layer: int, taps: Taps) -> None:
        super().__init__()
        self.config, self.taps, self.prefix = config, taps, f"blocks.{layer}.mlp."
        self.gate = nn.Linear(config.d_model, config.d_mlp, bias=config.mlp_bias) if config.gated_mlp else None
        self.up = nn.Linear(config.d_model, config.d_mlp, bias=config.mlp_bias)
        self.down = nn.Linear(config.d_mlp, config.d_model, bias=config.mlp_bias)
        self.norm: NormLayer | None = None
        if config.activation == "solu":
            # A LayerNorm whatever the residual stream's norm is: without it SoLU costs performance (section 4.3).
            self.norm = NormLayer(
                config.d_mlp, eps=config.norm_eps, centred=True, offset=False, taps=taps, name=f"{self.prefix}ln"
            )

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        taps, prefix = self.taps, self.prefix
        if self.gate is None:
            pre, linear = project(self.up, x), None
        else:
            pre, linear = project_together((self.gate, self.up), x)
        if taps:
            pre = taps(f"{prefix}hook_pre", pre)
        hidden = activate(pre, self.config.activation)
        if linear is not None:
            if taps:
                linear = taps(f"{prefix}hook_pre_linear", linear)
            hidden = hidden * linear
        if self.norm is not None:
            hidden = self.norm(taps(f"{prefix}hook_mid", hidden) if taps else hidden)
        if taps:
            hidden = taps(f"{prefix}hook_post", hidden)
        return project(self.down, hidden)


class TransformerBlock(nn.Module):
    """Attention, then MLP, each reading a norm of the residual stream and adding to it (pre-norm).

    With `norm_position` post each reads the stream itself, and the sum is normalised. `post_norm` also normalises what
    each adds (Gemma 2/3); `parallel_block` lets both read the same input (GPT-NeoX).
    """

    def __init__(self, config: GPTConfig, layer: int, taps: Taps | None = None) -> None:
        super().__init__()
        self.config, self.prefix = config, f"blocks.{layer}."
        self.taps = Taps() if taps is None else taps
        self.norm1 = make_norm(config, self.taps, f"{self.prefix}ln1")
        self.attn = MultiHeadAttention(config, layer, self.taps)
        self.norm2 = make_norm(config, self.taps, f"{self.prefix}ln2")
        self.mlp = MLP(config, layer, self.taps)
        self.post_attn_norm = make_norm(config, self.taps, f"{self.prefix}ln1_post") if config.post_norm else None
        self.post_mlp_norm = make_norm(config, self.taps, f"{self.prefix}ln2_post") if config.post_norm else None

    def forward(self, x: Float[Tensor, "batch pos d_model"], context: Context) -> Float[Tensor, "batch pos d_model"]:
        taps, prefix = self.taps, self.prefix
        after = self.config.norm_position == "post"
        if taps:
            x = taps(f"{prefix}hook_resid_pre", x)
        attn_out = dropped(self.attn(x if after else self.norm1(x), context), context)
        if self.post_attn_norm is not None:
            attn_out = self.post_attn_norm(attn_out)
        if taps:
            attn_out = taps(f"{prefix}hook_attn_out", attn_out)
        mid = self.norm1(x + attn_out) if after else x + attn_out
        if taps and not self.config.parallel_block:
            mid = taps(f"{prefix}hook_resid_mid", mid)
        read = x if self.config.parallel_block else mid
        mlp_out = dropped(self.mlp(read if after else self.norm2(read)), context)
        if self.post_mlp_norm is not None:
            mlp_out = self.post_mlp_norm(mlp_out)
        if taps:
            mlp_out = taps(f"{prefix}hook_mlp_out", mlp_out)
        out = self.norm2(mid + mlp_out) if after else mid + mlp_out
        return taps(f"{prefix}hook_resid_post", out) if taps else out


def dropped(x: Float[Tensor, "batch pos d_model"], context: Context) -> Float[Tensor, "batch pos d_model"]:
    """`x`, with the pass's dropout where it has one."""
    if context.extra is None or not context.extra.dropout:
        return x
    return F.dropout(x, context.extra.dropout)
