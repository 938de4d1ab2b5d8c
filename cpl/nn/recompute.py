"""What a block need not keep for its backward pass, because it is cheap to compute again.

Of a transformer block's forward pass the matrix products (1x1 convolutions) take the time, and what lies between them
takes the memory: normalised maps, gated maps, q, k and v after their convolution, what the attention gives. With
``keep="products"`` a block keeps the products' outputs, about 10 maps of its input's size instead of 19 (or 15, see
byproducts.py), and with ``keep="input"`` its input alone; see :class:`cpl.nn.TransformerBlock`.

Nothing here is approximate: the same functions run again on the same numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cpl.nn.attention import attend
from cpl.nn.byproducts import gate_conv, norm_conv
from cpl.nn.feed_forward import gate
from cpl.nn.norm import Norm
from cpl.nn.pointwise import pointwise_conv, pointwise_conv_backward

Inner = Callable[..., Tensor]


def recomputed_conv(inner: Inner, weight: Tensor, *tensors: Tensor | None) -> Tensor:
    """``pointwise_conv(inner(*tensors), weight)``, of which only ``tensors`` and ``weight`` are kept.

    Args:
        inner: what comes before the convolution, [B, C, H, W]; a function of ``tensors`` alone, as gradients go to
            these only.
        weight: [C', C, 1, 1].
    """
    return _RecomputedConv.apply(inner, weight, *tensors)


def recomputed_block(
    attend: Inner,
    project_attention: Tensor,
    attention_tensors: Sequence[Tensor | None],
    gate: Inner,
    project_gated: Tensor,
    gate_tensors: Sequence[Tensor | None],
    x: Tensor,
) -> Tensor:
    """y = x + project_attention attend(x, ...), then y + project_gated gate(y, ...), of which only x is kept.

    Args:
        attend, gate: of [B, C, H, W] and their tensors; what comes before each projection.
        project_attention, project_gated: weights [C, C', 1, 1].
    """
    split = len(attention_tensors)
    return _RecomputedBlock.apply(
        attend, gate, split, x, project_attention, project_gated, *attention_tensors, *gate_tensors
    )


def keeping_all(x: Tensor, norm1: Norm, attn: Any, norm2: Norm, ffn: Any) -> Tensor:
    """A transformer block, x + attn(norm1(x)) and then x + ffn(norm2(x)); kept is all that no backward kernel gives.

    Args:
        attn, ffn: the 1x1 convolutions qkv, project_in and project_out and the depthwise ones qkv_dwconv and dwconv,
            all without bias, and temperature [heads, 1, 1], as in :class:`cpl.nn.MDTA` and :class:`cpl.nn.GDFN`.
    """
    return _block(x, norm1, attn, norm2, ffn, _kept_conv)


def keeping_products(x: Tensor, norm1: Norm, attn: Any, norm2: Norm, ffn: Any) -> Tensor:
    """As :func:`keeping_all`, but of what the block computes the 1x1 convolutions' outputs alone are kept."""
    return _block(x, norm1, attn, norm2, ffn, recomputed_conv)


def keeping_input(x: Tensor, norm1: Norm, attn: Any, norm2: Norm, ffn: Any) -> Tensor:
    """As :func:`keeping_all`, but x alone is kept."""
    return recomputed_block(
        partial(_attention_half, norm1.function),
        attn.project_out.weight,
        (*norm1.tensors, attn.qkv.weight, attn.qkv_dwconv.weight, attn.temperature),
        partial(_feed_forward_half, norm2.function),
        ffn.project_out.weight,
        (*norm2.tensors, ffn.project_in.weight, ffn.dwconv.weight),
        x,
    )


def _block(x: Tensor, norm1: Norm, attn: Any, norm2: Norm, ffn: Any, conv: Callable[..., Tensor]) -> Tensor:
    """``conv(inner, weight, *tensors)`` is for what no kernel gives along."""
    qkv = _norm_conv(x, norm1, attn.qkv.weight, conv)
    x = x + conv(attend, attn.project_out.weight, qkv, attn.qkv_dwconv.weight, attn.temperature)
    hidden = _norm_conv(x, norm2, ffn.project_in.weight, conv)
    gated = gate_conv(hidden, ffn.dwconv.weight, ffn.project_out.weight)
    if gated is None:
        gated = conv(gate, ffn.project_out.weight, hidden, ffn.dwconv.weight)
    return x + gated


def _norm_conv(x: Tensor, norm: Norm, weight: Tensor, conv: Callable[..., Tensor]) -> Tensor:
    y = norm_conv(x, norm, weight)
    return conv(norm.function, weight, x, *norm.tensors) if y is None else y


def _kept_conv(inner: Inner, weight: Tensor, *tensors: Tensor | None) -> Tensor:
    return pointwise_conv(inner(*tensors), weight)


def _attention_half(
    norm: Inner,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    qkv: Tensor,
    dwconv: Tensor,
    temperature: Tensor,
) -> Tensor:
    return attend(pointwise_conv(norm(x, norm_weight, norm_bias), qkv), dwconv, temperature)


def _feed_forward_half(
    norm: Inner, x: Tensor, norm_weight: Tensor, norm_bias: Tensor | None, project_in: Tensor, dwconv: Tensor
) -> Tensor:
    return gate(pointwise_conv(norm(x, norm_weight, norm_bias), project_in), dwconv)


class _RecomputedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inner: Inner, weight: Tensor, *tensors: Tensor | None) -> Tensor:
        ctx.inner, ctx.autocast = inner, _Autocast(weight.device.type)
        ctx.save_for_backward(weight, *tensors)
        return pointwise_conv(inner(*tensors), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        weight, *tensors = ctx.saved_tensors
        needs_weight, *needs = ctx.needs_input_grad[1:]
        with ctx.autocast.again():
            half = _Half(ctx.inner, tensors, needs)
            dweight, gradients = half.backward(dy, weight, needs_weight)
        return None, dweight, *gradients


class _RecomputedBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        attend: Inner,
        gate: Inner,
        split: int,
        x: Tensor,
        project_attention: Tensor,
        project_gated: Tensor,
        *tensors: Tensor | None,
    ) -> Tensor:
        ctx.inners, ctx.split, ctx.autocast = (attend, gate), split, _Autocast(x.device.type)
        ctx.save_for_backward(x, project_attention, project_gated, *tensors)
        y = x + pointwise_conv(attend(x, *tensors[:split]), project_attention)
        return y + pointwise_conv(gate(y, *tensors[split:]), project_gated)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Any, ...]:
        x, project_attention, project_gated, *tensors = ctx.saved_tensors
        needs_x, needs_attention, needs_gated, *needs = ctx.needs_input_grad[3:]
        (attend, gate), split = ctx.inners, ctx.split
        with ctx.autocast.again():
            first = _Half(attend, [x, *tensors[:split]], [needs_x, *needs[:split]])
            y = x + pointwise_conv(first.output.detach(), project_attention)
            second = _Half(gate, [y, *tensors[split:]], [True, *needs[split:]])
            del y
            dgated, (dy, *gate_gradients) = second.backward(dz, project_gated, needs_gated)
            del second
            assert dy is not None
            dy = dy + dz
            dattention, (dx, *attention_gradients) = first.backward(dy, project_attention, needs_attention)
            if dx is not None:
                dx = dx + dy
        return None, None, None, dx, dattention, dgated, *attention_gradients, *gate_gradients


class _Half:
    """``inner`` of its tensors once more, this time with a graph."""

    def __init__(self, inner: Inner, tensors: Sequence[Tensor | None], needs: Sequence[bool]) -> None:
        self.leaves = [
            None if tensor is None else tensor.detach().requires_grad_(need)
            for tensor, need in zip(tensors, needs, strict=True)
        ]
        with torch.enable_grad():
            self.output = inner(*self.leaves)

    def backward(
        self, dy: Tensor, weight: Tensor, needs_weight: bool
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """For dy, of what the convolution made of the output: the gradients of its weight, and of the tensors."""
        wanted = [leaf for leaf in self.leaves if leaf is not None and leaf.requires_grad]
        doutput, dweight = pointwise_conv_backward(
            dy, self.output.detach(), weight, (bool(wanted), needs_weight)
        )
        if not wanted:
            return dweight, [None] * len(self.leaves)
        edge = torch.autograd.graph.get_gradient_edge(self.output)
        # Its numbers are not needed any more. The tensor is: before torch 2.9 an edge does not keep its node alive.
        self.output.data = self.output.new_empty(0)
        found = iter(torch.autograd.grad([edge], wanted, [doutput]))
        return dweight, [
            next(found) if leaf is not None and leaf.requires_grad else None for leaf in self.leaves
        ]


class _Autocast:
    """The state of autocast in the forward pass, which the backward pass runs outside of."""

    def __init__(self, device: str) -> None:
        self.device, self.enabled = device, torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device)

    def again(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device, self.dtype, enabled=self.enabled)
