"""The ``data:`` section of a training configuration: where images come from and how they are degraded.

``DataConfig.sources`` is what to train on, ``DataConfig.validation`` what to measure on. A source is
one of three kinds: ``bundled`` (the photographs inside scikit-image's and scikit-learn's wheels),
``folder`` (clean images, degraded on the fly) and ``paired`` (degraded and clean files side by side).
:func:`cpl.data.build_dataset` and :func:`cpl.data.build_cases` turn them into data.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

Task = Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_+.-]*$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, validate_default=True)


class _Synthetic(_Section):
    # task name -> specification, as cpl.degradations.create takes it: a string or a mapping
    degradations: dict[Task, str | dict[str, Any]] = Field(min_length=1)
    # each image is visited this many times per epoch; a mapping names tasks, the others stay at 1
    repeats: PositiveInt | dict[Task, PositiveInt] = 1

    @field_validator("degradations")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        from cpl.degradations import create

        for task, spec in value.items():
            try:
                create(spec)
            except (TypeError, ValueError) as error:
                raise ValueError(f"task {task!r}: {error}") from None
        return value

    @model_validator(mode="after")
    def _repeats_name_tasks(self) -> _Synthetic:
        if isinstance(self.repeats, dict):
            unknown = sorted(set(self.repeats) - set(self.degradations))
            if unknown:
                raise ValueError(
                    f"repeats names {', '.join(unknown)}, which degradations does not define; "
                    f"it defines {', '.join(self.degradations)}"
                )
        return self

    @property
    def tasks(self) -> list[str]:
        return list(self.degradations)


class BundledSource(_Synthetic):
    """Real photographs that the installed wheels of scikit-image and scikit-learn hold; no download."""

    kind: Literal["bundled"] = "bundled"
    split: Literal["train", "test", "all"] = "train"
    scale: float = Field(default=1, gt=0, le=1)  # of their size, before anything else


class FolderSource(_Synthetic):
    """Clean images in folders, degraded on the fly."""

    kind: Literal["folder"]
    paths: list[Path] = Field(min_length=1)
    recursive: bool = False
    count: PositiveInt | None = None  # how many images the protocol says there are; `cpl data check` compares


class PairingRule(_Section):
    """Which target belongs to an input: ``pattern`` must match the whole of the input's name.

    The name is the path below the input folder, with ``/`` and without the extension; ``target`` is the
    name below the target folder, with groups as ``\\1``.
    """

    pattern: str
    target: str

    @model_validator(mode="after")
    def _compiles(self) -> PairingRule:
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from None
        for number in re.findall(r"\\(\d+)", self.target):
            if int(number) > groups:
                raise ValueError(
                    f"target {self.target!r} names group \\{number}; the pattern {self.pattern!r} has {groups}"
                )
        return self


PairingName = Literal["stem", "rain100l", "reside", "gopro", "outdoor_rain", "raindrop"]

PAIRINGS: dict[str, PairingRule] = {
    "stem": PairingRule(pattern=r"(.+)", target=r"\1"),  # LOL, CDD-11, Snow100K: the same name
    "rain100l": PairingRule(pattern=r"(.*/)?rain-([^/]+)", target=r"\1norain-\2"),
    "reside": PairingRule(pattern=r"((?:.*/)?[^_/]+)_[^/]*", target=r"\1"),  # 0001_0.95_0.1 -> 0001
    "gopro": PairingRule(pattern=r"(.+)/blur/([^/]+)", target=r"\1/sharp/\2"),
    "outdoor_rain": PairingRule(pattern=r"((?:.*/)?im_\d+)_[^/]*", target=r"\1"),  # im_0001_s80_a04
    "raindrop": PairingRule(pattern=r"((?:.*/)?\d+)_rain", target=r"\1_clean"),
}


class PairedSource(_Section):
    """Degraded images and their clean truths, matched by file name."""

    kind: Literal["paired"]
    task: Task
    input: Path
    target: Path
    pairing: PairingName | PairingRule = "stem"
    recursive: bool | None = None  # none: only where the pairing speaks of sub-folders ("gopro")
    repeats: PositiveInt = 1
    count: PositiveInt | None = None  # how many pairs the protocol says there are

    @property
    def rule(self) -> PairingRule:
        return PAIRINGS[self.pairing] if isinstance(self.pairing, str) else self.pairing

    @property
    def walks(self) -> bool:
        return self.pairing == "gopro" if self.recursive is None else self.recursive

    @property
    def tasks(self) -> list[str]:
        return [self.task]


SourceConfig = Annotated[BundledSource | FolderSource | PairedSource, Field(discriminator="kind")]


class ValidationConfig(_Section):
    """What is measured: whole images, or their centre, with a degradation that stays the same every time."""

    sources: list[SourceConfig] = Field(min_length=1)
    crop: PositiveInt | None = None  # side of the centre crop, in pixels; none: whole images
    limit: PositiveInt | None = None  # images per source, spread evenly over it; none: all of them
    root: Path | None = None  # none: that of the data section

    @property
    def tasks(self) -> list[str]:
        return _tasks(self.sources)


class DataConfig(_Section):
    """Sources to train on, in pixels and repeats, and what to validate on."""

    sources: list[SourceConfig] = Field(min_length=1)
    crop: PositiveInt = 128  # side of the square training crop, in pixels
    augment: bool = True  # random flips and quarter turns
    root: Path | None = None  # relative paths start here; none: the current folder
    validation: ValidationConfig | None = None

    @model_validator(mode="after")
    def _root_reaches_validation(self) -> DataConfig:
        if self.validation is not None and self.validation.root is None and self.root is not None:
            self.validation.root = self.root
        return self

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks in order of their first appearance; an item's ``task`` is the index here."""
        return _tasks(self.sources)


def _tasks(sources: list[Any]) -> list[str]:
    return list(dict.fromkeys(task for source in sources for task in source.tasks))


def resolve(path: Path, root: Path | None) -> Path:
    """``path`` with ``~`` and ``$NAME`` replaced, below ``root`` unless it is absolute."""
    expanded = Path(os.path.expandvars(path)).expanduser()
    return expanded if root is None else Path(os.path.expandvars(root)).expanduser() / expanded
