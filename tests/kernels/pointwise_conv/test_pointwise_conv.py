"""What is special to pointwise_conv: sizes of blocks, tiles and runs, and what is not needed."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

import cpl_kernels
from cpl_kernels import backends, core
from cpl_kernels.pointwise_conv import cuda, op, reference
from tests.kernels import harness
from tests.kernels.pointwise_conv import spec

ON_CPU = [name for name in backends.backends_of("pointwise_conv") if backends.RUNS_ON.get(name) != "cuda"]
NATIVE = pytest.mark.skipif(not core.available(), reason=f"{core.MISSING_BECAUSE}")


def whole(rng: torch.Generator, *shape: int) -> torch.Tensor:
    """Whole numbers, whose sums are exact: a number that is read from a wrong place shows."""
    return torch.randint(-4, 5, shape, generator=rng).float()


@NATIVE
def test_every_size() -> None:
    rng = torch.Generator().manual_seed(0)
    channels = (1, 2, 3, 4, 5, 7, 16, 31, 63, 64, 65, 130)
    pixels = (1, 3, 8, 15, 16, 17, 63, 64, 65, 129, 256, 257, 700)
    for batch, (inner, outer), p in itertools.product(
        (1, 3), itertools.product(channels, (1, 5, 6, 7, 13, 70)), pixels
    ):
        if batch == 3 and inner * outer > 500:
            continue  # the same blocks again
        x, dy, residual = (whole(rng, batch, c, 1, p) for c in (inner, outer, outer))
        weight, bias = whole(rng, outer, inner, 1, 1), whole(rng, outer)
        leaves = [t.requires_grad_() for t in (x, weight, bias, residual)]
        y = cpl_kernels.pointwise_conv(*leaves, backend="native")
        expected = F.conv2d(x, weight, bias) + residual
        assert torch.equal(y, expected), (batch, inner, outer, p)
        for name, got, wanted in zip(
            ("x", "weight", "bias", "residual"),
            torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, leaves, dy),
            strict=True,
        ):  # fmt: skip
            assert torch.equal(got, wanted), (name, batch, inner, outer, p)


@NATIVE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "out"), [((2, 130, 33, 41), 75), ((1, 9, 16, 16), 300), ((5, 200, 3, 5), 210)],
    ids=["tiles", "groups of rows", "small maps"],
)  # fmt: skip
def test_same_bits_at_any_number_of_threads(shape: tuple[int, ...], out: int, dtype: torch.dtype) -> None:
    inputs = spec.case("threads", "parts for many threads", shape, out, True, True).inputs(dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(
                harness.run(
                    lambda **a: cpl_kernels.pointwise_conv(**a, backend="native"), inputs, ("y",), tuple(inputs),
                    harness.incoming([inputs["residual"]]),
                )
            )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        harness.assert_same_bits(other, results[0], f"{shape}")


@pytest.mark.parametrize("backend", ON_CPU)
def test_only_what_is_needed_is_computed(backend: str) -> None:
    if backend == "native" and not core.available():
        pytest.skip(f"{core.MISSING_BECAUSE}")
    rng = torch.Generator().manual_seed(1)
    x, weight, dy = whole(rng, 2, 3, 4, 5), whole(rng, 6, 3, 1, 1), whole(rng, 2, 6, 4, 5)
    call = torch.ops.cpl_kernels.pointwise_conv_backward
    every = call(dy, x, weight, True, True, True, backend)
    for needs in itertools.product((True, False), repeat=3):
        for got, full, need in zip(call(dy, x, weight, *needs, backend), every, needs, strict=True):
            assert torch.equal(got, full) if need else got.numel() == 0, needs


def test_a_residual_of_another_dtype_widens_the_result() -> None:
    x, weight = torch.randn(1, 3, 4, 4).bfloat16(), torch.randn(5, 3, 1, 1).bfloat16()
    residual = torch.randn(1, 5, 4, 4)
    y = cpl_kernels.pointwise_conv(x, weight, residual=residual)
    assert y.dtype == torch.float32
    assert torch.equal(y, cpl_kernels.pointwise_conv(x, weight) + residual)
    with torch.autocast("cpu", torch.bfloat16):  # as x + conv(x) under autocast
        y = cpl_kernels.pointwise_conv(residual[:, :3], weight.float(), residual=residual)
    assert y.dtype == torch.float32


@NATIVE
def test_a_turned_weight_is_read_where_it_lies() -> None:
    """The gradient of x is the convolution with the weight turned, and has its bits."""
    rng = torch.Generator().manual_seed(2)
    weight, dy = torch.randn(7, 9, 1, 1, generator=rng), torch.randn(2, 7, 5, 13, generator=rng)
    x = torch.zeros(2, 9, 5, 13, requires_grad=True)
    cpl_kernels.pointwise_conv(x, weight, backend="native").backward(dy)
    turned = cpl_kernels.pointwise_conv(dy, weight.transpose(0, 1), backend="native")
    assert torch.equal(turned, x.grad)
    sliced = torch.randn(7, 20, 1, 1, generator=rng)[:, 3:12]
    y = cpl_kernels.pointwise_conv(x, sliced, backend="native")
    assert torch.equal(y, cpl_kernels.pointwise_conv(x, sliced.contiguous(), backend="native"))


def test_infinities_reach_what_depends_on_them_alone() -> None:
    x, weight = torch.ones(1, 3, 4, 4), torch.ones(5, 3, 1, 1)
    x[0, 1, 2, 2] = float("inf")
    for backend in ON_CPU:
        if backend == "native" and not core.available():
            continue
        y = cpl_kernels.pointwise_conv(x, weight, backend=backend)
        assert torch.isinf(y).sum() == 5
        assert torch.isinf(y[0, :, 2, 2]).all()


def test_a_float64_image_keeps_its_weight_under_autocast() -> None:
    x, weight = torch.randn(1, 3, 4, 4, dtype=torch.float64), torch.randn(5, 3, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        y = cpl_kernels.pointwise_conv(x, weight)
    torch.testing.assert_close(y, F.conv2d(x, weight.double()), rtol=1e-12, atol=1e-12)


# -- on a GPU, by torch's libraries: computed on the CPU here


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_product_of_a_gpu(dtype: torch.dtype, residual: bool) -> None:
    """Against the same numbers in float64, to half an ulp of the sum's magnitude, and half of what is added."""
    x, weight = torch.randn(3, 6, 5, 7).to(dtype), torch.randn(4, 6, 1, 1).to(dtype)
    dy, added = torch.randn(3, 4, 5, 7).to(dtype), torch.randn(3, 4, 5, 7).to(dtype) if residual else None
    y = cuda.forward(x, weight, None, added)
    dx, dweight, dbias = cuda.backward(dy, x, weight, True, True, True)
    assert (y.dtype, dx.dtype, dweight.dtype, dbias.dtype) == (dtype, dtype, torch.float32, torch.float32)
    wide, matrix, up = x.double().flatten(2), weight.double().flatten(1), dy.double().flatten(2)
    more = 0 if added is None else added.double().flatten(2)
    eps = torch.finfo(dtype).eps
    for got, gold, terms in (
        (y, matrix @ wide + more, matrix.abs() @ wide.abs() + abs(more)),
        (dx, matrix.T @ up, matrix.abs().T @ up.abs()),
        (dweight, (up @ wide.mT).sum(0), (up.abs() @ wide.abs().mT).sum(0)),
        (dbias, up.sum((0, 2)), up.abs().sum((0, 2))),
    ):
        assert ((got.double().view_as(gold) - gold).abs() <= eps * terms).all()


@pytest.mark.parametrize("how", ["float32", "odd", "channels_last", "wide weight", "bias"])
def test_what_a_gpu_leaves_to_the_convolution(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(torch, "bmm", lambda *_: pytest.fail("a product"))
    x, weight = torch.randn(3, 6, 5, 7).bfloat16(), torch.randn(4, 6, 1, 1).bfloat16()
    bias = torch.randn(4) if how == "bias" else None
    if how == "float32":
        x, weight = x.float(), weight.float()
    if how == "odd":
        weight = weight[:3]
    if how == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    if how == "wide weight":
        weight = weight.float()
    assert torch.equal(cuda.forward(x, weight, bias, None), reference.forward(x, weight, bias, None))
    if how != "bias":
        dy = torch.randn(3, weight.shape[0], 5, 7).to(x.dtype)
        for got, gold in zip(
            cuda.backward(dy, x, weight, True, True, True),
            reference.backward(dy, x, weight, True, True, True),
            strict=True,
        ):
            assert torch.equal(got, gold)


def test_the_gradient_of_x_needs_no_x() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x, weight, dy = (torch.randn(s).to(dtype) for s in ((2, 6, 5, 7), (4, 6, 1, 1), (2, 4, 5, 7)))
        for backend in ("reference", "native") if core.available() else ("reference",):
            gold, _, _ = op.pointwise_conv_backward(dy, x, weight, True, False, False, backend)
            assert torch.equal(op.gradient_of_x(dy, weight, backend), gold)
