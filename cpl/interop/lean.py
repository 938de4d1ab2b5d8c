"""The transformer block that keeps less for its backward pass, for blocks in the layout of Restormer's.

Source of the layout: Restormer, arXiv 2111.09881, figure 2. What is kept: :mod:`cpl.nn.recompute`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cpl.interop import norms
from cpl.interop.attention import ATTENTION, FEED_FORWARD
from cpl.interop.epsilon import Epsilon, of_dtype
from cpl.interop.structure import Block, Layout, Options, is_plain, is_untouched
from cpl.nn.norm import Norm
from cpl.nn.recompute import keeping_input, keeping_products

KIND = "transformer block"
_CONVS = (
    ("attn", "qkv"),
    ("attn", "qkv_dwconv"),
    ("attn", "project_out"),
    ("ffn", "project_in"),
    ("ffn", "dwconv"),
    ("ffn", "project_out"),
)
_PARTS = ("norm1", "attn", "norm2", "ffn")


def _why_not(module: Block) -> str | None:
    if not all(isinstance(getattr(module, name, None), nn.Module) for name in _PARTS):
        return ""
    for name in ("norm1", "norm2"):
        norm = getattr(module, name)
        if norms.WRAPPED.why_not(norm) is not None and norms.PLAIN.why_not(norm) is not None:
            return f"{name} is no layer norm over channels"
    for name, layout in (("attn", ATTENTION), ("ffn", FEED_FORWARD)):
        why = layout.why_not(getattr(module, name))
        if why is not None:
            return f"{name} is no {layout.kind}{why and ': ' + why}"
    biased = [
        f"{part}.{name}" for part, name in _CONVS if getattr(module, part)._modules[name].bias is not None
    ]
    return f"{', '.join(biased)} have a bias, which it is not written for" if biased else None


def _is_untouched(module: Block) -> bool:
    convs = (getattr(getattr(module, part), name) for part, name in _CONVS)
    return all(is_untouched(getattr(module, part)) for part in _PARTS) and all(
        isinstance(conv, nn.Conv2d) and is_plain(conv) for conv in convs
    )


def _forward(
    module: Block, x: Tensor, keep: str, eps1: Epsilon | None, eps2: Epsilon | None
) -> Tensor | None:
    if not torch.is_grad_enabled() or not _is_untouched(module):
        return None
    if torch.compiler.is_compiling():  # a compiler chooses itself what of its own code to compute again
        return None if keep == "products" else checkpoint(partial(_keep_all, module), x, use_reentrant=False)
    keeping = keeping_products if keep == "products" else keeping_input
    norm1, norm2 = _norm(module.norm1, eps1, x.dtype), _norm(module.norm2, eps2, x.dtype)
    return keeping(x, norm1, module.attn, norm2, module.ffn)


def _keep_all(module: Block, x: Tensor) -> Tensor:
    x = x + module.attn(module.norm1(x))
    return x + module.ffn(module.norm2(x))


def _norm(module: Block, eps: Epsilon | None, dtype: torch.dtype) -> Norm:
    weight, bias, said = norms.parts(module)
    return Norm(weight, bias, said if eps is None else of_dtype(eps, dtype))


def _options(keep: str) -> Callable[[Block], Iterable[Options]]:
    return lambda m: ({"keep": keep, "eps1": norms.epsilon(m.norm1), "eps2": norms.epsilon(m.norm2)},)


def block(keep: str) -> Layout:
    """The layout of a transformer block that keeps "products" or "input"."""
    return Layout(KIND, _why_not, lambda m: (m.attn.qkv.in_channels,), _forward, options=_options(keep))
