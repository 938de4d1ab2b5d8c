"""From the data section of a configuration to datasets and cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpl.data.config import (
    BundledSource,
    DataConfig,
    FolderSource,
    PairedSource,
    SourceConfig,
    ValidationConfig,
    resolve,
)
from cpl.data.datasets import MixedDataset, PairedDataset, SyntheticDataset
from cpl.data.evaluation import Cases, paired_makers, synthetic_makers
from cpl.data.files import ImageFolder
from cpl.data.photos import bundled_photos
from cpl.data.seeding import derive


def build_dataset(config: DataConfig, seed: int = 0) -> MixedDataset:
    """The training set of ``config``; its ``tasks`` are ``config.tasks``. Every source has a seed of its own.

    Raises:
        DataError: a folder is missing or empty, or an input has no target.
    """
    datasets: list[SyntheticDataset | PairedDataset] = []
    repeats: list[int] = []
    for number, source in enumerate(config.sources):
        own = derive(seed, "source", number)
        if isinstance(source, PairedSource):
            paired = _paired(source, config.root)
            paired.crop, paired.seed, paired.augment = config.crop, own, config.augment
            datasets.append(paired)
            repeats.append(source.repeats)
        else:
            images = _images(source, config.root)
            datasets.append(
                SyntheticDataset(
                    images, source.degradations, config.crop, own, config.augment, source.repeats
                )
            )
            repeats.append(1)
    return MixedDataset(datasets, repeats)


def build_cases(config: ValidationConfig, seed: int = 0) -> Cases:
    """The fixed cases of ``config``, made when asked for; a sequence of :class:`Case`.

    ``config`` is ``DataConfig.validation``. Repeats are ignored: every image is measured once.

    Raises:
        DataError: a folder is missing or empty, or an input has no target.
    """
    makers = []
    for source in config.sources:
        if isinstance(source, PairedSource):
            paired = _paired(source, config.root)
            makers += paired_makers(paired, config.crop, _spread(len(paired), config.limit))
        else:
            images = _images(source, config.root)
            chosen = _spread(len(images), config.limit)
            makers += synthetic_makers(images, source.degradations, seed, config.crop, chosen)
    return Cases(makers)


def _images(source: SourceConfig, root: Path | None) -> Sequence[Any]:
    if isinstance(source, BundledSource):
        return bundled_photos(source.split, source.scale)
    assert isinstance(source, FolderSource)
    return ImageFolder([resolve(path, root) for path in source.paths], recursive=source.recursive)


def _paired(source: PairedSource, root: Path | None) -> PairedDataset:
    return PairedDataset(
        resolve(source.input, root),
        resolve(source.target, root),
        source.task,
        crop=None,
        pairing=source.rule,
        recursive=source.walks,
    )


def _spread(count: int, limit: int | None) -> list[int]:
    """At most ``limit`` of ``count`` indices, evenly spaced."""
    if limit is None or limit >= count:
        return list(range(count))
    return [index * count // limit for index in range(limit)]
