"""Depthwise 3x3 convolution whose one half gates the other: the core of Restormer's GDFN."""

from __future__ import annotations

from torch import Tensor

from cpl_kernels import autocast, backends, checks
from cpl_kernels.gated_dwconv import op as _op

__all__ = ["gated_dwconv"]


def gated_dwconv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "gelu",
    *,
    backend: str | None = None,
) -> Tensor:
    """Convolve each channel by its own 3x3 filter, then multiply the first half by the second.

        h = conv2d(x, weight, bias, padding=1, groups=2C)                     [B, 2C, H, W]
        y = phi(h[:, :C]) * h[:, C:]

    with phi(a) = a * (1 + erf(a / sqrt(2))) / 2, the exact GELU (activation="gelu"), or phi(a) = a
    (activation="none", NAFNet's SimpleGate after its convolution). x is padded with zeros. The
    backward computes h again: of the activations only x is kept.

    Args:
        x: [B, 2C, H, W], any strides (planar is walked as it is, anything else, channels-last too, is copied
            once); float32, bfloat16, float16 or float64.
        weight: [2C, 1, 3, 3], any floating dtype.
        bias: [2C], any floating dtype, or None.
        activation: "gelu" or "none".
        backend: "reference", "native", "triton" or "cuda"; None picks the default for the device.

    Returns:
        [B, C, H, W] in the dtype of x, computed in float32 (float64 if an input is) and rounded once. Under
        autocast x is cast to the autocast dtype, as for a convolution; the small weight and bias are
        not, so that their gradients keep their precision.

    Where x or the gradient is infinite or NaN, so is what depends on it; on all backends but the reference that is
    all nine taps of dweight, also those that see only the zero border (zero times infinity).

    Raises:
        TypeError: a dtype that is not floating.
        ValueError: a wrong shape, an odd number of channels, tensors on several devices, an
            unknown activation.
        RuntimeError: the named backend cannot serve this call.

    Source: Zamir et al., "Restormer", arXiv 2111.09881, equation 2 (gated-Dconv feed-forward); Chen
    et al., "NAFNet", arXiv 2204.04676, section 3.2 (SimpleGate).
    """
    checks.floating("x", x)
    checks.rank("x", x, "[B, 2C, H, W]")
    channels = checks.sizes(x)[1]
    if channels < 2 or channels % 2:
        raise ValueError(f"x must have an even number 2C >= 2 of channels, got shape {tuple(x.shape)}")
    checks.floating("weight", weight)
    checks.shape("weight", weight, (channels, 1, 3, 3), "[2C, 1, 3, 3]")
    if bias is not None:
        checks.floating("bias", bias)
        checks.shape("bias", bias, (channels,), "[2C]")
    checks.same_device(x=x, weight=weight, bias=bias)
    checks.one_of("activation", activation, ("gelu", "none"))
    request = backends.requested("gated_dwconv", backend)
    return _op.gated_dwconv(autocast.cast(x), weight, bias, activation == "gelu", request)
