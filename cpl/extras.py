"""Optional dependencies: imported when needed, named with their extra when missing."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Mapping
from importlib import metadata
from types import ModuleType

from cpl.errors import MissingExtra

DISTRIBUTION = "cpl-kernels"
EXTRAS = ("restore", "train", "serve")  # the smallest first
# Packages that pip knows by another name than Python.
_PIP = {"PIL": "pillow", "yaml": "pyyaml", "skimage": "scikit-image", "sklearn": "scikit-learn"}


def require(module: str, extra: str = "train") -> ModuleType:
    """Import ``module``, or say in one line which extra of cpl-kernels brings it.

    Args:
        extra: the one to name if no extra lists the package itself.

    Raises:
        MissingExtra: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        root = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != root:
            raise  # the module is there, but something that it imports is not: that error says more
        name = pip_name(root)
        extra = next((known for known in EXTRAS if name in packages().get(known, ())), extra)
        raise MissingExtra(f"this needs {name}: pip install '{DISTRIBUTION}[{extra}]'") from None


def pip_name(module: str) -> str:
    """What pip calls the package that is imported by this name."""
    return _PIP.get(module, module)


def module_name(package: str) -> str:
    """How Python imports a package that pip knows by this name."""
    return next((module for module, name in _PIP.items() if name == package), package.replace("-", "_"))


@functools.cache
def packages() -> Mapping[str, tuple[str, ...]]:
    """Extra -> pip's names of what it brings, from this package's metadata; nothing where it is not installed."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # a checkout that only lies on the path
        return {}
    found: dict[str, list[str]] = {}
    for line in lines:
        extra = re.search(r"""extra\s*==\s*["']([\w-]+)""", line)
        if extra is not None:
            found.setdefault(extra[1], []).append(line)
    return {extra: tuple(sorted(set(_names(extra, found)))) for extra in found}


def _names(extra: str, lines: Mapping[str, list[str]]) -> list[str]:
    names: list[str] = []
    for line in lines.get(extra, []):
        inner = re.match(rf"{DISTRIBUTION}\[([\w-]+)\]", line)
        name = re.match(r"[\w.-]+", line)
        names += _names(inner[1], lines) if inner else [name[0].replace("_", "-").lower()] if name else []
    return names
