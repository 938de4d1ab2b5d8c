"""``cpl restore``: photos in, restored photos out."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cpl.cli.common import add_architecture_argument, add_device_arguments, told_architecture

if TYPE_CHECKING:
    import numpy as np

    from cpl.cli.common import ProgressBar
    from cpl.inference.folder import Job, Processes, Report

HELP = "restore photos with a trained model"
DESCRIPTION = """\
Restore photos: one network removes noise, blur, rain, haze or darkness, whichever it finds.

Each output has its input's format, bit depth, size, transparency, EXIF data and colour profile.
Inputs are never overwritten. A file that cannot be read is reported and the others go on.
A run into a folder that was interrupted goes on where it was when it is given again with --resume."""
EPILOG = """\
examples:
  cpl restore photo.jpg --checkpoint model.safetensors --output restored.jpg
  cpl restore holiday/ --checkpoint model.safetensors --output restored/ --recursive
  cpl restore 'scans/*.tif' --checkpoint model.safetensors --output scans/ --suffix _restored
  cpl restore photo.jpg --checkpoint model.safetensors --output out/ --device cuda --dtype bf16
  cpl restore large.png --checkpoint model.safetensors --output out/ --memory 2GB
  cpl restore large.png --checkpoint model.safetensors --output out/ --tile 512 --overlap 64 --dtype bf16
  cpl restore frames/ --checkpoint model.safetensors --output restored/ --resume
  accelerate launch --multi_gpu -m cpl restore frames/ --checkpoint model.safetensors --output restored/

exit status: 0 all restored, 1 some files failed (each is named), 2 nothing done, 130 interrupted"""
EXTRA = "restore"
NEEDS = ("PIL", "rich")
# The options that change a result by more than rounding (--memory and --device do not): with another value of one of
# these --resume does a finished file again.
SETTINGS = ("dtype", "tile", "overlap")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="image files, folders, or patterns such as 'photos/*.jpg'"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="the trained model (made by `cpl train` or `make demo`, or a released CPLIR or PromptIR file)",
    )
    add_architecture_argument(parser)
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
        "--resume",
        action="store_true",
        help="go on with an earlier run into this folder: leave alone what it finished, if input, model, settings "
        "and output are still the same by content, and do the rest",
    )
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="limit on the memory that restoring takes beside the model, such as 2GB: window by window, with the same "
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
    from cpl.cli.common import interrupted_once, named
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
    if memory is not None and args.dtype != "fp32":
        raise CplError(f"--memory restores in fp32: leave --dtype {args.dtype} out, or --memory")
    if args.checkpoint is None:
        raise CplError(f"a trained model is needed, --checkpoint FILE: {HOW_TO_GET_ONE}")

    with folder.Processes() as processes, interrupted_once():
        where = processes.device(args.device)
        jobs = processes.agreed(lambda: _plan(args))
        model, _ = load_model(args.checkpoint, where, **told_architecture(args))
        digest = folder.model_digest(model)

        def restorer(image: np.ndarray, name: str, bar: ProgressBar) -> np.ndarray:
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

        return _restore_all(args, jobs, restorer, digest, processes)


def _plan(args: argparse.Namespace) -> list[Job]:
    from cpl.inference import folder

    try:
        ours = folder.Record.outputs(args.output)
    except OSError:  # without --resume it only tells outputs from inputs, which are never overwritten
        if args.resume:
            raise
        ours = frozenset()
    return folder.plan(
        args.inputs,
        args.output,
        recursive=args.recursive,
        suffix=args.suffix,
        overwrite=args.overwrite,
        ours=ours,
        resume=args.resume,
    )


def _restore_all(
    args: argparse.Namespace,
    jobs: Sequence[Job],
    restorer: Callable[[np.ndarray, str, ProgressBar], np.ndarray],
    model: str,
    processes: Processes,
) -> int:
    from cpl.cli import INTERRUPTED
    from cpl.cli.common import ProgressBar, named_error
    from cpl.inference import folder

    # A folder of outputs has a record; the name of one file has none.
    record = None
    if Path(args.output) in jobs[0].target.parents:
        settings = {name: getattr(args, name, None) for name in SETTINGS}
        record = folder.Record(args.output, model, settings, resume=args.resume)
    mine, output = processes.share(jobs), " ".join(args.output.split())
    with ProgressBar("restoring", len(mine), show=processes.is_main) as bar:
        try:
            report = folder.run(
                mine,
                lambda image, name: restorer(image, name, bar),
                on_error=lambda path, error: bar.say(f"error: {named_error(path, error)}"),
                on_done=lambda job: bar.advance(),
                record=record,
            )
        except folder.Interrupted as stop:
            go_on = "; --resume goes on from here" if record else ""
            done, of = _done(stop.report, len(mine), output), processes.of
            bar.say(f"interrupted{of}: {done}{go_on}")
            return INTERRUPTED
    report = processes.together(report)
    if processes.is_main:
        print(_done(report, len(jobs), output), file=sys.stderr if report.failed else sys.stdout)
    return 1 if report.failed else 0


def _done(report: Report, jobs: int, output: str) -> str:
    done = f"restored {len(report.written)} of {jobs} images to {output}"
    rest = [
        f"{count} {what}"
        for count, what in (
            (len(report.finished), "finished before"),
            (len(report.failed), "failed"),
            (report.skipped, "not tried"),
        )
        if count
    ]
    return f"{done} ({', '.join(rest)})" if rest else done
