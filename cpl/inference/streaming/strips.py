"""What is computed of some rows at a time, so that the result is that of the whole map.

A 3x3 convolution needs one row more on each side, a block two. The rows beyond the image are the convolution's own
zeros; those read in addition are cut off again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from cpl.inference.streaming.workspace import Source
from cpl.nn.block import TransformerBlock
from cpl.nn.pointwise import pointwise_conv
from cpl.nn.resample import bilinear_neighbours
from cpl_kernels import dwconv, gated_dwconv

_MIN_NORM = 1e-12  # as channel_attention's


class Rows:
    """Some rows of a map with up to ``halo`` more on each side, on the device where it is computed."""

    def __init__(self, source: Source, first: int, end: int, halo: int, device: torch.device) -> None:
        self.first, self.end = first, end
        self._from, self._height = max(0, first - halo), source.height
        self.data = source.read(self._from, min(source.height, end + halo)).to(device)

    def of(self, rows: Tensor, halo: int, beyond: int = 0) -> Tensor:
        """Of ``rows``, which reach ``halo`` rows beyond the strip, those that reach ``beyond``; less at the image's
        ends."""
        start = max(0, self.first - beyond) - max(0, self.first - halo)
        stop = min(self._height, self.end + beyond) - max(0, self.first - halo)
        return rows[:, :, start:stop]


def strips(height: int, rows: int) -> Iterator[tuple[int, int]]:
    for first in range(0, height, rows):
        yield first, min(first + rows, height)


class Attention:
    """The sums over all pixels that a block's attention needs, in float64, and the matrix that follows from them."""

    def __init__(self, block: TransformerBlock, device: torch.device) -> None:
        self._block = block
        self.heads = block.attn.temperature.shape[0]
        self.channels = block.attn.project_out.weight.shape[0]
        c = self.channels // self.heads
        self._products = torch.zeros(self.heads, c, c, dtype=torch.float64, device=device)
        self._squares = torch.zeros(2, self.heads, c, dtype=torch.float64, device=device)

    def add(self, rows: Rows) -> None:
        attn, both = self._block.attn, 2 * self.channels
        normalised = self._block.norm1(rows.data)
        qk = dwconv(pointwise_conv(normalised, attn.qkv.weight[:both]), attn.qkv_dwconv.weight[:both])
        q, k = rows.of(qk, 1).reshape(2, self.heads, self.channels // self.heads, -1)
        self._products += (q @ k.mT).double()
        self._squares += torch.stack((q, k)).square().sum(-1, dtype=torch.float64)

    def matrix(self) -> Tensor:
        """[C, C, 1, 1]: the attention and the projection behind it as one 1x1 convolution."""
        attn = self._block.attn
        q_norm, k_norm = self._squares.sqrt().clamp_min(_MIN_NORM)
        cosines = self._products / q_norm[:, :, None] / k_norm[:, None, :]
        attention = (attn.temperature.double() * cosines).softmax(-1)
        projection = attn.project_out.weight.double().view(self.channels, self.heads, -1)
        folded = torch.einsum("ohi,hij->ohj", projection, attention)
        return folded.reshape(self.channels, self.channels, 1, 1).to(attn.project_out.weight.dtype)


def second_sweep(block: TransformerBlock, matrix: Tensor, rows: Rows) -> Tensor:
    """A block's result for a strip that was read with two rows more on each side."""
    attn, ffn, third = block.attn, block.ffn, 2 * matrix.shape[0]
    normalised = block.norm1(rows.data)
    v = dwconv(pointwise_conv(normalised, attn.qkv.weight[third:]), attn.qkv_dwconv.weight[third:])
    v = rows.of(v, 2, 1).contiguous()
    x = rows.of(rows.data, 2, 1) + pointwise_conv(v, matrix)
    hidden = ffn.project_in(block.norm2(x.contiguous()))
    gated = gated_dwconv(hidden, ffn.dwconv.weight, activation="gelu")
    return rows.of(x, 1) + ffn.project_out(rows.of(gated, 1).contiguous())


def convolution(conv: nn.Module) -> Callable[[Rows], Tensor]:
    """A 3x3 convolution of a strip that was read with one row more on each side."""
    return lambda rows: rows.of(conv(rows.data), 1)


class Resized:
    """A small map [C, h, w] as bilinear interpolation to [C, H, W] makes it, some rows at a time.

    A row is first mixed of two of the small map's, then widened: nothing of the whole width is kept, which in a
    panorama would be more than a strip.
    """

    def __init__(self, small: Tensor, height: int, width: int) -> None:
        self.height, self.width, self.channels = height, width, small.shape[0]
        self._small = small
        self._down = bilinear_neighbours(height, small.shape[1], small.device)
        self._across = bilinear_neighbours(width, small.shape[2], small.device)

    def read(self, first: int, end: int) -> Tensor:
        upper, lower, share = (values[first:end] for values in self._down)
        share = share[:, None]
        rows = self._small[:, upper] * (1 - share) + self._small[:, lower] * share  # [C, rows, w]
        left, right, share = self._across
        return (rows[:, :, left] * (1 - share) + rows[:, :, right] * share)[None]
