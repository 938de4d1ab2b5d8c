"""1x1 convolution: a small matrix at every pixel, where half of a restoration network's time goes."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels import autocast, backends, checks
from cpl_kernels.pointwise_conv import op as _op

__all__ = ["pointwise_conv"]


def pointwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Mix the channels of every pixel, and add a residual if one is given.

        y = conv2d(x, weight, bias) + residual

        y[b, o, h, w] = sum over c of weight[o, c] * x[b, c, h, w] + bias[o] + residual[b, o, h, w]
        dx[b, c, h, w] = sum over o of weight[o, c] * dy[b, o, h, w]
        dweight[o, c] = sum over b, h, w of dy[b, o, h, w] * x[b, c, h, w]
        dbias[o] = sum over b, h, w of dy[b, o, h, w];   dresidual = dy

    The native kernel packs a tile of pixels of all channels into the cache once and multiplies it by the whole weight
    there. It adds bias and residual before the store. Its sums have a fixed order, so the results have the same bits at
    any number of threads. If x and weight are both bfloat16 or both float16, without bias and residual, oneDNN's
    product runs instead, because it uses the processor's 16-bit instructions. By default torch's convolution serves
    channels-last images on a CPU, except float16 ones. On a GPU torch's libraries compute it: cuBLAS if x and weight
    are both of the same 16 bits, planar and without odd channel counts, else cuDNN. The backward pass saves x and the
    weight.

    Args:
        x: [B, C, H, W], any strides (planar is walked as it is, anything else is copied once by the native kernel);
            float32, bfloat16, float16 or float64.
        weight: [O, C, 1, 1], any floating dtype.
        bias: [O], any floating dtype, or None.
        residual: [B, O, H, W], any strides, any floating dtype, or None. If its dtype is not that of x, torch adds it
            to the rounded product, and the result has the dtype that torch promotes the two to.
        backend: "reference", "native" or "cuda"; None picks the default for the device.

    Returns:
        [B, O, H, W] in the dtype of x and its layout (channels-last if x is), summed in float32 (float64 if x, weight
        or bias is) and rounded once. Under autocast x and weight are cast to the autocast dtype, as for a convolution,
        unless x is float64; bias and residual are not.

    Raises:
        TypeError: a dtype that is not floating.
        ValueError: a wrong shape, tensors on several devices.
        RuntimeError: the named backend cannot serve this call.

    Source: Zamir et al., "Restormer", arXiv 2111.09881, equations 1 and 2 (W_p, before and after the depthwise ones).
    """
    checks.floating("x", x)
    checks.rank("x", x, "[B, C, H, W]")
    batch, channels, height, width = checks.sizes(x)
    if channels < 1:
        raise ValueError(f"x must have at least one channel, got shape {tuple(checks.sizes(x))}")
    checks.floating("weight", weight)
    checks.rank("weight", weight, "[O, C, 1, 1]")
    out = checks.sizes(weight)[0]
    if out < 1:
        raise ValueError(
            f"weight must have at least one output channel, got shape {tuple(checks.sizes(weight))}"
        )
    checks.shape("weight", weight, (out, channels, 1, 1), "[O, C, 1, 1]")
    if bias is not None:
        checks.floating("bias", bias)
        checks.shape("bias", bias, (out,), "[O]")
    if residual is not None:
        checks.floating("residual", residual)
        checks.shape("residual", residual, (batch, out, height, width), "[B, O, H, W]")
    checks.same_device(x=x, weight=weight, bias=bias, residual=residual)
    request = backends.requested("pointwise_conv", backend)
    x, weight = autocast.cast(x), weight if x.dtype == torch.float64 else autocast.cast(weight)
    if residual is None or residual.dtype == x.dtype:
        return _op.pointwise_conv(x, weight, bias, residual, request)
    return _op.pointwise_conv(x, weight, bias, None, request) + residual
