"""pointwise_conv for CPU tensors: in C++ (csrc/pointwise_conv/cpu.cpp), or in 16 bits torch's batched product."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels import layout
from cpl_kernels.core import DTYPE_CODES, core
from cpl_kernels.pointwise_conv import reference

_NARROW = (torch.float16, torch.bfloat16)


def why_not(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> str | None:
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.dtype == torch.float64 and x.dtype != torch.float64:
            return f"it computes in float32 for {x.dtype} images, and {name} is float64"
    return None


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    if not x.numel():
        return reference.forward(x, weight, bias, residual)
    if _are_narrow(x, weight) and bias is None and residual is None:
        y = _batched(weight.flatten(1), x)
    else:  # the sum with these is rounded, and the product is not
        y = _product(_planar(x), _matrix(weight, x), bias, residual)
    return _laid_out(y, x)


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if not x.numel():  # sums over nothing
        return reference.backward(dy, x, weight, need_x, need_weight, need_bias)
    dy, dtype = _planar(dy), reference.accumulation_dtype(x, weight)
    narrow = _are_narrow(x, weight)
    if not need_x:
        dx = x.new_empty(0)
    elif narrow:
        dx = _laid_out(_batched(weight.flatten(1).t(), dy), x)
    else:
        dx = _laid_out(_product(dy, _matrix(weight, x).transpose(0, 1), None, None), x)
    dweight = weight.new_empty(weight.shape if need_weight else 0, dtype=dtype)
    dbias = weight.new_empty(weight.shape[0] if need_bias else 0, dtype=dtype)
    if need_weight and narrow:
        # One product over all images' pixels, at the price of copies: a product for each would be rounded to 16 bits.
        rows, columns = (t.transpose(0, 1).flatten(1) for t in (dy, x))  # [O, B P], [C, B P]
        dweight = (rows @ columns.t()).float().view(weight.shape)
    sums = weight.new_empty(0) if narrow else dweight
    if sums.numel() or need_bias:
        _sum(dy, _planar(x), sums, dbias)
    return dx, dweight, dbias


def _laid_out(y: Tensor, x: Tensor) -> Tensor:
    """y, which is planar, in the layout of a result for x."""
    return y.contiguous(memory_format=torch.channels_last) if layout.is_channels_last(x) else y


def _are_narrow(x: Tensor, weight: Tensor) -> bool:
    """Whether both factors are numbers of the same 16 bits, which oneDNN multiplies in hardware, summing in float32."""
    return x.dtype in _NARROW and weight.dtype == x.dtype


def _batched(matrix: Tensor, x: Tensor) -> Tensor:
    # An expanded matrix, not matmul: that folds the batch into the rows, and copies whole images for it.
    product = torch.bmm(matrix.expand(x.shape[0], -1, -1), x.flatten(2))
    return product.view(x.shape[0], matrix.shape[0], *x.shape[2:])


def _product(x: Tensor, matrix: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """matrix: [O, C, 1, 1], of which O or C has the stride 1."""
    y = x.new_empty((x.shape[0], matrix.shape[0], *x.shape[2:]))
    bias = None if bias is None else bias.to(matrix.dtype).contiguous()
    residual = None if residual is None else _planar(residual)
    core().pointwise_conv_forward(
        layout.view(x),
        layout.view(y),
        layout.NOWHERE if residual is None else layout.view(residual),
        matrix.data_ptr(),
        *matrix.stride()[:2],
        0 if bias is None else bias.data_ptr(),
        x.shape[0],
        matrix.shape[1],
        matrix.shape[0],
        x.shape[2] * x.shape[3],
        DTYPE_CODES[x.dtype],
        torch.get_num_threads(),
    )
    return y


def _sum(dy: Tensor, x: Tensor, dweight: Tensor, dbias: Tensor) -> None:
    """Fills in those that have elements."""
    core().pointwise_conv_backward(
        layout.view(dy),
        layout.view(x),
        dweight.data_ptr(),
        dbias.data_ptr(),
        x.shape[0],
        x.shape[1],
        dy.shape[1],
        x.shape[2] * x.shape[3],
        DTYPE_CODES[x.dtype],
        torch.get_num_threads(),
    )


def _planar(x: Tensor) -> Tensor:
    return x if layout.is_planar(x) else x.contiguous()


def _matrix(weight: Tensor, x: Tensor) -> Tensor:
    weight = weight.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    return weight if 1 in weight.stride()[:2] else weight.contiguous()
