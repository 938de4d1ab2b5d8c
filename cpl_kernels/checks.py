"""Input checks shared by the public functions. Every message names the value and the remedy."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable

import torch
from torch import Tensor


class NonFiniteError(ValueError):
    """A NaN or infinity where an op has no result for it; the message names the place."""


FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


_tracing_state = torch._C._get_tracing_state  # found once: it is asked several times in every call


def tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def floating(name: str, value: Tensor) -> None:
    tensor(name, value)
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {value.dtype}")


def sizes(x: Tensor) -> torch.Size:
    """The shape of x, for checks and choices; what is computed takes its sizes from ``x.shape``.

    Under torch.jit.trace the entries of ``x.shape`` are tensors, which the trace records. These are plain numbers,
    which it does not see: a check of them leaves nothing behind, and no warning.
    """
    state = _tracing_state()
    if state is None:
        return x.shape
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        return x.shape
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def traced_sizes(values: Iterable[object]) -> bool:
    """Whether these are sizes as torch.jit.trace records them: tensors of one integer, where others are ints."""
    return _tracing_state() is not None and all(
        isinstance(n, int) or (isinstance(n, Tensor) and n.dim() == 0 and n.dtype == torch.int64)
        for n in values
    )


def rank(name: str, value: Tensor, layout: str) -> None:
    """``layout`` is the shape as the docs write it, for example ``[B, C, H, W]``."""
    wanted = layout.count(",") + 1
    if value.dim() != wanted:
        raise ValueError(f"{name} must be {layout}, got shape {tuple(sizes(value))}")


def shape(name: str, value: Tensor, wanted: tuple[int, ...], meaning: str) -> None:
    if sizes(value) != wanted:  # torch.Size is a tuple
        raise ValueError(f"{name} must be {meaning} = {tuple(wanted)}, got {tuple(sizes(value))}")


def same_device(**tensors: Tensor | None) -> None:
    """All given tensors must live on the first one's device."""
    first_name, first = next(iter(tensors.items()))
    for name, value in tensors.items():
        if value is not None and first is not None and value.device != first.device:
            raise ValueError(
                f"{name} is on {value.device} but {first_name} is on {first.device}; move them to one device"
            )


def same_dtype(**tensors: Tensor | None) -> None:
    """All given tensors must have the first one's dtype."""
    first_name, first = next(iter(tensors.items()))
    for name, value in tensors.items():
        if value is not None and first is not None and value.dtype != first.dtype:
            raise TypeError(f"{name} is {value.dtype} but {first_name} is {first.dtype}; cast one of them")


def positive(name: str, value: object) -> None:
    """A finite Python number above 0."""
    _python_number(name, value)
    if not 0 < value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name} must be a positive finite number, got {value}. Give one above 0.")


def at_least(name: str, value: object, least: float, *, strict: bool = False) -> None:
    """A finite Python number that is at least ``least``, or with ``strict`` greater."""
    _python_number(name, value)
    if not (least <= value < math.inf) or (strict and value == least):  # type: ignore[operator]
        wanted = f"finite and {'greater than' if strict else 'at least'} {least}"
        raise ValueError(f"{name} must be {wanted}, got {value}. Give another number.")


def int64(name: str, value: object) -> None:
    """A Python integer that int64 holds."""
    if isinstance(value, bool) or not isinstance(value, (int, numbers.Integral)):  # Integral: NumPy's
        raise TypeError(f"{name} must be an integer, got {value!r}. Give a Python int.")
    if not -(2**63) <= value < 2**63:  # type: ignore[operator]
        raise ValueError(f"{name} must fit into int64, got {value}. Give a smaller number.")


def _python_number(name: str, value: object) -> None:
    """No ``math.isfinite`` here or above: under torch.compile a number that changes between calls is a symbol."""
    if isinstance(value, bool) or not isinstance(value, (int, float, numbers.Real)):  # Real: NumPy's
        raise TypeError(f"{name} must be a number, got {value!r}. Give a Python int or float.")


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def values_visible(value: Tensor) -> bool:
    """Whether values may be looked at: on CPU always, on CUDA only with CPL_CHECK=1 (it syncs)."""
    return value.device.type == "cpu" or switched_on("CPL_CHECK")


def switched_on(variable: str) -> bool:
    """Whether this environment variable is set and none of 0, false, no; setup.py reads its own so too."""
    return os.environ.get(variable, "").lower() not in ("", "0", "false", "no")
