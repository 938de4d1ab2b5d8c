"""The picture of every degradation, before and after, from the bundled photographs."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np

from cpl.data.photos import bundled_photos
from cpl.data.seeding import generator
from cpl.degradations import create
from cpl.extras import require
from cpl.files import atomic_write

# (specification, photo, (top, left) of the window): each where the degradation is easy to judge.
EXAMPLES = (
    ("noise:sigma=25", "chelsea", (20, 60)),
    ("motion_blur:length=15,angle=20,bend=40", "china", (20, 40)),
    ("defocus_blur:radius=3", "flower", (40, 120)),
    ("rain:density=10,strength=0.85", "china", (187, 0)),
    ("haze:beta=1.8", "china", (100, 160)),
    ("low_light:scale=0.06", "coffee", (60, 130)),
    ("snow", "rocket", (180, 160)),
    ("jpeg:quality=12", "chelsea", (40, 80)),
    ("low_light+haze", "coffee", (60, 130)),
    ("low_light+rain+haze", "china", (100, 100)),
)
_WINDOW = (240, 340)  # rows, columns of each picture, at the photographs' own resolution
_COLUMNS = 2  # pairs side by side
_GAP, _CAPTION = 8, 22  # pixels


def degradation_sheet(seed: int = 0) -> Any:
    """A PIL image: for each of :data:`EXAMPLES` a window of a photograph before and after."""
    pil, draw_module, fonts = (require(f"PIL.{name}") for name in ("Image", "ImageDraw", "ImageFont"))
    photos = {photo.name: photo.image for photo in bundled_photos()}
    height, width = _WINDOW
    cell = (2 * width + _GAP, height + _CAPTION)  # columns, rows
    rows = -(-len(EXAMPLES) // _COLUMNS)
    size = (_COLUMNS * (cell[0] + 2 * _GAP), rows * (cell[1] + _GAP) + _GAP)
    sheet = pil.new("RGB", size, "white")
    draw, font = draw_module.Draw(sheet), fonts.load_default(size=15)
    for index, (specification, name, (top, left)) in enumerate(EXAMPLES):
        row, column = divmod(index, _COLUMNS)
        x, y = column * (cell[0] + 2 * _GAP) + _GAP, row * (cell[1] + _GAP) + _GAP
        photo = photos[name]
        after = create(specification)(photo, generator(seed, specification, name))
        draw.text((x, y), f"{specification}  ({name})", fill="black", font=font)
        for shift, image in ((0, photo), (width + _GAP, after)):
            window = image[top : top + height, left : left + width]
            pixels = np.rint(window * 255).astype(np.uint8)
            sheet.paste(pil.fromarray(pixels), (x + shift, y + _CAPTION))
    return sheet


def write_sheet(path: str | os.PathLike[str], seed: int = 0) -> None:
    """Write :func:`degradation_sheet` to ``path``, .jpg or .png, whole or not at all."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in (".jpg", ".jpeg", ".png"):
        raise ValueError(f"{os.fspath(path)}: the sheet is written as .jpg or .png; change the file name")
    coded = io.BytesIO()
    degradation_sheet(seed).save(coded, "PNG" if suffix == ".png" else "JPEG", quality=85)
    with atomic_write(path) as file:
        file.write(coded.getvalue())
