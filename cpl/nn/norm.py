"""Layer normalisation over channels, at each pixel of an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cpl_kernels import layer_norm2d


class LayerNorm2d(nn.Module):
    """[B, C, H, W] -> [B, C, H, W]: each pixel's C values to mean 0 and variance 1, then scaled and shifted.

    Args:
        channels: C.
        bias: False is Restormer's "BiasFree" norm, whose mean stays in and which adds no bias.
        eps: added to the variance.

    Source: Ba et al., arXiv 1607.06450, equations 3 and 4; Restormer, arXiv 2111.09881, section 3.1.
    """

    def __init__(self, channels: int, bias: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.body = ScaleAndShift(channels, bias)  # released weights say norm1.body.weight

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.body.weight, self.body.bias
        return layer_norm2d(x, weight, bias, self.eps, center=bias is not None)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """As the halves of a transformer block take them (:func:`cpl_kernels.attention_half`)."""
        weight, bias = self.body.weight, self.body.bias
        return {"norm_weight": weight, "norm_bias": bias, "eps": self.eps, "center": bias is not None}


class ScaleAndShift(nn.Module):
    """Holds the two vectors [C]; the kernel applies them."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.register_parameter("bias", nn.Parameter(torch.zeros(channels)) if bias else None)
