"""Clean photos, degraded and restored with the right prompts and with wrong ones, and what is measured on them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cpl.data.crops import as_tensor, centre_window, cut
from cpl.data.datasets import named_image
from cpl.data.evaluation import Case, Cases, synthetic_makers
from cpl.data.seeding import derive
from cpl.degradations import Degradation
from cpl.errors import CplError
from cpl.inference.metrics import psnr
from cpl.inference.routing import Choice, watch_routing, with_prompts
from cpl.models.restorer import Restorer

CLEAN = "clean"  # the photos as they are, beside the degradations


@dataclass(frozen=True)
class Inspected:
    """One photo under one degradation.

    Attributes:
        choices: of the routers, levels 1 to 3.
        degraded_psnr, restored_psnr: against the clean photo, in dB; infinite where equal.
        negative_psnr: the mean over the negatives, the restorations with wrong prompts.
        distance: mean |restored - negative| of values in [0, 1], over pixels, channels and negatives.

    The last two are None for a network that has no wrong prompts.
    """

    task: str
    name: str
    choices: tuple[Choice, ...]
    degraded_psnr: float
    restored_psnr: float
    negative_psnr: float | None = None
    distance: float | None = None


@dataclass(frozen=True)
class Pictures:
    """One photo's pictures, float32 [H, W, 3] in [0, 1], for people to look at."""

    task: str
    name: str
    degraded: np.ndarray
    restored: np.ndarray
    negative: np.ndarray | None
    clean: np.ndarray


@dataclass
class Inspection:
    """What :func:`inspect_model` found.

    Attributes:
        degradations: task -> specification; "clean" is not among them.
        images: in the order of the tasks, "clean" first.
        pictures: of the first photo, one a task.
        without_negatives: why there are none, or "".
        negative_weights: of the network's configuration: what a wrong prompt's weight is.
    """

    degradations: dict[str, str]
    images: list[Inspected]
    pictures: list[Pictures]
    num_negatives: int
    without_negatives: str = ""
    negative_weights: str = "own"
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        return [CLEAN, *self.degradations]

    def of(self, task: str) -> list[Inspected]:
        return [image for image in self.images if image.task == task]

    def mean(self, task: str, what: str) -> float | None:
        """The mean of a number of :class:`Inspected` over a task's photos; None where it does not exist."""
        values = [getattr(image, what) for image in self.of(task)]
        return None if None in values else math.fsum(values) / len(values)


def inspect_model(
    model: nn.Module,
    photos: Sequence[Any],
    degradations: Mapping[str, str | Mapping[str, Any] | Degradation],
    *,
    seed: int = 0,
    crop: int | None = None,
    num_negatives: int = 4,
    progress: Callable[[], None] = lambda: None,
) -> Inspection:
    """Degrade, restore and measure every photo under every degradation, and as it is.

    Args:
        model: a network of :func:`cpl.create_model` with prompts; runs where its parameters are.
        photos: clean; arrays float32 [H, W, 3] in [0, 1] or objects with ``name`` and ``image``, as
            :class:`cpl.data.Photo`.
        degradations: task -> specification (:func:`cpl.degradations.create`).
        seed: of the degradations, drawn as `cpl eval` draws them, and of the wrong prompts; both depend on
            nothing else but the task and the photo's name.
        crop: side of the middle that is looked at, in pixels; None: whole photos.
        num_negatives: K wrong restorations of each photo.
        progress: called after each photo under each task.

    Raises:
        CplError: no prompts, no photos, or not enough memory for the crop.
        ValueError: an unknown degradation, or num_negatives or crop below 1.
    """
    network = with_prompts(model)
    if not photos:
        raise CplError("there is no photo to look at; give files or folders of clean photos")
    if num_negatives < 1:
        raise ValueError(f"num_negatives must be at least 1, got {num_negatives}")
    if crop is not None and crop < 1:
        raise ValueError(f"crop must be at least 1 pixel, got {crop}")
    cases = inspection_cases(photos, degradations, seed, crop)
    reason = _why_no_negatives(network)
    found = Inspection(
        {task: str(spec) for task, spec in degradations.items()},
        [],
        [],
        0 if reason else num_negatives,
        reason,
        network.config.negative_weights,
    )
    training = network.training
    network.eval()
    try:
        for case in cases:
            image, pictures = _inspect(network, case, seed, found.num_negatives)
            found.images.append(image)
            if len(found.pictures) < len(found.tasks) and image.task not in {p.task for p in found.pictures}:
                found.pictures.append(pictures)
            progress()
    finally:
        network.train(training)
    return found


def inspection_cases(
    photos: Sequence[Any],
    degradations: Mapping[str, str | Mapping[str, Any] | Degradation],
    seed: int,
    crop: int | None,
) -> Cases:
    """All photos as they are, then all under each degradation in turn; made when asked for."""
    clean = [partial(_clean_case, photos, index, crop) for index in range(len(photos))]
    return Cases([*clean, *synthetic_makers(photos, degradations, seed, crop)], keep=0)


def _clean_case(photos: Sequence[Any], index: int, crop: int | None) -> Case:
    name, image = named_image(photos, index)
    target = np.ascontiguousarray(cut(image, centre_window(image, crop)))
    return {"task": CLEAN, "name": name, "degraded": target, "target": target}


def _inspect(network: Restorer, case: Case, seed: int, num_negatives: int) -> tuple[Inspected, Pictures]:
    task, name, target = case["task"], case["name"], case["target"]
    x = as_tensor(case["degraded"])[None].to(next(network.parameters()).device)
    with torch.inference_mode(), watch_routing(network) as routing, _memory_errors(x):
        if num_negatives:
            wrong = derive(seed, "negatives", task, name)
            # One at a time: the decoder's maps of all negatives at once would be the most memory by far.
            restored, negatives = network.forward_with_negatives(
                x, num_negatives, seed=wrong, negative_chunk=1
            )
        else:
            restored, negatives = network(x), None
    after = _picture(restored[0])
    wrongs = [] if negatives is None else [_picture(negative[0]) for negative in negatives]
    image = Inspected(
        task,
        name,
        tuple(routing.choices()[0]),
        psnr(case["degraded"], target),
        psnr(after, target),
        _mean([psnr(wrong, target) for wrong in wrongs]),
        _mean([float(np.abs(after - wrong).mean(dtype=np.float64)) for wrong in wrongs]),
    )
    return image, Pictures(task, name, case["degraded"], after, wrongs[0] if wrongs else None, target)


def _picture(image: Tensor) -> np.ndarray:
    """[3, H, W] -> float32 [H, W, 3], clipped to [0, 1]."""
    return np.ascontiguousarray(image.float().clamp(0, 1).permute(1, 2, 0).cpu().numpy())


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _why_no_negatives(network: Restorer) -> str:
    config = network.config
    if config.num_prompts - config.picks < config.picks:
        return (
            f"{network.architecture} takes {config.picks} of its {config.num_prompts} prompts, "
            "which leaves too few wrong ones for a negative"
        )
    return ""


@contextlib.contextmanager
def _memory_errors(x: Tensor) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(
            error
        ):
            raise
        height, width = x.shape[-2:]
        raise CplError(
            f"not enough memory on {x.device} for {width}x{height} pixels: look at less of each photo (--crop)"
        ) from error
