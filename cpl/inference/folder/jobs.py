"""Which files are read, in which order, and where each result goes: settled before any work."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpl.errors import CplError
from cpl.images import SUFFIXES


@dataclass(frozen=True)
class Job:
    """One image file and where its new copy goes.

    ``name`` is the file's path below the input folder, with ``/``; the file's own name without one.
    """

    source: Path
    target: Path
    name: str = ""


def natural_order(path: str | os.PathLike[str]) -> tuple[object, ...]:
    """A sorting key under which frame_2 comes before frame_10: runs of digits count as numbers."""
    text = os.fspath(path)
    parts = re.split(r"(\d+)", text)  # text, digits, text, ...: equal places hold equal kinds
    return tuple(int(part) if place % 2 else part for place, part in enumerate(parts)), text


def find_images(
    inputs: Iterable[str | os.PathLike[str]],
    recursive: bool = False,
    leave_out: Path | None = None,
    outputs: Collection[str] = frozenset(),
) -> list[tuple[Path, Path]]:
    """The files that ``inputs`` (files, folders, glob patterns) name, each with its path in the output.

    A file is taken whatever its name; a folder gives its files with an image's suffix in natural order
    (frame_2 before frame_10), with ``recursive`` those of its subfolders too, their place kept. Files
    whose name begins with a dot are left out, and so is everything under ``leave_out`` (the output
    folder), if it lies inside an input folder, or below the folder that a pattern begins with. Wherever
    the output folder lies, what an earlier run made in it is no input: ``outputs``, as paths below it
    with ``/``. A file named twice is taken once.

    Raises:
        CplError: an input is missing, a pattern matches nothing, a folder holds no image, or there are
            outputs of earlier runs only.
    """
    found: dict[str, tuple[Path, Path]] = {}
    made: list[Path] = []
    for item in inputs:
        for path in _expand(os.fspath(item), leave_out):
            if path.is_dir():
                files = [(file, file.relative_to(path)) for file in _walk(path, recursive, leave_out)]
                if not files:
                    deeper = "" if recursive else ", --recursive looks into its subfolders"
                    raise CplError(f"{path}: no image in this folder ({' '.join(SUFFIXES)}{deeper})")
            else:
                files = [(path, Path(path.name))]
            for file, relative in files:
                if outputs and leave_out is not None and _below(file, leave_out) in outputs:
                    made.append(file)
                else:
                    found.setdefault(os.path.realpath(file), (file, relative))
    if made and not found:
        what = "is the output" if len(made) == 1 else f"and {len(made) - 1} more are outputs"
        raise CplError(
            f"{made[0]} {what} of an earlier run into {leave_out}, and there is no other image; "
            "to restore a restored image again, choose another --output"
        )
    return list(found.values())


def plan(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    recursive: bool = False,
    suffix: str | None = "",
    overwrite: bool = False,
    ours: Collection[str] = frozenset(),
    resume: bool = False,
) -> list[Job]:
    """Decide every output before any work starts.

    ``output`` is a file when there is one input file and it ends in an image suffix, else a folder
    (made by `run`, if it is not there). ``suffix`` is None for a command without that option (and without --resume).
    ``ours`` are the outputs that earlier runs wrote or began, as paths below the output folder with
    ``/`` (see `Record.outputs`): they are no inputs, and a run that goes on with an earlier one,
    ``resume``, may replace them.

    Raises:
        CplError: an output would be an input (links are seen through), two inputs would have one
            output, an output exists that is not to be replaced, or the output folder cannot be one.
    """
    target = Path(output)
    offer_suffix, suffix = suffix is not None, suffix or ""
    if os.sep in suffix or (os.altsep and os.altsep in suffix):
        raise CplError(f"--suffix {suffix!r} is added to file names and cannot hold a {os.sep!r}")
    images = find_images(inputs, recursive, leave_out=target, outputs=ours)
    single = len(inputs) == 1 and len(images) == 1 and not Path(inputs[0]).is_dir()
    if single and not target.is_dir() and target.suffix.lower() in SUFFIXES:
        if resume:
            raise CplError(
                f"{target}: is a file's name, and --resume goes on with a folder; leave --resume out"
            )
        source, relative = images[0]
        jobs = [Job(source, target.with_name(f"{target.stem}{suffix}{target.suffix}"), relative.as_posix())]
    elif not target.is_dir() and (target.exists() or target.suffix.lower() in SUFFIXES):
        raise CplError(f"{target}: is a file's name; {len(images)} images need a folder as --output")
    else:
        jobs = [Job(s, target / r.with_name(f"{r.stem}{suffix}{r.suffix}"), r.as_posix()) for s, r in images]
    _check(jobs, overwrite, offer_suffix, (target, ours) if resume else None)
    return jobs


def _expand(item: str, leave_out: Path | None) -> list[Path]:
    if os.path.lexists(item):  # a file may be called photo[1].png
        if not os.path.exists(item):
            raise CplError(f"{item}: a link that leads nowhere")
        return [Path(item)]
    if glob.has_magic(item):
        pattern = os.path.expanduser(item)
        matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True), key=natural_order)]
        if not matches:
            raise CplError(f"{item}: no file matches this pattern")
        matches = _outside(matches, pattern, leave_out)
        if not matches:
            raise CplError(
                f"{item}: this pattern matches nothing outside of the output folder {leave_out}; "
                "choose another --output"
            )
        return [match for match in matches if not match.is_dir()] or matches
    raise CplError(f"{item}: no such file or folder")


def _outside(matches: list[Path], pattern: str, leave_out: Path | None) -> list[Path]:
    """Without what lies under ``leave_out``, unless the pattern begins there: scans/*.tif names what is in scans."""
    if leave_out is None:
        return matches
    plain = itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts)
    if Path(*plain).resolve() not in leave_out.resolve().parents:
        return matches
    return [match for match in matches if _below(match, leave_out) is None]


def _below(path: Path, folder: Path) -> str | None:
    """The place of ``path`` in ``folder``, with ``/``; None if it lies elsewhere, or is itself the file ``folder``.

    A file that is a link lies where the link does.
    """
    barred = folder.resolve()
    place = path.resolve() if path.is_dir() else path.parent.resolve() / path.name
    if not place.is_relative_to(barred) or (place == barred and not path.is_dir()):
        return None
    return place.relative_to(barred).as_posix()


def _walk(folder: Path, recursive: bool, leave_out: Path | None) -> Iterator[Path]:
    barred = leave_out.resolve() if leave_out is not None else None
    for path in sorted(folder.iterdir(), key=lambda path: natural_order(path.name)):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if recursive and not path.is_symlink() and path.resolve() != barred:
                yield from _walk(path, recursive, leave_out)
        elif path.suffix.lower() in SUFFIXES:
            yield path


def _check(
    jobs: Sequence[Job], overwrite: bool, offer_suffix: bool, resumed: tuple[Path, Collection[str]] | None
) -> None:
    inputs: dict[tuple[int, int], Path] = {}
    for job in jobs:
        with contextlib.suppress(OSError):  # a link that leads nowhere fails when its turn comes, alone
            status = job.source.stat()
            inputs[status.st_dev, status.st_ino] = job.source
    claimed: dict[str, Path] = {}
    existing: list[Path] = []
    for job in jobs:
        key = os.path.normcase(os.path.abspath(job.target))
        if key in claimed:
            raise CplError(
                f"{claimed[key]} and {job.source} would both be written to {job.target}; "
                "run them apart, into different folders"
            )
        claimed[key] = job.source
        if os.path.lexists(job.target) and not (
            resumed and job.target.relative_to(resumed[0]).as_posix() in resumed[1]
        ):
            existing.append(job.target)
        if job.target.exists():
            status = job.target.stat()
            source = inputs.get((status.st_dev, status.st_ino))
            if source is not None:
                raise CplError(
                    f"{job.target} is the input {source}, and inputs are never overwritten; "
                    f"choose another --output{', or a --suffix such as _restored' if offer_suffix else ''}"
                )
            if job.target.is_dir():
                raise CplError(f"{job.target}: is a folder, where an image is to be written")
    if existing and not overwrite:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        if resumed:
            raise CplError(
                f"{existing[0]}{more} already there, and not from an earlier run into this folder; "
                "--overwrite replaces, or choose another --output"
            )
        go_on = ", --resume goes on with an interrupted run" if offer_suffix else ""
        raise CplError(
            f"{existing[0]}{more} already there; --overwrite replaces{go_on}, or choose another --output"
        )
