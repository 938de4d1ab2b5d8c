"""What the two compiled backends of aggregate_prompts share: making memory and calling the core."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cpl_kernels.core import DTYPE_CODES


def forward(
    kernel: Callable[..., None],
    weights: Tensor,
    indices: Tensor,
    prompts: Tensor,
    height: int,
    width: int,
    where: int,
) -> Tensor:
    """``where`` is the kernel's last argument: the number of threads, or the CUDA stream."""
    batch, chosen = weights.shape
    count, channels, source_height, source_width = prompts.shape
    y = prompts.new_empty(batch, channels, height, width)
    weights, indices, prompts = weights.contiguous(), indices.contiguous(), prompts.contiguous()
    kernel(
        weights.data_ptr(),
        indices.data_ptr(),
        prompts.data_ptr(),
        y.data_ptr(),
        batch,
        chosen,
        count,
        channels,
        source_height,
        source_width,
        height,
        width,
        DTYPE_CODES[weights.dtype],
        DTYPE_CODES[prompts.dtype],
        where,
    )
    return y


def backward(
    kernel: Callable[..., None],
    dy: Tensor,
    weights: Tensor,
    indices: Tensor,
    prompts: Tensor,
    need_weights: bool,
    need_prompts: bool,
    *where: int,
) -> tuple[Tensor, Tensor]:
    batch, chosen = weights.shape
    count, channels, source_height, source_width = prompts.shape
    # Sizes as plain ints: torch takes half a microsecond to read a tuple, and over one to read a torch.Size.
    dweights = weights.new_empty(*((batch, chosen) if need_weights else (0,)))
    dprompts = prompts.new_empty(*((count, channels, source_height, source_width) if need_prompts else (0,)))
    dy, weights, indices = dy.contiguous(), weights.contiguous(), indices.contiguous()
    prompts = prompts.contiguous()
    kernel(
        dy.data_ptr(),
        weights.data_ptr(),
        indices.data_ptr(),
        prompts.data_ptr(),
        dweights.data_ptr() if need_weights else 0,
        dprompts.data_ptr() if need_prompts else 0,
        batch,
        chosen,
        count,
        channels,
        source_height,
        source_width,
        dy.shape[2],
        dy.shape[3],
        DTYPE_CODES[weights.dtype],
        DTYPE_CODES[prompts.dtype],
        *where,
    )
    return dweights, dprompts
