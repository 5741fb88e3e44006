"""Products with codes, by every way there is, against the dequantised matrix."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from alignlab.lm.cpu_step.program import COMPILERS, program
from alignlab.lm.linear import times
from alignlab.lm.quant import cpu_kernel, torch_kernels
from alignlab.lm.quant.apply import SCHEMES
from alignlab.lm.quant.layers import QuantEmbedding, QuantLinear, QuantMatrix

RULES = sorted(SCHEMES)


def need_compiler() -> None:
    """Skip where there is no compiler; where there is one, the program must compile and load."""
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("no compiler here")
    assert cpu_kernel.compiled() is not None


def made(
    scheme: str, n_out: int = 40, n_in: int = 96, group: int = 32, seed: int = 0
) -> tuple[torch.Tensor, QuantMatrix]:
    weight = torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(seed)) * 0.03
    return weight, QuantMatrix(SCHEMES[scheme](weight, group), torch.float32)


@pytest.mark.parametrize("scheme", RULES)
@pytest.mark.parametrize("shape", [(40, 96), (64, 128), (7, 64)])
def test_compiled_product_is_that_of_the_dequantised_matrix(scheme: str, shape: tuple[int, int]) -> None:
    need_compiler()
    _, matrix = made(scheme, *shape)
    reference = matrix.dequantise(torch.float64)
    for rows in range(1, cpu_kernel.FEW_ROWS + 1):
        x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows))
        y = cpu_kernel.cpu_product(matrix, x)
        assert y is not None
        exact = x.double() @ reference.T
        assert torch.allclose(y.double(), exact, atol=2e-6 * float(exact.abs().max()))
        # A row's numbers do not depend on its companions, to the last bit.
        alone = cpu_kernel.cpu_product(matrix, x[-1:])
        assert alone is not None
        assert torch.equal(alone[0], y[-1])
    assert cpu_kernel.cpu_product(matrix, torch.randn(cpu_kernel.FEW_ROWS + 1, shape[1])) is None


@pytest.mark.parametrize("scales", [torch.float16, torch.float32])
def test_compiled_product_reads_every_type_of_scale(scales: torch.dtype) -> None:
    need_compiler()
    _, matrix = made("int4")
    assert matrix.offsets is not None
    noise = torch.randn(matrix.scales.shape, generator=torch.Generator().manual_seed(3))
    # float16 below its smallest normal number too, and negative ones.
    matrix.scales = (noise * 10.0 ** torch.randint(-6, 1, noise.shape, generator=torch.Generator().manual_seed(4))).to(
        scales
    )
    matrix.offsets = matrix.offsets.to(scales)
    x = torch.randn(2, 96, generator=torch.Generator().manual_seed(5))
    y = cpu_kernel.cpu_product(matrix, x)
    assert y is not None
    exact = x.double() @ matrix.dequantise(torch.float64).T
    assert torch.allclose(y.double(), exact, atol=2e-6 * float(exact.abs().max()))


@pytest.mark.parametrize(("scheme", "group"), [("int4", 32), ("int4", 64), ("int8", 128)])
def test_torchs_packed_product_is_that_of_the_dequantised_matrix(scheme: str, group: int) -> None:
    _, matrix = made(scheme, 64, 128, group)
    matrix.to(torch.bfloat16)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    y = torch_kernels.torch_product(matrix, x)
    if y is None:
        pytest.skip("this torch has no such product")
    exact = x.double() @ matrix.dequantise(torch.float64).T
    # float32 sums, rounded once: half a unit in the last of bfloat16's 8 bits, and what the sums lose
    assert bool(((y.double() - exact).abs() <= exact.abs() / 256 + 1e-5).all())


def test_plain_path_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    _, matrix = made("nf4")
    x = torch.randn(2, 3, 96)
    monkeypatch.setenv("ALIGNLAB_NO_COMPILER", "1")
    assert cpu_kernel.compiled() is None
    assert torch.equal(matrix.product(x), F.linear(x, matrix.dequantise()))


def test_a_program_that_no_compiler_makes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slower way must not be taken in silence."""
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("no compiler here")
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path))
    source = tmp_path / "broken.cpp"
    source.write_text("int main() { return nothing; }\n")
    with pytest.warns(UserWarning, match=r"no compiler here makes broken\.cpp .*error.*nothing.*torch does its work"):
        assert program(source) is None


@pytest.mark.parametrize("scheme", RULES)
def test_gradient_passes_through_the_dequantised_matrix(scheme: str) -> None:
    _, matrix = made(scheme)
    bias = torch.randn(40)
    layer = QuantLinear(matrix, bias)
    x = torch.randn(5, 96, requires_grad=True)
    twin = x.detach().clone().requires_grad_(True)
    (layer(x).sin().sum()).backward()
    (F.linear(twin, matrix.dequantise(), bias).sin().sum()).backward()
    assert x.grad is not None
    assert twin.grad is not None
    assert torch.allclose(x.grad, twin.grad, atol=1e-6)


def test_weight_is_a_tensor_for_whoever_asks() -> None:
    _, matrix = made("int4")
    layer = QuantLinear(matrix)
    assert layer.weight.shape == (40, 96)
    assert layer.weight.dtype is torch.float32
    x = torch.randn(2, 96)
    assert torch.equal(layer.weight + 1, matrix.dequantise() + 1)
    assert torch.allclose(times(x, layer.weight), F.linear(x, matrix.dequantise()), atol=1e-6)
    assert torch.allclose(F.linear(x, layer.weight), F.linear(x, matrix.dequantise()), atol=1e-6)


def test_embedding_looks_up_the_dequantised_rows() -> None:
    _, matrix = made("int8", 37, 64)
    tokens = torch.tensor([[0, 36, 5], [17, 16, 15]])
    assert torch.equal(QuantEmbedding(matrix)(tokens), matrix.dequantise()[tokens])


def test_a_product_that_is_not_exact_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = made("int4", 64, 128, 32)[1].to(torch.bfloat16)
    x = torch.randn(1, 128).bfloat16()
    right = torch_kernels._product
    for wrong in (lambda m, r: right(m, r) * 1.1, lambda m, r: None):
        torch_kernels.is_exact.cache_clear()
        monkeypatch.setattr(torch_kernels, "_product", wrong)
        assert torch_kernels.torch_product(matrix, x) is None
        monkeypatch.undo()
    torch_kernels.is_exact.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="products on a GPU")
@pytest.mark.parametrize("scheme", RULES)
@pytest.mark.parametrize("rows", [1, 5, 16, 40])
def test_products_on_a_gpu_are_those_of_the_dequantised_matrix(scheme: str, rows: int) -> None:
    _, matrix = made(scheme, 192, 576, 64)
    matrix = matrix.to("cuda").to(torch.bfloat16)
    x = torch.randn(rows, 576, generator=torch.Generator().manual_seed(rows)).cuda().bfloat16()
    exact = x.double() @ matrix.dequantise(torch.float64).T
    y = matrix.product(x).double()
    # The plain path rounds weights to bfloat16 too: 576 products with relative errors of at most 1/512 each.
    bound = exact.abs() / 128 + (x.double().abs() @ matrix.dequantise(torch.float64).abs().T) / 512
    assert bool(((y - exact).abs() <= bound).all())
    wide = matrix.to(torch.float32)
    assert torch.allclose(wide.product(x.float()).double(), exact, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="products on a GPU")
def test_torchs_int4_product_is_used_on_a_gpu() -> None:
    _, matrix = made("int4", 192, 640, 64)
    matrix = matrix.to("cuda").to(torch.bfloat16)
    x = torch.randn(3, 640, device="cuda", dtype=torch.bfloat16)
    y = torch_kernels.torch_product(matrix, x)
    assert y is not None
    exact = x.double() @ matrix.dequantise(torch.float64).T
    bound = exact.abs() / 128 + (x.double().abs() @ matrix.dequantise(torch.float64).abs().T) / 256
    assert bool(((y.double() - exact).abs() <= bound).all())
