"""Routing logits that have no softmax, and who looks for them."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from cpl_kernels import checks


def looked_at_by(backend: ModuleType) -> bool:
    """Whether this backend looks at the values itself, in the pass that it makes anyway, and calls ``check``."""
    return getattr(backend, "LOOKS_AT_VALUES", False)


def check(logits: Tensor) -> None:
    """Every row must have a softmax: neither NaN nor +inf in it, and not -inf throughout.

    Raises:
        NonFiniteError: a row has none; its number and largest entry are named.
    """
    if not checks.values_visible(logits) or logits.shape[0] == 0:
        return
    highest = logits.amax(dim=1)  # [B]; NaN wins, so it shows
    finite = torch.isfinite(highest)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise checks.NonFiniteError(
            f"logits has no softmax in row {row}: its largest entry is {float(highest[row])}; "
            "look for a non-finite value in the router's input or weights"
        )
