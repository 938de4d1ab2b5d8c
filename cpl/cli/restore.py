"""``cpl restore``: photos in, restored photos out."""

from __future__ import annotations

import argparse
import sys

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
    add_device_arguments(parser)


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """--device and --dtype, the same for every command that runs a model."""
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1 (default: auto)"
    )
    parser.add_argument(
        "--dtype",
        default="fp32",
        choices=("fp32", "bf16"),
        help="fp32, or bf16 for half the memory and small differences (default: fp32)",
    )


def run(args: argparse.Namespace) -> int:
    import numpy as np

    from cpl.cli import one_line
    from cpl.errors import CplError
    from cpl.inference import folder
    from cpl.inference.load import HOW_TO_GET_ONE, load_model
    from cpl.inference.restore import restore

    if args.checkpoint is None:
        raise CplError(f"a trained model is needed, --checkpoint FILE: {HOW_TO_GET_ONE}")
    jobs = folder.plan(
        args.inputs, args.output, recursive=args.recursive, suffix=args.suffix, overwrite=args.overwrite
    )
    model, _ = load_model(args.checkpoint, args.device)

    def restorer(image: np.ndarray) -> np.ndarray:
        return restore(model, image, dtype=args.dtype)

    with progress_bar("restoring", len(jobs)) as bar:
        report = folder.run(
            jobs,
            restorer,
            on_error=lambda path, error: bar.say(f"error: {_named(str(path), one_line(error))}"),
            on_done=lambda job: bar.advance(),
        )
    done = f"restored {len(report.written)} of {len(jobs)} images to {args.output}"
    if report.failed:
        untried = f", {report.skipped} not tried" if report.skipped else ""
        print(f"{done} ({len(report.failed)} failed{untried})", file=sys.stderr)
        return 1
    print(done)
    return 0


def _named(path: str, message: str) -> str:
    return message if path in message else f"{path}: {message}"


class progress_bar:
    """A rich progress bar with time left, on stderr; nothing is drawn when that is not a terminal."""

    def __init__(self, label: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task(label, total=total)

    def __enter__(self) -> progress_bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self) -> None:
        self._progress.advance(self._task)

    def say(self, text: str) -> None:
        """Print a line on stderr without tearing the bar."""
        if self._progress.disable:
            print(text, file=sys.stderr)
        else:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
