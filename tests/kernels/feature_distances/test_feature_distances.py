"""feature_distances against torch's own losses, one negative and one image at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import cpl_kernels
from cpl_kernels.feature_distances import reference
from tests.kernels import matrix
from tests.kernels.matrix import Case, randn


def naive(anchor: Tensor, others: Tensor, p: int, normalize: bool) -> Tensor:
    loss = F.l1_loss if p == 1 else F.mse_loss
    rows = []
    for other in others:
        row = []
        for a, o in zip(anchor, other, strict=True):
            if normalize:
                a, o = F.normalize(a, dim=0), F.normalize(o, dim=0)
            row.append(loss(a, o))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def case(name: str, negatives: int, shape: tuple[int, ...], p: int = 1, normalize: bool = False) -> Case:
    return Case(
        name,
        lambda rng: (randn(rng, *shape), randn(rng, negatives, *shape)),
        lambda a, o, **kwargs: cpl_kernels.feature_distances(a, o, p, normalize, **kwargs),
        lambda a, o: naive(a, o, p, normalize),
        terms=4,
    )


CASES = [
    case("four negatives", 4, (2, 16, 6, 6)),
    case("squared", 3, (2, 5, 4, 3), p=2),
    case("normalised", 2, (2, 8, 3, 5), normalize=True),
    case("normalised, squared", 2, (3, 8, 3, 2), p=2, normalize=True),
    case("one negative of one number", 1, (3,)),
    case("vectors", 2, (4, 7), normalize=True),
    case("five dimensions, odd, beyond a tile", 2, (1, 3, 5, 1, 257)),
]
SMALL = [case("p1", 2, (2, 3, 2)), case("p2", 2, (2, 3, 2), 2, True), case("p1n", 2, (2, 3, 2), 1, True)]


@matrix.of(CASES)
@pytest.mark.parametrize("dtype", matrix.DTYPES, ids=str)
def test_parity(case: Case, dtype: torch.dtype) -> None:
    matrix.check_parity(case, dtype)


@matrix.of(SMALL)
@pytest.mark.parametrize("layout", matrix.LAYOUTS)
@pytest.mark.parametrize("dy_layout", matrix.LAYOUTS)
def test_strides(case: Case, layout: str, dy_layout: str) -> None:
    matrix.check_parity(case, torch.float32, layout, dy_layout)


@matrix.of(SMALL)
def test_matrix(case: Case) -> None:
    matrix.check_gradients(case)
    matrix.check_subsets_agree(case)
    matrix.check_repeats_bitwise(case)
    matrix.check_compiles(case)
    matrix.check_no_second_derivative(case)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_opcheck(wanted: tuple[bool, bool]) -> None:
    anchor, others = (
        torch.randn(2, 3, 4, requires_grad=wanted[0]),
        torch.randn(4, 2, 3, 4, requires_grad=wanted[1]),
    )
    torch.library.opcheck(
        torch.ops.cpl_kernels.feature_distances.default, (anchor, others, 1, True, "reference")
    )


def test_definition_has_second_derivatives() -> None:
    inputs = [x.requires_grad_() for x in SMALL[1].inputs(torch.float64)]
    assert torch.autograd.gradgradcheck(lambda a, o: reference.feature_distances(a, o, 2, True), inputs)


@pytest.mark.parametrize("p", [1, 2])
def test_layers_are_summed_with_their_weights(p: int) -> None:
    shapes = [(2, 4, 6, 6), (2, 8, 3, 3), (2, 5)]
    anchors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    others = [torch.randn(3, *s, dtype=torch.float64) for s in shapes]
    got = cpl_kernels.feature_distances(anchors, others, p, True, (0.2, 0.3, 0.5))
    expected = sum(w * naive(a, o, p, True) for w, a, o in zip((0.2, 0.3, 0.5), anchors, others, strict=True))
    torch.testing.assert_close(got, expected)
    for a, b in zip(
        torch.autograd.grad(got.square().sum(), anchors),
        torch.autograd.grad(expected.square().sum(), anchors),  # type: ignore[union-attr]
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    plain = cpl_kernels.feature_distances(anchors, others)
    torch.testing.assert_close(
        plain, sum(naive(a, o, 1, False) for a, o in zip(anchors, others, strict=True))
    )
    assert torch.equal(
        cpl_kernels.feature_distances(tuple(anchors), tuple(others), p, True, [0.2, 0.3, 0.5]), got
    )


def test_equal_features_have_distance_and_gradient_zero() -> None:
    anchor = torch.randn(2, 3, 4, requires_grad=True)
    d = cpl_kernels.feature_distances(anchor, anchor.detach().expand(3, -1, -1, -1))
    d.sum().backward()
    assert torch.equal(d, torch.zeros(3, 2))
    assert torch.equal(anchor.grad, torch.zeros_like(anchor))


@pytest.mark.parametrize("p", [1, 2])
def test_zero_vectors_have_no_direction(p: int) -> None:
    """After a ReLU whole channel vectors are 0: no NaN, no gradient of 1e12, and the rest as ever."""
    anchor, others = torch.randn(2, 4, 6), torch.randn(3, 2, 4, 6)
    anchor[0, :, 2] = 0
    others[1, 1, :, 3] = 0
    d_anchor, d_others = (x.clone().requires_grad_() for x in (anchor, others))
    d = cpl_kernels.feature_distances(d_anchor, d_others, p, normalize=True)
    torch.testing.assert_close(d, naive(anchor, others, p, True))
    d.sum().backward()
    assert torch.equal(d_anchor.grad[0, :, 2], torch.zeros(4))
    assert torch.equal(d_others.grad[1, 1, :, 3], torch.zeros(4))
    assert d_anchor.grad.abs().max() < 10
    again = [x.clone().requires_grad_() for x in (anchor, others)]
    reference.feature_distances(*again, p, True).sum().backward()
    torch.testing.assert_close(d_anchor.grad, again[0].grad)
    torch.testing.assert_close(d_others.grad, again[1].grad)


@pytest.mark.parametrize("dtype", matrix.DTYPES, ids=str)
def test_result_is_at_least_float32(dtype: torch.dtype) -> None:
    """Half inputs too: 10,000 differences of 1 + 2^-7 would stall at 2^8 in bf16, and fp16 ends at 65504."""
    anchor, others = torch.zeros(1, 10000).to(dtype), torch.full((2, 1, 10000), 1 + 2**-7).to(dtype)
    d = cpl_kernels.feature_distances(anchor, others)
    assert d.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(d, torch.full_like(d, 1 + 2**-7), rtol=1e-6, atol=0)
    large = cpl_kernels.feature_distances(anchor, 0 * others + 300, p=2)
    torch.testing.assert_close(large, torch.full_like(large, 90000.0))


def test_mixed_dtypes_and_autocast() -> None:
    anchor, others = (
        torch.randn(2, 3, 4, requires_grad=True),
        torch.randn(2, 2, 3, 4).bfloat16().requires_grad_(),
    )
    plain = cpl_kernels.feature_distances(anchor, others, normalize=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        d = cpl_kernels.feature_distances(anchor, others, normalize=True)
    assert torch.equal(d, plain)
    d.sum().backward()
    assert (d.dtype, anchor.grad.dtype, others.grad.dtype) == (torch.float32, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (3, 0, 3, 4), (0, 0, 3, 4)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    anchor = torch.zeros(shape[1:], requires_grad=True)
    d = cpl_kernels.feature_distances(anchor, torch.zeros(shape), normalize=True)
    assert d.shape == shape[:2]
    d.sum().backward()
    assert torch.equal(anchor.grad, torch.zeros_like(anchor))


def test_keeps_the_inputs_only() -> None:
    anchor, others = torch.randn(2, 8, 6, 6, requires_grad=True), torch.randn(4, 2, 8, 6, 6)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        cpl_kernels.feature_distances(anchor, others, normalize=True)
    assert {t.data_ptr() for t in kept} == {anchor.data_ptr(), others.data_ptr()}


A, X = torch.zeros(2, 3, 4), torch.zeros(5, 2, 3, 4)
distances = cpl_kernels.feature_distances
BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no K": (lambda: distances(A, A), ValueError, r"others must be \[K, B, ...\].*\(2, 3, 4\).*unsqueeze"),
    "shape": (lambda: distances(A, X[..., :3]), ValueError, r"others.*\(2, 3, 4\).*\(5, 2, 3, 3\)"),
    "batch": (lambda: distances(A[:1], X), ValueError, r"others.*\(1, 3, 4\)"),
    "scalar": (lambda: distances(A[0, 0, 0], X), ValueError, r"anchor must be \[B, ...\]"),
    "no channels": (
        lambda: distances(A[:, 0, 0], X[:, :, 0, 0], 1, True),
        ValueError,
        r"\[B, C, ...\].*\(2,\)",
    ),
    "no elements": (
        lambda: distances(A[:, :0], X[:, :, :0]),
        ValueError,
        r"at least one element.*\(2, 0, 4\)",
    ),
    "dtype": (lambda: distances(A.int(), X), TypeError, "anchor.*int32"),
    "others dtype": (lambda: distances(A, X.long()), TypeError, "others.*int64"),
    "p": (lambda: distances(A, X, 3), ValueError, "p must be 1.*or 2.*got 3"),
    "p bool": (lambda: distances(A, X, True), ValueError, "got True"),
    "half a list": (lambda: distances([A], X), TypeError, "both lists.*list and Tensor"),
    "lengths": (lambda: distances([A, A], [X]), ValueError, "same layers.*2 and 1"),
    "empty list": (lambda: distances([], []), ValueError, "at least one, got 0 and 0"),
    "second layer": (lambda: distances([A, A], [X, A]), ValueError, r"others\[1\] must be"),
    "layers' K": (lambda: distances([A, A], [X, X[:2]]), ValueError, "same K and B"),
    "weights": (lambda: distances([A], [X], layer_weights=[1, 2]), ValueError, r"1 layers, got \[1.0, 2.0\]"),
    "NaN weight": (lambda: distances(A, X, layer_weights=[float("nan")]), ValueError, r"finite, got \[nan\]"),
    "device": (lambda: distances(A, X.to("meta")), ValueError, "others is on meta"),
    "backend": (lambda: distances(A, X, backend="cuda"), RuntimeError, "feature_distances.*'cuda'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
