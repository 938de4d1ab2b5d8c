"""Copies of somebody's module to try things on, other values for their parameters, and images for them."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_MAGNITUDES = (1e-4, 1e-2, 1.0, 1e2, 1e4)
_ALL_ALIKE = (1e-4, 1e4)
SETS = 1 + 2 * len(_MAGNITUDES) + len(_ALL_ALIKE) + 1  # the sets of values that Values.move knows


def stranger(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy in ``dtype`` (None: as it is) without hooks, all of whose parameters ask for gradients."""
    made = copy.deepcopy(module)
    for part in made.modules():
        for hooks in (
            part._forward_hooks,
            part._forward_pre_hooks,
            part._backward_hooks,
            part._backward_pre_hooks,
        ):
            hooks.clear()
    return (made if dtype is None else made.to(dtype)).requires_grad_(True)


class Values:
    """Values for the parameters of a module: its own, moved by random numbers and scaled."""

    def __init__(self, module: nn.Module) -> None:
        self._own = [p.detach().to(torch.float64, copy=True) for p in module.parameters()]

    def move(self, number: int, *copies: nn.Module, seed: int = 0) -> None:
        """Give the parameters of ``copies`` set ``number`` of values, to each the same, as the first rounds them.

        Set 0 is moved alone: a residual scaled by 0, or a norm that scales by 1, would hide what is done to it. Sets 1
        to 10 scale each parameter by 1e-4 to 1e4 with either sign, so that each meets each of these: what is clamped,
        or passes through an absolute value, shows. Two more scale all alike, and the last each element by itself.
        """
        numbers = torch.Generator().manual_seed(1000 * number + seed)
        for at, (own, *places) in enumerate(
            zip(self._own, *(made.parameters() for made in copies), strict=True)
        ):
            noise = torch.randn(own.shape, generator=numbers, dtype=own.dtype).to(own.device)
            value = (own + 0.1 * noise) * _factor(number, at, own, numbers)
            value = value.to(places[0].dtype)
            with torch.no_grad():
                for place in places:
                    place.copy_(value)


def _factor(number: int, at: int, like: Tensor, numbers: torch.Generator) -> Tensor | float:
    if number == 0:
        return 1.0
    if number == SETS - 1:
        power = torch.rand(like.shape, generator=numbers, dtype=like.dtype).to(like.device)
        sign = torch.randn(like.shape, generator=numbers, dtype=like.dtype).to(like.device).sign()
        return sign * 10 ** (4 * power - 2)
    if number > 2 * len(_MAGNITUDES):
        return _ALL_ALIKE[number - 2 * len(_MAGNITUDES) - 1]
    turn, place = divmod(number - 1, len(_MAGNITUDES))
    return (1 if (turn + place + at) % 2 == 0 else -1) * _MAGNITUDES[(place + 2 * at) % len(_MAGNITUDES)]


def images(
    channels: tuple[int, ...], size: tuple[int, int, int], scale: float, offset: float, device: torch.device
) -> list[Tensor]:
    """Random images [B, C, H, W] in float64 for B, H, W: offset + scale * a normal number."""
    batch, height, width = size
    numbers = torch.Generator().manual_seed(batch + height + width)
    return [
        (offset + scale * torch.randn(batch, c, height, width, generator=numbers, dtype=torch.float64)).to(
            device
        )
        for c in channels
    ]


# -- random numbers that a module may draw


@contextlib.contextmanager
def forked(device: torch.device) -> Iterator[None]:
    """Give torch's, Python's and numpy's random numbers back the state that they had."""
    numpy, own = _numpy(), random.getstate()
    theirs = numpy.random.get_state() if numpy else None
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(own)
            if numpy:
                numpy.random.set_state(theirs)


def drawn(device: torch.device) -> tuple[Any, ...]:
    """The state of all random numbers: two that are the same have drawn as often."""
    numpy = _numpy()
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    others = [random.getstate()]
    if numpy:
        _, keys, *rest = numpy.random.get_state()
        others += [keys.tobytes(), *rest]
    return *(bytes(s.numpy()) for s in states), *others


def _numpy() -> Any:
    return sys.modules.get("numpy")
