"""``cpl restore``: photos in, restored photos out."""

from __future__ import annotations

import argparse
import math
import sys

from cpl.cli.common import add_device_arguments

HELP = "restore photos with a trained model"
DESCRIPTION = """\
Restore photos: one network removes noise, blur, rain, haze or darkness, whichever it finds.

Each output has its input's format, bit depth, size, transparency, EXIF data and colour profile.
Inputs are never overwritten. A file that cannot be read is reported and the others go on."""
EPILOG = """\
examples:
  cpl restore photo.jpg --checkpoint model.safetensors --output restored.jpg
  cpl restore holiday/ --checkpoint model.safetensors --output restored/ --recursive
  cpl restore 'scans/*.tif' --checkpoint model.safetensors --output scans/ --suffix _restored
  cpl restore photo.jpg --checkpoint model.safetensors --output out/ --device cuda --dtype bf16
  cpl restore large.png --checkpoint model.safetensors --output out/ --memory 2GB
  cpl restore large.png --checkpoint model.safetensors --output out/ --tile 512 --overlap 64 --dtype bf16

exit status: 0 all restored, 1 some files failed (each is named), 2 nothing done, 130 interrupted"""
EXTRA = "train"
NEEDS = ("PIL", "rich")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="image files, folders, or patterns such as 'photos/*.jpg'"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="the trained model (made by `cpl train` or `make demo`, or a released CPLIR or PromptIR file)",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR|FILE",
        help="folder for the restored images, or a file for one",
    )
    parser.add_argument("--suffix", default="", help="add this to each output's name, before its extension")
    parser.add_argument("--recursive", action="store_true", help="look into subfolders, and keep them")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that are already there")
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="limit on the memory that restoring takes beside the model, such as 2GB: strip by strip, with the same "
        "result, and scratch files in TMPDIR for what does not fit (default: at once, if the free memory suffices)",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="restore in blended tiles of this side, such as 512: in little memory and any dtype, but not exactly "
        "the same picture (a multiple of 8, at least 64; not with --memory)",
    )
    parser.add_argument(
        "--overlap",
        type=int,
        metavar="PIXELS",
        help="what neighbouring tiles share, at most half of the tile (default: an eighth of it)",
    )
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    import numpy as np

    from cpl.cli.common import ProgressBar, named, named_error
    from cpl.errors import CplError
    from cpl.inference import folder
    from cpl.inference.load import HOW_TO_GET_ONE, load_model
    from cpl.inference.restore import restore
    from cpl.inference.streaming import CLOSE, Plan, about_margin
    from cpl.inference.streaming.limits import parse_memory
    from cpl.inference.tiled import check_tiles

    try:
        memory = None if args.memory is None else parse_memory(args.memory)
        check_tiles(args.tile, args.overlap, limited=memory is not None)
    except ValueError as error:
        raise CplError(f"--{error}") from error
    if args.checkpoint is None:
        raise CplError(f"a trained model is needed, --checkpoint FILE: {HOW_TO_GET_ONE}")
    jobs = folder.plan(
        args.inputs, args.output, recursive=args.recursive, suffix=args.suffix, overwrite=args.overwrite
    )
    model, _ = load_model(args.checkpoint, args.device)

    def restorer(image: np.ndarray, name: str) -> np.ndarray:
        def say_plan(plan: Plan) -> None:
            bar.say(f"{named(name)}: {plan}")

        def say_margin(margin: float) -> None:
            if math.isfinite(margin):  # a network without sparse prompts has none
                bar.say(f"{'warning: ' if margin < CLOSE else ''}{named(name)}: {about_margin(margin)}")

        return restore(
            model,
            image,
            dtype=args.dtype,
            memory=memory,
            tile=args.tile,
            overlap=args.overlap,
            progress=bar.within,
            on_plan=say_plan,
            on_margin=say_margin,
        )

    with ProgressBar("restoring", len(jobs)) as bar:
        report = folder.run(
            jobs,
            restorer,
            on_error=lambda path, error: bar.say(f"error: {named_error(path, error)}"),
            on_done=lambda job: bar.advance(),
        )
    done = f"restored {len(report.written)} of {len(jobs)} images to {' '.join(args.output.split())}"
    if report.failed:
        untried = f", {report.skipped} not tried" if report.skipped else ""
        print(f"{done} ({len(report.failed)} failed{untried})", file=sys.stderr)
        return 1
    print(done)
    return 0
