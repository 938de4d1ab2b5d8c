"""A large image in overlapping tiles, blended: any model and dtype, but not exactly what the whole image gives.

grid     where the tiles lie, how much each counts at each pixel, and which of them stand for the image
restore  the prompts chosen once for the whole image, and the tiles' pass
"""

from cpl.inference.tiled.grid import Grid, check_tile, check_tiles
from cpl.inference.tiled.restore import restore_tiled

__all__ = ["Grid", "check_tile", "check_tiles", "restore_tiled"]
