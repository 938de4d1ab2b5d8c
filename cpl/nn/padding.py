"""Reflection padding for any size, down to a single pixel."""

from __future__ import annotations

import torch
from torch import Tensor


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad [B, C, H, W] on the right and below until ``multiple`` divides H and W.

    Returns ``x`` itself, not a copy, when it already does.

    Raises:
        ValueError: H or W is 0.
    """
    for dim in (2, 3):
        missing = -x.shape[dim] % multiple
        if missing:
            x = x.index_select(dim, reflected_index(x.shape[dim], x.shape[dim] + missing, x.device))
    return x


def reflected_index(n: int, length: int, device: torch.device | str | None = None) -> Tensor:
    """int64 [length]: 0 1 .. n-1 n-2 .. 1 0 1 .., the index reflected at both ends again and again.

    Its period is 2(n-1); for n = 1 it is 0 throughout. ``torch.nn.functional.pad`` reflects only
    once, so it fails where more than n-1 pixels are to be added: every image thinner than 5 pixels.
    """
    if n < 1:
        raise ValueError(f"cannot reflect an axis of {n} pixels: give an image with H >= 1 and W >= 1")
    index = torch.arange(length, device=device)
    if n == 1:
        return torch.zeros_like(index)
    folded = index % (2 * (n - 1))
    return torch.minimum(folded, 2 * (n - 1) - folded)
