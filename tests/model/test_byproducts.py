"""What a block does not keep because a backward kernel gives it along: the same numbers, wherever it applies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cpl.nn import TransformerBlock, byproducts
from cpl.nn.norm import Norm
from cpl.nn.pointwise import PointwiseConv
from cpl_kernels import core, use_backend
from tests.model.test_recompute import SHAPE, block, gradients, maps_kept, same

pytestmark = pytest.mark.skipif(not core.available(), reason=core.MISSING_BECAUSE)
ALL = 19.5  # maps that a block keeps without byproducts


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
    """As in test_recompute: sums of two bfloat16 gradients may be added up in another order."""
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
def test_where_it_does_not_apply_the_block_runs_plainly(how: str) -> None:
    one, x = block(), torch.randn(SHAPE)
    with use_backend("reference" if how == "reference" else None), torch.set_grad_enabled(how != "no_grad"):
        if how == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        x.requires_grad_()
        if how == "float64 weights":
            one.ffn.dwconv.double()
        if how == "meta":
            one, x = one.to("meta"), x.detach().to("meta").requires_grad_()
        hidden = torch.randn(2, 84, 9, 14, device=x.device, requires_grad=True)
        if how == "channels_last":
            hidden = hidden.contiguous(memory_format=torch.channels_last)
        gated = byproducts.gate_conv(hidden, one.ffn.dwconv.weight, one.ffn.project_out.weight)
        assert gated is None
        if how != "float64 weights":
            assert byproducts.norm_conv(x, one.norm1.norm, one.attn.qkv.weight) is None
            assert one(x).shape == x.shape


@pytest.mark.parametrize("part", ["attn.qkv", "attn.project_out", "ffn.project_in", "ffn.project_out"])
def test_an_exchanged_convolution_with_a_bias_keeps_it(part: str) -> None:
    one, x = block(), torch.randn(SHAPE, requires_grad=True)
    old = one.get_submodule(part)
    new = nn.Conv2d(old.in_channels, old.out_channels, 1)
    one.set_submodule(part, new)
    y = one(x)
    with torch.no_grad():
        torch.testing.assert_close(y.detach(), one(x))
    y.sum().backward()
    assert new.bias is not None
    assert new.bias.grad is not None


def test_parts_in_each_others_places() -> None:
    one, x = block(), torch.randn(SHAPE, requires_grad=True)
    one.attn, one.ffn = nn.Conv2d(16, 16, 3, padding=1), one.attn  # type: ignore[assignment]
    torch.testing.assert_close(one(x), one._keep_all(x), rtol=0, atol=0)


def test_wrong_shapes_are_the_ops_errors() -> None:
    x = torch.randn(1, 8, 4, 4, requires_grad=True)
    with pytest.raises(ValueError, match=r"weight must be \[C\] = \(8,\), got \(16,\)"):
        block()(x)
    x = torch.randn(1, 16, 4, 4, requires_grad=True)
    one = block()
    one.norm1.body.bias = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match=r"bias must be \[C\] = \(16,\), got \(1,\)"):
        one(x)
    one = block()
    one.norm2.eps = -1.0
    with pytest.raises(ValueError, match="eps must be >= 0"):
        one(x)
    for wrong in ({"project_in": PointwiseConv(16, 100)}, {"dwconv": nn.Conv2d(80, 80, 3, groups=80)}):
        one = block()
        for name, part in wrong.items():
            setattr(one.ffn, name, part)
        with pytest.raises(ValueError, match="weight must be"):
            one(x)


@pytest.mark.parametrize("shape", [(0, 16, 4, 4), (1, 16, 0, 4), (1, 16, 4, 0), (1, 16, 1, 0)])
def test_nothing_to_do(shape: tuple[int, ...]) -> None:
    for part in ("norm", "gate"):
        one, x = block(), torch.randn(shape, requires_grad=True)
        if part == "norm":
            y = byproducts.norm_conv(x, one.norm1.norm, one.attn.qkv.weight)
        else:
            hidden = x.repeat(1, 6, 1, 1)[:, :84]
            y = byproducts.gate_conv(hidden.contiguous(), one.ffn.dwconv.weight, one.ffn.project_out.weight)
        assert y is not None
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == shape


def test_where_only_the_convolution_learns_its_input_is_kept() -> None:
    """That is less than what the gate would be computed again from."""
    one = block().requires_grad_(False)
    one.ffn.project_out.requires_grad_()
    x = torch.randn(SHAPE)
    hidden = torch.randn(2, 84, 9, 14)
    assert byproducts.gate_conv(hidden, one.ffn.dwconv.weight, one.ffn.project_out.weight) is None
    one(x).sum().backward()
    assert one.ffn.project_out.weight.grad is not None
    # And where it does not learn, nothing is kept for it.
    one.ffn.requires_grad_().project_out.requires_grad_(False)
    assert byproducts.gate_conv(hidden, one.ffn.dwconv.weight, one.ffn.project_out.weight) is None


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


def test_both_kernels_save_what_they_say() -> None:
    """The norm its statistics, the gate nothing; neither what it gives."""
    x, weight = torch.randn(1, 16, 8, 8, requires_grad=True), torch.randn(8, 16, 1, 1, requires_grad=True)
    norm = Norm(torch.ones(16), torch.zeros(16), 1e-5)
    saved: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        assert byproducts.norm_conv(x, norm, weight) is not None
        assert sorted(saved) == sorted([(8, 16, 1, 1), (1, 16, 8, 8), (16,), (16,), (1, 8, 8), (1, 8, 8)])
        saved.clear()
        depthwise = torch.randn(32, 1, 3, 3)
        hidden = torch.randn(1, 32, 8, 8, requires_grad=True)
        assert byproducts.gate_conv(hidden, depthwise, weight) is not None
        assert sorted(saved) == sorted([(8, 16, 1, 1), (1, 32, 8, 8), (32, 1, 3, 3)])
