"""The charts and pictures of an inspection, as the bytes of PNG and JPEG files."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from cpl.extras import require
from cpl.inference.inspect.measure import Inspection, Pictures
from cpl.inference.inspect.usage import Usage
from cpl.models.config import LEVELS

_BLUE, _ORANGE, _GREY = "#2563eb", "#ea580c", "#9ca3af"
_LARGEST_LABELLED = 12  # prompts: with more, the numbers in the cells would touch
# Pixels, the largest height and width of each picture of the sheet: a JPEG has at most 65500 a side.
_CELL = (150, 600)
_GAP, _CAPTION = 6, 20


def heat_map(usage: Usage, dense: bool = False) -> bytes:
    """PNG: for each level a map, degradations down, prompts across; a cell is the part of the photos that get
    the prompt, or with ``dense``, where all photos get all, its mean weight."""
    tasks = list(usage.tasks)
    count = len(usage.tasks[tasks[0]][1].shares)
    figure = _figure(max(7.5, 2.2 + 3 * max(1.6, 0.42 * count)), 1.5 + 0.42 * len(tasks))
    panels = figure.subplots(1, 3, sharey=True)
    image = None
    for axes, level in zip(panels, sorted(LEVELS, reverse=True), strict=True):
        rows = [usage.tasks[task][level] for task in tasks]
        values = np.array([row.shares if dense else row.chosen for row in rows])
        image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_title(f"level {level}", fontsize=10)
        axes.set_xticks(range(count), [str(n + 1) for n in range(count)])
        axes.set_xlabel("prompt")
        axes.tick_params(length=0)
        if count <= _LARGEST_LABELLED:
            for row, column in np.ndindex(*values.shape):
                value = values[row, column]
                if value >= 0.005:
                    colour = "white" if value > 0.55 else "black"
                    text = f"{100 * value:.0f}"
                    axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    panels[0].set_yticks(range(len(tasks)), tasks)
    what = "mean weight, %" if dense else "part of the photos that get the prompt, %"
    bar = figure.colorbar(image, ax=panels, shrink=0.9, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["0", "50", "100"])
    bar.set_label(what, fontsize=8)
    return _png(figure)


def distances(inspection: Inspection) -> bytes:
    """PNG: for each degradation how far wrong prompts lead from the right ones, and PSNR of both."""
    tasks = inspection.tasks
    rows = np.arange(len(tasks))
    figure = _figure(9.5, 1.3 + 0.5 * len(tasks))
    left, right = figure.subplots(1, 2, sharey=True)
    left.barh(rows, [inspection.mean(task, "distance") for task in tasks], 0.6, color=_ORANGE)
    left.set_title("right against wrong prompts: mean |difference|", fontsize=10)
    left.set_xlabel("of values in [0, 1]")
    left.set_yticks(rows, tasks)
    left.invert_yaxis()
    for shift, what, label, colour in (
        (-0.27, "degraded_psnr", "degraded", _GREY),
        (0.0, "restored_psnr", "restored", _BLUE),
        (0.27, "negative_psnr", "with wrong prompts", _ORANGE),
    ):
        values = [inspection.mean(task, what) for task in tasks]
        # The clean photo against itself has no finite PSNR, and no bar.
        finite = [v if v is not None and math.isfinite(v) else 0.0 for v in values]
        right.barh(rows + shift, finite, 0.25, label=label, color=colour)
    right.set_title("PSNR against the clean photo", fontsize=10)
    right.set_xlabel("dB")
    figure.legend(loc="outside lower right", ncols=3, fontsize=8, frameon=False)
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def sheet(pictures: list[Pictures]) -> bytes:
    """JPEG: a row a degradation: degraded, restored, restored with wrong prompts, clean."""
    pil, draw_module, fonts = (require(f"PIL.{name}") for name in ("Image", "ImageDraw", "ImageFont"))
    height, width = pictures[0].clean.shape[:2]
    scale = min(_CELL[0] / height, _CELL[1] / width)
    cell = (max(1, round(scale * height)), max(1, round(scale * width)))
    columns = [("degraded", "degraded"), ("restored", "restored")]
    columns += [("negative", "wrong prompts")] * (pictures[0].negative is not None) + [("clean", "clean")]
    size = (
        len(columns) * (cell[1] + _GAP) + _GAP,
        _CAPTION + len(pictures) * (cell[0] + _CAPTION + _GAP),
    )
    made = pil.new("RGB", size, "white")
    draw, font = draw_module.Draw(made), fonts.load_default(size=13)
    for column, (_, title) in enumerate(columns):
        draw.text((_GAP + column * (cell[1] + _GAP), 2), title, fill="black", font=font)
    for row, shown in enumerate(pictures):
        top = _CAPTION + row * (cell[0] + _CAPTION + _GAP)
        draw.text((_GAP, top + 2), shown.task[:60], fill="black", font=font)
        for column, (what, _) in enumerate(columns):
            pixels = np.rint(getattr(shown, what) * 255).astype(np.uint8)
            small = pil.fromarray(pixels).resize((cell[1], cell[0]), pil.Resampling.LANCZOS)
            made.paste(small, (_GAP + column * (cell[1] + _GAP), top + _CAPTION))
    coded = io.BytesIO()
    made.save(coded, "JPEG", quality=88)
    return coded.getvalue()


def _figure(width: float, height: float) -> Any:
    # Not pyplot: no window, no state that outlives the chart.
    return require("matplotlib.figure").Figure(figsize=(width, height), dpi=120, layout="constrained")


def _png(figure: Any) -> bytes:
    coded = io.BytesIO()
    figure.savefig(coded, format="png", metadata={"Software": None})
    return coded.getvalue()
