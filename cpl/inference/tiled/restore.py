"""Restoring in tiles: the prompts are chosen once for the whole image, the tiles worked through in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cpl.inference.streaming.limits import fits
from cpl.inference.tiled.grid import Grid, check_tile
from cpl.models.restorer import MULTIPLE, Encoded, Restorer
from cpl.nn.padding import pad_to_multiple
from cpl.nn.prompt import SparsePromptModule, TilePrompts

Corners = Sequence[tuple[int, int]]

# Tiles that the prompts are chosen by, at most. What is held of each until then is about a tenth of what its forward
# takes at the worst moment: of all of them, one or two forwards of a tile.
MOST_ROUTED = 16
_PIXELS = {"cpu": 2**18}  # of a batch, where larger ones are not faster
_PIXELS_ELSEWHERE = 2**20


def restore_tiled(
    model: nn.Module,
    image: Tensor,
    tile: int,
    overlap: int | None = None,
    device: torch.device | None = None,
    batch: int | None = None,
    progress: Callable[[float], None] = lambda done: None,
) -> Tensor:
    """Restore [3, H, W] in [0, 1] in overlapping tiles.

    An image that fits into one tile is given to the model as it is. Otherwise it is padded to multiples of 8 by
    reflection and cut into tiles of one size, whose results are blended by raised cosines over the overlaps. Autocast
    applies, if it is on.

    For a `Restorer` with prompts, these are chosen once for the image, level by level, from the mean over all tiles'
    features (of 16 tiles, evenly spread, if there are more), and each tile gets its part of the prompt that the whole
    image would get. Any other module restores each tile for itself.

    Args:
        tile, overlap: in pixels, see `check_tile`. None: an eighth of the tile.
        device: of the model; None: where its first parameter is.
        batch: tiles at a time. None: chosen by their size, the device and its free memory.
        progress: called with the share of the work that is done.

    Returns:
        The image, not clipped, in float32, on the image's device.

    Raises:
        TypeError, ValueError: a tile or overlap that cannot be, or batch below 1; before any work. ValueError: the
            model gives another shape than it was given.
    """
    overlap = check_tile(tile, overlap)
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be at least 1 tile, got {batch}")
    first = next(model.parameters(), None)
    where = device or (image.device if first is None else first.device)
    number = torch.float32 if first is None else first.dtype
    with torch.inference_mode():
        if max(image.shape[1:]) <= tile:
            whole = image[None].to(device=where, dtype=number)
            restored = _checked(model(whole), whole)[0].to(device=image.device, dtype=torch.float32)
            progress(1.0)
            return restored
        padded = pad_to_multiple(image[None], MULTIPLE)[0]
        grid = Grid.over((padded.shape[1], padded.shape[2]), tile, overlap)
        work = _Work(padded, grid, where, number, batch or _at_once(model, grid, where), progress)
        if isinstance(model, Restorer) and model.config.num_prompts:
            _with_prompts(model, work)
        else:
            for corners in work.batches(grid.corners):
                tiles = work.cut(corners)
                work.blend(corners, _checked(model(tiles), tiles))
                work.advance(corners, 1.0)
        return work.out[:, : image.shape[1], : image.shape[2]]


class _Work:
    """The image's tiles, and the buffer in which their results are added up."""

    def __init__(
        self,
        padded: Tensor,
        grid: Grid,
        device: torch.device,
        dtype: torch.dtype,
        batch: int,
        progress: Callable[[float], None],
    ) -> None:
        self.grid, self.out = grid, torch.zeros_like(padded, dtype=torch.float32)
        self._padded, self._device, self._dtype = padded, device, dtype
        self._batch, self._progress, self._done = batch, progress, 0.0
        self._down, self._across = grid.ramps()

    def batches(self, corners: Corners) -> Iterator[Corners]:
        return (corners[i : i + self._batch] for i in range(0, len(corners), self._batch))

    def cut(self, corners: Corners) -> Tensor:
        """[B, 3, h, w], where the model is."""
        height, width = self.grid.tile
        tiles = [self._padded[:, top : top + height, left : left + width] for top, left in corners]
        return torch.stack(tiles).to(device=self._device, dtype=self._dtype)

    def blend(self, corners: Corners, restored: Tensor) -> None:
        height, width = self.grid.tile
        for (top, left), one in zip(corners, restored.to(self.out.device).float(), strict=True):
            weights = (self._down[top][:, None] * self._across[left]).float()
            self.out[:, top : top + height, left : left + width] += weights.to(one.device) * one

    def advance(self, corners: Corners, share: float) -> None:
        """So much of these tiles' work is done."""
        self._done += share * len(corners)
        self._progress(min(1.0, self._done / len(self.grid.corners)))


@dataclass
class _Begun:
    """Tiles on their way through the decoder: ``x`` is what the next level's router sees of them."""

    corners: Corners
    encoded: Encoded
    x: Tensor


def _with_prompts(model: Restorer, work: _Work) -> None:
    """Some tiles go through the decoder side by side, so that each level's prompts can be chosen by all of them. With
    the prompts known these are finished, and the others done."""
    mixtures: dict[int, Tensor] = {}

    def prompts(corners: Corners) -> TilePrompts:
        return TilePrompts(mixtures, work.grid.size, tuple(corners))

    routed = work.grid.sample(MOST_ROUTED)
    begun: list[_Begun] = []
    for corners in work.batches(routed):
        encoded = model.encode(work.cut(corners))
        begun.append(_Begun(corners, encoded, encoded.latent))
        work.advance(corners, 0.4)
    for level in (3, 2, 1):
        module: SparsePromptModule = getattr(model, f"prompt{level}")
        means = torch.cat([module.mean(some.x) for some in begun])
        mixtures[level] = module.mixture(means.mean(0, dtype=torch.float64))
        if level > 1:
            for some in begun:
                some.x = model.decode_level(level, some.x, some.encoded, tiles=prompts(some.corners))
    while begun:
        some = begun.pop(0)  # its features are let go as soon as it is finished
        x = model.decode_level(1, some.x, some.encoded, tiles=prompts(some.corners))
        work.blend(some.corners, work.cut(some.corners) + model.output(model.refinement(x)))
        work.advance(some.corners, 0.6)
    taken = set(routed)
    for corners in work.batches([corner for corner in work.grid.corners if corner not in taken]):
        work.blend(corners, model(work.cut(corners), prompts(corners)))
        work.advance(corners, 1.0)


def _checked(restored: Tensor, given: Tensor) -> Tensor:
    if restored.shape != given.shape:
        raise ValueError(f"the model gave {tuple(restored.shape)} for an image batch {tuple(given.shape)}")
    return restored


def _at_once(model: nn.Module, grid: Grid, device: torch.device) -> int:
    height, width = grid.tile
    count = max(1, _PIXELS.get(device.type, _PIXELS_ELSEWHERE) // (height * width))
    while count > 1 and isinstance(model, Restorer) and not fits(model, (count, 3, height, width), device):
        count //= 2
    return min(count, len(grid.corners))
