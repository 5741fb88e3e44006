"""Muon against torch's own, against the singular value decomposition, and which parameters it gets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from alignlab.core.errors import ConfigError
from alignlab.lm.config import GPTConfig
from alignlab.lm.model import GPTModel
from alignlab.train.config import TrainConfig
from alignlab.train.muon import Muon, newton_schulz
from alignlab.train.optim import hidden_matrices, make_optimizer, parameter_groups, set_learning_rate

SHAPES = ((6, 6), (4, 9), (9, 4), (6, 6))


def matrices(seed: int = 0) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=g)) for shape in SHAPES]


def give_gradients(parameters: list[nn.Parameter], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=g)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize(("match_adamw", "adjust"), [(True, "match_rms_adamw"), (False, "original")])
def test_equals_torch_over_several_steps(match_adamw: bool, adjust: str) -> None:
    ours, theirs = matrices(), matrices()
    group = {"params": ours, "weight_decay": 0.1, "muon": True}
    muon = Muon([group], lr=0.02, momentum=0.9, match_adamw=match_adamw, dtype=torch.bfloat16)
    reference = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn=adjust)
    for step in range(5):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        muon.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5), (3, 7, 7)])
def test_newton_schulz_keeps_directions_and_evens_out_their_sizes(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    got = newton_schulz(x, dtype=torch.float64)
    values = u.mT @ got @ v.mT  # diagonal if the singular vectors are the same
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(values, torch.diag_embed(diagonal), rtol=0, atol=1e-10)
    large = diagonal[s / s.norm(dim=-1, keepdim=True) > 0.02]
    assert float(large.min()) > 0.65
    assert float(large.max()) < 1.25


def test_newton_schulz_by_the_polynomial_on_a_diagonal() -> None:
    x = torch.diag(torch.tensor([3.0, 4.0], dtype=torch.float64))
    expected = torch.tensor([0.6, 0.8], dtype=torch.float64)  # Frobenius norm 5
    for _ in range(2):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    torch.testing.assert_close(newton_schulz(x, steps=2, dtype=torch.float64), torch.diag(expected))


def test_other_parameters_get_exactly_adamw() -> None:
    vectors, reference = [nn.Parameter(torch.arange(5.0))], [nn.Parameter(torch.arange(5.0))]
    ours = Muon([{"params": vectors, "weight_decay": 0.1}], lr=0.1, betas=(0.8, 0.9))
    theirs = torch.optim.AdamW(reference, lr=0.1, betas=(0.8, 0.9), weight_decay=0.1, fused=True)
    for step in range(4):
        give_gradients(vectors, step)
        give_gradients(reference, step)
        ours.step()
        theirs.step()
    assert torch.equal(vectors[0], reference[0])


def test_an_update_marked_as_infinite_changes_nothing() -> None:
    parameters = [*matrices(), nn.Parameter(torch.ones(3))]
    groups = [{"params": parameters[:-1], "muon": True, "weight_decay": 0.1}, {"params": parameters[-1:]}]
    muon = Muon(groups, lr=0.1)
    give_gradients(parameters, 0)
    muon.step()
    before = [p.detach().clone() for p in parameters]
    states = [{k: v.clone() for k, v in muon.state[p].items()} for p in parameters]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, float("nan"))
    muon.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    muon.step()
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    for parameter, state in zip(parameters, states, strict=True):
        assert all(torch.equal(muon.state[parameter][key], value) for key, value in state.items())
    muon.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
    give_gradients(parameters, 1)
    muon.step()
    reference = [*matrices(), nn.Parameter(torch.ones(3))]
    plain = Muon([{"params": reference[:-1], "muon": True, "weight_decay": 0.1}, {"params": reference[-1:]}], lr=0.1)
    for seed in (0, 1):
        give_gradients(reference, seed)
        plain.step()
    torch.testing.assert_close([p.detach() for p in parameters], [p.detach() for p in reference])


def small(**changes: object) -> GPTModel:
    fields: dict[str, object] = {"vocab_size": 11, "n_ctx": 8, "d_model": 8, "n_layers": 2, "n_heads": 2, "d_mlp": 16}
    return GPTModel(GPTConfig(**fields | changes), seed=0)  # type: ignore[arg-type]


def test_hidden_matrices_are_those_of_the_blocks() -> None:
    model = small(tie_embeddings=False)
    names = set(hidden_matrices(model))
    assert names
    assert all(name.startswith("blocks.") and dict(model.named_parameters())[name].ndim == 2 for name in names)
    rest = {name for name, p in model.named_parameters() if p.ndim == 2} - names
    assert rest == {"embed.weight", "head.weight"} | ({"pos_embed.weight"} if model.pos_embed is not None else set())
    optimizer = make_optimizer(model, TrainConfig(optimizer="muon", weight_decay=0.1))
    muon = {id(p) for group in optimizer.param_groups if group["muon"] for p in group["params"]}
    assert muon == {id(dict(model.named_parameters())[name]) for name in names}


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="Linear has no trainable matrix in `blocks`"):
        make_optimizer(nn.Linear(3, 3), TrainConfig(optimizer="muon"))


def test_scales_multiply_the_learning_rate_of_their_parameters() -> None:
    model = nn.Linear(3, 2)
    groups = parameter_groups(model, 0.1, {"weight": 0.5})
    optimizer = torch.optim.SGD(groups, lr=1.0)
    set_learning_rate(optimizer, 0.2)
    rates: dict[int, float] = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == {id(model.weight): pytest.approx(0.1), id(model.bias): pytest.approx(0.2)}
    with pytest.raises(ConfigError, match="scales has 'wieght', which is not a trainable parameter of Linear"):
        parameter_groups(model, 0.1, {"wieght": 1.0})
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"scales\['bias'\] is"):
            parameter_groups(model, 0.1, {"bias": bad})


def test_adamw_sees_scales_as_a_hand_written_rate() -> None:
    def weights(scale: float, rate: float) -> Tensor:
        layer = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            layer.weight.fill_(1.0)
        optimizer = make_optimizer(layer, TrainConfig(weight_decay=0.1), {"weight": scale})
        for step in range(3):
            layer.weight.grad = torch.full((2, 2), 1.0 + step)
            set_learning_rate(optimizer, rate)
            optimizer.step()
        return layer.weight.detach()

    assert torch.equal(weights(0.25, 0.4), weights(1.0, 0.1))
