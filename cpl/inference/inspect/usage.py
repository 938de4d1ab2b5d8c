"""Prompt usage: how often each prompt is chosen for a degradation, at each level, and what that tells of a photo."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpl.errors import CplError
from cpl.files import atomic_write
from cpl.inference.inspect.measure import CLEAN, Inspected
from cpl.inference.routing import Choice, information, with_prompts
from cpl.models.config import LEVELS

FORMAT, FORMAT_VERSION = "cpl-prompt-usage", 1
UNDECIDED = 0.02  # of likeness: closer than this, two degradations are not told apart
_LEAST_SPREAD = 1e-3  # of a share; a router that gives all photos of a degradation the same has no spread
_LARGEST_FILE = 64 * 2**20


@dataclass(frozen=True)
class LevelUsage:
    """How a degradation's photos use the N prompts of one level.

    Attributes:
        chosen: the part of the photos that get each prompt, 0 to 1.
        shares: the mean of the router's softmax over all N; sums to 1.
    """

    chosen: tuple[float, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Likely:
    """Which degradation a photo's choices look like.

    Attributes:
        likeness: task -> 0 to 1, the best first; they sum to 1.
        decided: whether the first is ahead of the second by more than :data:`UNDECIDED`.
    """

    likeness: dict[str, float]
    decided: bool

    @property
    def tasks(self) -> list[str]:
        """The best, or all that are as good as it."""
        best = max(self.likeness.values())
        return [task for task, value in self.likeness.items() if best - value <= UNDECIDED]


@dataclass
class Usage:
    """Task -> level -> :class:`LevelUsage`, of one network.

    Attributes:
        spread: level -> standard deviation of each prompt's share among photos of one degradation.
        router: :func:`router_fingerprint` of that network.
        information: level -> what its first choice tells of the degradation, undegraded photos left out
            (:func:`cpl.inference.routing.information`); None where there is nothing to tell, or where an image gets
            several prompts.
        right, judged: how often :meth:`likely` named a photo's degradation when it was judged by the
            usage of the *other* photos, and of how many; 0 of 0 with a single photo.
    """

    tasks: dict[str, dict[int, LevelUsage]]
    spread: dict[int, tuple[float, ...]]
    router: str = ""
    right: int = 0
    judged: int = 0
    info: dict[str, Any] = field(default_factory=dict)
    information: dict[int, float | None] = field(default_factory=lambda: dict.fromkeys(LEVELS))

    @classmethod
    def of(cls, images: Sequence[Inspected], router: str = "") -> Usage:
        """The usage that ``images`` show."""
        usage = cls(*_tabulate(images), router, information=_information(images))
        for own, others in _each_and_others(images, usage):
            for image in own:
                usage.judged += 1
                found = others.likely(image.choices)
                usage.right += found.decided and found.tasks == [image.task]
        return usage

    def likely(self, choices: Iterable[Choice]) -> Likely:
        """How much a photo's ``choices`` look like those of each task.

        With z the difference of the photo's share of a prompt and the task's mean, over the spread:

            likeness = softmax over tasks of -1/2 sum over levels of mean over prompts of z^2

        That is a naive Bayes classifier of normal distributions, in which the prompts of a level, whose shares
        hang together, count as one.
        """
        seen = list(choices)
        scores = {
            task: -0.5 * math.fsum(self._distance(choice, levels[choice.level]) for choice in seen)
            for task, levels in self.tasks.items()
        }
        best = max(scores.values())
        powers = {task: math.exp(score - best) for task, score in scores.items()}
        total = math.fsum(powers.values())
        ranked = sorted(((task, power / total) for task, power in powers.items()), key=lambda item: -item[1])
        decided = len(ranked) == 1 or ranked[0][1] - ranked[1][1] > UNDECIDED
        return Likely(dict(ranked), decided)

    def _distance(self, choice: Choice, use: LevelUsage) -> float:
        spread = self.spread[choice.level]
        squares = [
            ((share - mean) / max(deviation, _LEAST_SPREAD)) ** 2
            for share, mean, deviation in zip(choice.shares, use.shares, spread, strict=True)
        ]
        return math.fsum(squares) / len(squares)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "router": self.router,
            "tasks": {
                task: {
                    f"level{level}": {"chosen": list(use.chosen), "shares": list(use.shares)}
                    for level, use in levels.items()
                }
                for task, levels in self.tasks.items()
            },
            "spread": {f"level{level}": list(values) for level, values in self.spread.items()},
            "information": {f"level{level}": value for level, value in self.information.items()},
            "named_rightly": {"right": self.right, "of": self.judged},
            "info": self.info,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` as JSON, whole or not at all."""
        with atomic_write(path) as file:
            file.write(json.dumps(self.to_dict(), indent=1, allow_nan=False).encode() + b"\n")


def read_usage(path: str | os.PathLike[str], model: Any = None) -> Usage:
    """The table that `cpl inspect` wrote (usage.json).

    Args:
        model: refuse the table if it is not of this network.

    Raises:
        CplError: no such file, none of ours, damaged, or of another network.
    """
    source = Path(path)
    remedy = "make it with: cpl inspect --checkpoint FILE --output DIR, which writes DIR/usage.json"
    if not source.is_file():
        raise CplError(f"{source}: no such file; {remedy}")
    if source.stat().st_size > _LARGEST_FILE:
        raise CplError(f"{source}: too large for a table of prompt usage; {remedy}")
    try:
        data = json.loads(source.read_text("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CplError(f"{source}: not JSON ({error}); {remedy}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise CplError(f"{source}: not a table of prompt usage; {remedy}")
    if data.get("format_version") != FORMAT_VERSION:
        raise CplError(
            f"{source}: has format {data.get('format_version')!r}, and this cpl reads {FORMAT_VERSION}; {remedy}"
        )
    try:
        usage = _parse(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CplError(f"{source}: damaged ({error!r}); {remedy}") from None
    if model is not None and usage.router != router_fingerprint(model):
        raise CplError(f"{source}: is of another model than this checkpoint; {remedy}")
    return usage


def router_fingerprint(model: Any) -> str:
    """A short hash of the routers' weights, which says whose usage a table is."""
    network = with_prompts(model)
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{network.config.picks} {network.config.normalize}".encode())
    for level in LEVELS:
        for value in getattr(network, f"prompt{level}").linear_layer.state_dict().values():
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _tabulate(
    images: Sequence[Inspected],
) -> tuple[dict[str, dict[int, LevelUsage]], dict[int, tuple[float, ...]]]:
    """The usage of each task at each level, and the spread at each level."""
    by_task: dict[str, list[Inspected]] = {}
    for image in images:
        by_task.setdefault(image.task, []).append(image)
    tasks: dict[str, dict[int, LevelUsage]] = {task: {} for task in by_task}
    spread = {}
    for level in LEVELS:
        squares = [0.0] * len(images[0].choices[0].shares)
        for task, group in by_task.items():
            choices = [choice for image in group for choice in image.choices if choice.level == level]
            tasks[task][level] = use = _level_usage(choices)
            for n, mean in enumerate(use.shares):
                squares[n] += math.fsum((choice.shares[n] - mean) ** 2 for choice in choices)
        freedom = max(1, len(images) - len(by_task))
        spread[level] = tuple(math.sqrt(square / freedom) for square in squares)
    return tasks, spread


def _information(images: Sequence[Inspected]) -> dict[int, float | None]:
    tasks = list(dict.fromkeys(image.task for image in images if image.task != CLEAN))
    found: dict[int, float | None] = dict.fromkeys(LEVELS)
    if not tasks or any(len(choice.chosen) > 1 for choice in images[0].choices):
        return found
    for level in LEVELS:
        counts = torch.zeros(len(tasks), len(images[0].choices[0].shares))
        for image in images:
            if image.task != CLEAN:
                (choice,) = (choice for choice in image.choices if choice.level == level)
                counts[tasks.index(image.task), choice.chosen[0]] += 1
        found[level] = information(counts)
    return found


def _each_and_others(images: Sequence[Inspected], usage: Usage) -> Iterator[tuple[list[Inspected], Usage]]:
    """For each photo, if there are several: its images, and the usage of all others but for ``chosen``.

    By the sums over all images less the photo's own, so that the work grows with the photos, not with their square.
    """
    photos: dict[str, list[tuple[Inspected, np.ndarray]]] = {}
    totals: dict[str, int] = {}
    squares = np.zeros(())
    for image in images:
        # Of deviations, which are small: of shares, taking away would lose the digits that are left.
        deviations = _shares(image) - _means(usage, image.task)  # [levels, N]
        photos.setdefault(image.name, []).append((image, deviations))
        totals[image.task] = totals.get(image.task, 0) + 1
        squares = squares + deviations**2
    for own in photos.values() if len(photos) > 1 else ():
        tasks = dict(usage.tasks)
        left = squares - sum(deviations**2 for _, deviations in own)
        for task in {image.task for image, _ in own}:
            mine = [deviations for image, deviations in own if image.task == task]
            count = totals[task] - len(mine)
            if not count:  # no other photo has it
                del tasks[task]
                continue
            shift = sum(mine) / count  # deviations of all sum to 0, so those of the others to minus its own
            left = left - count * shift**2
            shares = _means(usage, task) - shift
            tasks[task] = {
                level: LevelUsage((), tuple(row.tolist())) for level, row in zip(LEVELS, shares, strict=True)
            }
        freedom = max(1, len(images) - len(own) - len(tasks))
        spread = np.sqrt(np.maximum(left, 0) / freedom)
        yield (
            [image for image, _ in own],
            Usage(tasks, {level: tuple(row.tolist()) for level, row in zip(LEVELS, spread, strict=True)}),
        )


def _shares(image: Inspected) -> np.ndarray:
    """float64 [levels, N]"""
    by_level = {choice.level: choice.shares for choice in image.choices}
    return np.array([by_level[level] for level in LEVELS])


def _means(usage: Usage, task: str) -> np.ndarray:
    """float64 [levels, N]"""
    return np.array([usage.tasks[task][level].shares for level in LEVELS])


def _level_usage(choices: Sequence[Choice]) -> LevelUsage:
    prompts = range(len(choices[0].shares))
    return LevelUsage(
        tuple(sum(n in choice.chosen for choice in choices) / len(choices) for n in prompts),
        tuple(math.fsum(choice.shares[n] for choice in choices) / len(choices) for n in prompts),
    )


def _parse(data: Mapping[str, Any]) -> Usage:
    tasks = {
        str(task): {level: _parse_level(levels[f"level{level}"]) for level in LEVELS}
        for task, levels in data["tasks"].items()
    }
    if not tasks:
        raise ValueError("it holds no degradation")
    spread = {level: tuple(map(float, data["spread"][f"level{level}"])) for level in LEVELS}
    if not all(0 <= value <= 1 for row in spread.values() for value in row):
        raise ValueError("the spread is none of shares")
    sizes = {len(use.shares) for levels in tasks.values() for use in levels.values()}
    sizes |= {len(row) for row in spread.values()}
    if len(sizes) != 1:
        raise ValueError(f"numbers of prompts differ: {sorted(sizes)}")
    counts = data["named_rightly"]
    known = data.get("information", {})  # tables of before it was counted have none
    information = {level: _optional(known.get(f"level{level}")) for level in LEVELS}
    return Usage(
        tasks,
        spread,
        str(data["router"]),
        int(counts["right"]),
        int(counts["of"]),
        dict(data["info"]),
        information,
    )


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def _parse_level(values: Mapping[str, Any]) -> LevelUsage:
    numbers = {key: tuple(map(float, values[key])) for key in ("chosen", "shares")}
    for key, row in numbers.items():
        if not row or len(row) != len(numbers["shares"]) or not all(0 <= value <= 1 + 1e-6 for value in row):
            raise ValueError(f"{key} holds no shares between 0 and 1: {row[:3]}")
    return LevelUsage(numbers["chosen"], numbers["shares"])
