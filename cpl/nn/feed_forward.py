"""The gated feed-forward network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from cpl.nn.pointwise import PointwiseConv
from cpl_kernels import gated_dwconv


class GDFN(nn.Module):
    """Gated-Dconv feed-forward network, [B, C, H, W] -> [B, C, H, W].

    With h hidden channels, dw a depthwise 3x3 convolution on 2h channels and u = dw(W_in x):

        out = W_out (gelu(u[:h]) * u[h:]),      gelu exact (erf)

    Args:
        channels: C.
        hidden: h; the published models have int(2.66 C).

    Source: Restormer, arXiv 2111.09881, equation 2 and figure 2b.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.project_in = PointwiseConv(channels, 2 * hidden)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = PointwiseConv(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.project_out(gated_dwconv(self.project_in(x), self.dwconv.weight))

    @property
    def arguments(self) -> Mapping[str, Tensor]:
        """As :func:`cpl_kernels.feed_forward_half` takes them."""
        return {
            "project_in": self.project_in.weight,
            "dw": self.dwconv.weight,
            "project_out": self.project_out.weight,
        }
