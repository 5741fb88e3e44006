"""`GPTConfig`: the one description from which every transformer of the lab is built."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Literal, get_args

from alignlab.core.config import require

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "relu2", "solu"]
Norm = Literal["layernorm", "rmsnorm"]
NormPosition = Literal["pre", "post"]
Positions = Literal["rotary", "learned", "sinusoidal", "alibi", "none"]
AttentionPath = Literal["auto", "explicit", "sdpa", "flex"]
Init = Literal["gpt2", "mup"]


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

    The families that loaders know (GPT-2, GPT-NeoX, Llama, Qwen 2/3, Gemma 1/2/3) differ only in these fields; the
    others are for models trained here (`docs/architectures.md` has them all, with sources). Every field is checked: one
    that is impossible, alone or beside another, is a `ConfigError` that names it.
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
    """Key and value heads: 0 means as many as `n_heads`, fewer is grouped-query attention (Ainslie et al. 2023), 1
    multi-query attention (Shazeer 2019)."""
    d_head: int = 0
    """Width of a head; 0 means `d_model / n_heads`."""
    activation: Activation = "silu"
    """Non-linearity of the MLP; `gelu_tanh` is the tanh approximation, `relu2` the squared ReLU (So et al. 2021),
    `solu` is `x · softmax(x)` and a LayerNorm (Elhage et al. 2022)."""
    gated_mlp: bool = True
    """MLP is `down(act(gate(x)) * up(x))` instead of `down(act(up(x)))` (Shazeer 2020): SwiGLU with silu, GeGLU with
    gelu."""
    norm: Norm = "rmsnorm"
    """Normalisation of the residual stream, and of queries and keys where `qk_norm` is set."""
    norm_eps: float = 1e-5
    """Added to the variance."""
    norm_offset: bool = False
    """Norm weights are stored as the distance from 1 (Gemma)."""
    norm_position: NormPosition = "pre"
    """`pre`: each sub-layer reads a norm of the residual stream, and a last norm stands before the unembedding.
    `post`: the sum of the stream and a sub-layer's output is normalised, nothing else (Vaswani et al. 2017)."""
    post_norm: bool = False
    """A second norm on each sub-layer's output, before it joins the residual stream (Gemma 2 and 3)."""
    qk_norm: bool = False
    """The same norm on each head's queries and keys (Henry et al. 2020; Qwen 3, Gemma 3)."""
    positions: Positions = "rotary"
    """Rotary (Su et al. 2021), learned absolute, sinusoidal (Vaswani et al. 2017), ALiBi (Press et al. 2022), or none:
    then only the causal mask tells where a token stands (Haviv et al. 2022)."""
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
    """Factor on query-key products; None means `d_head ** -0.5`, or `1 / d_head` where `init` is mup."""
    attn_softcap: float | None = None
    """Scores become `c * tanh(scores / c)` (Gemma 2), before ALiBi's penalties are added."""
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
    dropout: float = 0.0
    """Probability, while training, of dropping a number of the embeddings and of what attention and MLP add
    (Srivastava et al. 2014; Vaswani et al. 2017, section 5.4). Passes with a cache never drop."""
    attn_dropout: float = 0.0
    """The same for the attention pattern, as in GPT-2; no fused CPU kernel does it: it halves the speed there."""
    attention: AttentionPath = "auto"
    """Which code computes attention; the numbers are the same. `auto` takes the fastest that can express the model,
    `explicit` the one to read, `sdpa` torch's fused kernels, `flex` FlexAttention (where it has kernels: CUDA)."""
    init: Init = "gpt2"
    """`gpt2`: normal, deviation 0.02, smaller for what adds to the residual stream (Radford et al. 2019). `mup`: the
    maximal update parametrisation (Yang et al. 2022), which also scales attention, logits and learning rates so that
    one learning rate serves every width; see `alignlab.lm.init`."""
    mup_base_width: int = 256
    """mup: the `d_model` at which learning rate and initial deviations are what they are without it."""
    architecture: str = "auto"
    """Family whose file format `export` writes, see `alignlab.lm.architectures`; auto: the one that fits."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            require(getattr(self, name) in choices, name, getattr(self, name), ", ".join(choices))
        for name in ("vocab_size", "n_ctx", "d_model", "n_layers", "n_heads", "d_mlp", "mup_base_width"):
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
        self._check_choices()

    def _check_choices(self) -> None:
        """Choices that exclude each other."""
        for name in ("dropout", "attn_dropout"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number from 0 to below 1")
        for name in ("attn_softcap", "logit_softcap"):
            cap = getattr(self, name)
            require(cap is None or cap > 0, name, cap, "a positive number or none")
        even = self.positions != "sinusoidal" or self.d_model % 2 == 0
        require(even, "d_model", self.d_model, "an even number where positions are sinusoidal (a sine and a cosine)")
        if self.norm_position == "post":
            require(not self.post_norm, "post_norm", True, "false where norm_position is post, which has that norm")
            require(not self.parallel_block, "parallel_block", True, "false where norm_position is post")
        if self.activation == "solu":
            require(not self.gated_mlp, "gated_mlp", True, "false where activation is solu, which has no gated form")
        if self.attention == "sdpa":
            fits = "none where attention is sdpa, whose kernels cannot cap scores; explicit, flex and auto can"
            require(self.attn_softcap is None, "attn_softcap", self.attn_softcap, fits)
        if self.attention == "flex":
            fits = "0 where attention is flex, whose kernels drop nothing; auto, sdpa and explicit do"
            require(self.attn_dropout == 0, "attn_dropout", self.attn_dropout, fits)

    def as_given(self) -> GPTConfig:
        """A copy with 0 again in the fields that follow from others, for `parse_cli`, whose flags may change those."""
        given = copy(self)
        derived = {"n_kv_heads": self.n_heads, "d_head": self.d_model / self.n_heads, "rotary_dim": self.d_head}
        for name, value in derived.items():
            if getattr(self, name) == value:
                object.__setattr__(given, name, 0)
        return given

    def is_windowed(self, layer: int) -> bool:
        """Whether `layer` sees only the sliding window."""
        return self.window is not None and (not self.window_layers or self.window_layers[layer])

    @property
    def score_scale(self) -> float:
        """The factor on query-key products, derived where `attn_scale` leaves it open."""
        if self.attn_scale is not None:
            return self.attn_scale
        return 1 / self.d_head if self.init == "mup" else self.d_head**-0.5

    @property
    def output_multiplier(self) -> float:
        """The factor on the last hidden states: 1, but `mup_base_width / d_model` under muP (Yang et al., table 8)."""
        return self.mup_base_width / self.d_model if self.init == "mup" else 1.0


_CHOICES: dict[str, tuple[str, ...]] = {
    "activation": get_args(Activation),
    "norm": get_args(Norm),
    "norm_position": get_args(NormPosition),
    "positions": get_args(Positions),
    "attention": get_args(AttentionPath),
    "init": get_args(Init),
}
