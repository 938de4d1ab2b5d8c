"""What the two compiled backends of feature_distances share: checking out memory and calling the core."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cpl_kernels.autocast import wide
from cpl_kernels.core import DTYPE_CODES
from cpl_kernels.feature_distances.memory import Layer, gradient_like


def forward(
    kernel: Callable[..., None],
    anchor: Tensor,
    others: Tensor,
    p: int,
    normalize: bool,
    where: int,
    scratch: Callable[..., int] | None = None,
) -> Tensor:
    """``where`` is the kernel's last argument: the number of threads, or the CUDA stream; before it comes scratch
    memory of so many elements as ``scratch`` says, if it is given."""
    distances = anchor.new_empty(others.shape[:2], dtype=wide(anchor.dtype, others.dtype))
    if others.numel():
        layer = Layer.of(anchor, others, normalize)
        memory = _scratch(layer, distances, scratch)
        kernel(
            *_read(layer), distances.data_ptr(), *_options(layer, p), *(x.data_ptr() for x in memory), where
        )
    return distances


def backward(
    kernel: Callable[..., None],
    dy: Tensor,
    anchor: Tensor,
    others: Tensor,
    p: int,
    normalize: bool,
    need_anchor: bool,
    need_others: bool,
    where: int,
    scratch: Callable[..., int] | None = None,
) -> tuple[Tensor, Tensor]:
    if not others.numel():
        return (
            gradient_like(anchor, 1).zero_() if need_anchor else anchor.new_empty(0),
            gradient_like(others, 2) if need_others else others.new_empty(0),
        )
    layer = Layer.of(anchor, others, normalize)
    dy = dy.to(wide(anchor.dtype, others.dtype)).contiguous()
    dtype = layer.anchor.dtype
    danchor = torch.empty(layer.anchor.shape if need_anchor else (0,), dtype=dtype, device=anchor.device)
    dothers = torch.empty(layer.others.shape if need_others else (0,), dtype=dtype, device=anchor.device)
    memory = _scratch(layer, dy, scratch)
    kernel(
        *_read(layer),
        dy.data_ptr(),
        danchor.data_ptr() if need_anchor else 0,
        dothers.data_ptr() if need_others else 0,
        *_options(layer, p),
        *(x.data_ptr() for x in memory),
        where,
    )
    return (
        layer.gradient(anchor, 1, danchor) if need_anchor else anchor.new_empty(0),
        layer.gradient(others, 2, dothers) if need_others else others.new_empty(0),
    )


def _read(layer: Layer) -> tuple[int, ...]:
    a, o = layer.anchor, layer.others
    return a.data_ptr(), *a.stride()[:2], o.data_ptr(), *o.stride()[:3]


def _options(layer: Layer, p: int) -> tuple[int, ...]:
    return *layer.size(), p, layer.norm, DTYPE_CODES[layer.anchor.dtype]


def _scratch(layer: Layer, like: Tensor, elements: Callable[..., int] | None) -> tuple[Tensor, ...]:
    return () if elements is None else (like.new_empty(elements(*layer.size(), layer.norm)),)
