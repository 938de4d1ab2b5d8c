"""What is computed of a window of a map at a time, so that the result is that of the whole map.

A 3x3 convolution needs one pixel more on each side, a block two. What lies beyond the image are the convolution's own
zeros; those computed in addition are cut off again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from cpl.inference.streaming.workspace import Box, Source
from cpl.nn.block import TransformerBlock
from cpl.nn.resample import bilinear_neighbours
from cpl_kernels import dwconv, gated_dwconv, pointwise_conv

_MIN_NORM = 1e-12  # as channel_attention's
LEAST_SIDE = 16  # of a window without its halo, which is a third of the work then, and more below


class Window:
    """A part of a map with up to ``halo`` pixels more on each side, on the device where it is computed."""

    def __init__(self, source: Source, box: Box, halo: int, device: torch.device) -> None:
        self.box, self._size = box, (source.height, source.width)
        self._read = box.grown(halo, *self._size)
        self.data = source.read(self._read).to(device).contiguous()

    def of(self, values: Tensor, beyond: int = 0) -> Tensor:
        """Of ``values``, which are of all that was read, those that reach ``beyond`` pixels beyond the window."""
        return self._cut(values, self._read, beyond)

    def inner(self, values: Tensor, halo: int) -> Tensor:
        """The window's own of ``values`` that reach ``halo`` pixels beyond it."""
        return self._cut(values, self.box.grown(halo, *self._size), 0)

    def _cut(self, values: Tensor, given: Box, beyond: int) -> Tensor:
        kept = self.box.grown(beyond, *self._size)
        rows = slice(kept.top - given.top, kept.bottom - given.top)
        return values[:, :, rows, kept.left - given.left : kept.right - given.left]


def side_lengths(pixels: int, halo: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the windows of a map, even numbers: of about as many ``pixels`` with the halo, as square as
    the map allows, each at least `LEAST_SIDE` before the map is cut into equal parts."""
    if pixels >= height * width:
        return height, width

    def fitting(side: int, whole: int) -> int:
        side = max(LEAST_SIDE, side)
        if side >= whole:
            return whole
        parts = math.ceil(whole / side)
        return min(whole, math.ceil(whole / parts / 2) * 2)

    rows = fitting(math.isqrt(pixels) - 2 * halo, height)
    beside = pixels // (rows if rows == height else rows + 2 * halo)
    columns = fitting(beside - 2 * halo, width)
    if columns == width:  # a narrow map: higher windows
        rows = fitting(pixels // width - 2 * halo, height)
    return rows, columns


def windows(height: int, width: int, sides: tuple[int, int]) -> Iterator[Box]:
    rows, columns = sides
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield Box(top, min(top + rows, height), left, min(left + columns, width))


class Attention:
    """The sums over all pixels that a block's attention needs, in float64, and the matrix that follows from them."""

    def __init__(self, block: TransformerBlock, device: torch.device) -> None:
        self._block = block
        self.heads = block.attn.temperature.shape[0]
        self.channels = block.attn.project_out.weight.shape[0]
        c = self.channels // self.heads
        self._products = torch.zeros(self.heads, c, c, dtype=torch.float64, device=device)
        self._squares = torch.zeros(2, self.heads, c, dtype=torch.float64, device=device)

    def add(self, window: Window) -> None:
        attn, both = self._block.attn, 2 * self.channels
        qk = dwconv(
            pointwise_conv(self._block.norm1(window.data), attn.qkv.weight[:both]),
            attn.qkv_dwconv.weight[:both],
        )
        q, k = window.of(qk).reshape(2, self.heads, self.channels // self.heads, -1)
        self._products += (q @ k.mT).double()
        for squares, x in zip(self._squares, (q, k), strict=True):
            squares += x.square().sum(-1).double()  # as the products: in float64 from window to window

    def matrix(self) -> Tensor:
        """[C, C, 1, 1]: the attention and the projection behind it as one 1x1 convolution."""
        attn = self._block.attn
        q_norm, k_norm = self._squares.sqrt().clamp_min(_MIN_NORM)
        cosines = self._products / q_norm[:, :, None] / k_norm[:, None, :]
        attention = (attn.temperature.double() * cosines).softmax(-1)
        projection = attn.project_out.weight.double().view(self.channels, self.heads, -1)
        folded = torch.einsum("ohi,hij->ohj", projection, attention)
        return folded.reshape(self.channels, self.channels, 1, 1).to(attn.project_out.weight.dtype)


def second_sweep(block: TransformerBlock, matrix: Tensor, window: Window) -> Tensor:
    """A block's result for a window that was read with two pixels more on each side."""
    attn, ffn, third = block.attn, block.ffn, 2 * matrix.shape[0]
    normalised = block.norm1(window.data)
    v = dwconv(pointwise_conv(normalised, attn.qkv.weight[third:]), attn.qkv_dwconv.weight[third:])
    x = window.of(window.data, 1) + pointwise_conv(window.of(v, 1).contiguous(), matrix)
    hidden = ffn.project_in(block.norm2(x))
    gated = gated_dwconv(hidden, ffn.dwconv.weight, activation="gelu")
    return window.inner(x, 1) + ffn.project_out(window.inner(gated, 1).contiguous())


def convolution(conv: nn.Module) -> Callable[[Window], Tensor]:
    """A 3x3 convolution of a window that was read with one pixel more on each side."""
    return lambda window: window.of(conv(window.data))


class Resized:
    """A small map [C, h, w] as bilinear interpolation to [C, H, W] makes it, a window at a time.

    A row is first mixed of two of the small map's, then widened: nothing of the whole width is kept, which in a
    panorama would be more than a window.
    """

    def __init__(self, small: Tensor, height: int, width: int) -> None:
        self.height, self.width, self.channels = height, width, small.shape[0]
        self._small = small
        self._down = bilinear_neighbours(height, small.shape[1], small.device)
        self._across = bilinear_neighbours(width, small.shape[2], small.device)

    def read(self, box: Box) -> Tensor:
        upper, lower, share = (values[box.top : box.bottom] for values in self._down)
        share = share[:, None]
        rows = self._small[:, upper] * (1 - share) + self._small[:, lower] * share  # [C, rows, w]
        left, right, share = (values[box.left : box.right] for values in self._across)
        return (rows[:, :, left] * (1 - share) + rows[:, :, right] * share)[None]
