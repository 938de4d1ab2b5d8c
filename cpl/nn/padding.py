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
        n = x.shape[dim]
        if torch.jit.is_tracing():
            blocks = (n + multiple - 1) // multiple
        elif _is_exported(n):
            blocks = _some((n + multiple - 1) // multiple)
        elif n % multiple:
            blocks = n // multiple + 1
        else:
            continue
        x = x.index_select(dim, reflected_index(n, blocks * multiple, x.device))
    return x


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """The part [..., height, width] of [..., H, W] that :func:`pad_to_multiple` padded."""
    for dim, n in ((-2, height), (-1, width)):
        # A slice asks whether it fits, which nobody knows of padded sizes in an export.
        rows = torch.arange(n, device=x.device) if _is_exported(n) else None
        x = x.narrow(dim, 0, n) if rows is None else x.index_select(dim, rows)
    return x


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


def _is_exported(n: int) -> bool:
    """Whether torch.export makes a graph for other sizes too: a branch on this one would cut some of them off.

    torch.compile compiles again where a branch goes another way, and then does without the padding. torch 2.6 cannot
    say which of the two it is.
    """
    if not getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value  # takes a while, and few need it

    return not has_static_value(n)


def _some(blocks: int) -> int:
    """The same number, of which torch.export knows only that it is at least 1.

    Of (H + 7) // 8 it would ask whether that is 1, as of every size, and leave out the images of up to 8 pixels.
    """
    known = torch.full((), blocks, dtype=torch.int64, device="cpu").item()
    torch._check(known >= 1)
    return known  # type: ignore[return-value]
