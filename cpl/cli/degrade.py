"""``cpl degrade``: make clean pictures noisy, blurred, rainy, hazy, dark, snowy or blocky."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

HELP = "degrade clean images: noise, blur, rain, haze, low light, snow, JPEG"
DESCRIPTION = """\
Degrade clean images. A degradation is written as

  noise                          with its usual parameters, drawn per image
  noise:sigma=25                 a parameter set
  noise:sigma=15|25|50           one of several, drawn per image
  rain:angle=-20..20,density=4   a range, drawn per image
  low_light+haze                 one after the other

The result depends on the seed and the file's name only, not on the other files."""
EPILOG = """\
examples:
  cpl degrade photo.jpg --degradation rain --output rainy/
  cpl degrade photos/ --degradation "noise:sigma=25" --seed 7 --output noisy/
  cpl degrade --list                       all degradations and their parameters
  cpl degrade --sheet degradations.jpg     a picture of each, before and after
"""
EXTRA = "train"
NEEDS = ("PIL", "skimage", "sklearn", "pydantic")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="image files, folders or glob patterns")
    parser.add_argument("--output", metavar="DIR", help="folder for the degraded images; made if missing")
    parser.add_argument("--degradation", metavar="SPEC", help="what to do, as noise:sigma=25; see --list")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn at random (default: 0)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace existing files of the output folder"
    )
    parser.add_argument("--list", action="store_true", help="list the degradations and their parameters")
    parser.add_argument("--sheet", metavar="FILE", help="write a picture of every degradation, .jpg or .png")


def run(args: argparse.Namespace) -> int:
    if args.list:
        _print_list()
        return 0
    if args.sheet:
        from cpl.data.sheet import write_sheet

        write_sheet(args.sheet, args.seed)
        print(args.sheet)
        return 0
    return _degrade_files(args)


def _degrade_files(args: argparse.Namespace) -> int:
    from cpl.degradations import create
    from cpl.errors import CplError

    missing = [option for option in ("--degradation", "--output") if getattr(args, option[2:]) is None]
    if not args.inputs or missing:
        what = " and ".join(missing if args.inputs else ["INPUT", *missing])
        raise CplError(
            f"cpl degrade needs {what}; for example: cpl degrade photo.jpg --degradation rain --output out"
        )
    degradation = create(args.degradation)
    jobs = _plan(args.inputs, Path(args.output), args.overwrite)
    Path(args.output).mkdir(parents=True, exist_ok=True)
    return _run(jobs, degradation, args.seed)


def _plan(inputs: list[str], output: Path, overwrite: bool) -> list[tuple[str, Path, Path]]:
    """(name, source, target) of every file; all refusals come before the first file is written."""
    from cpl.errors import CplError

    jobs: dict[Path, tuple[str, Path, Path]] = {}
    for name, source in _expand(inputs):
        target = output / name
        if target in jobs and jobs[target][1].resolve() != source.resolve():
            raise CplError(
                f"{jobs[target][1]} and {source} would both be written to {target}; run them apart"
            )
        jobs[target] = (name, source, target)
    # resolve(): a link to the input's folder is that folder. A target may also be another job's source.
    sources = {source.resolve() for _, source, _ in jobs.values()}
    for target in jobs:
        if target.resolve() in sources:
            raise CplError(f"{target}: is an input and would be overwritten; choose another --output folder")
        if target.exists() and not overwrite:
            raise CplError(f"{target}: exists; choose another --output folder, or add --overwrite")
    return list(jobs.values())


def _expand(inputs: list[str]) -> list[tuple[str, Path]]:
    """(name below the output folder, file) of every input; a folder keeps its sub-folders."""
    import glob

    from cpl.data.files import list_images
    from cpl.errors import CplError

    found: list[tuple[str, Path]] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            found += [(p.relative_to(path).as_posix(), p) for p in list_images(path, recursive=True)]
        elif path.exists():
            found.append((path.name, path))
        else:
            matches = [Path(match) for match in sorted(glob.glob(given, recursive=True))]
            files = [match for match in matches if match.is_file()]
            if not files:
                raise CplError(f"{given}: no such file, and no file matches it as a pattern")
            found += [(match.name, match) for match in files]
    return found


def _run(jobs: list[tuple[str, Path, Path]], degradation: Any, seed: int) -> int:
    import sys

    from cpl.cli import one_line
    from cpl.data.seeding import generator
    from cpl.errors import CplError
    from cpl.inference.images import read_image, write_image

    failed = 0
    for name, source, target in jobs:
        try:
            image = read_image(source)
            degraded = degradation(image.rgb, generator(seed, "file", name))
            target.parent.mkdir(parents=True, exist_ok=True)
            write_image(target, degraded, like=image)
        except (CplError, OSError, ValueError) as error:
            failed += 1
            message = one_line(error)
            print(
                f"error: {message}" if str(source) in message else f"error: {source}: {message}",
                file=sys.stderr,
            )
        else:
            print(target)
    if failed:
        print(f"{failed} of {len(jobs)} files failed", file=sys.stderr)
    return 1 if failed else 0


def _print_list() -> None:
    from cpl.degradations import DEGRADATIONS
    from cpl.degradations.parameters import Word

    for name, kind in DEGRADATIONS.items():
        print(f"{name}: {kind.formula}")
        defaults = kind.defaults()
        for key, parameter in kind.parameters().items():
            if isinstance(parameter, Word):
                allowed = ", ".join(parameter.words)
            else:
                allowed = f"{parameter.low:g} to {parameter.high:g} {parameter.unit}".rstrip()
            print(f"  {key}={defaults[key]}: {parameter.meaning}; {allowed}")
        print(f"  source: {kind.source}")
    print('join with "+", as low_light+haze; choices as 15|25|50, ranges as 10..50')
