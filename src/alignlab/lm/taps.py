"""Taps: named points at every activation, under TransformerLens's names, free when nobody listens.

A tap is reached by name (`blocks.3.attn.hook_z`). A listener gets `(activation, name)` and may return a replacement:

    with listen(model, {"blocks.3.hook_resid_post": lambda x, name: x * 0}):
        logits = model(tokens)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from alignlab.core.errors import ModelError
from alignlab.lm.config import GPTConfig

if TYPE_CHECKING:
    from alignlab.lm.model import GPTModel

Listener = Callable[[Tensor, str], Tensor | None]


class Taps(dict[str, tuple[Listener, ...]]):
    """The listeners of one model by tap name. Empty (and so false) when nobody listens: that is the whole cost."""

    def __bool__(self) -> bool:
        return len(self) > 0  # said in Python: torch.compile takes a subclass of dict that is silent about it for true

    def __call__(self, name: str, value: Tensor) -> Tensor:
        for listener in self.get(name, ()):
            replaced = listener(value, name)
            if replaced is not None:
                value = replaced
        return value


def tap_names(config: GPTConfig) -> list[str]:
    """Every tap of a model of this configuration, in the order of the forward pass.

    Shapes: residual stream and sub-layer outputs (batch, pos, d_model); `hook_q`, `hook_rot_q`, `hook_z`
    (batch, pos, n_heads, d_head); `hook_k`, `hook_v`, `hook_rot_k` (batch, pos, n_kv_heads, d_head);
    `hook_attn_scores`, `hook_pattern` (batch, n_heads, query, key); MLP (batch, pos, d_mlp);
    `hook_scale` (batch, pos, 1); `hook_normalized` is the norm's output.
    """
    names = ["hook_embed"] + (["hook_pos_embed"] if config.positions in ("learned", "sinusoidal") else [])
    attn = ["hook_q", "hook_k", "hook_v"]
    attn += ["hook_rot_q", "hook_rot_k"] if config.positions == "rotary" else []
    attn += ["hook_attn_scores", "hook_pattern", "hook_z"]
    mlp = ["mlp.hook_pre"] + (["mlp.hook_pre_linear"] if config.gated_mlp else [])
    solu = ["mlp.hook_mid", "mlp.ln.hook_scale", "mlp.ln.hook_normalized"]
    mlp += [*(solu if config.activation == "solu" else []), "mlp.hook_post"]
    ln1, ln2 = ([f"ln{i}.hook_scale", f"ln{i}.hook_normalized"] for i in (1, 2))
    after = config.norm_position == "post"
    block = ["hook_resid_pre", *([] if after else ln1), *(f"attn.{name}" for name in attn)]
    block += ["ln1_post.hook_scale", "ln1_post.hook_normalized"] if config.post_norm else []
    block += ["hook_attn_out", *(ln1 if after else [])] + ([] if config.parallel_block else ["hook_resid_mid"])
    block += [*([] if after else ln2), *mlp]
    block += ["ln2_post.hook_scale", "ln2_post.hook_normalized"] if config.post_norm else []
    block += ["hook_mlp_out", *(ln2 if after else []), "hook_resid_post"]
    for layer in range(config.n_layers):
        names += [f"blocks.{layer}.{name}" for name in block]
    return names if after else [*names, "ln_final.hook_scale", "ln_final.hook_normalized"]


@contextmanager
def listen(model: GPTModel, listeners: Mapping[str, Listener]) -> Iterator[None]:
    """Attach `listeners` (tap name -> function) for the duration of the block; an unknown name is a `ModelError`."""
    unknown = set(listeners) - set(tap_names(model.config))
    if unknown:
        raise ModelError(f"there is no tap named {min(unknown)!r}; alignlab.lm.taps.tap_names(config) lists them")
    before = dict(model.taps)
    for name, listener in listeners.items():
        model.taps[name] = (*model.taps.get(name, ()), listener)
    try:
        yield
    finally:
        model.taps.clear()
        model.taps.update(before)
