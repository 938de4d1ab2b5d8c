"""The network's order of things over maps in a workspace; the same once to count what is needed, and once to do it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cpl.inference.streaming.limits import give_back
from cpl.inference.streaming.windows import (
    LEAST_SIDE,
    Attention,
    Resized,
    Window,
    convolution,
    second_sweep,
    side_lengths,
    windows,
)
from cpl.inference.streaming.workspace import Box, Joined, Map, Source, Workspace
from cpl.models.restorer import MULTIPLE, Restorer
from cpl.nn.block import TransformerBlock
from cpl.nn.padding import reflected_index
from cpl.nn.prompt import SparsePromptModule

Progress = Callable[[float], None]


class Padded:
    """The image [3, H, W], padded on the right and below as the network pads it."""

    def __init__(self, image: Tensor) -> None:
        self._image = image
        height, width = image.shape[1:]
        self.channels = image.shape[0]
        self.height, self.width = height + -height % MULTIPLE, width + -width % MULTIPLE
        self._rows, self._columns = reflected_index(height, self.height), reflected_index(width, self.width)

    def read(self, box: Box) -> Tensor:
        rows, columns = self._rows[box.top : box.bottom], self._columns[box.left : box.right]
        return self._image[None][..., rows[:, None], columns]


class Walk:
    """One restoring of one image.

    Attributes:
        work: of all sweeps so far, pixels times channels.
        smallest_window: bytes of the smallest window in the widest sweep.
        least_sides: rows and columns of the smallest window in any sweep that has several; None: each is one window.
        margins: of each routing, between the share of the last prompt chosen and the first left out.
    """

    def __init__(
        self,
        model: Restorer,
        workspace: Workspace,
        window_bytes: int,
        device: torch.device,
        computes: bool = True,
        progress: Progress = lambda done: None,
    ) -> None:
        """``window_bytes``: of what is computed at a time, about; ``computes``: False: maps are only made and freed."""
        self.model, self.workspace, self.device = model, workspace, device
        self._window_bytes, self._computes, self._progress = window_bytes, computes, progress
        self.work, self._done, self.total = 0.0, 0.0, 1.0
        self.smallest_window = 0
        self.least_sides: tuple[int, int] | None = None
        self.margins: list[float] = []

    def run(self, image: Tensor) -> Tensor:
        """The residual's sum with the image, [3, H, W] in float32 on the CPU, not clipped."""
        model = self.model
        padded = Padded(image)
        x = self._convolved(padded, model.patch_embed, model.config.dim)
        level1 = self._blocks(x, model.encoder_level1)
        level2 = self._blocks(self._resampled(level1, model.down1_2), model.encoder_level2)
        level3 = self._blocks(self._resampled(level2, model.down2_3), model.encoder_level3)
        x = self._blocks(self._resampled(level3, model.down3_4), model.latent)
        x = self._reduced(self._up(self._prompted(3, x), model.up4_3, level3), model.reduce_chan_level3)
        x = self._blocks(x, model.decoder_level3)
        x = self._reduced(self._up(self._prompted(2, x), model.up3_2, level2), model.reduce_chan_level2)
        x = self._blocks(x, model.decoder_level2)
        wide = self._up(self._prompted(1, x), model.up2_1, level1)
        x = self._blocks(self._blocks(wide, model.decoder_level1), model.refinement)
        out = torch.empty(image.shape if self._computes else (0,))
        self._sweep(
            x,
            1,
            2 * x.channels,
            convolution(model.output),
            lambda box, values: self._finish(out, image, box, values),
        )
        self.workspace.free(x)
        return out

    @staticmethod
    def _finish(out: Tensor, image: Tensor, box: Box, values: Tensor) -> None:
        """Crops the padding off and adds the image."""
        height, width = image.shape[1:]
        rows = slice(box.top, max(box.top, min(box.bottom, height)))
        columns = slice(box.left, max(box.left, min(box.right, width)))
        kept = values[0, :, : rows.stop - rows.start, : columns.stop - columns.start]
        out[:, rows, columns] = image[:, rows, columns] + kept.cpu()

    def _sweep(
        self,
        source: Source,
        halo: int,
        channels: int,
        compute: Callable[[Window], Tensor | None],
        write: Callable[[Box, Tensor], None] | None = None,
    ) -> None:
        """``compute`` on every window; ``channels`` that it holds at a time, about."""
        height, width, pixel = source.height, source.width, 4 * channels
        least = [min(LEAST_SIDE + 2 * halo, side) for side in (height, width)]
        self.smallest_window = max(self.smallest_window, pixel * math.prod(least))
        self.work += height * width * channels
        sides = side_lengths(self._window_bytes // pixel, halo, height, width)
        if sides != (height, width):
            self.least_sides = min(sides, self.least_sides or sides, key=math.prod)
        if not self._computes:
            return
        for box in windows(height, width, sides):
            result = compute(Window(source, box, halo, self.device))
            if write is not None and result is not None:
                write(box, result)
            self._done += (box.bottom - box.top) * (box.right - box.left) * channels
            self._progress(self._done / self.total)
        give_back()  # the next sweep's windows have another size

    def _convolved(self, source: Source, conv: nn.Module, channels: int) -> Map:
        made = self.workspace.make(channels, source.height, source.width)
        self._sweep(source, 1, source.channels + 2 * channels, convolution(conv), made.write)
        return made

    def _resampled(self, source: Map, module: Any) -> Map:
        """Half or twice the size; the source stays."""
        conv, shuffle = module.body
        half = isinstance(shuffle, nn.PixelUnshuffle)
        channels = source.channels * 2 if half else source.channels // 2
        height, width = ((n // 2 if half else n * 2) for n in (source.height, source.width))
        made = self.workspace.make(channels, height, width)
        convolve = convolution(conv)

        def write(box: Box, values: Tensor) -> None:
            made.write(Box(*((side // 2 if half else side * 2) for side in box)), values)

        self._sweep(source, 1, 4 * source.channels, lambda window: shuffle(convolve(window)), write)
        return made

    def _pointwise(self, source: Joined | Map, conv: Any) -> Map:
        channels = conv.weight.shape[0]
        made = self.workspace.make(channels, source.height, source.width)
        self._sweep(source, 0, 2 * source.channels + channels, lambda window: conv(window.data), made.write)
        return made

    def _up(self, x: Map, module: Any, skip: Map) -> Joined:
        upsampled = self._resampled(x, module)
        self.workspace.free(x)
        return Joined((upsampled, skip))

    def _reduced(self, joined: Joined, conv: Any) -> Map:
        made = self._pointwise(joined, conv)
        self.workspace.free(*joined.maps)
        return made

    def _blocks(self, x: Map | Joined, blocks: Iterable[Any]) -> Map:
        for block in blocks:
            x = self._block(x, block)
        assert isinstance(x, Map)
        return x

    def _block(self, x: Map | Joined, block: TransformerBlock) -> Map:
        channels, hidden = x.channels, block.ffn.project_out.weight.shape[1]
        attention = Attention(block, self.device)
        self._sweep(x, 1, 6 * channels, attention.add)
        matrix = attention.matrix() if self._computes else torch.empty(0)
        made = self.workspace.make(channels, x.height, x.width)
        self._sweep(
            x, 2, 4 * channels + 3 * hidden, lambda window: second_sweep(block, matrix, window), made.write
        )
        self.workspace.free(*((x,) if isinstance(x, Map) else x.maps))
        return made

    def _prompted(self, level: int, x: Map) -> Map:
        if not self.model.config.num_prompts:
            return x
        module: SparsePromptModule = getattr(self.model, f"prompt{level}")
        total = torch.zeros(x.channels, dtype=torch.float64, device=self.device)

        def add(window: Window) -> None:
            total.add_(module.total(window.data)[0])

        self._sweep(x, 0, 2 * x.channels, add)
        channels = module.prompt_param.shape[2]
        small = torch.zeros(channels, 1, 1)
        if self._computes:
            mean = total / (x.height * x.width)
            self.margins.append(module.margin(mean))
            small = module.mixture(mean)
        prompt = self._convolved(Resized(small, x.height, x.width), module.conv3x3, channels)
        mixed = self._block(Joined((x, prompt)), getattr(self.model, f"noise_level{level}"))
        made = self._pointwise(mixed, getattr(self.model, f"reduce_noise_level{level}"))
        self.workspace.free(mixed)
        return made
