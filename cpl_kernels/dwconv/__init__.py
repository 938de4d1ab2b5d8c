"""Depthwise 3x3 convolution: before the attention of Restormer's blocks."""

from __future__ import annotations

from torch import Tensor

from cpl_kernels import autocast, backends, checks
from cpl_kernels.dwconv import op as _op

__all__ = ["dwconv"]


def dwconv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Convolve each channel by its own 3x3 filter; x is padded with zeros.

        y = conv2d(x, weight, bias, padding=1, groups=C)

    The backward reads x and dy once for dx and the weight's gradient together.

    Args:
        x: [B, C, H, W], any strides (planar is walked as it is, anything else, channels-last too, is copied
            once); float32, bfloat16, float16 or float64.
        weight: [C, 1, 3, 3], any floating dtype.
        bias: [C], any floating dtype, or None.
        backend: "reference", "native" or "cuda"; None picks the default for the device.

    Returns:
        [B, C, H, W] in the dtype of x, computed in float32 (float64 if an input is) and rounded once. Under
        autocast x is cast to the autocast dtype, as for a convolution; the small weight and bias are
        not, so that their gradients keep their precision.

    Where x or the gradient is infinite or NaN, so is what depends on it; on all backends but the reference that is
    all nine taps of dweight, also those that see only the zero border (zero times infinity).

    Raises:
        TypeError: a dtype that is not floating.
        ValueError: a wrong shape, tensors on several devices.
        RuntimeError: the named backend cannot serve this call.

    Source: Zamir et al., "Restormer", arXiv 2111.09881, equation 1 (the depthwise convolution W_d of MDTA).
    """
    checks.floating("x", x)
    checks.rank("x", x, "[B, C, H, W]")
    channels = checks.sizes(x)[1]
    if channels < 1:
        raise ValueError(f"x must have at least one channel, got shape {tuple(x.shape)}")
    checks.floating("weight", weight)
    checks.shape("weight", weight, (channels, 1, 3, 3), "[C, 1, 3, 3]")
    if bias is not None:
        checks.floating("bias", bias)
        checks.shape("bias", bias, (channels,), "[C]")
    checks.same_device(x=x, weight=weight, bias=bias)
    return _op.dwconv(autocast.cast(x), weight, bias, backends.requested("dwconv", backend))
