"""The transformer block that keeps less for its backward pass.

Which blocks these are: :mod:`cpl.interop.halves`. What is kept: :mod:`cpl.nn.recompute`. A block that is not written as
one there keeps its input by torch.utils.checkpoint, and the products of those halves whose products are known.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cpl.interop import halves, norms
from cpl.interop.attention import ATTENTION, FEED_FORWARD
from cpl.interop.epsilon import Epsilon, of_dtype
from cpl.interop.halves import Half
from cpl.interop.structure import Block, Layout, Options, is_plain, is_pointwise, is_untouched
from cpl.nn.norm import Norm
from cpl.nn.recompute import keeping_input, keeping_products, recomputed_conv
from cpl_kernels import channel_attention, dwconv, gated_dwconv
from cpl_kernels.registration import rewritten

KIND = "transformer block"
_CONVS = {
    ATTENTION.kind: ("qkv", "qkv_dwconv", "project_out"),
    FEED_FORWARD.kind: ("project_in", "dwconv", "project_out"),
}
Steps = tuple[Half, ...]


def _forward(
    module: Block, x: Tensor, *others: Tensor, keep: str, steps: Steps, **of_norms: Any
) -> Tensor | None:
    if isinstance(module, halves.OfImages):
        module, others = module.block, tuple(y.mean((2, 3)) for y in others)
    if not torch.is_grad_enabled() or not _is_free(module, steps):
        return None
    compiling = torch.compiler.is_compiling()
    if compiling and keep == "products":  # a compiler chooses itself what of its own code to compute again
        return None
    if compiling:
        return checkpoint(partial(halves.chain, module, steps), x, *others, use_reentrant=False)
    if rewritten():
        return None
    found = [_norm(module, half, at, x.dtype, of_norms) for at, half in enumerate(steps)]
    if _is_whole(module, steps, found):
        first, second = steps
        keeping = keeping_products if keep == "products" else keeping_input
        parts = module.get_submodule(first.part), module.get_submodule(second.part)
        before = [Norm(weight, bias, eps) for weight, bias, eps, _ in found if weight is not None]
        return keeping(x, before[0], parts[0], before[1], parts[1])
    if keep == "input":
        return checkpoint(partial(halves.chain, module, steps), x, *others, use_reentrant=False)
    for half, norm in zip(steps, found, strict=True):
        lean = half.kind in _CONVS and _is_lean(module.get_submodule(half.part), half.kind)
        if lean:
            x = x + _LEAN[half.kind](module.get_submodule(half.part), x, norm)
        else:
            x = halves.half_of(module, half, x, *others)
    return x


# -- halves of which the products alone are kept

_Norm = tuple[Tensor | None, Tensor | None, float, bool]


def _norm(module: Block, half: Half, at: int, dtype: torch.dtype, of_norms: dict[str, Any]) -> _Norm:
    weight, bias, said = norms.parts(module.get_submodule(half.norm))
    eps: Epsilon | None = of_norms[f"eps{at}"]
    return weight, bias, said if eps is None else of_dtype(eps, dtype), of_norms[f"center{at}"]


def _attention(part: Block, x: Tensor, norm: _Norm) -> Tensor:
    weight, bias, eps, center = norm
    qkv = _conv(partial(_normalise, eps, center), part.qkv, x, weight, bias)
    depthwise = part.qkv_dwconv
    return _conv(_attend, part.project_out, qkv, depthwise.weight, depthwise.bias, part.temperature)


def _feed_forward(part: Block, x: Tensor, norm: _Norm) -> Tensor:
    weight, bias, eps, center = norm
    hidden = _conv(partial(_normalise, eps, center), part.project_in, x, weight, bias)
    return _conv(_gate, part.project_out, hidden, part.dwconv.weight, part.dwconv.bias)


_LEAN = {ATTENTION.kind: _attention, FEED_FORWARD.kind: _feed_forward}


def _conv(before: Any, conv: Block, *tensors: Tensor | None) -> Tensor:
    y = recomputed_conv(before, conv.weight, *tensors)
    return y if conv.bias is None else y + conv.bias[:, None, None].to(y.dtype)


def _normalise(eps: float, center: bool, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return norms.normalise(x, weight, bias, eps, center)


def _attend(qkv: Tensor, weight: Tensor, bias: Tensor | None, temperature: Tensor) -> Tensor:
    return channel_attention(dwconv(qkv, weight, bias), temperature)


def _gate(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return gated_dwconv(hidden, weight, bias)


# -- what must hold


def _is_lean(part: Block, kind: str) -> bool:
    """Its convolutions are plain ones: two over pixels, and a depthwise one between them."""
    first, between, last = (getattr(part, name, None) for name in _CONVS[kind])
    plain = all(isinstance(conv, nn.Conv2d) and is_plain(conv) for conv in (first, between, last))
    return plain and is_pointwise(first) and is_pointwise(last)


def _is_whole(module: Block, steps: Steps, found: list[_Norm]) -> bool:
    """The two halves of Restormer's block without a bias in a convolution, which are written as one."""
    if [half.kind for half in steps] != [ATTENTION.kind, FEED_FORWARD.kind]:
        return False
    if any(weight is None or center != (bias is not None) for weight, bias, _, center in found):
        return False
    parts = [(module.get_submodule(half.part), half.kind) for half in steps]
    return all(
        _is_lean(part, kind)
        and all(getattr(part, name).bias is None for name in _CONVS[kind])
        and getattr(part, _CONVS[kind][1]).kernel_size == (3, 3)
        for part, kind in parts
    )


def _is_free(module: Block, steps: Steps) -> bool:
    """Nobody watches a part, whose hooks would be called twice or never, and nothing is dropped between the halves."""
    parts = (part for half in steps for name in half[:2] for part in module.get_submodule(name).modules())
    if not all(is_untouched(part) for part in parts):
        return False
    return not any(
        halves.passes_on(part) and getattr(part, "p", getattr(part, "drop_prob", 0))
        for part in module.children()
    )


# -- the layout


def block(keep: str) -> Layout:
    """The layout of a transformer block that keeps "products" or "input"."""
    return Layout(
        KIND,
        partial(_why_not, keep),
        halves.channels,
        _forward,
        options=partial(_options, keep),
        compared=halves.compared,
        ranks=halves.ranks,
    )


def _why_not(keep: str, module: Block) -> str | None:
    why = halves.why_not(module)
    if why is None and keep == "products" and not _any_lean(module):
        return "its parts are others than channel attention and gated feed-forward, of which products could be kept"
    return why


def _any_lean(module: Block) -> bool:
    steps = halves.halves(module)
    return any(half.kind in _CONVS and _is_lean(module.get_submodule(half.part), half.kind) for half in steps)


def _options(keep: str, module: Block) -> Iterable[Options]:
    """Norms without a bias may all leave the mean in, or none."""
    block = halves.inner(module)
    steps = halves.halves(block)
    choices = [tuple(norms.choices(block.get_submodule(half.norm))) for half in steps]
    for at in range(max(map(len, choices))):
        chosen = [each[min(at, len(each) - 1)] for each in choices]
        of_norms = {f"{name}{at}": one[name] for at, one in enumerate(chosen) for name in ("center", "eps")}
        yield {"keep": keep, "steps": steps, **of_norms}
