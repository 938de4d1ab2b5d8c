"""What is special to feature_distances; tests/kernels/test_parity.py and test_contract.py have the rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import cpl_kernels
from cpl_kernels import core
from cpl_kernels.feature_distances import native, reference
from cpl_kernels.feature_distances.memory import NO_NORM, Layer
from tests.kernels import targets
from tests.kernels.feature_distances.spec import SPEC, case, naive
from tests.kernels.harness import DTYPES


def test_definition_has_second_derivatives() -> None:
    tiny = case("tiny", "second derivatives by differences", 2, (2, 3, 2))
    inputs = [x.requires_grad_() for x in tiny.inputs(torch.float64).values()]
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
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


LAYOUTS = [(), ("last",), ("some channels",), ("last", "some channels"), ("one image",)]


def _image(*strides_of: str, height: int = 6, width: int = 6) -> tuple[Tensor, Tensor]:
    anchor, others = torch.randn(2, 8, height, width), torch.randn(3, 2, 8, height, width)
    if "last" in strides_of:
        anchor = anchor.contiguous(memory_format=torch.channels_last)
        others = others.movedim(2, -1).contiguous().movedim(-1, 2)
    if "some channels" in strides_of:
        anchor, others = anchor[:, 2:6], others[:, :, 2:6]
    return anchor[:1].expand_as(anchor) if "one image" in strides_of else anchor, others[::2]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    "how", [(), ("last",), ("some channels",), ("last", "some channels"), ("one image",)]
)
def test_what_can_be_walked_is_not_copied(how: tuple[str, ...], normalize: bool) -> None:
    anchor, others = _image(*how)
    layer = Layer.of(anchor, others, normalize)
    assert (layer.anchor.data_ptr(), layer.others.data_ptr()) == (anchor.data_ptr(), others.data_ptr())
    assert layer.channels_last == ("last" in how)
    assert (layer.norm == NO_NORM) != normalize
    if not normalize and "some channels" not in how:
        assert layer.size()[2:] == (1, anchor[0].numel()), "one long run"


@targets.on("feature_distances")
@pytest.mark.parametrize("how", LAYOUTS, ids=", ".join)
def test_both_in_a_layout(target: targets.Target, how: tuple[str, ...]) -> None:
    """Images longer than a tile; so are the rows where they are channels of a larger planar image."""
    height, width = (41, 27) if "last" in how else (66, 65)
    for normalize in (False, True):
        named = case("layout", "anchor and others alike", 2, (2, 8, height, width), normalize=normalize)
        inputs = dict(zip(("anchor", "others"), _image(*how, height=height, width=width), strict=True))
        targets.check(SPEC, named, target, inputs, torch.float32)


@pytest.mark.skipif(not core.available(), reason=f"{core.MISSING_BECAUSE}")
@pytest.mark.usefixtures("no_large_cache")
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_that_are_written_past_the_caches(dtype: torch.dtype, normalize: bool) -> None:
    """From 24 MiB on; odd sizes, so that a tile begins in the middle of a cache line. Every element is compared.

    Normalised values of millions of elements come within a rounding of each other somewhere, where the slope of the
    absolute difference jumps; so the squared one is taken there.
    """
    torch.manual_seed(0)
    power = 2 if normalize else 1
    height = 2**20 // dtype.itemsize // 201
    anchor, others = torch.randn(1, 25, height, 201).to(dtype), torch.randn(1, 1, 25, height, 201).to(dtype)
    dy = torch.full((1, 1), float(anchor.numel()))
    assert anchor.nbytes > 24 * 2**20
    got, expected = (
        module.backward(dy, anchor, others, power, normalize, True, True) for module in (native, reference)
    )
    tolerances = {"rtol": 0.01, "atol": 1e-4} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for mine, theirs in zip(got, expected, strict=True):  # of size 1, or 1/5 if normalised; a rounding apart
        torch.testing.assert_close(mine, theirs, **tolerances)


def test_gradients_lie_as_their_tensors_do() -> None:
    anchor, others = (x.requires_grad_() for x in _image("last"))
    for normalize in (False, True):
        d = cpl_kernels.feature_distances(anchor, others, normalize=normalize)
        danchor, dothers = torch.autograd.grad(d.sum(), [anchor, others])
        assert danchor.stride() == anchor.stride()
        assert dothers[0].stride() == others[0].stride()
