"""The transformer block, and the convolution that an image enters by."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from cpl.nn.attention import MDTA
from cpl.nn.feed_forward import GDFN
from cpl.nn.norm import LayerNorm2d, ScaleAndShift
from cpl.nn.pointwise import PointwiseConv
from cpl_kernels import checkpointed, transformer_block

KEEP = ("all", "products", "input")


class TransformerBlock(nn.Module):
    """x + MDTA(LN(x)), then x + GDFN(LN(x)); [B, C, H, W] -> [B, C, H, W].

    Args:
        channels: C.
        heads: attention heads; divides C.
        ffn_expansion: the feed-forward network has int(ffn_expansion * C) hidden channels.
        norm_bias: False for Restormer's "BiasFree" norm.

    Attributes:
        keep: what a forward pass keeps for the backward, in maps of x's size with the usual 2.66 hidden channels:
            "all" that the backward needs, about 15 where its kernels recompute the norms' and the gate's outputs (on
            CPUs) and else 19; the matrix "products", about 10, from which the rest is computed again; or the "input",
            1, like torch.utils.checkpoint but without the last product. :func:`set_keep` sets it for a whole network.
            If somebody has exchanged or hooked a part, the parts are called one by one: then "products" keeps all, and
            "input" calls them, and their hooks, once more in the backward pass.

    Source: Restormer, arXiv 2111.09881, figure 2.
    """

    keep: str = "all"

    def __init__(
        self, channels: int, heads: int, ffn_expansion: float = 2.66, norm_bias: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(channels, norm_bias)
        self.attn = MDTA(channels, heads)
        self.norm2 = LayerNorm2d(channels, norm_bias)
        self.ffn = GDFN(channels, int(ffn_expansion * channels))

    def forward(self, x: Tensor) -> Tensor:
        # A compiler sees through the parts; torch.fx gives no tensor.
        if isinstance(x, Tensor) and not torch.compiler.is_compiling() and self._is_usual():
            attention = {**self.norm1.arguments, **self.attn.arguments}
            feed_forward = {**self.norm2.arguments, **self.ffn.arguments}
            return transformer_block(x, attention, feed_forward, keep=self.keep)
        return checkpointed(self._by_parts, x) if self.keep == "input" else self._by_parts(x)

    def _by_parts(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))

    def _is_usual(self) -> bool:
        """Whether nobody has exchanged a part of it (by an adapter, say) or watches one: then none need be called."""
        return not _has_any_global_hook() and all(
            type(part) is _USUAL.get(name) and not is_watched(part) and "forward" not in vars(part)
            for name, part in self.named_modules()
            if part is not self
        )


_USUAL: Mapping[str, type[nn.Module]] = {
    "norm1": LayerNorm2d,
    "norm1.body": ScaleAndShift,
    "attn": MDTA,
    "attn.qkv": PointwiseConv,
    "attn.qkv_dwconv": nn.Conv2d,
    "attn.project_out": PointwiseConv,
    "norm2": LayerNorm2d,
    "norm2.body": ScaleAndShift,
    "ffn": GDFN,
    "ffn.project_in": PointwiseConv,
    "ffn.dwconv": nn.Conv2d,
    "ffn.project_out": PointwiseConv,
}


def is_watched(part: nn.Module) -> bool:
    """Whether somebody has hooks on it."""
    return bool(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
    )


def set_keep(network: nn.Module, keep: str) -> int:
    """Set :attr:`TransformerBlock.keep` of every block in ``network``; returns how many there are.

    The results stay the same; see that attribute for what each choice keeps.

    Raises:
        ValueError: ``keep`` is none of "all", "products", "input", or ``network`` holds no such block.
    """
    if keep not in KEEP:
        raise ValueError(f"keep must be one of {', '.join(KEEP)}, got {keep!r}")
    blocks = [module for module in network.modules() if isinstance(module, TransformerBlock)]
    if not blocks:
        raise ValueError(
            f"this {type(network).__name__} holds no cpl.nn.TransformerBlock; torch.utils.checkpoint works for any"
        )
    for block in blocks:
        block.keep = keep
    return len(blocks)


class PatchEmbed(nn.Module):
    """[B, 3, H, W] -> [B, channels, H, W] by a 3x3 convolution without bias (overlapping patches)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)
