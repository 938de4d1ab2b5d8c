"""channel_attention against the formula of Restormer written with F.normalize and einsum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import cpl_kernels
from cpl_kernels.channel_attention import reference
from tests.kernels import matrix
from tests.kernels.matrix import Case, randn


def naive(qkv: Tensor, temperature: Tensor) -> Tensor:
    heads = temperature.shape[0]
    batch, channels, height, width = qkv.shape
    parts = qkv.reshape(batch, 3, heads, channels // (3 * heads), height * width).unbind(1)
    q, k = (F.normalize(x, dim=-1) for x in parts[:2])
    attention = (torch.einsum("bhip,bhjp->bhij", q, k) * temperature).softmax(-1)
    return torch.einsum("bhij,bhjp->bhip", attention, parts[2]).reshape(batch, channels // 3, height, width)


def case(name: str, heads: int, shape: tuple[int, ...], temperature: float = 1.0) -> Case:
    return Case(
        name,
        lambda rng: (randn(rng, *shape), temperature * (1 + 0.5 * randn(rng, heads, 1, 1))),
        cpl_kernels.channel_attention,
        naive,
        terms=8,
    )


CASES = [
    case("model's first level, cut down", 1, (1, 3 * 48, 8, 8)),
    case("several heads", 4, (2, 3 * 12, 5, 7)),
    case("one channel per head: attention is 1", 3, (2, 9, 4, 3)),
    case("one pixel: cosines are 1 or -1", 2, (2, 12, 1, 1)),
    case("odd, beyond a tile", 2, (1, 6 * 11, 1, 129)),
    case("sharp", 2, (2, 12, 4, 4), temperature=30.0),
    case("no images", 2, (0, 12, 3, 3)),
    case("no pixels", 2, (2, 12, 0, 3)),
]
SMALL = case("small", 2, (2, 12, 3, 2))


@matrix.of(CASES)
@pytest.mark.parametrize("dtype", matrix.DTYPES, ids=str)
def test_parity(case: Case, dtype: torch.dtype) -> None:
    matrix.check_parity(case, dtype)


@pytest.mark.parametrize("layout", matrix.LAYOUTS)
@pytest.mark.parametrize("dy_layout", matrix.LAYOUTS)
def test_strides(layout: str, dy_layout: str) -> None:
    matrix.check_parity(SMALL, torch.float32, layout, dy_layout)


def test_matrix() -> None:
    matrix.check_gradients(SMALL)
    matrix.check_subsets_agree(SMALL)
    matrix.check_repeats_bitwise(CASES[1])
    matrix.check_compiles(SMALL)
    matrix.check_no_second_derivative(SMALL)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_opcheck(wanted: tuple[bool, bool]) -> None:
    qkv, temperature = (
        torch.randn(2, 12, 3, 2, requires_grad=wanted[0]),
        torch.ones(2, 1, 1, requires_grad=wanted[1]),
    )
    torch.library.opcheck(torch.ops.cpl_kernels.channel_attention.default, (qkv, temperature, "reference"))


def test_definition_has_second_derivatives() -> None:
    inputs = [x.requires_grad_() for x in case("tiny", 2, (1, 12, 2, 1)).inputs(torch.float64)]
    assert torch.autograd.gradgradcheck(reference.channel_attention, inputs)


def test_autocast_casts_qkv_and_keeps_the_temperature() -> None:
    matrix.check_under_autocast(SMALL, expected=torch.bfloat16)
    qkv, temperature = torch.randn(2, 12, 3, 2).bfloat16(), torch.rand(2, 1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = cpl_kernels.channel_attention(qkv.float(), temperature)
        assert cpl_kernels.channel_attention(qkv.double(), temperature).dtype == torch.float64
    assert torch.equal(inside, cpl_kernels.channel_attention(qkv, temperature))


def test_accumulates_in_float32_under_autocast_too() -> None:
    """Autocast is off below the op: a bf16 matmul inside would be off by 2^-9 where fp32 is off by 2^-24."""
    qkv, temperature = CASES[0].inputs(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, norm, _, cosines = torch.ops.cpl_kernels.channel_attention(qkv, temperature.float(), "reference")
    _, _, _, expected = reference.forward(qkv.double(), temperature.double())
    assert (norm.dtype, cosines.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(cosines.double(), expected, rtol=1e-5, atol=1e-6)


def test_zero_channels_are_no_division_by_zero() -> None:
    """A norm of 0 is clamped: its cosines are 0, so its attention is even."""
    qkv, temperature = CASES[1].inputs(torch.float64)
    qkv[:, 1] = 0
    qkv[:, 13] = 0
    leaf = qkv.clone().requires_grad_()
    y = cpl_kernels.channel_attention(leaf, temperature)
    expected_leaf = qkv.clone().requires_grad_()
    expected = naive(expected_leaf, temperature)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(leaf.grad, expected_leaf.grad)


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_scale_of_q_and_k_does_not_matter(scale: float) -> None:
    qkv, temperature = SMALL.inputs(torch.float32)
    scaled = torch.cat((qkv[:, :8] * scale, qkv[:, 8:]), dim=1)
    torch.testing.assert_close(
        cpl_kernels.channel_attention(scaled, temperature), cpl_kernels.channel_attention(qkv, temperature)
    )


def test_extreme_temperature_stays_finite() -> None:
    qkv, _ = SMALL.inputs(torch.float32)
    leaf, temperature = qkv.requires_grad_(), torch.full((2, 1, 1), 1e4, requires_grad=True)
    y = cpl_kernels.channel_attention(leaf, temperature)
    y.sum().backward()
    assert all(torch.isfinite(t).all() for t in (y, leaf.grad, temperature.grad))


def test_keeps_the_inputs_and_per_head_statistics_only() -> None:
    """What autograd holds beyond qkv itself: norms [B, C] and c x c matrices, not q and k over the pixels."""
    qkv, temperature = torch.randn(2, 24, 32, 32, requires_grad=True), torch.ones(2, 1, 1, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        cpl_kernels.channel_attention(qkv, temperature)
    beyond = [t.numel() for t in kept if t.data_ptr() != qkv.data_ptr()]
    assert sum(beyond) == 2 + 2 * (2 * 8) + 2 * 2 * 4 * 4
    assert any(t.data_ptr() == qkv.data_ptr() for t in kept)


X, T = torch.zeros(2, 12, 4, 4), torch.ones(2, 1, 1)
attention = cpl_kernels.channel_attention
BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "rank": (lambda: attention(X[0], T), ValueError, r"\[B, 3C, H, W\].*\(12, 4, 4\)"),
    "dtype": (lambda: attention(X.long(), T), TypeError, "qkv.*int64"),
    "heads": (
        lambda: attention(X, torch.ones(3, 1, 1)),
        ValueError,
        r"divisible by the 3 heads.*multiple of 9",
    ),
    "not 3C": (lambda: attention(X[:, :10], T), ValueError, "10 is no positive multiple of 6"),
    "no channels": (lambda: attention(X[:, :0], T), ValueError, "0 is no positive multiple"),
    "no heads": (lambda: attention(X, T[:0]), ValueError, "at least one head"),
    "temperature shape": (lambda: attention(X, torch.ones(2, 2, 1)), ValueError, r"\(2, 1, 1\).*\(2, 2, 1\)"),
    "temperature rank": (lambda: attention(X, torch.ones(2)), ValueError, r"\[heads, 1, 1\].*\(2,\)"),
    "temperature dtype": (lambda: attention(X, T.int()), TypeError, "temperature.*int32"),
    "temperature number": (lambda: attention(X, 1.0), TypeError, "temperature.*float"),
    "device": (lambda: attention(X, T.to("meta")), ValueError, "temperature is on meta"),
    "backend": (lambda: attention(X, T, backend="cuda"), RuntimeError, "channel_attention.*'cuda'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
