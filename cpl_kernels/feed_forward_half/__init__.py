"""The feed-forward half of a Restormer block: norm, expansion, gated depthwise convolution, projection, residual."""

from __future__ import annotations

from torch import Tensor

from cpl_kernels import checks, half
from cpl_kernels.feed_forward_half.op import FeedForwardHalf

__all__ = ["feed_forward_half"]


def feed_forward_half(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    project_in: Tensor,
    dw: Tensor,
    project_out: Tensor,
    *,
    in_bias: Tensor | None = None,
    dw_bias: Tensor | None = None,
    out_bias: Tensor | None = None,
    eps: float = 1e-5,
    center: bool = True,
    residual: bool = True,
    keep: str = "all",
    backend: str | None = None,
) -> Tensor:
    """Add to x what a gated network makes of each pixel and its neighbours.

        y = x + pointwise_conv(gated_dwconv(pointwise_conv(LN(x), project_in), dw), project_out)

    with LN = layer_norm2d(x, norm_weight, norm_bias, eps, center). It computes what these calls compute, in one node of
    the autograd graph, which keeps for the backward pass what ``keep`` says; with h hidden channels:

        "all"       x and 2h channels, and the output of the norm (C) and of the gate (h) if their backward kernels do
                    not recompute them
        "products"  x and 2h channels: the output of the first product
        "input"     x

    Without a graph large images are computed in strips of rows, so that the 2h channels never exist at full size.

    Args:
        x: [B, C, H, W], any strides; float32, bfloat16, float16 or float64.
        norm_weight: [C], any floating dtype. None: no norm.
        norm_bias: [C] or None.
        project_in: [2h, C, 1, 1], the 1x1 convolution at the beginning; with ``in_bias`` [2h] or None.
        dw: [2h, 1, 3, 3], the depthwise convolution, whose first half is gated by the second; with ``dw_bias`` [2h] or
            None.
        project_out: [O, h, 1, 1], the 1x1 convolution at the end, O = C with the residual; with ``out_bias`` [O] or
            None.
        eps: added to the variance, >= 0.
        center: whether the norm subtracts the mean; False is Restormer's "BiasFree" norm.
        residual: whether x is added.
        keep: "all", "products" or "input".
        backend: "reference", "native" or "cuda"; None lets each of the three ops pick its own.

    Returns:
        [B, O, H, W] in the dtype that torch promotes x and the product to: that of x, but for a 16-bit x under an
        autocast to other 16 bits. Under autocast the two products and the gate run in the autocast dtype; the norm
        and the residual do not.

    Raises:
        TypeError: a dtype that is not floating.
        ValueError: a wrong shape, tensors on several devices, eps < 0, an unknown ``keep``.
        RuntimeError: the named backend cannot serve this call.

    Source: Zamir et al., "Restormer", arXiv 2111.09881, equation 2 and figure 2b.
    """
    prepared = prepare(
        x, keep, backend, eps=eps, center=center, residual=residual,
        norm_weight=norm_weight, norm_bias=norm_bias, project_in=project_in, in_bias=in_bias, dw=dw, dw_bias=dw_bias,
        project_out=project_out, out_bias=out_bias,
    )  # fmt: skip
    return half.run((prepared,), x, keep)


def prepare(
    x: Tensor,
    keep: str,
    backend: str | None,
    *,
    eps: float = 1e-5,
    center: bool = True,
    residual: bool = True,
    **given: Tensor | None,
) -> FeedForwardHalf:
    """What :func:`feed_forward_half` runs, checked against x; ``given``: its tensors by name."""
    x, dw, project_out = half.ranked(
        x=(x, "[B, C, H, W]"),
        dw=(given.get("dw"), "[2h, 1, 3, 3]"),
        project_out=(given.get("project_out"), "[O, h, 1, 1]"),
    )
    c, wide = checks.sizes(x)[1], checks.sizes(dw)[0]
    out = c if residual else checks.sizes(project_out)[0]
    if c < 1 or out < 1 or wide < 2 or wide % 2:
        raise ValueError(
            "x and project_out must have at least one channel, and dw an even number 2h >= 2 of them, got shapes "
            f"{tuple(checks.sizes(x))}, {tuple(checks.sizes(project_out))} and {tuple(checks.sizes(dw))}"
        )
    tensors = half.checked(x, keep, eps, given, {
        "norm_weight": ("[C]", (c,), False),
        "norm_bias": ("[C]", (c,), False),
        "project_in": ("[2h, C, 1, 1]", (wide, c, 1, 1), True),
        "in_bias": ("[2h]", (wide,), False),
        "dw": ("[2h, 1, 3, 3]", (wide, 1, 3, 3), True),
        "dw_bias": ("[2h]", (wide,), False),
        "project_out": ("[C, h, 1, 1]" if residual else "[O, h, 1, 1]", (out, wide // 2, 1, 1), True),
        "out_bias": ("[C]" if residual else "[O]", (out,), False),
    })  # fmt: skip
    return FeedForwardHalf(tensors, eps, center, residual, backend)
