"""`GPTConfig`: the one description from which every transformer of the lab is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alignlab.core.config import require

Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]
Norm = Literal["layernorm", "rmsnorm"]
Positions = Literal["rotary", "learned"]


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than the model was pretrained on."""

    kind: Literal["linear", "llama3"]
    """`linear` divides every frequency by `factor`; `llama3` divides only the slow ones (Llama 3.1)."""
    factor: float
    """Stretch factor, at least 1."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above `original_n_ctx / low_freq_factor` are stretched fully."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below `original_n_ctx / high_freq_factor` stay as they are."""
    original_n_ctx: int = 8192
    """llama3: context length of the pretraining."""

    def __post_init__(self) -> None:
        require(self.factor >= 1, "rope_scaling.factor", self.factor, "a number of at least 1")
        require(
            self.high_freq_factor > self.low_freq_factor,
            "rope_scaling.high_freq_factor",
            self.high_freq_factor,
            "a number above low_freq_factor",
        )


@dataclass(frozen=True)
class GPTConfig:
    """Shape and choices of a decoder-only transformer; defaults give a small Llama-style model.

    The families that loaders know (GPT-2, GPT-NeoX, Llama, Qwen 2/3, Gemma 1/2/3) differ only in these fields.
    """

    vocab_size: int = 256
    """Rows of the embedding matrix."""
    n_ctx: int = 256
    """Longest sequence, in tokens."""
    d_model: int = 64
    """Width of the residual stream."""
    n_layers: int = 2
    """Number of blocks."""
    n_heads: int = 4
    """Query heads per block."""
    d_mlp: int = 256
    """Hidden width of the MLP."""
    n_kv_heads: int = 0
    """Key and value heads (grouped-query attention, Ainslie et al. 2023); 0 means as many as `n_heads`."""
    d_head: int = 0
    """Width of a head; 0 means `d_model / n_heads`."""
    activation: Activation = "silu"
    """Non-linearity of the MLP; `gelu_tanh` is the tanh approximation."""
    gated_mlp: bool = True
    """MLP is `down(act(gate(x)) * up(x))` (Shazeer 2020) instead of `down(act(up(x)))`."""
    norm: Norm = "rmsnorm"
    """Normalisation before each sub-layer and at the end."""
    norm_eps: float = 1e-5
    """Added to the variance."""
    norm_offset: bool = False
    """Norm weights are stored as the distance from 1 (Gemma)."""
    post_norm: bool = False
    """A second norm on each sub-layer's output, before it joins the residual stream (Gemma 2 and 3)."""
    qk_norm: bool = False
    """RMS norm on each head's queries and keys (Qwen 3, Gemma 3)."""
    positions: Positions = "rotary"
    """Rotary (Su et al. 2021) or learned absolute positions."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_local_theta: float | None = None
    """Base for windowed layers, unscaled, where it differs (Gemma 3)."""
    rope_scaling: RopeScaling | None = None
    """Stretching of the rotary frequencies."""
    rotary_dim: int = 0
    """Leading dimensions of a head that are rotated (GPT-NeoX rotates a part); 0 means all."""
    parallel_block: bool = False
    """Attention and MLP both read the block's input (GPT-NeoX)."""
    qkv_bias: bool = False
    """Bias on the query, key and value projections."""
    out_bias: bool = False
    """Bias on the attention output projection."""
    mlp_bias: bool = False
    """Bias on the MLP projections."""
    attn_scale: float | None = None
    """Factor on query-key products; None means `d_head ** -0.5`."""
    attn_softcap: float | None = None
    """Scores become `c * tanh(scores / c)` (Gemma 2)."""
    logit_softcap: float | None = None
    """The same on the final logits (Gemma 2)."""
    window: int | None = None
    """Sliding window: a token sees itself and the `window - 1` before it, in the layers of `window_layers`."""
    window_layers: tuple[bool, ...] = ()
    """Which layers are windowed; empty means all of them where `window` is set."""
    embed_scale: float = 1.0
    """Factor on token embeddings (Gemma: square root of `d_model`)."""
    tie_embeddings: bool = True
    """The unembedding is the embedding matrix."""
    architecture: str = "llama"
    """Family whose file format `export` writes; see `alignlab.lm.architectures`."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_ctx", "d_model", "n_layers", "n_heads", "d_mlp"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive whole number")
        # Zeros are resolved here so that everything downstream reads the real number.
        object.__setattr__(self, "n_kv_heads", self.n_kv_heads or self.n_heads)
        require(
            self.d_head > 0 or self.d_model % self.n_heads == 0,
            "n_heads",
            self.n_heads,
            f"a divisor of d_model ({self.d_model}) where d_head is not given",
        )
        object.__setattr__(self, "d_head", self.d_head or self.d_model // self.n_heads)
        object.__setattr__(self, "rotary_dim", self.rotary_dim or self.d_head)
        object.__setattr__(self, "window_layers", tuple(self.window_layers))
        require(
            0 < self.n_kv_heads <= self.n_heads and self.n_heads % self.n_kv_heads == 0,
            "n_kv_heads",
            self.n_kv_heads,
            f"a divisor of n_heads ({self.n_heads})",
        )
        require(self.d_head > 0, "d_head", self.d_head, "a positive whole number")
        require(
            0 < self.rotary_dim <= self.d_head and (self.positions != "rotary" or self.rotary_dim % 2 == 0),
            "rotary_dim",
            self.rotary_dim,
            f"an even number up to d_head ({self.d_head})",
        )
        require(self.norm_eps > 0, "norm_eps", self.norm_eps, "a positive number")
        require(self.window is None or self.window > 0, "window", self.window, "a positive whole number or none")
        require(
            len(self.window_layers) in (0, self.n_layers),
            "window_layers",
            self.window_layers,
            f"empty or one value for each of the {self.n_layers} layers",
        )

    def is_windowed(self, layer: int) -> bool:
        """Whether `layer` sees only the sliding window."""
        return self.window is not None and (not self.window_layers or self.window_layers[layer])
