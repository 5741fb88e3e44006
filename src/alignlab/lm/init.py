"""Initial weights, and the learning rates that belong to them: GPT-2's, and the maximal update parametrisation (muP).

muP (Yang et al. 2022, "Tensor Programs V", table 8) says how to scale with the width so that every activation's size
and every activation's change in a training step stay the same; a learning rate tuned on a narrow model is then right
for a wide one. With m = d_model / mup_base_width:

| tensor | deviation | learning rate (Adam) | forward pass |
|---|---|---|---|
| embeddings, biases, norms | as without muP | 1 | |
| matrices inside the blocks | 1 / √m | 1 / m | |
| unembedding (also when tied) | as without muP | 1 | logits times 1 / m |
| attention | | | scores times 1 / d_head, not 1 / √d_head |

The table assumes that heads or their width, and `d_mlp`, grow with `d_model`. Weight decay that is multiplied by the
learning rate (AdamW's) falls with it. The forward pass's factors are `GPTConfig.score_scale` and `output_multiplier`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from alignlab.lm.model import GPTModel

DEVIATION = 0.02
_HIDDEN = re.compile(r"blocks\.\d+\.(attn\.[qkvo]|mlp\.(gate|up|down))\.weight")
_RESIDUAL = ("attn.o.weight", "mlp.down.weight")


@torch.no_grad()
def initialise(model: GPTModel, seed: int) -> None:
    """Draw fresh weights, as `model.config.init` says; the same seed draws the same.

    Matrices are normal with deviation 0.02, those that write to the residual stream 0.02 / √(2 n_layers) (Radford et
    al. 2019), under muP times 1 / √m inside the blocks. Biases become zero; norms keep their ones and zeros.
    """
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            deviation = DEVIATION
            if name.endswith(_RESIDUAL):
                deviation /= (2 * config.n_layers) ** 0.5
            if config.init == "mup" and _HIDDEN.fullmatch(name):
                deviation *= (config.mup_base_width / config.d_model) ** 0.5
            # Drawn on the CPU wherever the model is, so that a seed means the same numbers on every device.
            drawn = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
            parameter.copy_(drawn.normal_(0.0, deviation, generator=generator))
        elif "norm" not in name:
            parameter.zero_()


def learning_rate_scales(model: GPTModel) -> dict[str, float]:
    """What to multiply the learning rate with, by parameter name: 1, but 1 / m for muP's matrices inside the blocks.

    The names are those of `model.named_parameters()`. For optimisers of Adam's kind, whose steps do not depend on the
    gradient's size.
    """
    config = model.config
    hidden = config.mup_base_width / config.d_model if config.init == "mup" else 1.0
    return {name: hidden if _HIDDEN.fullmatch(name) else 1.0 for name, _ in model.named_parameters()}
