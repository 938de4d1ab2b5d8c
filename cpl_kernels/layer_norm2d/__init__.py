"""Layer normalisation over the channels of an image tensor, at each pixel."""

from __future__ import annotations

from torch import Tensor

from cpl_kernels import backends, checks
from cpl_kernels.layer_norm2d import op as _op

__all__ = ["layer_norm2d"]


def layer_norm2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    center: bool = True,
    *,
    backend: str | None = None,
) -> Tensor:
    """Normalise over the channels of each pixel, without leaving the NCHW layout.

    With mu and sigma^2 the mean and the (biased) variance of x[b, :, i, j]:

        y[b, c, i, j] = (x[b, c, i, j] - mu) / sqrt(sigma^2 + eps) * weight[c] + bias[c]

    ``center=False`` divides by the same standard deviation but leaves the mean in: Restormer's
    "BiasFree" norm. Statistics are accumulated in fp32 (fp64 for fp64 inputs), whatever x is.

    Args:
        x: [B, C, H, W], C >= 1, any strides; float32, bfloat16, float16 or float64.
        weight: [C], any floating dtype.
        bias: [C] or None.
        eps: added to the variance, >= 0.
        center: whether the mean is subtracted.
        backend: "reference", "native", "triton" or "cuda"; None picks the default for the device.

    Returns:
        [B, C, H, W] in x's dtype, also under autocast (no cast to fp32 and back).

    Raises:
        TypeError: a dtype that is not floating.
        ValueError: a wrong shape, tensors on several devices, eps < 0.
        RuntimeError: the named backend cannot serve this call.

    Source: Ba et al., "Layer Normalization", arXiv 1607.06450, equations 3 and 4; over channels of
    an image as in Restormer, arXiv 2111.09881, section 3.1.
    """
    checks.floating("x", x)
    checks.floating("weight", weight)
    checks.rank("x", x, "[B, C, H, W]")
    channels = checks.sizes(x)[1]
    if channels < 1:
        raise ValueError(f"x must have at least one channel, got shape {tuple(x.shape)}")
    checks.shape("weight", weight, (channels,), "[C]")
    if bias is not None:
        checks.floating("bias", bias)
        checks.shape("bias", bias, (channels,), "[C]")
    checks.same_device(x=x, weight=weight, bias=bias)
    if not eps >= 0:
        raise ValueError(f"eps must be >= 0, got {eps}")
    y, _, _ = _op.layer_norm2d(x, weight, bias, eps, center, backends.requested("layer_norm2d", backend))
    return y
