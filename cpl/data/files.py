"""Image files on disk: which there are, which belong together, and decoding them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cpl.data.config import PAIRINGS, PairingRule
from cpl.data.photos import Photo
from cpl.errors import CplError


class DataError(CplError):
    """Images that are not there, do not belong together or cannot be read; names them and the remedy."""


def list_images(folder: str | os.PathLike[str], recursive: bool = False) -> list[Path]:
    """Image files of ``folder``, sorted; hidden ones are left out.

    Raises:
        DataError: no such folder, or no image in it.
    """
    from cpl.images import SUFFIXES

    root = Path(folder)
    if not root.is_dir():
        reason = "is a file, not a folder" if root.exists() else "no such folder"
        raise DataError(f"{root}: {reason}; give the folder that holds the images")
    found = sorted(
        path
        for path in (root.rglob("*") if recursive else root.iterdir())
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        hint = "" if recursive else "; if they lie in sub-folders, set recursive: true"
        raise DataError(f"{root}: no image file ({', '.join(SUFFIXES)}){hint}")
    return found


def decode(path: Path) -> np.ndarray:
    """The image as float32 [H, W, 3] in [0, 1]; 16-bit and grey ones too. Errors name the file."""
    from cpl.images import read_image

    try:
        return read_image(path).rgb
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def name_of(path: Path, root: Path) -> str:
    """The path below ``root``, with ``/`` and without the extension."""
    return path.relative_to(root).with_suffix("").as_posix()


class ImageFolder(Sequence[Photo]):
    """Clean images of one or more folders, decoded when asked for.

    ``folder[i]`` is a :class:`Photo`; its name is the path below the folder, without the extension.

    Raises:
        DataError: a folder is missing or holds no image.
    """

    def __init__(
        self, root: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, recursive: bool = False
    ) -> None:
        roots = [root] if isinstance(root, str | os.PathLike) else list(root)
        if not roots:
            raise ValueError("give at least one folder of images")
        self.files = [(name_of(p, Path(r)), p) for r in roots for p in list_images(r, recursive)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:  # Sequence's signature: an int gives a Photo, a slice a list
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        name, path = self.files[index]
        return Photo(name, decode(path), str(path), "")

    def __iter__(self) -> Iterator[Photo]:
        return (self[index] for index in range(len(self)))


def pair_files(
    input_dir: str | os.PathLike[str],
    target_dir: str | os.PathLike[str],
    pairing: str | PairingRule = "stem",
    recursive: bool = False,
) -> list[tuple[str, Path, Path]]:
    """(name, input, target) for every input image; several inputs may share a target.

    ``pairing`` is a rule or the name of one of :data:`cpl.data.config.PAIRINGS`. With one folder for
    both sides, files whose name the rule's pattern does not match are the targets.

    Raises:
        ValueError: no such pairing.
        DataError: an input that the pattern does not match, or without a target; several targets that
            differ only in their extension; no pair at all.
    """
    if isinstance(pairing, str) and pairing not in PAIRINGS:
        raise ValueError(f"pairing must be one of {', '.join(PAIRINGS)} or a rule, got {pairing!r}")
    rule = PAIRINGS[pairing] if isinstance(pairing, str) else pairing
    pattern = re.compile(rule.pattern)
    inputs = list_images(input_dir, recursive)
    shared = os.path.realpath(input_dir) == os.path.realpath(target_dir)
    targets: dict[str, list[Path]] = {}
    for path in inputs if shared else list_images(target_dir, recursive):
        targets.setdefault(name_of(path, Path(target_dir)), []).append(path)
    pairs: list[tuple[str, Path, Path]] = []
    strange: list[Path] = []
    alone: list[str] = []
    for path in inputs:
        name = name_of(path, Path(input_dir))
        match = pattern.fullmatch(name)
        if match is None:
            if not shared:
                strange.append(path)
            continue
        wanted = match.expand(rule.target)
        candidates = targets.get(wanted, [])
        if len(candidates) > 1:
            both = " and ".join(str(p) for p in candidates[:2])
            raise DataError(f"{path}: two targets, {both}; remove one")
        if candidates:
            pairs.append((name, path, candidates[0]))
        else:
            alone.append(f"{path} (looked for {Path(target_dir) / wanted}.*)")
    if strange:
        raise DataError(
            f"{_first(strange)}: not named as the pairing's pattern {rule.pattern!r} says; "
            "choose another pairing or move what does not belong"
        )
    if alone:
        raise DataError(f"no target for {_first(alone)}; check the target folder and the pairing")
    if not pairs:
        raise DataError(f"{input_dir}: no file is named as the pairing's pattern {rule.pattern!r} says")
    return pairs


def _first(items: Sequence[object]) -> str:
    more = f" and {len(items) - 1} more" if len(items) > 1 else ""
    return f"{items[0]}{more}"
