"""The 1x1 convolution: on a CPU cpl_kernels.pointwise_conv, on a GPU a matrix product where that is faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cpl_kernels import autocast, backends
from cpl_kernels import pointwise_conv as convolve
from cpl_kernels.pointwise_conv.op import pointwise_conv_backward as gradients
from cpl_kernels.registration import rewritten

NARROW = (torch.float16, torch.bfloat16)


def pointwise_conv(x: Tensor, weight: Tensor) -> Tensor:
    """y[b, :, h, w] = weight x[b, :, h, w], for x [B, C, H, W] and weight [C', C, 1, 1]; returns [B, C', H, W].

    On a GPU, where pixels lie next to each other (not channels_last), it is one matrix product an image in 16 bits
    (with autocast or without): torch's convolution copies input and output into another layout and back, which costs
    more than the arithmetic. Elsewhere it is torch's convolution: in float32, which it multiplies as TF32 and a product
    does not, and for an odd number of channels, where rows of the weight begin at odd places.
    """
    how = _how(x, weight)
    if how == "op":
        return convolve(x, weight, backend=requested() or None)
    if how == "convolution":
        return F.conv2d(x, weight)
    if how == "narrow product":
        if x.dtype not in NARROW:
            x = x.to(torch.get_autocast_dtype("cuda"))
        if not rewritten():
            product = _NarrowProduct.apply(x.flatten(2), weight.flatten(1))
            return product.view(x.shape[0], weight.shape[0], *x.shape[2:])
        weight = weight.to(x.dtype)
    # A batched product with an expanded weight, not matmul: matmul folds the batch into the rows,
    # and then its backward pass transposes whole feature maps.
    product = torch.bmm(weight.flatten(1).expand(x.shape[0], -1, -1), x.flatten(2))
    return product.view(x.shape[0], weight.shape[0], *x.shape[2:])


def pointwise_conv_backward(
    dy: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and weight, where ``needs`` says so, for dy [B, C', H, W] of :func:`pointwise_conv`.

    To be called in the state of autocast that pointwise_conv ran in; no graph is made of it.
    """
    need_x, need_weight = needs
    how = _how(x, weight)
    if how == "op":
        factors = autocast.cast(x), autocast.cast(weight)
        dx, dweight, _ = gradients(dy.to(factors[0].dtype), *factors, need_x, need_weight, False, requested())
        return dx.to(x.dtype) if need_x else None, dweight.to(weight.dtype) if need_weight else None
    if how == "convolution":
        dx, dweight, _ = torch.ops.aten.convolution_backward(
            dy,
            x.to(dy.dtype),
            weight.to(dy.dtype),
            None,
            [1, 1],
            [0, 0],
            [1, 1],
            False,
            [0, 0],
            1,
            [*needs, False],
        )
    else:
        dx = _product_backward_of_x(dy, weight) if need_x else None
        dweight = _product_backward_of_weight(dy, x, weight) if need_weight else None
    return None if dx is None else dx.to(x.dtype), None if dweight is None else dweight.to(weight.dtype)


def is_product(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`pointwise_conv` is a matrix product here."""
    return _how(x, weight) != "convolution" and x.is_contiguous()


def product_backward_of_x(dy: Tensor, weight: Tensor, backend: str) -> Tensor:
    """The gradient [B, C, H, W] of x, in dy's dtype, where :func:`is_product`; x itself is not needed.

    ``backend``: what :func:`requested` said in the forward pass.
    """
    if dy.is_cpu:  # the convolution with the weight turned
        return convolve(dy, weight.transpose(0, 1), backend=backend or None)
    return _product_backward_of_x(dy, weight)


def product_backward_of_weight(dy: Tensor, x: Tensor, weight: Tensor, backend: str) -> Tensor:
    """The gradient of weight, [C', C, 1, 1], where :func:`is_product`; float32 if dy is of 16 bits."""
    if dy.is_cpu:
        return gradients(dy, x.to(dy.dtype), weight, False, True, False, backend)[1]
    return _product_backward_of_weight(dy, x, weight)


def _product_backward_of_x(dy: Tensor, weight: Tensor) -> Tensor:
    dx = torch.bmm(weight.to(dy.dtype).flatten(1).t().expand(dy.shape[0], -1, -1), dy.flatten(2))
    return dx.view(dy.shape[0], weight.shape[1], *dy.shape[2:])


def _product_backward_of_weight(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    wide = torch.float32 if dy.dtype in NARROW else None
    dweight = torch.bmm(dy.flatten(2), x.flatten(2).to(dy.dtype).transpose(1, 2)).sum(0, dtype=wide)
    return dweight.view_as(weight)


def requested() -> str:
    """The backend that was asked for, as the op's backward takes it.

    Who asks for a whole network to run on one that this op lacks means the ops that have it: the definition runs here.
    """
    request = backends.requested("pointwise_conv", None)
    return request if not request or request in backends.backends_of("pointwise_conv") else "reference"


def _how(x: Tensor, weight: Tensor) -> str:
    if x.dim() != 4:
        return "convolution"
    if x.device.type == "cpu":
        return "op"
    if not x.is_contiguous():
        return "convolution"
    if x.device.type != "cuda" or weight.shape[0] % 2 or weight.shape[1] % 2:
        return "convolution"
    narrow = x.dtype in NARROW or (x.dtype == torch.float32 and torch.is_autocast_enabled("cuda"))
    return "narrow product" if narrow else "convolution"


class _NarrowProduct(torch.autograd.Function):
    """weight [C', C] times each of x [B, C, P] in the dtype of x; the weight's gradient is summed in float32.

    One node of the graph, whose launches are few: in 16 bits a training step waits for the host.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        narrow = weight.to(x.dtype)
        ctx.save_for_backward(x, narrow)
        ctx.weight_dtype = weight.dtype
        return torch.bmm(narrow.expand(x.shape[0], -1, -1), x)

    @staticmethod
    @once_differentiable  # the narrow weight is no function of the weight in a graph of the backward
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dx = torch.bmm(weight.t().expand(x.shape[0], -1, -1), dy) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return dx, None
        return dx, torch.bmm(dy, x.transpose(1, 2)).sum(0, dtype=torch.float32).to(ctx.weight_dtype)


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution without bias, [B, C, H, W] -> [B, C', H, W]: a Conv2d that computes :func:`pointwise_conv`.

    On a CPU it has a first derivative in reverse mode only, as the other parts of a block; another one is an error.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return pointwise_conv(x, self.weight)
