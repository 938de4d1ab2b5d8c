"""Attention across channels: the core of Restormer's multi-Dconv head transposed attention (MDTA)."""

from __future__ import annotations

from torch import Tensor

from cpl_kernels import autocast, backends, checks
from cpl_kernels.channel_attention import op as _op

__all__ = ["channel_attention"]


def channel_attention(qkv: Tensor, temperature: Tensor, *, backend: str | None = None) -> Tensor:
    """Let the channels of each head attend to one another, over all pixels.

    q, k, v are the three chunks of qkv's channels in that order, each of ``heads`` contiguous groups of
    c = C / heads channels; q_i and k_i are the H*W values of one channel. For each image and head:

        S[i, j] = <q_i, k_j> / (max(||q_i||, 1e-12) * max(||k_j||, 1e-12))      [c, c], cosines
        A = softmax over j of (temperature[head] * S)
        y_i = sum_j A[i, j] v_j

    For the backward, qkv, temperature, the norms [B, C] and S [B, heads, c, c] are kept; the
    normalised q and k are never stored.

    Args:
        qkv: [B, 3C, H, W], any strides (planar and channels-last are walked as they are, anything else is
            copied once); float32, bfloat16, float16 or float64. C is divisible by heads.
        temperature: [heads, 1, 1], any floating dtype.
        backend: "reference", "native", "triton" or "cuda"; None picks the default for the device.

    Returns:
        [B, C, H, W] in the dtype of qkv, channels-last if qkv is; sums and softmax in float32 (float64 if
        either input is). Under autocast qkv is cast to the autocast dtype, as for a matmul; temperature is not.

    Raises:
        TypeError: a dtype that is not floating.
        ValueError: a wrong shape, channels that do not divide, tensors on several devices.
        RuntimeError: the named backend cannot serve this call.

    Source: Zamir et al., "Restormer", arXiv 2111.09881, equation 1.
    """
    checks.floating("qkv", qkv)
    checks.rank("qkv", qkv, "[B, 3C, H, W]")
    checks.floating("temperature", temperature)
    checks.rank("temperature", temperature, "[heads, 1, 1]")
    heads, channels = checks.sizes(temperature)[0], checks.sizes(qkv)[1]
    if heads < 1:
        raise ValueError("temperature must be [heads, 1, 1] with at least one head, got shape (0, 1, 1)")
    checks.shape("temperature", temperature, (heads, 1, 1), "[heads, 1, 1]")
    if channels < 1 or channels % (3 * heads):
        raise ValueError(
            f"qkv {tuple(qkv.shape)} must have 3C channels with C divisible by the {heads} heads of "
            f"temperature: {channels} is not a positive multiple of {3 * heads}"
        )
    checks.same_device(qkv=qkv, temperature=temperature)
    request = backends.requested("channel_attention", backend)
    return _op.channel_attention(autocast.cast(qkv), temperature, request)[0]
