"""How images lie in memory, as the kernels see it: batch, channels and one stride per pixel.

Kernels walk two layouts without a copy, each with any batch stride and any stride between channels
(planar) or pixels (channels-last): slices of channels and of batches, expanded batches and
channels_last tensors are served as they are. Anything else (a cropped width, say) is copied once.
"""

from __future__ import annotations

import torch
from torch import Tensor

View = tuple[int, int, int, int]  # data_ptr and the strides of batch, channel and pixel, in elements
NOWHERE: View = (0, 0, 0, 0)  # for a result that is not asked for


def output_format(x: Tensor) -> torch.memory_format:
    """The layout of a result shaped like ``x``: channels-last if x is, else contiguous."""
    if (
        not isinstance(x.stride(1), int) and x.is_contiguous()
    ):  # where sizes are symbols, a question less is a guard less
        return torch.contiguous_format
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def empty_like(x: Tensor, channels: int | None = None) -> Tensor:
    """An uninitialised result for ``x``, of so many ``channels``; fakes and backends both call this, so they agree."""
    shape = x.shape if channels is None else (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=output_format(x))


def pixel_stride(x: Tensor) -> int | None:
    """The one stride that walks H * W pixels of [B, C, H, W], or None when there is none."""
    height, width = x.shape[-2:]
    stride_h, stride_w = x.stride()[-2:]
    if height == 1 and width == 1:
        return 1
    if height == 1:
        return stride_w
    if width == 1:
        return stride_h
    return stride_w if stride_h == width * stride_w else None


def is_planar(x: Tensor) -> bool:
    """Neighbouring pixels of a channel are neighbours in memory (NCHW and its slices)."""
    return pixel_stride(x) == 1


def is_channels_last(x: Tensor) -> bool:
    """The channels of a pixel are neighbours in memory (NHWC and its slices)."""
    return x.stride(1) == 1 and pixel_stride(x) not in (None, 1)


def readable(x: Tensor) -> Tensor:
    """``x`` itself if a kernel can walk it, else a contiguous copy; has the layout of ``empty_like(x)``."""
    return x if is_planar(x) or is_channels_last(x) else x.contiguous()


def readable_as(x: Tensor, like: Tensor) -> Tensor:
    """``x`` itself if it can be walked in the same layout as ``like`` (which must be readable), else a copy."""
    if is_channels_last(like):
        return x if is_channels_last(x) else x.contiguous(memory_format=torch.channels_last)
    return x if is_planar(x) else x.contiguous()


def view(x: Tensor) -> View:
    """What the native core takes for an image; ``x`` must be planar or channels-last."""
    stride_batch, stride_channel = x.stride()[:2]
    stride = pixel_stride(x)
    assert stride is not None, f"not walkable without a copy: shape {tuple(x.shape)}, strides {x.stride()}"
    return x.data_ptr(), stride_batch, stride_channel, stride
