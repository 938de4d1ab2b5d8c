"""Images to train and to measure on: bundled photographs, folders, pairs, and what degrades them.

    photos = bundled_photos("train")
    dataset = SyntheticDataset(photos, {"noise": "noise:sigma=25", "rain": "rain"}, crop=128, seed=0)
    cases = evaluation_cases(bundled_photos("test"), {"haze": "haze"}, seed=0)

or, from a configuration, :func:`build_dataset` and :func:`build_cases`; :func:`check` looks at all
files before hours are spent. Needs the extra ``train``.
"""

from __future__ import annotations

from cpl.extras import require

require("pydantic")  # named here, so that what is missing is one line and not a traceback

from cpl.data.build import build_cases, build_dataset  # noqa: E402
from cpl.data.check import Report, check  # noqa: E402
from cpl.data.config import (  # noqa: E402
    PAIRINGS,
    BundledSource,
    DataConfig,
    FolderSource,
    PairedSource,
    PairingRule,
    SourceConfig,
    ValidationConfig,
)
from cpl.data.crops import Item  # noqa: E402
from cpl.data.datasets import MixedDataset, PairedDataset, SyntheticDataset  # noqa: E402
from cpl.data.evaluation import Case, Cases, evaluation_cases  # noqa: E402
from cpl.data.files import DataError, ImageFolder  # noqa: E402
from cpl.data.photos import Photo, bundled_photos  # noqa: E402

__all__ = [
    "PAIRINGS",
    "BundledSource",
    "Case",
    "Cases",
    "DataConfig",
    "DataError",
    "FolderSource",
    "ImageFolder",
    "Item",
    "MixedDataset",
    "PairedDataset",
    "PairedSource",
    "PairingRule",
    "Photo",
    "Report",
    "SourceConfig",
    "SyntheticDataset",
    "ValidationConfig",
    "build_cases",
    "build_dataset",
    "bundled_photos",
    "check",
    "evaluation_cases",
]
