"""``cpl eval``: PSNR and SSIM of a model, per degradation."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from cpl.cli.common import (
    add_architecture_argument,
    add_device_arguments,
    named_degradations,
    told_architecture,
)

if TYPE_CHECKING:
    from cpl.data.config import ValidationConfig

HELP = "measure a model: PSNR and SSIM per degradation"
DESCRIPTION = """\
Measure a trained model: PSNR and SSIM of the degraded images, of the restored ones, and the gain,
per degradation and on average over degradations.

What is measured, one of: the test set of a training preset; two folders of degraded and clean images
with the same names; a folder of clean images degraded here; or, if you name nothing, what `make demo`
measures: the photographs, shipped by scikit-image and scikit-learn, that the demonstration holds out,
whole, with the degradations and strengths of the preset `demo`, the same pixels as in its results.json.

Values are clipped to [0, 1] and not rounded to 8 bits; SSIM is scikit-image's; means are over images."""
EPILOG = """\
examples:
  cpl eval --checkpoint model.safetensors
  cpl eval --checkpoint model.safetensors --images photos/ --degradation noise:sigma=25 low_light+haze
  cpl eval --checkpoint model.safetensors --input rainy/ --target clean/ --channel y
  cpl eval --checkpoint model.safetensors --preset three_task ROOT=/data --json scores.json"""
EXTRA = "train"
NEEDS = ("PIL", "pydantic", "rich", "skimage", "sklearn", "yaml")

DEMO_SEED = 2025  # of the degradations that the demonstration measures on; examples/demo.py has the same


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="the trained model (made by `cpl train` or `make demo`, or a released CPLIR or PromptIR file)",
    )
    add_architecture_argument(parser)
    parser.add_argument(
        "--preset", metavar="NAME", help="the test set of this training preset (or YAML file)"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="FIELD=VALUE",
        help="the preset's folders and fields, as for cpl train",
    )
    parser.add_argument("--input", metavar="DIR", help="degraded images; needs --target")
    parser.add_argument("--target", metavar="DIR", help="their clean counterparts, of the same names")
    parser.add_argument("--images", metavar="DIR", help="clean images; needs --degradation")
    parser.add_argument(
        "--degradation",
        nargs="+",
        metavar="SPEC",
        help="how --images are degraded, for example noise:sigma=25 blur low_light+haze",
    )
    parser.add_argument(
        "--crop", type=int, metavar="N", help="measure the central N x N pixels of each image"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="measure at most N images of each folder")
    parser.add_argument(
        "--channel",
        choices=("rgb", "y"),
        help="all three channels, or BT.601 luma (default: the preset's, else rgb)",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the scores, image by image, to this file")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from cpl.cli.common import ProgressBar, check_writable
    from cpl.data import build_cases
    from cpl.errors import CplError
    from cpl.inference.evaluate import evaluate
    from cpl.inference.load import HOW_TO_GET_ONE, load_model

    if args.checkpoint is None:
        raise CplError(f"a trained model is needed, --checkpoint FILE: {HOW_TO_GET_ONE}")
    if args.json is not None:
        check_writable(args.json, "--json")  # before the measuring, which may take hours
    what, channel, seed = _what(args)
    cases = build_cases(what, seed)
    model, info = load_model(args.checkpoint, args.device, **told_architecture(args))
    with ProgressBar("evaluating", len(cases)) as bar:
        result = evaluate(
            model, cases, channel=channel, dtype=args.dtype, progress=lambda task, name: bar.advance()
        )
    result.info = {
        "checkpoint": str(args.checkpoint),
        **{key: info.get(key) for key in ("architecture", "version", "commit")},
        "dtype": args.dtype,
        "data": what.model_dump(mode="json"),
        "seed": seed,
    }
    try:  # the table first: what was measured is seen even if the disk is full by now
        # Piped into a file, a table is as wide as it needs to be, not 80 columns.
        Console(width=None if sys.stdout.isatty() else 120).print(result.table())
        for note in result.notes:
            print(f"note: {note}", flush=True)
    finally:  # and the file even if the reader of the table (`| head`) has left
        if args.json is not None:
            result.save_json(args.json)
    return 0


def _what(args: argparse.Namespace) -> tuple[ValidationConfig, str, int]:
    """The images to measure on, on which channel, and the seed of their degradations."""
    from pydantic import ValidationError

    from cpl.data.config import FolderSource, PairedSource, ValidationConfig
    from cpl.errors import CplError

    ways = {
        "--preset": args.preset,
        "--input and --target": args.input or args.target,
        "--images and --degradation": args.images or args.degradation,
    }
    given = [name for name, value in ways.items() if value]
    if len(given) > 1:
        raise CplError(f"{' and '.join(given)} are different test sets: give one of them")
    if args.overrides and not args.preset:
        raise CplError(f"{args.overrides[0]}: FIELD=VALUE belongs to a --preset, and none is given")
    limits: dict[str, Any] = {k: getattr(args, k) for k in ("crop", "limit") if getattr(args, k) is not None}
    try:
        if args.preset:
            from cpl.training import load_preset

            config = load_preset(args.preset, args.overrides)
            if config.data.validation is None:
                raise CplError(f"{args.preset} names no test set; add data.validation to it")
            what = config.data.validation.model_copy(update=limits)
            return ValidationConfig.model_validate(what.model_dump()), args.channel or config.channel, 0
        if args.input or args.target:
            if not (args.input and args.target):
                raise CplError(
                    "--input and --target belong together: degraded images and their clean counterparts"
                )
            source: Any = PairedSource(kind="paired", task="images", input=args.input, target=args.target)
        elif args.images or args.degradation:
            if not (args.images and args.degradation):
                raise CplError(
                    "--images and --degradation belong together: clean images and how to degrade them"
                )
            source = FolderSource(
                kind="folder", paths=[args.images], degradations=named_degradations(args.degradation)
            )
        else:
            from cpl.training import load_preset

            demo = load_preset("demo").data.validation
            assert demo is not None
            whole = ValidationConfig.model_validate(demo.model_dump() | {"crop": None} | limits)
            return whole, args.channel or "rgb", DEMO_SEED
        return ValidationConfig(sources=[source], **limits), args.channel or "rgb", 0
    except ValidationError as error:  # pydantic's own text is a page long
        reasons = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise CplError("; ".join(reasons)) from None
