"""Generation with the cache continues as the whole text without it would, for every choice of the architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from alignlab.lm.generate import SHARED_PREFIX, decode
from alignlab.lm.model import GPTModel
from alignlab.lm.types import SamplingParams

MakeModel = Callable[..., GPTModel]
UNGATED = {"gated_mlp": False}
CHOICES: dict[str, dict[str, Any]] = {
    "rotary": {},
    "learned": {"positions": "learned"},
    "sinusoidal": {"positions": "sinusoidal"},
    "alibi": {"positions": "alibi"},
    "alibi-odd-heads": {"positions": "alibi", "n_heads": 6, "n_kv_heads": 3, "d_head": 4},
    "alibi-window-cap": {"positions": "alibi", "window": 7, "attn_softcap": 4.0},
    "alibi-multi-query-qk-norm": {"positions": "alibi", "n_kv_heads": 1, "qk_norm": True},
    "no-positions": {"positions": "none"},
    "no-positions-explicit": {"positions": "none", "attention": "explicit"},
    "alibi-sdpa": {"positions": "alibi", "attention": "sdpa", "window": 7, "window_layers": (True, False)},
    "flex": {"positions": "alibi", "attention": "flex"},
    "post-norm": {"norm_position": "post", "norm": "layernorm"},
    "solu": UNGATED | {"activation": "solu"},
    "relu2": UNGATED | {"activation": "relu2"},
    "geglu": {"activation": "gelu"},
    "mup-dropout": {"init": "mup", "mup_base_width": 16, "dropout": 0.5},
}


def prompts(shared: bool) -> list[list[int]]:
    """Of lengths 23, 4 and 11 (so that two are padded), after a common beginning where `shared`."""
    generator = torch.Generator().manual_seed(5)
    common = torch.randint(0, 300, (SHARED_PREFIX + 3,), generator=generator).tolist() if shared else []
    return [common + torch.randint(0, 300, (n,), generator=generator).tolist() for n in (23, 4, 11)]


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared-prefix"])
@pytest.mark.parametrize("choice", CHOICES)
@torch.no_grad()
def test_greedy_decoding_equals_the_forward_pass(choice: str, shared: bool, make_model: MakeModel) -> None:
    """Each token is the best after the text so far by a pass without cache, which also gives its log-probability."""
    model = make_model("llama", **CHOICES[choice]).train()  # generation drops nothing even then
    texts = prompts(shared)
    rows: dict[int, tuple[list[int], list[float]]] = {}
    for moved in decode(model, texts, SamplingParams(max_tokens=9, temperature=0.0), frozenset()):
        rows |= {row.index: (list(row.tokens), list(row.logprobs)) for row in moved}
    model.eval()
    for index, text in enumerate(texts):
        chosen, gained = rows[index]
        assert len(chosen) == 9
        logits = model(torch.tensor([text + chosen]))[0, len(text) - 1 : -1]
        best = logits.max(-1).values
        taken = logits.gather(1, torch.tensor(chosen)[:, None]).squeeze(1)
        assert (best - taken).max() <= 1e-4  # a tie in float32 may fall either way
        expected = taken - logits.logsumexp(-1)
        assert (torch.tensor(gained) - expected).abs().max() <= 1e-4


@torch.no_grad()
def test_positions_are_felt(make_model: MakeModel) -> None:
    """Without positions the last token sees a set; with them an order. One layer, since masks leak order deeper."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, 300, (1, 12), generator=generator)
    mixed = torch.cat([text[:, :-1].flip(1), text[:, -1:]], 1)
    for choice in ("none", "rotary", "learned", "sinusoidal", "alibi"):
        model = make_model("llama", n_layers=1, positions=choice)
        apart = float((model(text)[0, -1] - model(mixed)[0, -1]).abs().max())
        assert apart <= 1e-5 if choice == "none" else apart > 1e-2, choice
