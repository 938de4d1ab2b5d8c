"""Stand-ins for packages that a network's file imports and that are absent here, or do not import with this torch.

A name of such a package can be imported; who calls it gets an error that says so. The few that a network needs to
compute something are written here.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class Resize(nn.Module):
    """torchvision's transform of a tensor: bilinear, antialiased."""

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, self.size, mode="bilinear", antialias=True)


class Mixin:
    """A base class without effect, whatever its keywords."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__()


class Registry:
    """``@REGISTRY.register()`` leaves the class as it is."""

    def register(self) -> Callable[[type], type]:
        return lambda registered: registered


def to_pair(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


GIVEN: dict[str, dict[str, Any]] = {
    "basicsr.utils.registry": {"ARCH_REGISTRY": Registry()},
    "huggingface_hub": {"PyTorchModelHubMixin": Mixin},
    "timm.models.layers": {"trunc_normal_": nn.init.trunc_normal_, "to_2tuple": to_pair},
    "torchvision.transforms": {"Resize": Resize},
}


class Absent(ModuleType):
    """A module of which every name can be imported and none be used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        below = f"{self.__name__}.{name}"
        if any(given == below or given.startswith(below + ".") for given in GIVEN):
            return importlib.import_module(below)

        def use(*_: Any, **__: Any) -> None:
            raise ModuleNotFoundError(f"{below} is a stand-in: the package is absent here")

        return use


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the packages ``names``, and all below them, as stand-ins."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def find_spec(
        self, fullname: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        ours = any(fullname == name or fullname.startswith(name + ".") for name in self.names)
        return importlib.util.spec_from_loader(fullname, self, is_package=True) if ours else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(GIVEN.get(module.__name__, {}))


def install(names: Sequence[str]) -> None:
    """Before all other finders: some of these packages are here and do not import with this torch."""
    sys.meta_path.insert(0, Finder(names))


def bare(package: str, folder: Path) -> None:
    """Let the modules of ``package`` be imported without its __init__, which imports everything."""
    module = ModuleType(package)
    module.__path__ = [str(folder)]
    sys.modules[package] = module
