"""Optional dependencies: imported when needed, named with their extra when missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from cpl.errors import MissingExtra

# What pip calls a module whose import name differs.
_PACKAGE = {"skimage": "scikit-image", "sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml"}


def require(extra: str, module: str, package: str | None = None) -> ModuleType:
    """Import ``module``, or say in one line which extra of cpl-kernels brings it.

    Raises:
        MissingExtra: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        root = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != root:
            raise  # the module is there, but something that it imports is not: that error says more
        name = package or _PACKAGE.get(root, root)
        raise MissingExtra(f"this needs {name}: pip install 'cpl-kernels[{extra}]'") from None
