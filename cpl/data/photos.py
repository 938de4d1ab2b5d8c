"""Real photographs that other packages carry inside their wheels: nothing to download.

docs/photos.md shows where each comes from and under which licence.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpl.errors import CplError
from cpl.extras import require

SPLITS = ("train", "test", "all")


@dataclass(frozen=True)
class Photo:
    """A clean picture: ``image`` is float32 [H, W, 3] in [0, 1], read-only."""

    name: str
    image: np.ndarray
    origin: str
    licence: str


@dataclass(frozen=True)
class _Bundled:
    name: str
    package: str
    file: str
    split: str
    origin: str
    licence: str


_SKIMAGE, _SKLEARN = "skimage", "sklearn"
_MIDDLEBURY = "Middlebury 2014 stereo benchmark, Scharstein et al., GCPR 2014; https://vision.middlebury.edu/stereo/data/scenes2014/"
_CREATIVE_COMMONS = "CC BY 2.0 (https://creativecommons.org/licenses/by/2.0/), attribution: {} on Flickr"

# coffee and flower are held out: what is measured on them was never trained on. The two motorcycles are
# views of one scene and so stay on one side.
PHOTOS = (
    _Bundled("astronaut", _SKIMAGE, "data/astronaut.png", "train",
             "Eileen Collins, NASA Great Images; https://flic.kr/p/r9qvLn",
             "public domain, no known copyright restrictions"),
    _Bundled("chelsea", _SKIMAGE, "data/chelsea.png", "train", "Chelsea the cat, by Stefan van der Walt", "CC0"),
    _Bundled("china", _SKLEARN, "datasets/images/china.jpg", "train",
             "https://www.flickr.com/photos/danielbuechele/6061409035/",
             _CREATIVE_COMMONS.format("danielbuechele")),
    _Bundled("motorcycle_left", _SKIMAGE, "data/motorcycle_left.png", "train", _MIDDLEBURY,
             "none stated in the package"),
    _Bundled("motorcycle_right", _SKIMAGE, "data/motorcycle_right.png", "train", _MIDDLEBURY,
             "none stated in the package"),
    _Bundled("rocket", _SKIMAGE, "data/rocket.jpg", "train",
             "DSCOVR on Falcon 9, by SpaceX; https://www.flickr.com/photos/spacexphotos/16511594820/",
             "public domain (released by SpaceX)"),
    _Bundled("coffee", _SKIMAGE, "data/coffee.png", "test",
             "by Rachel Michetti, courtesy of Pikolo Espresso Bar", "CC0"),
    _Bundled("flower", _SKLEARN, "datasets/images/flower.jpg", "test",
             "https://www.flickr.com/photos/vultilion/6056698931/", _CREATIVE_COMMONS.format("vultilion")),
)  # fmt: skip


def bundled_photos(split: str = "all", scale: float = 1.0) -> list[Photo]:
    """The photographs of ``split`` ("train", "test" or "all"), in order of their names within each split.

    ``scale``, above 0 and at most 1, makes them smaller (Lanczos, 8 bits) before anything else: pixel for
    pixel a smaller photograph is sharper, and a crop of it holds more of the scene.

    Raises:
        ValueError: no such split or scale.
        MissingExtra: scikit-image or scikit-learn is not installed.
        CplError: the installed version does not carry a file.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not 0 < scale <= 1:
        raise ValueError(f"scale must be above 0 and at most 1, got {scale}")
    return [_load(photo, float(scale)) for photo in PHOTOS if split in ("all", photo.split)]


@functools.cache  # ten megabytes in all
def _load(photo: _Bundled, scale: float) -> Photo:
    image = _read(bundled_path(photo.package, photo.file))
    if scale < 1:
        image = _smaller(image, scale)
    image.flags.writeable = False  # shared by all who ask
    return Photo(photo.name, image, photo.origin, photo.licence)


def _smaller(image: np.ndarray, scale: float) -> np.ndarray:
    from PIL import Image

    height, width = (max(1, int(side * scale)) for side in image.shape[:2])
    stored = Image.fromarray(np.round(image * 255).astype(np.uint8))
    return np.asarray(stored.resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32) / 255


def bundled_path(package: str, file: str) -> Path:
    """Where the installed ``package`` keeps ``file``; found without running the package's import."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        require(package)  # names the extra
        raise CplError(f"{package} is installed without its files; reinstall it")
    path = Path(next(iter(spec.submodule_search_locations))) / file
    if not path.is_file():
        raise CplError(f"{path}: missing from this installation of {package}; reinstall it from its wheel")
    return path


def _read(path: Path) -> np.ndarray:
    from cpl.images import read_image

    return read_image(path).rgb
