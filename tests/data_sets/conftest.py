"""Small image files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write("a/b.png", height, width, seed) -> path of a random 8-bit picture below tmp_path."""

    def write(name: str, height: int = 40, width: int = 50, seed: int = 0, mode: str = "RGB") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        if mode == "I;16":
            pixels = rng.integers(0, 65536, (height, width), dtype=np.uint16)
        else:
            channels = () if mode == "L" else (3,)
            pixels = rng.integers(0, 256, (height, width, *channels), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def damage() -> dict[str, Callable[[Path], None]]:
    """Ways to break an image file in place."""

    def truncate(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])

    def text(path: Path) -> None:
        path.write_text("this is no image\n" * 20)

    def empty(path: Path) -> None:
        path.write_bytes(b"")

    return {"truncated": truncate, "text": text, "empty": empty}
