"""``cpl inspect``: which prompts a model chooses for which degradation, and what wrong prompts would do."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpl.cli.common import (
    add_architecture_argument,
    add_device_argument,
    named_degradations,
    told_architecture,
    trained_degradations,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

HELP = "look into a model: prompts per degradation, right against wrong"
DESCRIPTION = """\
Look into a trained model. Clean photos are degraded and restored, with the prompts that the model's routers
choose and with wrong ones. Written into a folder:

  index.html                     all of it on one page, which needs no other file
  usage.png, .csv, .json         how often each prompt is chosen, per degradation and level
  distances.png, .csv, .json     how far wrong prompts lead from the right ones, and PSNR of both
  pictures.jpg                   the first photo under each degradation

Without PHOTOS, the photographs that scikit-image and scikit-learn ship, at half their size."""
EPILOG = """\
examples:
  cpl inspect --checkpoint demo/model.safetensors --output inspected/
  cpl inspect --checkpoint model.safetensors --output inspected/ photos/ --degradation noise:sigma=25 rain
  cpl serve --checkpoint model.safetensors --usage inspected/usage.json"""
EXTRA = "train"
NEEDS = ("PIL", "matplotlib", "pydantic", "rich", "skimage", "sklearn", "yaml")

USUAL = ("noise", "blur", "rain", "haze", "low_light")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "photos",
        nargs="*",
        metavar="PHOTOS",
        help="clean photos: files, folders or patterns such as 'photos/*.jpg'",
    )
    parser.add_argument("--checkpoint", metavar="FILE", help="the trained model, one with prompts")
    add_architecture_argument(parser)
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder for the page, charts and tables"
    )
    parser.add_argument(
        "--degradation",
        nargs="+",
        metavar="SPEC",
        help="how the photos are degraded, as noise:sigma=25 (default: as the demonstration trained, for its model; "
        f"else {' '.join(USUAL)})",
    )
    parser.add_argument("--recursive", action="store_true", help="look into subfolders")
    parser.add_argument("--limit", type=int, metavar="N", help="look at no more than the first N photos")
    parser.add_argument(
        "--crop", type=int, default=256, metavar="N", help="look at the middle N x N pixels (default: 256)"
    )
    parser.add_argument(
        "--negatives", type=int, default=4, metavar="K", help="wrong restorations of each photo (default: 4)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier look")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    from cpl.cli.common import ProgressBar
    from cpl.degradations import create
    from cpl.errors import CplError
    from cpl.inference.inspect import Usage, inspect_model, router_fingerprint, summary, write_report
    from cpl.inference.load import HOW_TO_GET_ONE, load_model
    from cpl.inference.routing import with_prompts

    if args.checkpoint is None:
        raise CplError(f"a trained model is needed, --checkpoint FILE: {HOW_TO_GET_ONE}")
    for option in ("limit", "crop", "negatives"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise CplError(f"--{option} must be at least 1, got {value}")
    given = named_degradations(args.degradation or [])
    for spec in given.values():
        create(spec)  # a misspelling is found before the photos and the model are read
    _check_output(Path(args.output), args.overwrite)
    photos = _photos(args.photos, args.recursive)[: args.limit]
    model, info = load_model(args.checkpoint, args.device, **told_architecture(args))
    network = with_prompts(model)
    degradations = given or trained_degradations(info) or {name: name for name in USUAL}
    with ProgressBar("looking", len(photos) * (1 + len(degradations))) as bar:
        found = inspect_model(
            network,
            photos,
            degradations,
            seed=args.seed,
            crop=args.crop,
            num_negatives=args.negatives,
            progress=bar.advance,
        )
    found.info = {
        "checkpoint": str(args.checkpoint),
        **{key: info.get(key) for key in ("architecture", "version", "commit", "step", "preset")},
        "photos": list(dict.fromkeys(image.name for image in found.images)),
        "crop": args.crop,
        "seed": args.seed,
    }
    usage = Usage.of(found.images, router_fingerprint(network))
    written = write_report(found, usage, args.output, dense=network.config.prompting == "dense")
    if found.without_negatives:
        print(f"note: no distances: {found.without_negatives}")
    for line in summary(found, usage):
        print(line)
    print(f"{len(photos)} photos under {len(degradations)} degradations: {written[-1]}")
    return 0


class PhotoFiles:
    """Image files as photos, decoded when asked for."""

    def __init__(self, files: Sequence[tuple[str, Path]]) -> None:
        self.files = list(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        from cpl.data.files import decode
        from cpl.data.photos import Photo

        if isinstance(index, slice):
            return PhotoFiles(self.files[index])
        name, path = self.files[index]
        return Photo(name, decode(path), str(path), "")


def _photos(given: list[str], recursive: bool) -> Any:
    """A sequence of photos, each with a name of its own."""
    from cpl.data.photos import bundled_photos
    from cpl.inference.folder import find_images

    if not given:
        return bundled_photos("all", 0.5)
    files = [(relative.as_posix(), path) for path, relative in find_images(given, recursive)]
    names = [name for name, _ in files]
    # Two folders may hold photos of one name; what is drawn for a photo depends on its name.
    return PhotoFiles([(name if names.count(name) == 1 else str(path), path) for name, path in files])


def _check_output(folder: Path, overwrite: bool) -> None:
    from cpl.errors import CplError
    from cpl.inference.inspect import FILES

    if folder.exists() and not folder.is_dir():
        raise CplError(f"--output {folder}: is a file; name a folder")
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise CplError(f"--output {folder}: {above} cannot be written to; choose another folder")
    there = [folder / name for name in FILES if os.path.lexists(folder / name)]
    if there and not overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise CplError(f"{there[0]}{more} already there; --overwrite replaces, or choose another --output")
