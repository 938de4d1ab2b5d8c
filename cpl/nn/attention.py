"""Attention between channels, whose cost grows with the image's area and not with its square."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cpl.nn.pointwise import PointwiseConv
from cpl_kernels import channel_attention, dwconv


class MDTA(nn.Module):
    """Multi-Dconv head transposed attention, [B, C, H, W] -> [B, C, H, W].

    With q, k, v [C/heads, H*W] per head, q and k of unit length along H*W:

        out = softmax(temperature[head] * q k^T) v,     a (C/heads) x (C/heads) matrix

    q, k and v come from a 1x1 convolution C -> 3C and a depthwise 3x3 one; a 1x1 one closes.

    Args:
        channels: C, a multiple of ``heads``.
        heads: number of heads; each head is a contiguous run of channels.

    Source: Restormer, arXiv 2111.09881, equation 1 and figure 2a.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(
                f"channels must be a multiple of heads, got {channels} channels and {heads} heads"
            )
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = PointwiseConv(channels, 3 * channels)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project_out = PointwiseConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        qkv = dwconv(self.qkv(x), self.qkv_dwconv.weight)
        return self.project_out(channel_attention(qkv, self.temperature))

    @property
    def arguments(self) -> Mapping[str, Tensor]:
        """As :func:`cpl_kernels.attention_half` takes them."""
        return {
            "qkv": self.qkv.weight,
            "dw": self.qkv_dwconv.weight,
            "temperature": self.temperature,
            "project": self.project_out.weight,
        }
