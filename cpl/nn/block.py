"""The transformer block, and the convolution that an image enters by."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.checkpoint import checkpoint

from cpl.nn.attention import MDTA
from cpl.nn.feed_forward import GDFN
from cpl.nn.norm import LayerNorm2d, ScaleAndShift
from cpl.nn.pointwise import PointwiseConv
from cpl.nn.recompute import keeping_all, keeping_input, keeping_products
from cpl.nn.strips import attention_in_strips, feed_forward_in_strips, rows_of_a_strip
from cpl_kernels.registration import rewritten

KEEP = ("all", "products", "input")
_KEEPING = dict(zip(KEEP, (keeping_all, keeping_products, keeping_input), strict=True))


class TransformerBlock(nn.Module):
    """x + MDTA(LN(x)), then x + GDFN(LN(x)); [B, C, H, W] -> [B, C, H, W].

    Args:
        channels: C.
        heads: attention heads; divides C.
        ffn_expansion: the feed-forward network has int(ffn_expansion * C) hidden channels.
        norm_bias: False for Restormer's "BiasFree" norm.

    Attributes:
        keep: what a forward pass keeps for the backward, in maps of x's size with the usual 2.66 hidden channels:
            "all" that the backward needs, about 15 where its kernels give the norms' and the gate's outputs along (on
            CPUs, of parts that nobody has exchanged or hooked) and else 19; the matrix "products", about 10, from
            which the rest is computed again; or the "input", 1, like torch.utils.checkpoint but without the last
            product. :func:`set_keep` sets it for a whole network. Hooks on the block's parts run with "all" only, and
            without gradients.

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
        compiling, learns = torch.compiler.is_compiling(), torch.is_grad_enabled()
        if not compiling and rewritten():
            return self._keep_all(x)
        if not compiling and not learns:
            return self._infer(x)
        traced = compiling or not isinstance(x, Tensor)
        if not learns or (self.keep == "all" and (traced or not self._is_usual())):
            return self._keep_all(x)
        if compiling:  # a compiler chooses itself what of its own code to compute again
            return (
                self._keep_all(x)
                if self.keep == "products"
                else checkpoint(self._keep_all, x, use_reentrant=False)
            )
        return _KEEPING[self.keep](x, self.norm1.norm, self.attn, self.norm2.norm, self.ffn)

    def _is_usual(self) -> bool:
        """Whether nobody has exchanged a part of it (by an adapter, say) or watches one: then none need be called."""
        return not _has_any_global_hook() and all(
            type(part) is _USUAL.get(name) and not is_watched(part) and "forward" not in vars(part)
            for name, part in self.named_modules()
            if part is not self
        )

    def _infer(self, x: Tensor) -> Tensor:
        if type(self.attn) is not MDTA or type(self.ffn) is not GDFN:
            return self._keep_all(x)
        rows = rows_of_a_strip(x.shape, self.ffn.project_in.out_channels, x.element_size(), x.device)
        if rows is None or any(map(is_watched, self.modules())):  # hooks are to see whole maps
            return self._keep_all(x)
        x = attention_in_strips(x, self.norm1, self.attn, rows)
        return feed_forward_in_strips(x, self.norm2, self.ffn, rows)

    def _keep_all(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


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
