"""All-in-one image restoration with contrastive prompt learning.

    model = cpl.create_model("cplir")            # or cplir-small, cplir-tiny, promptir, restormer
    model, info = cpl.load_checkpoint("best.safetensors")
    sharp = cpl.restore(model, photo)            # PIL image, NumPy array or tensor
    print(cpl.patch(other))                      # our kernels inside a Restormer, PromptIR, NAFNet, ... of yours

What is listed here is imported when it is first used, so ``import cpl`` is quick and does not
even import torch; parts that need more name the extra that brings it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpl.inference.restore import restore
    from cpl.interop.patch import patch, unpatch
    from cpl.models import ModelConfig, create_model, load_checkpoint, save_checkpoint
    from cpl_kernels import __version__

_ATTRIBUTES = {
    "__version__": "cpl_kernels",
    "ModelConfig": "cpl.models",
    "create_model": "cpl.models",
    "load_checkpoint": "cpl.models",
    "save_checkpoint": "cpl.models",
    "restore": "cpl.inference.restore",
    "patch": "cpl.interop.patch",
    "unpatch": "cpl.interop.patch",
}
_SUBPACKAGES = frozenset(
    (
        "cli",
        "data",
        "degradations",
        "errors",
        "inference",
        "interop",
        "losses",
        "models",
        "nn",
        "serving",
        "training",
    )
)

__all__ = [
    "ModelConfig",
    "__version__",
    "create_model",
    "load_checkpoint",
    "patch",
    "restore",
    "save_checkpoint",
    "unpatch",
]


def __getattr__(name: str) -> Any:
    if name in _ATTRIBUTES:
        value = getattr(importlib.import_module(_ATTRIBUTES[name]), name)
        globals()[name] = value  # the next access does not come here
        return value
    if name in _SUBPACKAGES:
        return importlib.import_module(f"cpl.{name}")
    raise AttributeError(f"module 'cpl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ATTRIBUTES, *_SUBPACKAGES})
