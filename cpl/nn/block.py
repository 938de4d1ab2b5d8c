"""The transformer block, and the convolution that an image enters by."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cpl.nn.attention import MDTA, attend
from cpl.nn.feed_forward import GDFN, gate
from cpl.nn.norm import LayerNorm2d
from cpl.nn.pointwise import pointwise_conv
from cpl.nn.recompute import Inner, recomputed_block, recomputed_conv
from cpl.nn.strips import attention_in_strips, feed_forward_in_strips, rows_of_a_strip

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
            "all" that the backward needs, about 19; the matrix "products", about 10, from which the rest is computed
            again; or the "input", 1, like torch.utils.checkpoint but without the last product. :func:`set_keep` sets
            it for a whole network. Hooks on the block's parts run with "all" only, and without gradients.

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
        if not compiling and not learns:
            return self._infer(x)
        if self.keep == "all" or not learns:
            return self._keep_all(x)
        if compiling:  # a compiler chooses itself what of its own code to compute again
            return (
                self._keep_all(x)
                if self.keep == "products"
                else checkpoint(self._keep_all, x, use_reentrant=False)
            )
        return self._keep_products(x) if self.keep == "products" else self._keep_input(x)

    def _infer(self, x: Tensor) -> Tensor:
        if type(self.attn) is not MDTA or type(self.ffn) is not GDFN or any(map(_is_watched, self.modules())):
            return self._keep_all(x)  # another part, or hooks that are to see whole maps
        rows = rows_of_a_strip(x.shape, self.ffn.project_in.out_channels, x.element_size(), x.device)
        if rows is None:
            return self._keep_all(x)
        x = attention_in_strips(x, self.norm1, self.attn, rows)
        return feed_forward_in_strips(x, self.norm2, self.ffn, rows)

    def _keep_all(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))

    def _keep_products(self, x: Tensor) -> Tensor:
        attn, ffn = self.attn, self.ffn
        qkv = recomputed_conv(self.norm1.function, attn.qkv.weight, x, *self.norm1.tensors)
        x = x + recomputed_conv(
            attend, attn.project_out.weight, qkv, attn.qkv_dwconv.weight, attn.temperature
        )
        hidden = recomputed_conv(self.norm2.function, ffn.project_in.weight, x, *self.norm2.tensors)
        return x + recomputed_conv(gate, ffn.project_out.weight, hidden, ffn.dwconv.weight)

    def _keep_input(self, x: Tensor) -> Tensor:
        attn, ffn = self.attn, self.ffn
        return recomputed_block(
            partial(_attention_half, self.norm1.function),
            attn.project_out.weight,
            (*self.norm1.tensors, attn.qkv.weight, attn.qkv_dwconv.weight, attn.temperature),
            partial(_feed_forward_half, self.norm2.function),
            ffn.project_out.weight,
            (*self.norm2.tensors, ffn.project_in.weight, ffn.dwconv.weight),
            x,
        )


def _is_watched(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks)


def _attention_half(
    norm: Inner,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    qkv: Tensor,
    dwconv: Tensor,
    temperature: Tensor,
) -> Tensor:
    return attend(pointwise_conv(norm(x, norm_weight, norm_bias), qkv), dwconv, temperature)


def _feed_forward_half(
    norm: Inner, x: Tensor, norm_weight: Tensor, norm_bias: Tensor | None, project_in: Tensor, dwconv: Tensor
) -> Tensor:
    return gate(pointwise_conv(norm(x, norm_weight, norm_bias), project_in), dwconv)


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
