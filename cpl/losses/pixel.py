"""Losses between images, by pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from cpl_kernels import checks


def log_l1(restored: Tensor, target: Tensor, eps: float = 1e-3) -> Tensor:
    """``mean over images of log(eps + mean |restored - target|)``, images [B, 3, H, W].

    Each image's gradient is divided by its own error: a task whose errors are large (low light, haze) does not drown
    one whose errors are small (noise, blur), as it does in the mean of all errors. ``eps`` bounds what an image that
    is nearly right may ask for.

    Raises:
        ValueError: images of different shapes, or a negative eps.
    """
    if restored.shape != target.shape:
        raise ValueError(
            f"target must have restored's shape {tuple(restored.shape)}, got {tuple(target.shape)}"
        )
    checks.at_least("eps", eps, 0)
    wide = torch.promote_types(restored.dtype, torch.float32)
    errors = (restored.to(wide) - target.to(wide)).abs().mean(dim=(1, 2, 3))
    return (errors + eps).log().mean()


PIXEL_LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": F.l1_loss, "log_l1": log_l1}
