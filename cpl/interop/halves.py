"""Transformer blocks by structure: residual halves, x + part(norm(x)), one behind the other, whatever their names.

Sources of the layouts: Restormer, arXiv 2111.09881, figure 2 (``norm1``, ``attn``, ``norm2``, ``ffn``); MoCE-IR, arXiv
2411.18466 (a list ``norms``, ``mixer``); OneRestore, arXiv 2407.04621 (three halves, the first with a second input).
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cpl.interop import norms
from cpl.interop.attention import ATTENTION, CROSS_ATTENTION, FEED_FORWARD, features
from cpl.interop.strangers import forked, images, stranger
from cpl.interop.structure import Block, Layout
from cpl.interop.text import TEXT, OfImages

_NAMES = re.compile("att|mixer|ffn|mlp|feed", re.IGNORECASE)


class Half(NamedTuple):
    """x + part(norm(x)): the names of both, what kind of part it is, and whether it takes the second input too."""

    norm: str
    part: str
    kind: str
    second: bool


def why_not(module: Block) -> str | None:
    """As a layout says it."""
    found, others = _norms_and_others(module)
    known = any(_layout(module.get_submodule(name)) for name in others)
    alike = len(found) == len(others) and any(_NAMES.search(name) for name in others)
    if len(found) < 2 or not (known or alike):
        return ""
    if len(found) != len(others):
        return f"it has {len(found)} norms and {len(others)} other parts, not one behind each norm"
    bad = [name for name in found if norms.why_not(module.get_submodule(name)) is not None]
    return f"{bad[0]} is not a layer norm over channels" if bad else None


def inner(module: Block) -> Block:
    """The block itself, where a vector among its inputs is compared as an image."""
    return module.block if isinstance(module, OfImages) else module


def compared(module: Block) -> list[Block]:
    """The block as one of images."""
    return [OfImages(module)] if 2 in ranks(module) else [module]


def channels(module: Block) -> tuple[int, ...]:
    """Of each of its inputs."""
    block = inner(module)
    found, _ = _norms_and_others(block)
    part = _second(block)
    more = () if part is None else (features(part.q if _layout(part) is TEXT else part.kv)[0],)
    return *norms.channels(block.get_submodule(found[0])), *more


def ranks(module: Block) -> tuple[int, ...]:
    """The dimensions of each of its inputs."""
    part = _second(module)
    return (4,) if part is None else (4, 2 if _layout(part) is TEXT else 4)


def halves(module: Block) -> tuple[Half, ...]:
    """In the order in which a copy calls them; where that says nothing, in the order in which they are registered."""
    found, others = _norms_and_others(module)
    calls = _calls(module, {*found, *others})
    if set(calls[::2]) == set(found) and set(calls[1::2]) == set(others) and len(calls) == 2 * len(found):
        found, others = calls[::2], calls[1::2]
    parts = [_layout(module.get_submodule(name)) for name in others]
    return tuple(
        Half(norm, name, part.kind if part else "", part in (CROSS_ATTENTION, TEXT))
        for norm, name, part in zip(found, others, parts, strict=True)
    )


def chain(module: Block, steps: tuple[Half, ...], x: Tensor, *others: Tensor) -> Tensor:
    """What the block computes, if it is halves."""
    for half in steps:
        x = half_of(module, half, x, *others)
    return x


def half_of(module: Block, half: Half, x: Tensor, *others: Tensor) -> Tensor:
    """One of them."""
    y = module.get_submodule(half.norm)(x)
    return x + module.get_submodule(half.part)(y, *(others if half.second else ()))


def passes_on(part: nn.Module) -> bool:
    """Between halves it does nothing, or drops something: then a comparison leaves the block."""
    return isinstance(part, nn.Identity) or "Drop" in type(part).__name__


def _norms_and_others(module: Block) -> tuple[list[str], list[str]]:
    found: list[str] = []
    others: list[str] = []
    for name, part in module.named_children():
        if norms.is_one(part):
            found.append(name)
        elif isinstance(part, nn.ModuleList) and len(part) and all(map(norms.is_one, part)):
            found += [f"{name}.{at}" for at in range(len(part))]
        elif not passes_on(part):
            others.append(name)
    return found, others


def _layout(part: nn.Module) -> Layout | None:
    known = (TEXT, ATTENTION, CROSS_ATTENTION, FEED_FORWARD)
    return next((layout for layout in known if layout.why_not(part) is None), None)


def _second(block: Block) -> Block | None:
    """The part that takes the second input."""
    parts = [block.get_submodule(name) for name in _norms_and_others(block)[1]]
    return next((part for part in parts if _layout(part) in (CROSS_ATTENTION, TEXT)), None)


def _calls(module: Block, names: set[str]) -> list[str]:
    made = compared(stranger(module, torch.float32).eval())[0]
    order: list[str] = []
    for name in names:
        inner(made).get_submodule(name).register_forward_hook(lambda *_, name=name: order.append(name))
    device = next(made.parameters(), torch.zeros(())).device
    try:
        with torch.no_grad(), forked(device):
            made(*(x.float() for x in images(channels(made), (1, 8, 8), 1.0, 0.0, device)))
    except Exception:  # it does not run so, which the comparison will say
        return []
    return order
