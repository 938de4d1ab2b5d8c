"""The attention half of a Restormer block: norm, q, k and v, attention between channels, projection, residual."""

from __future__ import annotations

from torch import Tensor

from cpl_kernels import checks, half
from cpl_kernels.attention_half.op import AttentionHalf
from cpl_kernels.dwconv import KERNEL_SIZES

__all__ = ["attention_half"]


def attention_half(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    qkv: Tensor,
    dw: Tensor,
    temperature: Tensor,
    project: Tensor,
    *,
    qkv_bias: Tensor | None = None,
    dw_bias: Tensor | None = None,
    project_bias: Tensor | None = None,
    eps: float = 1e-5,
    center: bool = True,
    residual: bool = True,
    keep: str = "all",
    backend: str | None = None,
) -> Tensor:
    """Add to x what its channels tell one another.

        y = x + pointwise_conv(channel_attention(dwconv(pointwise_conv(LN(x), qkv), dw), temperature), project)

    with LN = layer_norm2d(x, norm_weight, norm_bias, eps, center). It computes what these calls compute, in one node of
    the autograd graph, which keeps for the backward pass what ``keep`` says, in maps of x's size:

        "all"       about 8, and one more if the norm's backward kernel does not recompute the norm's output
        "products"  4: x and the output of the first product; the maps between the products are computed again
        "input"     1: x

    Without a graph large images are computed in strips of rows, so that the 3C channels before the 3x3 convolution
    never exist at full size.

    Args:
        x: [B, C, H, W], any strides; float32, bfloat16, float16 or float64.
        norm_weight: [C], any floating dtype. None: no norm.
        norm_bias: [C] or None.
        qkv: [3C, C, 1, 1], the 1x1 convolution that makes q, k and v; with ``qkv_bias`` [3C] or None.
        dw: [3C, 1, k, k] with k one of 3, 5, 7, the depthwise convolution behind it; with ``dw_bias`` [3C] or None.
        temperature: [heads, 1, 1]; C is divisible by heads.
        project: [C, C, 1, 1], the 1x1 convolution at the end; with ``project_bias`` [C] or None.
        eps: added to the variance, >= 0.
        center: whether the norm subtracts the mean; False is Restormer's "BiasFree" norm.
        residual: whether x is added.
        keep: "all", "products" or "input".
        backend: "reference", "native" or "cuda"; None lets each of the four ops pick its own.

    Returns:
        [B, C, H, W] in the dtype that torch promotes x and the product to: that of x, but for a 16-bit x under an
        autocast to other 16 bits. Under autocast the two products, the convolution and the attention run in the
        autocast dtype; the norm and the residual do not.

    Raises:
        TypeError: a dtype that is not floating.
        ValueError: a wrong shape, tensors on several devices, eps < 0, an unknown ``keep``.
        RuntimeError: the named backend cannot serve this call.

    Source: Zamir et al., "Restormer", arXiv 2111.09881, equation 1 and figure 2a.
    """
    prepared = prepare(
        x, keep, backend, eps=eps, center=center, residual=residual,
        norm_weight=norm_weight, norm_bias=norm_bias, qkv=qkv, qkv_bias=qkv_bias, dw=dw, dw_bias=dw_bias,
        temperature=temperature, project=project, project_bias=project_bias,
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
) -> AttentionHalf:
    """What :func:`attention_half` runs, checked against x; ``given``: its tensors by name."""
    x, dw, temperature = half.ranked(
        x=(x, "[B, C, H, W]"),
        dw=(given.get("dw"), "[3C, 1, k, k]"),
        temperature=(given.get("temperature"), "[heads, 1, 1]"),
    )
    c, side, heads = checks.sizes(x)[1], checks.sizes(dw)[-1], checks.sizes(temperature)[0]
    if c < 1:
        raise ValueError(f"x must have at least one channel, got shape {tuple(checks.sizes(x))}")
    if side not in KERNEL_SIZES:
        raise ValueError(
            f"dw must be [3C, 1, k, k] with k one of 3, 5, 7, got shape {tuple(checks.sizes(dw))}"
        )
    if heads < 1 or c % heads:
        raise ValueError(
            f"temperature must be [heads, 1, 1] with a number of heads that divides the {c} channels of x, got "
            f"{heads} heads"
        )
    tensors = half.checked(x, keep, eps, given, {
        "norm_weight": ("[C]", (c,), False),
        "norm_bias": ("[C]", (c,), False),
        "qkv": ("[3C, C, 1, 1]", (3 * c, c, 1, 1), True),
        "qkv_bias": ("[3C]", (3 * c,), False),
        "dw": ("[3C, 1, k, k]", (3 * c, 1, side, side), True),
        "dw_bias": ("[3C]", (3 * c,), False),
        "temperature": ("[heads, 1, 1]", (heads, 1, 1), True),
        "project": ("[C, C, 1, 1]", (c, c, 1, 1), True),
        "project_bias": ("[C]", (c,), False),
    })  # fmt: skip
    return AttentionHalf(tensors, eps, center, residual, backend)
