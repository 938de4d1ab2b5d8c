"""The transformer block that keeps less for its backward pass.

Which blocks these are: :mod:`cpl.interop.halves`. What is kept: :func:`cpl_kernels.transformer_block`. A block that is
not made of those halves keeps its input by torch.utils.checkpoint, and the products of the halves that are.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cpl.interop import halves, norms
from cpl.interop.attention import ATTENTION, FEED_FORWARD
from cpl.interop.epsilon import Epsilon, of_dtype
from cpl.interop.halves import Half
from cpl.interop.structure import Block, Layout, Options, is_depthwise, is_plain, is_pointwise, is_untouched
from cpl_kernels import attention_half, checkpointed, feed_forward_half, transformer_block

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
    if not torch.is_grad_enabled() or torch.jit.is_tracing() or not _is_free(module, steps):
        return None
    compiling = torch.compiler.is_compiling()
    if compiling and keep == "products":  # a compiler chooses itself what of its own code to compute again
        return None
    lean = [half.kind in _CONVS and _is_lean(module.get_submodule(half.part), half.kind) for half in steps]
    whole = all(lean) and [half.kind for half in steps] == [ATTENTION.kind, FEED_FORWARD.kind]
    if keep == "input" and (compiling or not whole):
        return checkpointed(partial(halves.chain, module, steps), x, *others)
    if whole:
        first, second = (_arguments(module, half, at, x, of_norms) for at, half in enumerate(steps))
        return transformer_block(x, first, second, keep=keep)
    for at, half in enumerate(steps):
        if lean[at]:
            x = _HALF[half.kind](x, **_arguments(module, half, at, x, of_norms), keep=keep)
        else:
            x = halves.half_of(module, half, x, *others)
    return x


# -- halves of which the products alone are kept

_HALF: dict[str, Any] = {ATTENTION.kind: attention_half, FEED_FORWARD.kind: feed_forward_half}


def _arguments(module: Block, half: Half, at: int, x: Tensor, of_norms: dict[str, Any]) -> dict[str, Any]:
    """As the op of the half takes them."""
    weight, bias, said = norms.parts(module.get_submodule(half.norm))
    eps: Epsilon | None = of_norms[f"eps{at}"]
    norm = {
        "norm_weight": norms.ones(x) if weight is None else weight,
        "norm_bias": bias,
        "eps": said if eps is None else of_dtype(eps, x.dtype),
        "center": of_norms[f"center{at}"],
    }
    part = module.get_submodule(half.part)
    first, between, last = (getattr(part, name) for name in _CONVS[half.kind])
    names = ("qkv", "qkv_bias"), ("project", "project_bias")
    more = {"temperature": part.temperature} if half.kind == ATTENTION.kind else {}
    if half.kind == FEED_FORWARD.kind:
        names = ("project_in", "in_bias"), ("project_out", "out_bias")
    convs = zip((names[0], ("dw", "dw_bias"), names[1]), (first, between, last), strict=True)
    return (
        norm
        | more
        | {n: t for pair, conv in convs for n, t in zip(pair, (conv.weight, conv.bias), strict=True)}
    )


# -- what must hold


def _is_lean(part: Block, kind: str) -> bool:
    """Its convolutions are plain ones: two over pixels, and a depthwise one between them."""
    first, between, last = (getattr(part, name, None) for name in _CONVS[kind])
    plain = all(isinstance(conv, nn.Conv2d) and is_plain(conv) for conv in (first, between, last))
    return plain and is_pointwise(first) and is_depthwise(between) and is_pointwise(last)


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
