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
    recorded = _is_recorded()
    for dim in (2, 3):
        n = x.shape[dim]
        if recorded or n % multiple:
            blocks = (n + multiple - 1) // multiple
            if _is_exporting() and not _is_static(n):
                blocks = torch.full((), blocks, dtype=torch.int64, device="cpu").item()
                torch._check(blocks >= 1)
            x = x.index_select(dim, reflected_index(n, blocks * multiple, x.device))
    return x


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """The part [..., height, width] of [..., H, W] that :func:`pad_to_multiple` padded."""
    if not _is_recorded():
        return x[..., :height, :width]
    # A slice asks whether it fits, which torch.export cannot answer for padded sizes.
    rows, columns = (torch.arange(n, device=x.device) for n in (height, width))
    return x.index_select(-2, rows).index_select(-1, columns)


def reflected_index(n: int, length: int, device: torch.device | str | None = None) -> Tensor:
    """int64 [length]: 0 1 .. n-1 n-2 .. 1 0 1 .., the index reflected at both ends again and again.

    Its period is 2(n-1); for n = 1 it is 0 throughout. ``torch.nn.functional.pad`` reflects only
    once, so it fails where more than n-1 pixels are to be added: every image thinner than 5 pixels.
    """
    if isinstance(n, int) and n < 1:
        raise ValueError(f"cannot reflect an axis of {n} pixels: give an image with H >= 1 and W >= 1")
    index, period = torch.arange(length, device=device), 2 * (n - 1)
    # No branch for n = 1, which an exported graph could not take: its period is 0, and every index 0.
    folded = index % (period.clamp(min=1) if isinstance(period, Tensor) else torch.sym_max(period, 1))
    return torch.minimum(folded, period - folded)


def _is_recorded() -> bool:
    """Whether this call becomes a graph for images of other sizes too, which a branch on the size would cut off."""
    return torch.jit.is_tracing() or _is_exporting()


def _is_static(n: int) -> bool:
    from torch.fx.experimental.symbolic_shapes import has_static_value  # takes a while, and few need it

    return has_static_value(n)


# torch.compile compiles again where a branch goes another way, and then does without the padding. torch 2.6 cannot say
# which of the two it is.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
