"""Tiles against the whole image: python -m benchmarks.tiles --checkpoint FILE [--out FILE.json] [--picture FILE.jpg]

A bundled photo under the demo's degradations is restored at once (exact), in this library's tiles (prompts chosen once,
blended), in the same tiles with each one's own prompts (blended only), and in uniform tiles as the field does it: each
for itself, and the plain mean where they overlap. Of each: PSNR against the truth, PSNR and the largest difference
against the exact result, and how much larger the steps of that difference are across the borders of tiles than
elsewhere (1: there is no seam). The picture shows, for one degradation, exact, tiled, and the difference times --gain
around grey. Without --checkpoint the weights are random, which shows that it runs and no more; the result says so.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

import cpl
from benchmarks import idle
from benchmarks.facts import facts
from cpl.data import BundledSource, bundled_photos, evaluation_cases
from cpl.files import atomic_write
from cpl.inference.metrics import psnr
from cpl.inference.restore import restore
from cpl.inference.tiled import Grid
from cpl.models.restorer import Restorer
from cpl.nn.padding import pad_to_multiple
from cpl.training import load_preset

THREADS, SEED = 2, 2025  # the demo's
TILES = ("512:64", "256:32", "128:32")
UNIFORM = "128:32"
SHOWN = (f"uniform {UNIFORM}", f"tiled {UNIFORM}")


class Method(NamedTuple):
    """``run``: [H, W, 3] -> the same, clipped; ``lines``: where tiles begin and end inside, of (H, W)."""

    run: Callable[[np.ndarray], np.ndarray]
    lines: Callable[[int, int], tuple[list[int], list[int]]]


class EachForItself(nn.Module):
    """No network that this library knows, so that no prompts are chosen for the tiles together."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def methods(model: Restorer) -> dict[str, Method]:
    found = {}
    for text in TILES:
        tile, overlap = map(int, text.split(":"))
        found[f"tiled {text}"] = blended(model, tile, overlap)
    tile, overlap = map(int, UNIFORM.split(":"))
    found[f"blended only {UNIFORM}"] = blended(EachForItself(model), tile, overlap)
    found[f"uniform {UNIFORM}"] = Method(
        lambda image: uniform(model, image, tile, overlap),
        lambda height, width: (uniform_lines(height, tile, overlap), uniform_lines(width, tile, overlap)),
    )
    return found


def blended(model: nn.Module, tile: int, overlap: int) -> Method:
    def lines(height: int, width: int) -> tuple[list[int], list[int]]:
        grid = Grid.over((height + -height % 8, width + -width % 8), tile, overlap)
        return inner(grid.tops, tile, height), inner(grid.lefts, tile, width)

    return Method(lambda image: restore(model, image, tile=tile, overlap=overlap), lines)


def uniform_starts(length: int, tile: int, overlap: int) -> list[int]:
    """A step of tile - overlap, and the last one where the image ends."""
    return [*range(0, max(0, length - tile), tile - overlap), max(0, length - tile)]


def uniform_lines(length: int, tile: int, overlap: int) -> list[int]:
    return inner(uniform_starts(length + -length % 8, tile, overlap), tile, length)


def uniform(model: nn.Module, image: np.ndarray, tile: int, overlap: int) -> np.ndarray:
    height, width, _ = image.shape
    x = pad_to_multiple(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None], 8)
    total, count = torch.zeros_like(x), torch.zeros_like(x[:, :1])
    with torch.inference_mode():
        for top in uniform_starts(x.shape[2], tile, overlap):
            for left in uniform_starts(x.shape[3], tile, overlap):
                here = (..., slice(top, top + tile), slice(left, left + tile))
                total[here] += model(x[here])
                count[here] += 1
    mean = (total / count)[0, :, :height, :width].clamp(0, 1)
    return np.ascontiguousarray(mean.numpy().transpose(1, 2, 0))


def inner(starts: Any, tile: int, length: int) -> list[int]:
    """Of tiles that begin there, the first pixels beyond each border inside of the image."""
    return sorted({line for start in starts for line in (start, start + tile) if 0 < line < length})


def seam(difference: np.ndarray, lines: tuple[list[int], list[int]]) -> float | None:
    """The mean step of [H, W, 3] across those lines over the mean step elsewhere; None without lines."""
    across, elsewhere = [], []
    for axis in (0, 1):
        steps = np.abs(np.diff(difference, axis=axis)).mean(axis=(1 - axis, 2))
        at = np.isin(np.arange(len(steps)) + 1, lines[axis])
        across.append(steps[at])
        elsewhere.append(steps[~at])
    here, there = np.concatenate(across), np.concatenate(elsewhere)
    return float(here.mean() / there.mean()) if here.size and there.mean() > 0 else None


def rows(model: Restorer, cases: list[Any]) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Of each case a row, and the pictures by method."""
    for case in cases:
        degraded, target = case["degraded"], case["target"]
        restore(model, degraded)  # the first run of a size is slower
        begin = time.monotonic()
        exact = restore(model, degraded)
        found: dict[str, Any] = {"exact": {"psnr": psnr(exact, target), "seconds": time.monotonic() - begin}}
        pictures = {"exact": exact}
        for name, method in methods(model).items():
            begin = time.monotonic()
            made = pictures[name] = method.run(degraded)
            seconds, score, close = time.monotonic() - begin, psnr(made, target), psnr(made, exact)
            found[name] = {
                "psnr": score,
                "psnr_gain_over_exact": score - found["exact"]["psnr"],
                "psnr_to_exact": close if math.isfinite(close) else None,  # None: the same picture
                "largest_difference": float(np.abs(made - exact).max()),
                "step_at_borders": seam(made - exact, method.lines(*degraded.shape[:2])),
                "seconds": seconds,
            }
        height, width, _ = degraded.shape
        yield {"task": case["task"], "photo": case["name"], "size": f"{width}x{height}", **found}, pictures


def sheet(pictures: dict[str, np.ndarray], gain: float) -> Image.Image:
    """Exact, tiled and the difference beside each other, a row for each of SHOWN."""
    exact = pictures["exact"]
    height, width, _ = exact.shape
    label, gap = 16, 4
    page = Image.new("RGB", (3 * width + 2 * gap, len(SHOWN) * (height + label)), "white")
    draw = ImageDraw.Draw(page)
    for row, name in enumerate(SHOWN):
        difference = 0.5 + gain * (pictures[name] - exact)
        panels = (("exact", exact), (name, pictures[name]), (f"difference x {gain:g}", difference))
        for column, (text, panel) in enumerate(panels):
            x, y = column * (width + gap), row * (height + label)
            draw.text((x + 2, y + 2), text, fill="black")
            shown = np.rint(panel.clip(0, 1) * 255).astype(np.uint8)
            page.paste(Image.fromarray(shown), (x, y + label))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="a trained model, such as demo/model.safetensors")
    parser.add_argument(
        "--model", default="cplir-tiny", help="without a checkpoint: random weights of this network"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_tiles.json"))
    parser.add_argument("--picture", type=Path, help="PNG or JPEG of the seams")
    parser.add_argument(
        "--photo", default="coffee", help="a bundled photo (default: coffee, which is held out)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of its size (the demo trains at 0.5)")
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="of the demo's degradations (default: all)"
    )
    parser.add_argument("--show", default="haze", metavar="TASK", help="the picture's degradation")
    parser.add_argument("--gain", type=float, default=10.0, help="of the difference in the picture")
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    idle.require()
    torch.manual_seed(0)
    model = cpl.load_checkpoint(args.checkpoint)[0] if args.checkpoint else cpl.create_model(args.model)
    model.eval()
    source = load_preset("demo", []).data.sources[0]
    assert isinstance(source, BundledSource)
    degradations = {t: d for t, d in source.degradations.items() if args.tasks is None or t in args.tasks}
    photos = [photo for photo in bundled_photos("all", args.scale) if photo.name == args.photo]
    if not degradations or not photos:
        sys.exit(f"no such photo or task: --photo {args.photo}, --tasks {args.tasks}")
    found: list[dict[str, Any]] = []
    for row, pictures in rows(model, evaluation_cases(photos, degradations, seed=SEED)):
        print(json.dumps(row), file=sys.stderr)
        found.append(row)
        weights = args.checkpoint.name if args.checkpoint else "random: the figures mean nothing"
        result = {**facts(), "architecture": model.architecture, "weights": weights, "rows": found}
        with atomic_write(args.out) as file:
            file.write(json.dumps(result, indent=1).encode() + b"\n")
        if args.picture and row["task"] == args.show:
            data = io.BytesIO()
            kind = "PNG" if args.picture.suffix.lower() == ".png" else "JPEG"
            sheet(pictures, args.gain).save(data, kind, quality=88)
            with atomic_write(args.picture) as file:
                file.write(data.getvalue())


if __name__ == "__main__":
    main()
