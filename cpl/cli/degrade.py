"""``cpl degrade``: make clean pictures noisy, blurred, rainy, hazy, dark, snowy or blocky."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

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
    parser.add_argument(
        "--output",
        metavar="DIR|FILE",
        help="folder for the degraded images, made if missing, or a file for one",
    )
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
        from cpl.cli.common import check_writable
        from cpl.data.sheet import write_sheet

        check_writable(args.sheet, "--sheet")
        write_sheet(args.sheet, args.seed)
        print(args.sheet)
        return 0
    return _degrade_files(args)


def _degrade_files(args: argparse.Namespace) -> int:
    import numpy as np

    from cpl.cli.common import named_error
    from cpl.data.seeding import generator
    from cpl.degradations import create
    from cpl.errors import CplError
    from cpl.inference import folder

    missing = [option for option in ("--degradation", "--output") if getattr(args, option[2:]) is None]
    if not args.inputs or missing:
        what = " and ".join(missing if args.inputs else ["INPUT", *missing])
        raise CplError(
            f"cpl degrade needs {what}; for example: cpl degrade photo.jpg --degradation rain --output out"
        )
    degradation = create(args.degradation)
    jobs = folder.plan(args.inputs, args.output, recursive=True, suffix=None, overwrite=args.overwrite)
    failed: set[Path] = set()

    def process(image: np.ndarray, name: str) -> np.ndarray:
        return degradation(image, generator(args.seed, "file", name))

    def on_error(source: Path, error: Exception) -> None:
        failed.add(source)
        print(f"error: {named_error(source, error)}", file=sys.stderr)

    def on_done(job: folder.Job) -> None:
        if job.source not in failed:
            print(job.target)

    report = folder.run(jobs, process, on_error, on_done)
    if report.failed:
        untried = f", {report.skipped} not tried" if report.skipped else ""
        print(f"{len(report.failed)} of {len(jobs)} files failed{untried}", file=sys.stderr)
        return 1
    return 0


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
