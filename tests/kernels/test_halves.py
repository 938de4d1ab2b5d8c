"""What the two halves of a transformer block promise together: their ops' bits, less kept, strips, a chain of both."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import cpl_kernels
from cpl_kernels import core, strips
from cpl_kernels.attention_half.reference import attention_half as plain_attention
from cpl_kernels.feed_forward_half.reference import feed_forward_half as plain_feed_forward
from tests.kernels import spec
from tests.kernels.harness import DTYPES, run
from tests.kernels.spec import Case

HALVES = ("attention_half", "feed_forward_half")
CASES = [pytest.param(op, case, id=f"{op}-{case.name}") for op in HALVES for case in spec.of(op).small]
NEEDS_CORE = pytest.mark.skipif(not core.available(), reason=f"{core.MISSING_BECAUSE}")
C, HIDDEN, SHAPE = 16, 42, (2, 16, 9, 14)


def arguments(dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of both halves. None is all ones or zeros, so that a mix-up shows."""
    rng = torch.Generator().manual_seed(0)

    def made(*shape: int) -> Tensor:
        return (0.5 * torch.randn(shape, generator=rng)).to(dtype).requires_grad_()

    norm = {"norm_weight": (C,), "norm_bias": (C,)}
    attention = {
        "qkv": (3 * C, C, 1, 1),
        "dw": (3 * C, 1, 3, 3),
        "temperature": (2, 1, 1),
        "project": (C, C, 1, 1),
    }
    forward = {
        "project_in": (2 * HIDDEN, C, 1, 1),
        "dw": (2 * HIDDEN, 1, 3, 3),
        "project_out": (C, HIDDEN, 1, 1),
    }
    first, second = (
        {name: made(*shape) for name, shape in (norm | half).items()} for half in (attention, forward)
    )
    return first, second


def gradients(y: Tensor, *leaves: Any) -> list[Tensor | None]:
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    wanted = [x for x in leaves if x.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, dy))
    return [y.detach(), *(next(found) if x.requires_grad else None for x in leaves)]


def same(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for got, gold in zip(found, expected, strict=True):
        assert (got is None) == (gold is None)
        if got is not None and gold is not None:
            assert got.dtype == gold.dtype
            assert torch.equal(got, gold)


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=NEEDS_CORE)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("op", "case"), CASES)
def test_it_has_the_numbers_of_its_ops(op: str, case: Case, dtype: torch.dtype, backend: str) -> None:
    """But that in float32 and float64 the residual is added by the product, and in 16 bits three gradients are summed
    in other orders; there half an ulp, of the largest, is allowed for each."""
    inputs = case.inputs(dtype)
    wanted = spec.of(op).wanted(inputs)
    assert case.calls is not None
    dys = [
        torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        for y in [case.calls(**inputs, backend=backend)]
    ]
    runs = [
        run(lambda call=call, **a: call(**a, backend=backend), inputs, ("y",), wanted, dys)
        for call in (case.call, case.calls)
    ]
    for name, got in runs[0].items():
        gold = runs[1][name]
        assert got.dtype == gold.dtype
        ulps = 1.5 if dtype in (torch.bfloat16, torch.float16) else 4
        assert (got - gold).abs().max() <= ulps * torch.finfo(dtype).eps * max(1.0, gold.abs().max()), name


@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=NEEDS_CORE)])
def test_whatever_is_kept_the_bits_are_the_same(backend: str, narrow: bool) -> None:
    attention, forward = arguments()
    leaves = torch.randn(SHAPE, requires_grad=True), *attention.values(), *forward.values()
    found = []
    for keep in ("all", "products", "input"):
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            chain = cpl_kernels.transformer_block(leaves[0], attention, forward, keep=keep, backend=backend)
            y = cpl_kernels.attention_half(leaves[0], **attention, keep=keep, backend=backend)
            y = cpl_kernels.feed_forward_half(y, **forward, keep=keep, backend=backend)
        found += [gradients(chain, *leaves), gradients(y, *leaves)]
    for other in found[1:]:
        same(other, found[0])


@pytest.mark.parametrize("keep", ["all", "products", "input"])
def test_against_the_plain_definition(keep: str) -> None:
    attention, forward = arguments(torch.float64)
    leaves = (
        torch.randn(SHAPE, dtype=torch.float64, requires_grad=True),
        *attention.values(),
        *forward.values(),
    )
    y = cpl_kernels.transformer_block(leaves[0], attention, forward, keep=keep)
    gold = plain_feed_forward(plain_attention(leaves[0], **attention), **forward)
    for got, expected in zip(gradients(y, *leaves), gradients(gold, *leaves), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)  # sums in other orders


@pytest.mark.parametrize("keep", ["all", "products", "input"])
@pytest.mark.parametrize(
    "frozen", ["x", "first", "second", "norm", "qkv", "project", "project_out", "all but project"]
)
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(keep: str, frozen: str) -> None:
    attention, forward = arguments()
    x = torch.randn(SHAPE, requires_grad=True)
    leaves = x, *attention.values(), *forward.values()
    whole = gradients(cpl_kernels.transformer_block(x, attention, forward, keep=keep), *leaves)
    for half, of in (("first", attention), ("second", forward)):
        for name, value in of.items():
            is_frozen = (
                name != "project"
                if frozen == "all but project"
                else half == frozen or name.startswith(frozen)
            )
            value.requires_grad_(not is_frozen)
    x.requires_grad_(frozen not in ("x", "all but project"))
    found = gradients(cpl_kernels.transformer_block(x, attention, forward, keep=keep), *leaves)
    for got, gold, leaf in zip(found[1:], whole[1:], leaves, strict=True):
        assert (got is not None) == leaf.requires_grad
        assert got is None or torch.equal(got, gold)


def test_where_the_last_product_alone_learns_its_input_is_kept() -> None:
    """That is less than what it would be computed again from; and where it does not learn nothing is kept for it."""
    _, forward = arguments()
    for name, value in forward.items():
        value.requires_grad_(name == "project_out")
    for keep, maps in (("all", HIDDEN), ("products", HIDDEN), ("input", C)):
        kept = saved(
            lambda keep=keep: cpl_kernels.feed_forward_half(torch.randn(SHAPE), **forward, keep=keep), forward
        )
        assert kept == [maps]


def saved(call: Any, parameters: Mapping[str, Tensor]) -> list[int]:
    """The channels of the maps that a call keeps, each storage once."""
    weights = {value.untyped_storage().data_ptr() for value in parameters.values()}
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.dim() == 4 and tensor.untyped_storage().data_ptr() not in weights:
            found[tensor.untyped_storage().data_ptr()] = tensor.shape[1]
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = call()  # alive, so that no storage's place is given to another
    assert y.dim() == 4
    return sorted(n for n in found.values() if n >= C)


@NEEDS_CORE
def test_which_maps_are_kept() -> None:
    attention, forward = arguments()
    x = torch.randn(SHAPE, requires_grad=True)
    for backend, norm, gate in (("native", [], []), ("reference", [C], [HIDDEN])):
        for keep, of_attention, of_forward in (
            ("all", [C, C, *norm, 3 * C, 3 * C], [C, *norm, *gate, 2 * HIDDEN]),
            ("products", [C, 3 * C], [C, 2 * HIDDEN]),
            ("input", [C], [C]),
        ):
            options: dict[str, Any] = {"keep": keep, "backend": backend}
            first = partial(cpl_kernels.attention_half, x, **attention, **options)
            second = partial(cpl_kernels.feed_forward_half, x, **forward, **options)
            assert saved(first, attention) == of_attention
            assert saved(second, forward) == of_forward
    parameters = {**attention, **{f"second {name}": value for name, value in forward.items()}}
    assert saved(lambda: cpl_kernels.transformer_block(x, attention, forward, keep="input"), parameters) == [
        C
    ]


def test_what_is_made_for_a_call_does_not_outlive_its_backward() -> None:
    """A weight that was computed, for example, as of an adapter."""
    attention, forward = arguments()
    for keep in ("all", "products", "input"):
        made = {**attention, "qkv": attention["qkv"] * 2}
        alive = weakref.ref(made["qkv"])
        y = cpl_kernels.transformer_block(torch.randn(SHAPE), made, forward, keep=keep)
        del made
        y.sum().backward()
        assert alive() is None


def test_autocast_is_that_of_the_forward() -> None:
    """Gradients are taken outside of it, and what runs again runs as it did."""
    attention, forward = arguments()
    leaves = torch.randn(SHAPE, requires_grad=True), *attention.values(), *forward.values()
    with torch.autocast("cpu", torch.bfloat16):
        y = cpl_kernels.transformer_block(leaves[0], attention, forward, keep="input")
    assert y.dtype == torch.float32
    first = gradients(y, *leaves)
    with torch.autocast("cpu", torch.bfloat16):
        y = cpl_kernels.transformer_block(leaves[0], attention, forward, keep="input")
        same(gradients(y, *leaves), first)


def test_a_parameter_changed_before_the_backward_is_an_error() -> None:
    attention, forward = arguments()
    for keep in ("all", "products", "input"):
        y = cpl_kernels.transformer_block(torch.randn(SHAPE), attention, forward, keep=keep)
        with torch.no_grad():
            forward["dw"].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_twice_through_a_kept_graph() -> None:
    attention, forward = arguments()
    leaves = torch.randn(SHAPE, requires_grad=True), *attention.values(), *forward.values()
    for keep in ("all", "products", "input"):
        y = cpl_kernels.transformer_block(leaves[0], attention, forward, keep=keep).sum()
        first = torch.autograd.grad(y, leaves, retain_graph=True)
        same(list(torch.autograd.grad(y, leaves)), list(first))


@NEEDS_CORE
def test_a_backward_runs_where_its_forward_did() -> None:
    attention, forward = arguments()
    for keep in ("all", "input"):
        with cpl_kernels.use_backend("native"):
            y = cpl_kernels.transformer_block(torch.randn(SHAPE), attention, forward, keep=keep)
        with cpl_kernels.use_backend("triton"):  # which could not serve a CPU tensor
            y.sum().backward()


def test_a_backend_that_one_op_lacks() -> None:
    """By name it is an error; asked of all ops at once, it holds for those that have it."""
    attention, _ = arguments()
    x = torch.randn(SHAPE)
    with pytest.raises(RuntimeError, match="pointwise_conv: backend 'triton' cannot serve"):
        cpl_kernels.attention_half(
            x.detach(), **{**attention, "norm_weight": None, "norm_bias": None}, backend="triton"
        )
    with cpl_kernels.use_backend(attention_half="reference"):
        gold = cpl_kernels.attention_half(x, **attention)
    assert torch.equal(gold, cpl_kernels.attention_half(x, **attention, backend="reference"))
    with cpl_kernels.use_backend("triton"):
        torch.testing.assert_close(
            cpl_kernels.pointwise_conv(x, attention["qkv"]), torch.conv2d(x, attention["qkv"])
        )


def test_unknown_and_missing_tensors_are_named() -> None:
    attention, forward = arguments()
    x = torch.randn(SHAPE)
    with pytest.raises(TypeError, match="must be among norm_weight, .*, got temprature"):
        cpl_kernels.transformer_block(x, {**attention, "temprature": x}, forward)
    del forward["project_in"]
    with pytest.raises(TypeError, match="project_in must be a torch.Tensor, got NoneType"):
        cpl_kernels.transformer_block(x, attention, forward)


# -- without a graph: strips of rows


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "rows", [1, 2, 3, 8, 11, 12]
)  # one row has a neighbour on both sides; 11 leaves one over
@torch.no_grad()
def test_strips_of_any_height_give_the_whole(
    monkeypatch: pytest.MonkeyPatch, rows: int, layout: torch.memory_format, center: bool
) -> None:
    """To a rounding of float64: products of another width may be summed in another order."""
    monkeypatch.setattr(strips, "_LEAST_ROWS", rows)
    attention, forward = arguments(torch.float64)
    x = torch.randn(2, C, 12, 7, dtype=torch.float64).contiguous(memory_format=layout)
    got = cpl_kernels.transformer_block(x, {**attention, "center": center}, {**forward, "center": center})
    monkeypatch.setattr(strips, "_LARGE", {"cpu": 2**60})
    gold = cpl_kernels.transformer_block(x, {**attention, "center": center}, {**forward, "center": center})
    torch.testing.assert_close(got, gold, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("rows", [2, 5, 12])
@pytest.mark.parametrize("k", [5, 7])
@torch.no_grad()
def test_strips_have_as_many_neighbours_as_the_convolution_reaches(
    monkeypatch: pytest.MonkeyPatch, k: int, rows: int
) -> None:
    monkeypatch.setattr(strips, "_LEAST_ROWS", rows)
    attention, _ = arguments(torch.float64)
    attention["dw"] = torch.randn(3 * C, 1, k, k, dtype=torch.float64)
    x = torch.randn(2, C, 13, 7, dtype=torch.float64)
    got = cpl_kernels.attention_half(x, **attention)
    torch.testing.assert_close(got, plain_attention(x, **attention), rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("few_rows")
@torch.no_grad()
def test_strips_of_a_network_without_norm_and_residual() -> None:
    _, forward = arguments(torch.float64)
    rest = {**forward, "norm_weight": None, "norm_bias": None, "project_out": forward["project_out"][:5]}
    x = torch.randn(2, C, 12, 7, dtype=torch.float64)
    got = cpl_kernels.feed_forward_half(x, **rest, residual=False)
    with torch.enable_grad():  # no strips
        gold = cpl_kernels.feed_forward_half(x, **rest, residual=False)
    torch.testing.assert_close(got, gold.detach(), rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("few_rows")
@torch.no_grad()
def test_strips_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The norms of q and k are those of bfloat16 numbers either way; an ulp of bfloat16 of the largest number is
    allowed for what is rounded once more or less."""
    attention, forward = arguments()
    for x in (torch.randn(1, C, 9, 6), torch.randn(1, C, 9, 6).bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            monkeypatch.setattr(strips, "_LARGE", {"cpu": 1})
            got = cpl_kernels.transformer_block(x, attention, forward)
            monkeypatch.setattr(strips, "_LARGE", {"cpu": 2**60})
            gold = cpl_kernels.transformer_block(x, attention, forward)
        assert got.dtype == gold.dtype
        assert (got - gold).abs().max() <= torch.finfo(torch.bfloat16).eps * gold.abs().max()


@pytest.mark.usefixtures("few_rows")
def test_no_wide_map_exists_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from cpl_kernels.attention_half.op import AttentionHalf
    from cpl_kernels.feed_forward_half.op import FeedForwardHalf

    heights = []
    for kind, name in ((AttentionHalf, "_convolved"), (FeedForwardHalf, "_gated")):
        function = getattr(kind, name)

        def call(self: Any, hidden: Tensor, *rest: Any, function: Any = function) -> Tensor:
            heights.append(hidden.shape[2])
            return function(self, hidden, *rest)

        monkeypatch.setattr(kind, name, call)
    attention, forward = arguments(torch.float64)
    x = torch.randn(1, C, 20, 5, dtype=torch.float64)
    with torch.no_grad():
        cpl_kernels.transformer_block(x, attention, forward)
    assert len(heights) == 20
    assert max(heights) == 4
    heights.clear()
    cpl_kernels.transformer_block(x, attention, forward)  # with a graph
    assert heights == [20, 20]


def test_when_strips_pay() -> None:
    cpu, gpu, size = torch.device("cpu"), torch.device("cuda"), (1, 1, 512, 512)
    assert strips.rows_of_a_strip((1, 1, 64, 64), 100, 4, cpu) is None  # 1.6 MB
    assert strips.rows_of_a_strip(size, 64, 4, cpu) == 64  # 64 MiB in strips of 8
    assert strips.rows_of_a_strip((2, 1, 512, 512), 64, 4, cpu) == 32
    assert strips.rows_of_a_strip(size, 4096, 4, cpu) == 16  # a strip has 16 rows at least
    assert strips.rows_of_a_strip(size, 128, 2, cpu) == 64
    assert strips.rows_of_a_strip((1, 1, 16, 2**14), 64, 4, cpu) is None  # it would be one strip
    assert strips.rows_of_a_strip(size, 1000, 4, gpu) is None  # elsewhere than on a CPU from a GiB on
    assert strips.rows_of_a_strip(size, 1024, 4, gpu) == 64
