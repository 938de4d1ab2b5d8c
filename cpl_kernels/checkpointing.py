"""torch.utils.checkpoint, where it works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from cpl_kernels import registration

__all__ = ["checkpointed"]


def checkpointed(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, of which the backward pass has only ``args`` and computes the rest again.

    It is a plain call where gradients are disabled, and under torch.func and torch.jit.trace, which cannot look into a
    checkpoint.

    Args:
        function: of tensors, without side effects: it runs twice.
        args: what it is called with.

    Returns:
        What it returns.
    """
    if not torch.is_grad_enabled() or registration.rewritten():
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False)
