"""Restormer's transformer block: its two halves, one behind the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cpl_kernels import half
from cpl_kernels.attention_half import prepare as prepare_attention
from cpl_kernels.feed_forward_half import prepare as prepare_feed_forward

__all__ = ["transformer_block"]


def transformer_block(
    x: Tensor,
    attention: Mapping[str, Any],
    feed_forward: Mapping[str, Any],
    *,
    keep: str = "all",
    backend: str | None = None,
) -> Tensor:
    """``feed_forward_half(attention_half(x, **attention), **feed_forward)``.

    With keep="input" the backward pass has x alone, where each half by itself would keep its own input. It recomputes
    all but the last product, so it does less work than torch.utils.checkpoint.

    Args:
        x: [B, C, H, W].
        attention: arguments of :func:`cpl_kernels.attention_half` by name, but for x, keep and backend.
        feed_forward: those of :func:`cpl_kernels.feed_forward_half`.
        keep: "all", "products" or "input", as for the halves.
        backend: as for the halves.

    Returns:
        [B, C, H, W] in the dtype of x.

    Raises:
        TypeError, ValueError, RuntimeError: as the halves.

    Source: Zamir et al., "Restormer", arXiv 2111.09881, figure 2.
    """
    halves = (
        prepare_attention(x, keep, backend, **attention),
        prepare_feed_forward(x, keep, backend, **feed_forward),
    )
    return half.run(halves, x, keep)
