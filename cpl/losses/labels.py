"""Labels of classes, checked: what is not an integer would be truncated without a word."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels import checks

# Those whose every value int64 holds.
_INTEGERS = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
)


def integers(name: str, labels: Tensor, length: int, meaning: str) -> Tensor:
    """``labels`` as int64, exactly; it must be of shape [length].

    Raises:
        TypeError: not a tensor, or of a dtype that is not an integer's: floating, bool, uint64.
        ValueError: another shape.
    """
    checks.tensor(name, labels)
    if labels.dtype not in _INTEGERS:
        raise TypeError(
            f"{name} must be integers (int64, say), got {labels.dtype}. "
            f"Number the classes, or use {name}.long() if the values are whole."
        )
    checks.shape(name, labels, (length,), meaning)
    return labels.long()
