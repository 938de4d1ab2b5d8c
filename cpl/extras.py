"""Optional dependencies: imported when needed, named with their extra when missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from cpl.errors import MissingExtra

# What each extra brings: import name -> pip's name. Kept equal to pyproject.toml by a test.
EXTRAS: dict[str, dict[str, str]] = {
    "train": {
        "accelerate": "accelerate",
        "huggingface_hub": "huggingface_hub",
        "imagecodecs": "imagecodecs",
        "matplotlib": "matplotlib",
        "PIL": "pillow",
        "pydantic": "pydantic",
        "yaml": "pyyaml",
        "rich": "rich",
        "safetensors": "safetensors",
        "skimage": "scikit-image",
        "sklearn": "scikit-learn",
        "tensorboard": "tensorboard",
        "tifffile": "tifffile",
    },
    "demo": {
        "gradio": "gradio",
        "imagecodecs": "imagecodecs",
        "PIL": "pillow",
        "pydantic": "pydantic",
        "yaml": "pyyaml",
        "rich": "rich",
        "safetensors": "safetensors",
        "skimage": "scikit-image",
        "sklearn": "scikit-learn",
        "tifffile": "tifffile",
    },
}


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
        known = {name: pip for modules in EXTRAS.values() for name, pip in modules.items()}
        name = package or known.get(root, root)
        raise MissingExtra(f"this needs {name}: pip install 'cpl-kernels[{extra}]'") from None
