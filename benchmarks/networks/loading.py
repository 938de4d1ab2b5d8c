"""A network from its clone, built from a seed."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from benchmarks.networks import clones, stand_ins
from benchmarks.networks.catalogue import Network

SEED, MOVED = 0, 0.1
REMEDY = "Run `python -m benchmarks.networks.clones --root FOLDER`."


def load(network: Network, root: Path) -> ModuleType:
    """The network's own module, with stand-ins for what is absent."""
    place = root / network.folder / network.path
    if not place.is_dir():
        raise FileNotFoundError(f"{place} must be a clone of {network.repository}, got no folder. {REMEDY}")
    for package in network.bare:
        stand_ins.bare(package, place.joinpath(*package.split(".")))
    stand_ins.install(network.absent)
    sys.path[:0] = [str(place), str(root / clones.SITE)]
    vars(builtins).update(dict.fromkeys(network.constants))
    return importlib.import_module(network.module)


def build(network: Network, module: ModuleType) -> nn.Module:
    torch.manual_seed(SEED)
    with contextlib.redirect_stdout(sys.stderr):
        model = network.build(module).train()
    move_constants(model)
    return model


@torch.no_grad()
def move_constants(model: nn.Module) -> None:
    """Every parameter of one value only (zeros, ones, a scale) moves off it."""
    numbers = torch.Generator().manual_seed(SEED)
    for p in model.parameters():
        if p.numel() and bool((p == p.flatten()[0]).all()):
            p.add_(MOVED * torch.randn(p.shape, generator=numbers))
