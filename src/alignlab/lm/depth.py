"""One dial for a model's size: the depth, from which width, heads, batch, learning rate and horizon follow."""

from __future__ import annotations

from dataclasses import dataclass

from alignlab.core.config import require
from alignlab.lm.config import GPTConfig

HEAD_WIDTH = 64
TOKENS_PER_PARAMETER = 20


@dataclass(frozen=True)
class Plan:
    """What a depth amounts to."""

    model: GPTConfig
    """The shape: 64 numbers of width a layer, heads of 64, a gated MLP of 8/3 the width."""
    parameters: int
    """Weights in the matrices that tokens are multiplied by: blocks and unembedding."""
    tokens: int
    """Tokens to train on: 20 a parameter, where Hoffmann et al. 2022 find compute best spent."""
    batch_tokens: int
    """Tokens of an update, by the fit of DeepSeek LLM (Bi et al. 2024, equation 1): `0.292 C^0.327`."""
    learning_rate: float
    """Peak learning rate of AdamW, by the same fit: `0.3118 C^-0.125`."""

    def steps(self, batch_tokens: int) -> int:
        """Updates of `batch_tokens` that make up the horizon."""
        return max(1, round(self.tokens / batch_tokens))


def plan_for_depth(depth: int, *, vocab_size: int, n_ctx: int) -> Plan:
    """Shape and schedule of a model with `depth` blocks, for training compute `C = 6 · parameters · tokens` FLOPs.

    The fits were made at 10¹⁷ to 2·10¹⁹ FLOPs; below, they are extrapolated.

    Raises:
        ConfigError: a depth below 1.
    """
    require(depth >= 1, "depth", depth, "a positive whole number")
    width = HEAD_WIDTH * depth
    hidden = -(-8 * width // (3 * HEAD_WIDTH)) * HEAD_WIDTH
    model = GPTConfig(
        vocab_size=vocab_size, n_ctx=n_ctx, d_model=width, n_layers=depth, n_heads=depth, d_mlp=hidden, qk_norm=False
    )
    parameters = depth * (4 * width * width + 3 * width * hidden) + vocab_size * width
    tokens = TOKENS_PER_PARAMETER * parameters
    compute = 6.0 * parameters * tokens
    return Plan(model, parameters, tokens, round(0.292 * compute**0.3271), round(0.3118 * compute**-0.125, 6))
