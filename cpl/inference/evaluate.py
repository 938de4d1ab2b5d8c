"""Scores of a model per degradation: PSNR and SSIM before, after, and what was gained."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from cpl.errors import CplError
from cpl.extras import require
from cpl.files import atomic_write
from cpl.inference import metrics

Restorer = Callable[[np.ndarray], np.ndarray]
_AVERAGE = "average"


@dataclass(frozen=True)
class Scores:
    """PSNR in dB and SSIM of one image, or their means. ``gain`` is restored minus degraded."""

    degraded_psnr: float
    degraded_ssim: float
    restored_psnr: float
    restored_ssim: float

    @property
    def gain_psnr(self) -> float:
        return _difference(self.restored_psnr, self.degraded_psnr)

    @property
    def gain_ssim(self) -> float:
        return _difference(self.restored_ssim, self.degraded_ssim)


@dataclass(frozen=True)
class ImageScores:
    """One evaluated image."""

    task: str
    name: str
    scores: Scores


@dataclass
class Evaluation:
    """What `evaluate` found.

    Means over images, per task; ``average`` is the mean over the tasks' means, so that a task with
    many images does not outvote the others. An infinite PSNR (identical images) makes its mean
    infinite: it is not left out, since that would hide a perfect result, and ``notes`` says so. An
    SSIM that does not exist (a side under 7 pixels) is left out of its mean, and ``notes`` says so.
    """

    channel: str
    images: list[ImageScores]
    notes: list[str] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def tasks(self) -> dict[str, Scores]:
        """Task -> mean over its images, in the order of first appearance."""
        groups: dict[str, list[Scores]] = {}
        for image in self.images:
            groups.setdefault(image.task, []).append(image.scores)
        return {task: _mean(scores) for task, scores in groups.items()}

    @property
    def average(self) -> Scores:
        """Mean over the tasks."""
        return _mean(list(self.tasks.values()))

    def table(self) -> Any:
        """A rich.table.Table: one row per task and one for the average."""
        table = require("rich.table").Table(title=f"PSNR (dB) / SSIM, {self.channel.upper()}")
        table.add_column("degradation")
        table.add_column("images", justify="right")
        for name in ("degraded", "restored", "gain"):
            table.add_column(name, justify="right")
        for task, scores in self.tasks.items():
            count = sum(image.task == task for image in self.images)
            table.add_row(task, str(count), *_cells(scores))
        table.add_section()
        table.add_row(_AVERAGE, str(len(self.images)), *_cells(self.average), style="bold")
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a number that JSON cannot hold (infinite, undefined) is None."""
        tasks = self.tasks
        return {
            "channel": self.channel,
            "tasks": {
                task: {"images": sum(i.task == task for i in self.images), **_row(scores)}
                for task, scores in tasks.items()
            },
            "average": _row(self.average),
            "images": [{"task": i.task, "name": i.name, **_row(i.scores)} for i in self.images],
            "notes": list(self.notes),
            **({"info": self.info} if self.info else {}),
        }

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict`, whole or not at all."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        with atomic_write(path) as file:
            file.write(text.encode() + b"\n")


def evaluate(
    model: nn.Module | Restorer,
    cases: Iterable[Mapping[str, Any]],
    channel: str = "rgb",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "fp32",
    progress: Callable[[str, str], None] | None = None,
) -> Evaluation:
    """Restore every case and score it against its target.

    Args:
        model: a network (run by `cpl.inference.restore.restore`), or any function from float32
            [H, W, 3] in [0, 1] to the same shape.
        cases: mappings with "task", "name", "degraded" and "target", the two images float32
            [H, W, 3] in [0, 1]; consumed one by one, so they may be decoded lazily.
        channel: "rgb" or "y" (BT.601), see `cpl.inference.metrics`.
        device, dtype: as for `restore`; networks only.
        progress: called with (task, name) after every image.

    Raises:
        CplError: there are no cases.
        ValueError: sizes of a pair differ, values that are not in [0, 1] (see `cpl.inference.metrics.psnr`), or an
            unknown channel.
    """
    if channel not in metrics.CHANNELS:
        raise ValueError(f"channel must be one of {', '.join(metrics.CHANNELS)}, got {channel!r}")
    restorer = _restorer(model, device, dtype)
    images: list[ImageScores] = []
    for case in cases:
        task, name = str(case["task"]), str(case["name"])
        degraded, target = case["degraded"], case["target"]
        if degraded.shape != target.shape:
            raise ValueError(f"{task} {name}: degraded is {degraded.shape}, target is {target.shape}")
        restored = restorer(degraded)
        try:
            for what, image in (("degraded", degraded), ("target", target), ("restored", restored)):
                metrics.checked(what, image)
        except ValueError as error:
            raise ValueError(f"{task} {name}: {error}") from None
        pairs = (degraded, restored)
        values = [score(one, target, channel) for one in pairs for score in (metrics.psnr, metrics.ssim)]
        images.append(ImageScores(task, name, Scores(*values)))
        if progress is not None:
            progress(task, name)
    if not images:
        raise CplError("nothing to evaluate: there is no image in the test set; check its folder")
    return Evaluation(channel, images, _notes(images))


def _restorer(
    model: nn.Module | Restorer, device: str | torch.device | None, dtype: str | torch.dtype
) -> Restorer:
    if not isinstance(model, nn.Module):
        return model
    from cpl.inference.restore import restore

    network = model
    return lambda image: restore(network, image, device=device, dtype=dtype)


def _notes(images: list[ImageScores]) -> list[str]:
    notes = []
    same = [i for i in images if math.inf in (i.scores.degraded_psnr, i.scores.restored_psnr)]
    if same:
        notes.append(
            f"{len(same)} of {len(images)} images are identical to their target before or after restoring "
            f"(first: {same[0].task} {same[0].name}); PSNR is infinite there and in the means, null in JSON"
        )
    small = [i for i in images if math.isnan(i.scores.degraded_ssim)]
    if small:
        notes.append(
            f"{len(small)} of {len(images)} images have a side under {metrics.SSIM_WINDOW} pixels "
            f"(first: {small[0].task} {small[0].name}); they have no SSIM and are left out of its means"
        )
    return notes


def _mean(scores: list[Scores]) -> Scores:
    means = {}
    for name in asdict(scores[0]):
        values = [v for v in (getattr(s, name) for s in scores) if not math.isnan(v)]
        means[name] = math.fsum(values) / len(values) if values else math.nan
    return Scores(**means)


def _difference(after: float, before: float) -> float:
    return 0.0 if after == before else after - before  # inf - inf would be NaN


def _cells(scores: Scores) -> list[str]:
    gain = _pair(scores.gain_psnr, scores.gain_ssim, "+")
    return [
        _pair(scores.degraded_psnr, scores.degraded_ssim),
        _pair(scores.restored_psnr, scores.restored_ssim),
        gain,
    ]


def _pair(decibels: float, similarity: float, sign: str = "") -> str:
    return f"{decibels:{sign}.2f} / {'-' if math.isnan(similarity) else f'{similarity:{sign}.4f}'}"


def _row(scores: Scores) -> dict[str, float | None]:
    values = asdict(scores) | {"gain_psnr": scores.gain_psnr, "gain_ssim": scores.gain_ssim}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
