"""What is special to layer_norm2d; tests/kernels/test_parity.py and test_contract.py have the rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import cpl_kernels
from cpl_kernels import core
from cpl_kernels.layer_norm2d import reference
from tests.conftest import INTERPRETED
from tests.kernels import targets
from tests.kernels.layer_norm2d.spec import EPS, SPEC, case
from tests.kernels.targets import Target

SMALL = SPEC.small[0]


@targets.on("layer_norm2d")
@pytest.mark.parametrize("center", [True, False])
def test_channels_last_stays_channels_last(center: bool, target: Target) -> None:
    """It has a kernel of its own; more pixels than it sums before it goes to fp64."""
    case = next(c for c in SPEC.cases if c.name == ("odd" if center else "odd, not centred"))
    inputs = case.inputs(torch.float32, "channels_last")
    targets.check(SPEC, case, target, inputs, torch.float32, "channels_last")
    with target.serving("layer_norm2d"):
        y = case.call(**inputs, backend=target.backend)
    assert y.is_contiguous(memory_format=torch.channels_last)


@targets.on("layer_norm2d")
def test_mixed_dtypes(target: Target) -> None:
    """Parameters stay fp32 beside bf16 activations, as under autocast; their gradients are fp32."""
    inputs = SMALL.inputs(torch.float32)
    weight = inputs["weight"].requires_grad_()
    with target.serving("layer_norm2d"):
        y = cpl_kernels.layer_norm2d(inputs["x"].bfloat16(), weight, backend=target.backend)
        y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


@targets.on("layer_norm2d")
def test_nan_and_infinity_stay_in_their_pixel(target: Target) -> None:
    x = torch.randn(1, 8, 2, 4)
    x[0, 3, 0, 1], x[0, 5, 1, 2] = float("nan"), float("inf")
    with target.serving("layer_norm2d"):
        y = cpl_kernels.layer_norm2d(x, torch.ones(8), torch.zeros(8), backend=target.backend)
    bad = y.isnan().any(1)[0]
    assert bad.tolist() == [[False, True, False, False], [False, False, True, False]]


@targets.on("layer_norm2d")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_backward_gives_the_output_along(layout: str, dtype: torch.dtype, target: Target) -> None:
    """To the bit, and the gradients are those of the backward alone. Large: whole blocks, and long ones on a CPU."""
    ops = torch.ops.cpl_kernels
    large = () if target.emulated or target.name == "triton" else (case("blocks", "", (2, 16, 128, 129)),)
    for small in (*SPEC.small, *large):
        x, weight, *rest = small.inputs(dtype, layout).values()
        bias, center, last = rest[0] if rest else None, small.call.keywords["center"], target.backend or ""
        with target.serving("layer_norm2d"):
            y, mean, rstd = ops.layer_norm2d(x, weight, bias, EPS, center, last)
            dy = torch.randn_like(y)
            gradients = ops.layer_norm2d_backward(dy, x, weight, mean, rstd, center, last)
            found = ops.layer_norm2d_backward_and_output(dy, x, weight, bias, mean, rstd, EPS, center, last)
        for got, gold in zip(found, (*gradients, y), strict=True):
            torch.testing.assert_close(got, gold, rtol=0, atol=0, equal_nan=True)
            assert got.stride() == gold.stride()


def test_the_backward_with_output_is_an_op() -> None:
    x, weight, bias = SMALL.inputs(torch.float32).values()
    y, mean, rstd = torch.ops.cpl_kernels.layer_norm2d(x, weight, bias, EPS, True, "")
    for center in (True, False):
        args = (y, x, weight, bias, mean, rstd, EPS, center, "")
        torch.library.opcheck(torch.ops.cpl_kernels.layer_norm2d_backward_and_output.default, args)


def test_definition_has_second_derivatives() -> None:
    inputs = [x[:1, :3, :2, :2] if x.dim() == 4 else x[:3] for x in SMALL.inputs(torch.float64).values()]
    leaves = [x.detach().requires_grad_() for x in inputs]
    assert torch.autograd.gradgradcheck(lambda *a: reference.layer_norm2d(*a, 1e-5, True), leaves)


def test_is_pytorchs_layer_norm_over_channels() -> None:
    x, weight, bias = SMALL.inputs(torch.float64).values()
    expected = torch.nn.functional.layer_norm(x.permute(0, 2, 3, 1), (6,), weight, bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(cpl_kernels.layer_norm2d(x, weight, bias), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter makes Triton serve CPU tensors")
def test_explicit_backend_never_falls_back() -> None:
    x, weight = torch.zeros(2, 3, 4, 4), torch.ones(3)
    with pytest.raises(RuntimeError, match="'triton' cannot serve this call.*these are on cpu"):
        cpl_kernels.layer_norm2d(x, weight, backend="triton")
    with pytest.raises(RuntimeError, match="'cuda' cannot serve this call"):
        cpl_kernels.layer_norm2d(x, weight, backend="cuda")


def test_triton_says_what_it_does_not_serve() -> None:
    kernels = pytest.importorskip("cpl_kernels.layer_norm2d.triton", reason="needs triton (Linux only)")
    assert "float64" in kernels.why_not(torch.zeros(2, 3, 4, 4, dtype=torch.float64))
    assert kernels.why_not(torch.zeros(2, 3, 4, 4)) is None


@pytest.mark.skipif(not core.available(), reason=f"{core.MISSING_BECAUSE}")
@pytest.mark.usefixtures("no_large_cache")
@pytest.mark.parametrize("width", [520, 521])
def test_results_larger_than_the_caches(width: int) -> None:
    """From 24 MiB on the C++ kernel writes past the caches where all rows are aligned (520), and else does not (521).
    Pixels do not depend on one another, so each image has the bits that it has alone."""
    shape = (3, 8, 512, width)
    rng = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=rng) for _ in range(2))
    weight = torch.randn(8, generator=rng)

    def run(x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        y = cpl_kernels.layer_norm2d(x, weight, backend="native")
        return y.detach(), torch.autograd.grad(y, x, dy)[0]

    together = run(x, dy)
    for i in range(shape[0]):
        alone = run(x[i : i + 1], dy[i : i + 1])
        assert all(torch.equal(a[i : i + 1], b) for a, b in zip(together, alone, strict=True))
