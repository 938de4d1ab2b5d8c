"""The ops that a half of a transformer block is made of, by naive formulas and by public functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

import cpl_kernels
from tests.kernels.channel_attention.spec import naive as attend
from tests.kernels.dwconv.spec import naive as convolve
from tests.kernels.gated_dwconv.spec import naive as gate
from tests.kernels.layer_norm2d.spec import naive as normalise
from tests.kernels.pointwise_conv.spec import naive as mix


class Ops(NamedTuple):
    """Each as the public function takes its tensors."""

    normalise: Callable[..., Tensor]
    mix: Callable[..., Tensor]
    convolve: Callable[..., Tensor]
    attend: Callable[..., Tensor]
    gate: Callable[..., Tensor]

    def normed(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, center: bool) -> Tensor:
        return x if weight is None else self.normalise(x, weight, bias, center=center)


NAIVE = Ops(normalise, mix, convolve, attend, gate)


def public(backend: str | None) -> Ops:
    names = ("layer_norm2d", "pointwise_conv", "dwconv", "channel_attention", "gated_dwconv")
    normalise, product, *others = (partial(getattr(cpl_kernels, name), backend=backend) for name in names)

    def mix(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """In 16 bits the bias is added to the rounded product."""
        y = product(x, weight)
        if bias is None:
            return y
        return y + bias[:, None, None].to(y.dtype) if y.dtype.itemsize == 2 else product(x, weight, bias)

    return Ops(normalise, mix, *others)


def both(half: Callable[..., Tensor], **options: Any) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """``half(ops, **inputs)`` by naive formulas, and by public functions on a ``backend``."""

    def calls(backend: str | None = None, **inputs: Tensor) -> Tensor:
        return half(public(backend), **inputs, **options)

    return partial(half, NAIVE, **options), calls
