"""Depthwise convolution, 3x3, 5x5 or 7x7: before the attention of Restormer's blocks, and in many networks' blocks."""

from __future__ import annotations

from torch import Tensor

from cpl_kernels import autocast, backends, checks
from cpl_kernels.dwconv import op as _op

__all__ = ["dwconv"]

KERNEL_SIZES = (3, 5, 7)


def dwconv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Convolve each channel by its own k x k filter; x is padded with zeros.

        y = conv2d(x, weight, bias, padding=k // 2, groups=C)

    With p = k // 2, and zeros outside the image:

        y[b, c, h, w] = bias[c] + sum over i, j of weight[c, 0, i, j] * x[b, c, h + i - p, w + j - p]
        dx[b, c, h, w] = sum over i, j of weight[c, 0, i, j] * dy[b, c, h + p - i, w + p - j]
        dweight[c, 0, i, j] = sum over b, h, w of x[b, c, h, w] * dy[b, c, h + p - i, w + p - j]
        dbias[c] = sum over b, h, w of dy[b, c, h, w]

    All sums have a fixed order: the results have the same bits at any number of threads. The backward saves x and the
    parameters.

    Args:
        x: [B, C, H, W], any strides (planar is walked as it is, anything else, channels-last too, is copied
            once: there torch's own 3x3 convolution in float32 is faster on a CPU); float32, bfloat16, float16 or
            float64.
        weight: [C, 1, k, k] with k one of 3, 5, 7; any floating dtype. Other sizes are torch's conv2d's.
        bias: [C], any floating dtype, or None.
        backend: "reference", "native", "triton" or "cuda"; None picks the default for the device.

    Returns:
        [B, C, H, W] in the dtype of x, contiguous, computed in float32 (float64 if an input is) and rounded once.
        Under autocast x is cast to the autocast dtype, as for a convolution; the small weight and bias are not, so
        that their gradients keep their precision.

    Where x or the gradient is infinite or NaN, so is what depends on it; on all backends but the reference that may
    be all taps of dweight, also those that see only the zero border (zero times infinity).

    Raises:
        TypeError: a dtype that is not floating.
        ValueError: a wrong shape, a kernel of another size, tensors on several devices.
        RuntimeError: the named backend cannot serve this call.

    Source: Zamir et al., "Restormer", arXiv 2111.09881, equation 1 (the depthwise convolution W_d of MDTA).
    """
    checks.floating("x", x)
    checks.rank("x", x, "[B, C, H, W]")
    channels = checks.sizes(x)[1]
    if channels < 1:
        raise ValueError(f"x must have at least one channel, got shape {tuple(x.shape)}")
    checks.floating("weight", weight)
    size = _kernel_size(weight)
    checks.shape("weight", weight, (channels, 1, size, size), "[C, 1, k, k]")
    if bias is not None:
        checks.floating("bias", bias)
        checks.shape("bias", bias, (channels,), "[C]")
    checks.same_device(x=x, weight=weight, bias=bias)
    return _op.dwconv(autocast.cast(x), weight, bias, backends.requested("dwconv", backend))


def _kernel_size(weight: Tensor) -> int:
    checks.rank("weight", weight, "[C, 1, k, k]")
    height, width = checks.sizes(weight)[2:]
    if height != width or height not in KERNEL_SIZES:
        raise ValueError(
            f"weight must be [C, 1, k, k] with k one of 3, 5, 7, got shape {tuple(weight.shape)}. "
            'Use torch.nn.functional.conv2d(x, weight, bias, padding="same", groups=C) for another kernel size.'
        )
    return height
