"""Look at every file that a configuration names, before hours are spent on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpl.data.config import BundledSource, DataConfig, FolderSource, PairedSource, SourceConfig, resolve
from cpl.data.datasets import size_mismatch
from cpl.data.files import ImageFolder, decode, pair_files
from cpl.data.photos import bundled_photos
from cpl.errors import CplError
from cpl.extras import require

_SAMPLES = 8  # files of one side of a source that are decoded wholly, evenly spread
_SHOWN = 5  # problems of one kind that are listed one by one


@dataclass
class Row:
    """One source: what it is, where, and how much of it there is."""

    section: str  # "train" or "validation"
    kind: str
    tasks: list[str]
    location: str
    count: int = 0  # images, or pairs
    expected: int | None = None
    per_epoch: int = 0  # items an epoch takes from it; 0 in validation
    smallest: tuple[int, int] | None = None  # height, width
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What :func:`check` found; ``problems`` is empty when training can start."""

    rows: list[Row]

    @property
    def problems(self) -> list[str]:
        return [f"{row.section} {row.kind} {row.location}: {p}" for row in self.rows for p in row.problems]

    @property
    def per_epoch(self) -> int:
        """Items of an epoch."""
        return sum(row.per_epoch for row in self.rows)

    def table(self) -> Any:
        """A rich table, one row per source."""
        table = require("rich.table").Table(title="data")
        for column in ("section", "source", "tasks"):
            table.add_column(column, overflow="fold")  # a path must stay legible in a narrow window
        for column in ("images or pairs", "per epoch", "smallest"):
            table.add_column(column, justify="right")
        table.add_column("", no_wrap=True)
        for row in self.rows:
            count = f"{row.count}" if row.expected is None else f"{row.count} of {row.expected}"
            smallest = f"{row.smallest[1]}x{row.smallest[0]}" if row.smallest else ""
            many = "s" if len(row.problems) > 1 else ""
            state = f"[red]{len(row.problems)} problem{many}[/red]" if row.problems else "ok"
            table.add_row(
                row.section, f"{row.kind}: {row.location}", ", ".join(row.tasks), count,
                str(row.per_epoch or ""), smallest, state,
            )  # fmt: skip
        return table


def check(
    config: DataConfig, *, decode_all: bool = False, progress: Callable[[str], None] | None = None
) -> Report:
    """Verify folders, pairs, counts and images of ``config``.

    Of every file the header is read (format and size, the sizes of a pair compared); of each folder 8
    files, evenly spread, are decoded wholly, or all of them with ``decode_all``. Nothing is raised for a bad file: all
    problems are in the report. ``progress`` is called with the name of each source before it is read.
    """
    rows = [_check_source("train", s, config.root, config.crop, decode_all, progress) for s in config.sources]
    validation = config.validation
    if validation is not None:
        # its paths start at its own root, which is that of the data section unless given
        rows += [
            _check_source("validation", s, validation.root, None, decode_all, progress)
            for s in validation.sources
        ]
    return Report(rows)


def _check_source(
    section: str,
    source: SourceConfig,
    root: Path | None,
    crop: int | None,
    decode_all: bool,
    progress: Callable[[str], None] | None,
) -> Row:
    row = Row(section, source.kind, source.tasks, _location(source, root))
    if progress is not None:
        progress(f"{row.section}: {row.location}")
    try:
        if isinstance(source, BundledSource):
            photos = bundled_photos(source.split, source.scale)
            row.count = len(photos)
            row.smallest = min((photo.image.shape[:2] for photo in photos), key=min)
        elif isinstance(source, FolderSource):
            files: list[Path] = []
            for path in source.paths:
                try:  # each folder by itself, so that all missing ones are named
                    files += [
                        p for _, p in ImageFolder(resolve(path, root), recursive=source.recursive).files
                    ]
                except CplError as error:
                    row.problems.append(str(error))
            row.count = len(files)
            _check_files(row, files, decode_all)
        else:
            assert isinstance(source, PairedSource)
            pairs = pair_files(
                resolve(source.input, root), resolve(source.target, root), source.rule, source.walks
            )
            row.count = len(pairs)
            # each side by itself, so that files of both are decoded
            sizes = _check_files(row, [first for _, first, _ in pairs], decode_all)
            sizes |= _check_files(row, [second for _, _, second in pairs], decode_all)
            _compare_sizes(row, pairs, sizes)
    except CplError as error:
        row.problems.append(str(error))
    _check_count(row, source)
    if section == "train":
        row.per_epoch = row.count * _visits(source)
    if crop is not None and row.smallest is not None and min(row.smallest) < crop:
        row.notes.append(f"some images are smaller than the crop of {crop} pixels and get mirrored borders")
    return row


def _check_files(row: Row, files: list[Path], decode_all: bool) -> dict[Path, tuple[int, int]]:
    """Read the headers of all files and decode some; sizes (height, width) of the readable ones."""
    files = list(dict.fromkeys(files))  # a target of many inputs is read once
    sizes: dict[Path, tuple[int, int]] = {}
    unreadable: list[str] = []
    for path in files:
        try:
            sizes[path] = _header(path)
        except Exception as error:  # a damaged header can raise anything inside a decoder
            unreadable.append(f"{path}: not readable as an image ({_reason(error)}); replace or remove it")
    samples = len(files) if decode_all else min(_SAMPLES, len(files))
    for path in [files[index * len(files) // samples] for index in range(samples)]:
        if path in sizes:
            try:
                decode(path)
            except CplError as error:
                unreadable.append(str(error))
    row.smallest = min([*sizes.values(), *([row.smallest] if row.smallest else [])], key=min, default=None)
    _add(row, unreadable)
    return sizes


def _header(path: Path) -> tuple[int, int]:
    pil = require("PIL.Image")
    with pil.open(path) as image:
        width, height = image.size
        # What the decoder will make of it: a camera's picture may lie on its side. In a PNG, Pillow would
        # look for EXIF behind the pixels too and decode them all.
        if (image.format != "PNG" or "exif" in image.info) and image.getexif().get(0x0112, 1) >= 5:
            width, height = height, width
    return height, width


def _compare_sizes(
    row: Row, pairs: Iterable[tuple[str, Path, Path]], sizes: dict[Path, tuple[int, int]]
) -> None:
    _add(
        row,
        [
            size_mismatch(first, sizes[first], second, sizes[second])
            for _, first, second in pairs
            if first in sizes and second in sizes and sizes[first] != sizes[second]
        ],
    )


def _check_count(row: Row, source: SourceConfig) -> None:
    row.expected = getattr(source, "count", None)
    if row.expected is not None and row.count != row.expected and row.count:
        what = "pairs" if source.kind == "paired" else "images"
        row.problems.append(
            f"{row.count} {what}, but the configuration expects {row.expected}; "
            "complete the download, or set count to what you mean to use"
        )


def _visits(source: SourceConfig) -> int:
    """How many items of an epoch each image or pair gives."""
    if isinstance(source, PairedSource):
        return source.repeats
    if isinstance(source.repeats, int):
        return source.repeats * len(source.tasks)
    return sum(source.repeats.get(task, 1) for task in source.tasks)


def _location(source: SourceConfig, root: Path | None) -> str:
    if isinstance(source, BundledSource):
        return f"{source.split} photographs"
    if isinstance(source, FolderSource):
        return ", ".join(str(resolve(path, root)) for path in source.paths)
    return f"{resolve(source.input, root)} -> {resolve(source.target, root)}"


def _add(row: Row, problems: list[str]) -> None:
    row.problems += problems[:_SHOWN]
    if len(problems) > _SHOWN:
        row.problems.append(f"and {len(problems) - _SHOWN} more like the last")


def _reason(error: BaseException) -> str:
    return str(error).split("\n")[0] or type(error).__name__
