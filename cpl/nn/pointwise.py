"""The 1x1 convolution, as a matrix product where that is faster."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def pointwise_conv(x: Tensor, weight: Tensor) -> Tensor:
    """y[b, :, h, w] = weight x[b, :, h, w], for x [B, C, H, W] and weight [C', C, 1, 1]; returns [B, C', H, W].

    On a CPU, where pixels lie next to each other (not channels_last), it is one matrix product an image:
    torch's convolution copies input and output into a blocked layout and back, which at these sizes
    costs as much as the arithmetic (benchmarks/bench_pointwise_conv.py). Elsewhere it is torch's convolution.
    """
    if x.device.type != "cpu" or x.dim() != 4 or not x.is_contiguous():
        return F.conv2d(x, weight)
    batch, _, height, width = x.shape
    # A batched product with an expanded weight, not matmul: matmul folds the batch into the rows,
    # and then its backward pass transposes whole feature maps.
    product = torch.bmm(weight.flatten(1).expand(batch, -1, -1), x.flatten(2))
    return product.view(batch, len(weight), height, width)


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution without bias, [B, C, H, W] -> [B, C', H, W]: a Conv2d that computes :func:`pointwise_conv`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return pointwise_conv(x, self.weight)
