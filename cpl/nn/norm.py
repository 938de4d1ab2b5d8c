"""Layer normalisation over channels, at each pixel of an image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cpl_kernels import layer_norm2d


class Norm(NamedTuple):
    """A norm over channels with its tensors [C]; without a bias the mean stays in (Restormer's "BiasFree")."""

    weight: Tensor
    bias: Tensor | None
    eps: float

    @property
    def center(self) -> bool:
        return self.bias is not None

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None]:
        return self.weight, self.bias

    @property
    def function(self) -> Callable[..., Tensor]:
        """Of x [B, C, H, W] and ``tensors``."""
        return partial(layer_norm2d, eps=self.eps, center=self.center)


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
        norm = self.norm
        return norm.function(x, *norm.tensors)

    @property
    def norm(self) -> Norm:
        return Norm(self.body.weight, self.body.bias, self.eps)


class ScaleAndShift(nn.Module):
    """Holds the two vectors [C]; the kernel applies them."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.register_parameter("bias", nn.Parameter(torch.zeros(channels)) if bias else None)
