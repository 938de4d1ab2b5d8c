"""The transformer block, and the convolution that an image enters by."""

from __future__ import annotations

from torch import Tensor, nn

from cpl.nn.attention import MDTA
from cpl.nn.feed_forward import GDFN
from cpl.nn.norm import LayerNorm2d


class TransformerBlock(nn.Module):
    """x + MDTA(LN(x)), then x + GDFN(LN(x)); [B, C, H, W] -> [B, C, H, W].

    Args:
        channels: C.
        heads: attention heads; divides C.
        ffn_expansion: the feed-forward network has int(ffn_expansion * C) hidden channels.
        norm_bias: False for Restormer's "BiasFree" norm.

    Source: Restormer, arXiv 2111.09881, figure 2.
    """

    def __init__(
        self, channels: int, heads: int, ffn_expansion: float = 2.66, norm_bias: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(channels, norm_bias)
        self.attn = MDTA(channels, heads)
        self.norm2 = LayerNorm2d(channels, norm_bias)
        self.ffn = GDFN(channels, int(ffn_expansion * channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class PatchEmbed(nn.Module):
    """[B, 3, H, W] -> [B, channels, H, W] by a 3x3 convolution without bias (overlapping patches)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)
