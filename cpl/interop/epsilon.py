"""What a norm adds to the variance, measured from what it computes.

An attribute may say so and a constant in the code may say otherwise, and some choose by dtype. So it is measured: with
b the output for an input of zeros, the ratio of f(s x) - b and f(S x) - b is sqrt(v / (v + eps)), where v = s^2 var(x)
and S is so large that eps does not count there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cpl.interop.strangers import forked, stranger

# s and S for each dtype, and how exact the ratio is. In fp16 squares below 6e-8 are lost.
_SCALES = {
    torch.float64: (1e-6, 1e6, 1e-9),
    torch.float32: (1e-6, 1e3, 1e-4),
    torch.bfloat16: (1e-6, 1e3, 4e-2),
    torch.float16: (4e-3, 1e1, 1e-2),
}
_PIXELS = 16


class ByDtype(dict[torch.dtype, float]):
    """A number for each dtype of the image."""


Epsilon = float | ByDtype


def of_dtype(eps: Epsilon, dtype: torch.dtype) -> float:
    return eps[dtype] if isinstance(eps, ByDtype) else eps


def measured(norm: nn.Module, channels: int, said: float) -> Epsilon:
    """eps of a norm over channels, ``said`` where it is that or where nothing can be measured."""
    found = {dtype: _measure(norm, channels, dtype) for dtype in _SCALES}
    exact = next((eps for eps, _ in (found[torch.float64], found[torch.float32]) if eps is not None), said)
    first = _rounded(exact, said, 1e-7)
    by_dtype = {dtype: _settled(first, *found[dtype]) for dtype in found}
    return first if set(by_dtype.values()) == {first} else ByDtype(by_dtype)


def _settled(first: float, eps: float | None, doubt: float) -> float:
    """``first`` where ``eps`` may be that, but for a rounding to float32, else eps to as many digits as are certain."""
    if eps is None or abs(eps - first) <= max(doubt, 1e-7 * first):
        return first
    return _rounded(eps, first, doubt / eps) if eps else eps


def _rounded(eps: float, said: float, doubt: float) -> float:
    """The number that somebody wrote: ``said``, or one with few digits, where the measurement allows it."""
    for number in (said, *(float(f"{eps:.{digits}e}") for digits in range(3))):
        if abs(number - eps) <= doubt * abs(eps):
            return number
    return eps


def _measure(norm: nn.Module, channels: int, dtype: torch.dtype) -> tuple[float | None, float]:
    """eps and how far it may be off; None where nothing sensible comes out."""
    small, large, exact = _SCALES[dtype]
    try:
        ratio, variance = _ratio(norm, channels, dtype, small, large)
    except Exception:
        return None, 0.0  # it cannot run so, and whether that matters the comparison says
    eps = variance * (1 / ratio**2 - 1) if ratio > 0 else float("nan")
    doubt = exact * (variance + abs(eps))
    if not 0 <= eps + doubt < float("inf"):
        return None, 0.0
    return (0.0 if eps <= doubt else eps), doubt


def _ratio(
    norm: nn.Module, channels: int, dtype: torch.dtype, small: float, large: float
) -> tuple[float, float]:
    made = stranger(norm, dtype).eval()
    with torch.no_grad():
        for (
            name,
            p,
        ) in made.named_parameters():  # a weight of 0, or a large bias, would leave nothing to measure
            p.fill_(0.0 if name.rpartition(".")[2] in ("bias", "b", "beta") else 1.0)
    first = next(made.parameters(), torch.zeros(()))
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, 1, _PIXELS, generator=numbers, dtype=torch.float64)
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, correction=0)
    with torch.no_grad(), forked(first.device):
        near, far, none = (made((s * x).to(first.device, dtype)).double().cpu() for s in (small, large, 0.0))
    ratios = (near - none).norm(dim=1) / (far - none).norm(dim=1)
    return float(ratios.median()), float(_variance(small * x, dtype))


def _variance(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).double().var(1, correction=0).mean()


def for_dtype(options: Mapping[str, object], dtype: torch.dtype) -> dict[str, object]:
    """``options`` as they are for an image in ``dtype``."""
    return {name: value[dtype] if isinstance(value, ByDtype) else value for name, value in options.items()}
