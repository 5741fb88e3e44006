"""Steps of fused optimisers are counted, so that what was made from the weights is made again."""

from __future__ import annotations

import pytest
import torch

from alignlab.lm.linear import can_pack, times


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_raises_the_version_of_what_it_wrote(fused: bool) -> None:
    used, unused = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = torch.optim.AdamW([used, unused], fused=fused)
    before = used._version, unused._version
    used.sum().backward()
    optimizer.step()
    assert used._version > before[0]
    assert unused._version == before[1]


@pytest.mark.skipif(not can_pack(), reason="this processor has no packed bf16 products")
def test_a_packed_weight_follows_a_fused_step() -> None:
    weight = torch.nn.Parameter(torch.randn(64, 64).bfloat16())
    x = torch.randn(4, 64).bfloat16()
    with torch.no_grad():
        times(x, weight)
    optimizer = torch.optim.AdamW([weight], lr=0.5, fused=True)
    weight.float().sum().backward()
    optimizer.step()
    with torch.no_grad():
        found, expected = times(x, weight), x.float() @ weight.float().T
    assert (found.float() - expected).abs().max() < 0.02 * expected.abs().max()
