"""A block as one node against its parts: the same numbers, and whoever watches or exchanges a part is heard."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import cpl
from cpl.nn import TransformerBlock, set_keep
from cpl.nn.pointwise import PointwiseConv
from cpl_kernels import core, strips, use_backend
from tests.model.test_keep import SHAPE, block, gradients, maps_kept, same

pytestmark = pytest.mark.skipif(not core.available(), reason=core.MISSING_BECAUSE)
ALL = 19.5  # maps that a block keeps part by part


def plainly(of: TransformerBlock, x: Tensor, narrow: bool = False) -> list[Tensor | None]:
    """Part by part; a hook is what makes it so."""
    handle = of.norm1.register_forward_hook(lambda *_: None)
    found = gradients(of, x, "all", narrow)
    handle.remove()
    return found


@pytest.mark.parametrize("norm_bias", [True, False])
def test_a_block_is_the_same_to_the_bit(norm_bias: bool) -> None:
    one, x = block(norm_bias=norm_bias), torch.randn(SHAPE, requires_grad=True)
    same(gradients(one, x, "all"), plainly(one, x))


@pytest.mark.parametrize(
    "frozen", ["x", "norm1", "attn", "attn.project_out", "attn.qkv.", "norm2", "ffn", "ffn.project_out", ""]
)
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen: str) -> None:
    one, x = block(), torch.randn(SHAPE, requires_grad=frozen != "x")
    for name, value in one.named_parameters():
        value.requires_grad_(not name.startswith(frozen))
    same(gradients(one, x, "all"), plainly(one, x))


def test_autocast() -> None:
    """As in test_keep: sums of two bfloat16 gradients may be added up in another order."""
    one, x = block(), torch.randn(SHAPE, requires_grad=True)
    for got, gold in zip(gradients(one, x, "all", True), plainly(one, x, True), strict=True):
        assert got is not None
        assert gold is not None
        assert got.dtype == gold.dtype
        assert (got - gold).abs().max() <= 1.5 * torch.finfo(torch.bfloat16).eps * gold.abs().max()


def test_a_hook_sees_its_part_and_all_is_kept() -> None:
    for part in ("norm1", "attn", "attn.qkv", "ffn.dwconv", "norm2.body"):
        one, calls = block(), []
        one.get_submodule(part).register_full_backward_hook(lambda *_, calls=calls: calls.append(1))
        assert maps_kept(one, "all") >= ALL - 1
        y = one(torch.randn(SHAPE, requires_grad=True))
        y.sum().backward()
        # A weight alone is read of dwconv and norm2.body, which nobody calls.
        assert bool(calls) == (part not in ("ffn.dwconv", "norm2.body"))


def test_a_hook_on_every_module_sees_all() -> None:
    one, seen = block(), []
    handle = nn.modules.module.register_module_forward_hook(lambda part, *_: seen.append(type(part).__name__))
    try:
        one(torch.randn(SHAPE, requires_grad=True))
    finally:
        handle.remove()
    assert {"LayerNorm2d", "MDTA", "GDFN", "PointwiseConv", "TransformerBlock"} <= set(seen)


def test_a_part_that_was_exchanged_is_called() -> None:
    class Adapter(nn.Module):
        def __init__(self, of: nn.Module) -> None:
            super().__init__()
            self.of, self.scale = of, nn.Parameter(torch.tensor(2.0))

        @property
        def weight(self) -> Tensor:
            return self.of.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.of(x)

    one, x = block(), torch.randn(SHAPE, requires_grad=True)
    before = one(x)
    one.attn.project_out = Adapter(one.attn.project_out)
    after = one(x)
    assert not torch.allclose(before, after)
    after.sum().backward()
    assert one.attn.project_out.scale.grad is not None
    other = block()
    other.ffn.forward = lambda x: 0 * x  # type: ignore[method-assign]
    assert not torch.allclose(other(x), before)


def test_a_parametrised_weight_is_used() -> None:
    one, x = block(), torch.randn(SHAPE, requires_grad=True)
    nn.utils.parametrizations.weight_norm(one.ffn.project_out)
    gradients(one, x, "all")
    assert one.ffn.project_out.parametrizations.weight.original0.grad is not None


@pytest.mark.parametrize("how", ["reference", "channels_last", "float64 weights", "meta", "no_grad"])
def test_other_calls_are_the_parts_too(how: str) -> None:
    """To a rounding: torch's convolutions of channels-last images and its products sum in other orders."""
    one, x = block(), torch.randn(SHAPE)
    with use_backend("reference" if how == "reference" else None), torch.set_grad_enabled(how != "no_grad"):
        if how == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        if how == "float64 weights":
            one.ffn.dwconv.double()
        if how == "meta":
            one, x = one.to("meta"), x.to("meta")
        x.requires_grad_()
        y = one(x)
        assert y.shape == x.shape
        if how != "meta":
            torch.testing.assert_close(y, one._by_parts(x), rtol=1e-5, atol=1e-5)
        if how not in ("meta", "no_grad"):
            for got, gold in zip(gradients(one, x, "all"), plainly(one, x), strict=True):
                torch.testing.assert_close(got, gold, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("keep", ["all", "products", "input"])
@pytest.mark.parametrize("part", ["attn.qkv", "attn.project_out", "ffn.project_in", "ffn.project_out"])
def test_an_exchanged_convolution_with_a_bias_keeps_it(part: str, keep: str) -> None:
    one, x = block(), torch.randn(SHAPE, requires_grad=True)
    old = one.get_submodule(part)
    new = nn.Conv2d(old.in_channels, old.out_channels, 1)
    one.set_submodule(part, new)
    set_keep(one, keep)
    y = one(x)
    with torch.no_grad():
        torch.testing.assert_close(y.detach(), one(x))
    y.sum().backward()
    assert new.bias is not None
    assert new.bias.grad is not None


def test_parts_in_each_others_places() -> None:
    one, x = block(), torch.randn(SHAPE, requires_grad=True)
    one.attn, one.ffn = nn.Conv2d(16, 16, 3, padding=1), one.attn  # type: ignore[assignment]
    torch.testing.assert_close(one(x), one._by_parts(x), rtol=0, atol=0)


def test_wrong_shapes_are_the_ops_errors() -> None:
    x = torch.randn(1, 8, 4, 4, requires_grad=True)
    with pytest.raises(ValueError, match=r"norm_weight must be \[C\] = \(8,\), got \(16,\)"):
        block()(x)
    x = torch.randn(1, 16, 4, 4, requires_grad=True)
    one = block()
    one.norm1.body.bias = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match=r"norm_bias must be \[C\] = \(16,\), got \(1,\)"):
        one(x)
    one = block()
    one.norm2.eps = -1.0
    with pytest.raises(ValueError, match="eps must be >= 0"):
        one(x)
    for name, part in {
        "project_in": PointwiseConv(16, 100),
        "dwconv": nn.Conv2d(80, 80, 3, groups=80),
    }.items():
        one = block()
        setattr(one.ffn, name, part)
        with pytest.raises(ValueError, match=r"(project_in|project_out) must be"):
            one(x)


@pytest.mark.parametrize("shape", [(0, 16, 4, 4), (1, 16, 0, 4), (1, 16, 4, 0), (1, 16, 1, 0)])
def test_nothing_to_do(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    block()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape


def test_symbolic_tracing_with_its_parts_as_leaves() -> None:
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return name != ""

    graph = Tracer().trace(block())
    assert [node.target for node in graph.nodes if node.op == "call_module"] == [
        "norm1",
        "attn",
        "norm2",
        "ffn",
    ]


def test_it_has_no_second_derivative_and_says_so() -> None:
    one, x = block(), torch.randn(SHAPE, requires_grad=True)
    (dx,) = torch.autograd.grad(one(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|no second derivative"):
        dx.sum().backward()


def test_a_backward_runs_where_its_forward_did() -> None:
    """The choice of use_backend is that of the forward, as for the ops themselves."""
    one, x = block(), torch.randn(SHAPE, requires_grad=True)
    with use_backend("native"):
        y = one(x)
    with use_backend("triton"):  # which could not serve a CPU tensor
        y.sum().backward()
    assert x.grad is not None


def test_twice_through_a_kept_graph() -> None:
    one, x = block(), torch.randn(SHAPE, requires_grad=True)
    y = one(x).sum()
    first = torch.autograd.grad(y, [x, *one.parameters()], retain_graph=True)
    same(list(torch.autograd.grad(y, [x, *one.parameters()])), list(first))


def test_an_image_without_a_batch_is_a_convolutions() -> None:
    conv, x = PointwiseConv(6, 4), torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(conv(x[0]), nn.functional.conv2d(x, conv.weight)[0])


# -- without a graph: strips of rows (tests/kernels/test_halves.py has more)


@pytest.mark.usefixtures("few_rows")
@torch.no_grad()
def test_hooks_see_whole_maps_and_other_parts_run() -> None:
    one, x = block().double(), torch.randn(1, 16, 20, 5, dtype=torch.float64)
    heights: list[int] = []
    handle = one.attn.qkv_dwconv.register_forward_pre_hook(lambda *_: None)
    one.attn.qkv.register_forward_hook(lambda part, given, made: heights.append(made.shape[2]))
    one(x)
    assert heights == [20]
    handle.remove()
    one.ffn = nn.Identity()
    torch.testing.assert_close(one(x), one._by_parts(x), rtol=0, atol=0)


@pytest.mark.usefixtures("few_rows")
def test_a_network_restores_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = cpl.create_model("cplir-tiny").double().eval()
    x = torch.rand(1, 3, 21, 30, dtype=torch.float64)
    with torch.no_grad():
        got = network(x)
        monkeypatch.setattr(strips, "_LARGE", {"cpu": 2**60})
        torch.testing.assert_close(got, network(x), rtol=1e-11, atol=1e-11)
    assert not torch.equal(got, x)
