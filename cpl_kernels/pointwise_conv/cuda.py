"""pointwise_conv for CUDA tensors, by torch's libraries: no kernel of ours is compiled for it.

Where pixels lie next to each other and both factors have the same 16 bits, it is one matrix product per image (cuBLAS):
torch's convolution (cuDNN) copies input and output into another layout and back, which costs more than the arithmetic.
Elsewhere it is torch's convolution: in float32, where a convolution multiplies in TF32 and a product does not, and for
an odd number of channels, where the rows of the weight begin at odd addresses. benchmarks/results/h200_tuning.md has
the times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels.pointwise_conv import reference

NEEDS_CORE = False  # for backends.py: it also runs without our CUDA kernels
_NARROW = (torch.float16, torch.bfloat16)


def why_not(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> str | None:
    return None


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    if bias is not None or not _is_product(x, weight):
        return reference.forward(x, weight, bias, residual)
    matrices, pixels = weight.flatten(1).expand(x.shape[0], -1, -1), x.flatten(2)
    # An expanded weight, not matmul, which folds the batch into the rows and copies whole images for it; cuBLAS adds
    # the residual before it rounds.
    added = None if residual is None else residual.flatten(2)
    product = torch.bmm(matrices, pixels) if added is None else torch.baddbmm(added, matrices, pixels)
    return product.view(x.shape[0], weight.shape[0], *x.shape[2:])


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if not _is_product(x, weight):
        return reference.backward(dy, x, weight, need_x, need_weight, need_bias)
    dy = dy.contiguous()  # the gradient of a sum is expanded
    dx, dweight, dbias = reference.unneeded(x, weight)
    if need_x:
        dx = forward(dy, weight.transpose(0, 1), None, None)
    if need_weight:  # each image's product is rounded to 16 bits; the sum over images is not
        products = torch.bmm(dy.flatten(2), x.flatten(2).transpose(1, 2))
        dweight = products.sum(0, dtype=torch.float32).view(weight.shape)
    if need_bias:
        dbias = dy.sum(dim=(0, 2, 3), dtype=torch.float32)
    return dx, dweight, dbias


def _is_product(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype in _NARROW
        and weight.dtype == x.dtype
        and x.is_contiguous()
        and weight.shape[0] % 2 == weight.shape[1] % 2 == 0
    )
