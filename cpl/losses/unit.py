"""Vectors of unit length, for any dtype and any length."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels import checks

_SHORTER_THAN_ANY = 0.5  # a vector whose largest element is 1 has a norm of at least 1


def unit_vectors(name: str, x: Tensor) -> Tensor:
    """``x`` [..., D] over its norm, in float32 (float64 stays): u = s / ||s|| with s = x / max |x|.

    The division by the largest element comes first, so that no square overflows or underflows: a vector of 1e30s
    or 1e-30s has its direction. A vector of zeros (or of subnormal numbers, which have lost theirs) becomes zeros
    and passes no gradient. NaN and infinity give NaN.

    The result stays in float32 for 16-bit inputs. Rounding its elements to 16 bits would move the logits by up to
    2^-9 / temperature, and gradients that are small beside 1 would underflow in float16 before the division by the
    norm. Products in 16 bits are what autocast is for.

    Args:
        name: of the argument, for messages.
        x: float32, bfloat16, float16 or float64, D >= 1.
    """
    checks.floating(name, x)
    if x.dim() < 1 or x.shape[-1] < 1:
        raise ValueError(f"{name} must have at least one feature, got shape {tuple(x.shape)}")
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    # A constant for the gradient: u does not depend on what x is divided by first.
    largest = x.detach().abs().amax(-1, keepdim=True)
    largest = torch.where(largest < torch.finfo(x.dtype).tiny, torch.inf, largest)
    x = x / largest
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=_SHORTER_THAN_ANY)
