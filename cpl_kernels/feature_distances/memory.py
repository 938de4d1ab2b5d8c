"""How the kernels of feature_distances see a layer in memory: images of rows, each a run of neighbours.

Planar features (NCHW) have their channels as rows, channels-last ones their pixels. Both are walked without a
copy, also slices of images, of channels and of negatives, and expanded ones; anything else (a cropped width, say)
is copied once. Gradients are channels-last where their tensor is, else contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# The direction of a channel vector in [rows, run]; numbered as in csrc/feature_distances/op.h.
NO_NORM, ACROSS_ROWS, ALONG_RUN = 0, 1, 2


def gradient_like(x: Tensor, lead: int) -> Tensor:
    """An uninitialised gradient of ``x``, whose channels stand behind ``lead`` dimensions: 1 (anchor) or 2 (others).

    Fakes and backends both call this, so that they agree.
    """
    if not _is_channels_last(x, lead):
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return x.new_empty(*x.shape[:lead], *x.shape[lead + 1 :], x.shape[lead]).movedim(-1, lead)


@dataclass(frozen=True)
class Layer:
    """A layer as a kernel takes it, in one dtype; runs have stride 1.

    Attributes:
        anchor: [B, rows, run].
        others: [K, B, rows, run].
        norm: NO_NORM, ACROSS_ROWS or ALONG_RUN.
        channels_last: whether the rows are pixels.
    """

    anchor: Tensor
    others: Tensor
    norm: int
    channels_last: bool

    @classmethod
    def of(cls, anchor: Tensor, others: Tensor, normalize: bool) -> Layer:
        """Others are seen in the layout of the anchor, in which its gradient is written. Nothing may be empty."""
        dtype = torch.promote_types(anchor.dtype, others.dtype)
        last = _is_channels_last(anchor, 1)
        a, o = _rows(anchor.to(dtype), 1, last), _rows(others.to(dtype), 2, last)
        if normalize:
            return cls(a, o, ALONG_RUN if last or _is_vector(anchor, 1) else ACROSS_ROWS, last)
        if all(x.shape[-2] == 1 or x.stride(-2) == x.shape[-1] for x in (a, o)):  # one long run
            a, o = a.flatten(1).unsqueeze(1), o.flatten(2).unsqueeze(2)
        return cls(a, o, NO_NORM, last)

    def size(self) -> tuple[int, int, int, int]:
        """K, B, rows, run."""
        negatives, batch, rows, run = self.others.shape
        return negatives, batch, rows, run

    def gradient(self, like: Tensor, lead: int, written: Tensor) -> Tensor:
        """``written``, a gradient in one piece in this layout, as that of ``like``; copied only if it must be."""
        if self.channels_last:
            shape = (*like.shape[:lead], *like.shape[lead + 1 :], like.shape[lead])
            gradient = written.view(shape).movedim(-1, lead)
        else:
            gradient = written.view(like.shape)
        wanted = gradient_like(like, lead) if _is_channels_last(like, lead) != self.channels_last else None
        return gradient.to(like.dtype) if wanted is None else wanted.copy_(gradient)


def _is_channels_last(x: Tensor, lead: int) -> bool:
    """The channels of a pixel are neighbours in memory, and no pixels are."""
    pixels = [s for n, s in zip(x.shape[lead + 1 :], x.stride()[lead + 1 :], strict=True) if n != 1]
    return bool(pixels) and x.shape[lead] != 1 and x.stride(lead) == 1 and min(pixels) > 1


def _is_vector(x: Tensor, lead: int) -> bool:
    return all(n == 1 for n in x.shape[lead + 1 :])


def _rows(x: Tensor, lead: int, channels_last: bool) -> Tensor:
    """[..., rows, run] behind ``lead`` dimensions, the run with stride 1; a view where there is one."""
    if channels_last:
        x = x.movedim(lead, -1).flatten(lead, -2)
    elif _is_vector(x, lead):  # one run of channels
        x = x.reshape(*x.shape[:lead], 1, -1)
    else:
        x = x.flatten(lead + 1)
    return x if x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous()
